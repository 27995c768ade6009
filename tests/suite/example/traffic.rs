//! Normal traffic of a shop: customers who browse, order, pay, repeat requests and send invalid ones.
use std::time::Duration;

use dev::{
    harness::{eventually, within},
    traffic::{Settings, Traffic},
};

use crate::service;

#[tokio::test]
async fn normal_traffic_has_no_unexpected_response_or_violation() {
    let service = service().await;
    let settings = Settings { rate_per_second: 25.0, ..Settings::new(service.api_url().clone()) };
    let traffic = Traffic::start(settings).unwrap();
    within(Duration::from_mins(2), "every kind of request was sent", async || {
        let report = traffic.report();
        let enough = report.counts.orders >= 20
            && report.counts.payments.succeeded >= 5
            && report.counts.payments.declined >= 1
            && report.replays >= 1
            && report.rejections >= 3;
        (enough || report.unexpected > 0).then_some(())
    })
    .await;
    let report = traffic.stop().await;
    assert_eq!((report.unexpected, report.without_response), (0, 0), "{report}\n{:#?}", report.samples);

    let orders = service.database().number("select count(*) from orders").await;
    assert!(u64::try_from(orders).unwrap() >= report.counts.orders, "{orders} orders are stored: {report}");
    eventually("every payment is settled", async || {
        let unsettled = "select count(*) from payments where status = 'processing'";
        (service.database().number(unsettled).await == 0).then_some(())
    })
    .await;
    service.invariants_hold().await;
}
