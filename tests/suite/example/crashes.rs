//! The process crashes at each crash point of payments and refunds. A crash point is a place in the code where a test
//! can end the process (`platform::resilience::crash`). No payment or refund is lost or repeated. A release build has
//! no crash points.
use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitStatus},
};

use dev::{
    example::campaign::faults::CRASH_POINTS,
    example::gateway::Faults,
    harness::{HttpResponse, Order, Request, Service, eventually},
};

use super::payments::charges;
use crate::builder;

/// Starts a service that crashes at this crash point.
async fn service_that_crashes_at(point: &str) -> Service {
    builder().setting("CRASH_AT", point).start().await
}

/// Waits for the crash, and restarts the process. Then repeats the request, as a client without a response does, until
/// the response has the outcome.
async fn retry_after_restart(service: &mut Service, retry: Request) -> HttpResponse {
    let ended = service.wait_for_exit().await;
    assert!(ended.signal().is_some(), "a signal ended the process: {ended}");
    service.restart_without("CRASH_AT").await;
    eventually("the retry has the outcome", async || {
        let response = retry.clone().await;
        // If the crashed process has stored the payment or refund, the status is 409 until the lease of that process
        // expires. The status is then 202 until recovery has settled the payment or refund.
        match response.status {
            201 => Some(response),
            202 | 409 => None,
            _ => panic!("{response}"),
        }
    })
    .await
}

/// Checks that the start and the settlement of a payment or refund have one audit event each.
async fn assert_one_event_each(service: &Service, resource: &str) {
    for action in ["create", "settle"] {
        let condition = format!("resource = '{resource}' and action = '{action}' and result = 'success'");
        assert_eq!(service.audit_events(&condition).await.len(), 1, "{resource} {action}");
    }
}

async fn test_payment_crash(point: &str, card: &str, webhooks: bool) {
    let mut service = service_that_crashes_at(point).await;
    if !webhooks {
        service.disable_webhooks();
    }
    let order = service.customer().await.places_an_order().await;
    let attempt = order.pay(card).in_background();
    retry_until_paid(&mut service, &order, attempt.again()).await;
}

/// Tests a crash at this point. The gateway fails during the request, so recovery finds no charge at the gateway and
/// sends the charge again.
async fn test_unsent_payment_crash(point: &str) {
    let mut service = service_that_crashes_at(point).await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let request = order.pay("pm_card_ok");
    let normal = service.gateway().faults().get();
    service.gateway().faults().set(Faults { error_rate: 1.0, ..normal.clone() });
    let _processing = request.clone().await.assert_status(202);
    service.gateway().faults().set(normal);
    retry_until_paid(&mut service, &order, request).await;
}

async fn retry_until_paid(service: &mut Service, order: &Order, retry: Request) {
    let paid = retry_after_restart(service, retry).await;
    assert_eq!(paid.text("status"), "succeeded");
    order.wait_until("paid").await;
    assert_eq!(charges(service, paid.id()).await, 1, "the payment must be charged once");
    assert_one_event_each(service, "payments").await;
    service.invariants_hold().await;
}

async fn test_refund_crash(point: &str) {
    let mut service = service_that_crashes_at(point).await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay_successfully().await;
    let attempt = service.support().await.refund(payment, None).in_background();
    let refunded = retry_after_restart(&mut service, attempt.again()).await;
    assert_eq!(refunded.text("status"), "succeeded");
    order.wait_until("refunded").await;
    assert_eq!(service.gateway().ledger().refunds.len(), 1, "the payment must be refunded once");
    assert_one_event_each(&service, "refunds").await;
    service.invariants_hold().await;
}

/// Declares a test for each crash point of the table, and the constant `POINTS` with the names of all crash points of
/// the table.
macro_rules! table {
    ($($test:ident: $point:literal => $test_body:expr;)*) => {
        const POINTS: &[&str] = &[$($point),*];

        $(
            #[tokio::test]
            async fn $test() {
                $test_body.await;
            }
        )*
    };
}

table! {
    before_a_payment_begins: "payment.beginning" => test_payment_crash("payment.beginning", "pm_card_ok", false);
    after_a_payment_has_begun: "payment.begun" => test_payment_crash("payment.begun", "pm_card_ok", false);
    after_the_response_to_a_charge: "payment.responded" => test_payment_crash("payment.responded", "pm_card_ok", false);
    before_a_settlement_commits: "payment.settling" => test_payment_crash("payment.settling", "pm_card_ok", false);
    after_a_settlement_has_committed: "payment.settled" => test_payment_crash("payment.settled", "pm_card_ok", false);
    after_recovery_has_taken_a_lease: "recovery.leased" => test_payment_crash("recovery.leased", "pm_card_timeout", false);
    after_the_response_to_recovery: "recovery.responded" => test_payment_crash("recovery.responded", "pm_card_timeout", false);
    before_recovery_resends_a_charge: "recovery.sending" => test_unsent_payment_crash("recovery.sending");
    after_a_webhook_is_claimed: "webhook.claimed" => test_payment_crash("webhook.claimed", "pm_card_timeout", true);
    before_a_webhook_commits: "webhook.applied" => test_payment_crash("webhook.applied", "pm_card_timeout", true);
    after_a_webhook_has_committed: "webhook.received" => test_payment_crash("webhook.received", "pm_card_timeout", true);
    before_a_refund_begins: "refund.beginning" => test_refund_crash("refund.beginning");
    after_a_refund_has_begun: "refund.begun" => test_refund_crash("refund.begun");
    after_the_response_to_a_refund: "refund.responded" => test_refund_crash("refund.responded");
    before_a_refunds_settlement_commits: "refund.settling" => test_refund_crash("refund.settling");
    after_a_refunds_settlement_has_committed: "refund.settled" => test_refund_crash("refund.settled");
}

#[test]
fn the_table_has_every_crash_point_of_the_sources() {
    let mut crash_points = BTreeSet::new();
    let sources = crate::docs::structure::sources();
    for (_, source) in sources.iter().filter(|(path, _)| path.starts_with("src/slices/")) {
        let calls = source.split("crash::point(\"").skip(1);
        crash_points.extend(calls.filter_map(|call| call.split('"').next().map(ToOwned::to_owned)));
    }
    let table: BTreeSet<_> = POINTS.iter().map(|point| (*point).to_owned()).collect();
    assert_eq!(table, crash_points);
    let selected: BTreeSet<_> = CRASH_POINTS.iter().map(|point| (*point).to_owned()).collect();
    assert_eq!(selected, crash_points, "a campaign must select from all crash points");
}

/// Compiles a program that has only the module of crash points, with or without debug assertions, and runs the program
/// to a crash point. Returns the exit status, and whether the executable contains the name of the variable `CRASH_AT`.
fn reach_crash_point(debug_assertions: &str) -> (ExitStatus, bool) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = directory.join(format!("crash-{debug_assertions}"));
    let source = program.with_extension("rs");
    let module = root.join("platform/src/resilience/crash.rs");
    let text = format!(
        "#[path = \"{}\"]\nmod crash;\nfn main() {{ crash::point(\"payment.begun\") }}\n",
        module.display()
    );
    fs::write(&source, text).unwrap();
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(compiler)
        .args(["--edition=2024", "-Copt-level=1", &format!("-Cdebug-assertions={debug_assertions}"), "-o"])
        .args([&program, &source])
        .status();
    assert!(built.unwrap().success());
    let ended = Command::new(&program).env("CRASH_AT", "payment.begun").status().unwrap();
    let name = b"CRASH_AT";
    (ended, fs::read(&program).unwrap().windows(name.len()).any(|bytes| bytes == name))
}

#[test]
fn a_release_build_has_no_crash_points() {
    let (ended, contains_variable) = reach_crash_point("on");
    assert!(
        ended.signal().is_some() && contains_variable,
        "a debug build must have the crash point: {ended}"
    );
    let (ended, contains_variable) = reach_crash_point("off");
    assert!(ended.success() && !contains_variable, "{ended}");

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["Cargo.toml", ".cargo/config.toml"] {
        let text = fs::read_to_string(root.join(file)).unwrap();
        assert!(!text.contains("debug-assertions = true"), "{file}: a release must have no crash points");
    }
    // The image build searches the executable for the name `CRASH_AT`, and fails if the executable contains this name.
    let image = fs::read_to_string(root.join("Dockerfile")).unwrap();
    assert!(image.contains("RUN ! grep -q CRASH_AT target/release/"));
}
