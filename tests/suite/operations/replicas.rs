//! Several replicas on one database.
use dev::harness::{Balancer, User, eventually};
use tokio::sync::watch;

use crate::{builder, service};

#[tokio::test]
async fn a_session_is_valid_and_ends_at_every_replica() {
    let one = service().await;
    let two = one.replica().await;
    let here = one.customer().await;
    let there = two.user_through(&here);
    let _known = there.get("/v1/me").await.assert_status(200);
    let _logged_out = there.delete("/v1/sessions/current").await.assert_status(204);
    let _ended = here.get("/v1/me").await.assert_status(401);
}

/// Calls `uses_every_customer_route` until `closed` is true. Returns the number of responses of the successful calls,
/// and the text of the responses of each failed call.
async fn send_until_closed(customer: User, mut closed: watch::Receiver<bool>) -> (usize, Vec<String>) {
    let (mut served, mut failed) = (0, Vec::new());
    while !*closed.borrow_and_update() {
        match customer.uses_every_customer_route().await {
            Ok(exchanges) => served += exchanges.len(),
            Err(response) => failed.push(response),
        }
    }
    (served, failed)
}

#[tokio::test]
async fn a_rolling_restart_under_load_fails_no_request() {
    let mut services = vec![builder().setting("SHUTDOWN_GRACE_SECONDS", "3").start().await];
    for _ in 0..2 {
        services.push(services[0].replica().await);
    }
    let customer = services[0].customer().await;
    let balancer = Balancer::start().await;
    for service in &services {
        balancer.add(service);
    }
    let all_ready = async || {
        eventually("all three replicas are ready", async || (balancer.ready() == 3).then_some(())).await;
    };
    all_ready().await;
    let (closed, closing) = watch::channel(false);
    let customers: Vec<_> = (0..6)
        .map(|_| tokio::spawn(send_until_closed(balancer.user_through(&customer), closing.clone())))
        .collect();

    for service in &mut services {
        assert_eq!(service.terminate().await.code(), Some(0));
        service.restart().await;
        balancer.add(service);
        all_ready().await;
    }

    closed.send_replace(true);
    let mut served = 0;
    for customer in customers {
        let (count, failed) = customer.await.unwrap();
        assert_eq!(failed, [""; 0]);
        served += count;
    }
    assert!(served > 100, "too few requests prove nothing: {served}");
    services[0].invariants_hold().await;
}
