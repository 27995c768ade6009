//! Reconciliation with the gateway: comparing the gateway's listing with the database reveals missing and contradictory
//! charges and refunds, and settles payments and refunds in progress.
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use dev::{
    example::gateway::{
        Charge, ChargeStatus, Faults, Malformation, Refund, RefundStatus as GatewayRefundStatus,
    },
    harness::{Builder, Service, eventually, within},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::recovery::{no_webhooks, outage};
use crate::{builder, operations::alerts::Pager};

/// Returns the builder of a service that compares the records of the newest minutes every second.
fn reconciling() -> Builder {
    builder().setting("PAYMENT_RECONCILIATION_INTERVAL_SECONDS", "1")
}

async fn start_reconciling() -> Service {
    let service = reconciling().start().await;
    service.disable_webhooks();
    service
}

fn charge_of(reference: Uuid, id: &str) -> Charge {
    Charge {
        id: id.to_owned(),
        reference,
        status: ChargeStatus::Succeeded,
        decline_code: None,
        amount: 2580,
        currency: "EUR".to_owned(),
    }
}

/// Returns the kind (`what`), the id of the record and the gateway's report of each discrepancy, oldest first.
async fn discrepancies(service: &Service) -> Vec<(String, Option<Uuid>, String)> {
    let rows = service
        .database()
        .rows("select what, record_id, gateway_says from discrepancies order by recorded_at, id")
        .await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let id = |value: &Value| value.as_str().and_then(|id| id.parse().ok());
    rows.iter().map(|row| (text(&row["what"]), id(&row["record_id"]), text(&row["gateway_says"]))).collect()
}

async fn assert_nothing_recorded(service: &Service) {
    let discrepancies = discrepancies(service).await;
    assert!(discrepancies.is_empty(), "{discrepancies:?}");
}

/// Waits until the expected discrepancies are recorded. Then waits for two more runs, which must not record them again.
async fn wait_until_recorded_once(service: &Service, expected: &[(&str, Uuid)]) {
    within(Duration::from_mins(1), "the discrepancies are recorded", async || {
        (discrepancies(service).await.len() >= expected.len()).then_some(())
    })
    .await;
    wait_for_two_runs(service).await;
    let found: Vec<_> = discrepancies(service).await.into_iter().map(|(what, id, _)| (what, id)).collect();
    let mut found: Vec<_> = found.iter().map(|(what, id)| (what.as_str(), id.unwrap())).collect();
    let mut expected = expected.to_vec();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    let audited = service.audit_events("action = 'discrepancy'").await;
    assert_eq!(audited.len(), expected.len());
}

/// Waits until two more runs over the newest minutes are complete. Only the second run certainly began after this call.
async fn wait_for_two_runs(service: &Service) {
    for _ in 0..2 {
        let before = completed(service, "recent").await;
        within(Duration::from_mins(1), "another run is complete", async || {
            (completed(service, "recent").await > before).then_some(())
        })
        .await;
    }
}

/// Returns the time at which the latest complete run of a scope (`recent` or `window`) began, in microseconds since
/// 1970, or 0 if no run is complete.
async fn completed(service: &Service, scope: &str) -> i64 {
    let query = format!(
        "select coalesce(extract(epoch from completed_through) * 1000000, 0)::bigint from reconciliations where scope = '{scope}'"
    );
    service.database().number(query).await
}

/// Makes a run over the window of 48 hours due, and waits until this run is complete.
async fn compare_window(service: &Service) {
    let before = completed(service, "window").await;
    service.database().execute("update reconciliations set due_at = now() where scope = 'window'").await;
    within(Duration::from_mins(1), "the window is compared", async || {
        (completed(service, "window").await > before).then_some(())
    })
    .await;
}

/// Waits until the first run over the window is complete. In a new database, this run is due as soon as the service
/// starts.
async fn wait_for_first_window(service: &Service) {
    within(Duration::from_mins(1), "the first window is compared", async || {
        (completed(service, "window").await > 0).then_some(())
    })
    .await;
}

async fn count_of_kind(service: &Service, kind: &str) -> i64 {
    service.metric(&format!("reconciliation_discrepancies_total{{kind=\"{kind}\"}}")).await
}

#[tokio::test]
async fn a_charge_whose_payment_was_lost_in_a_restore_is_found() {
    let pager = Pager::start().await;
    let mut service = reconciling().setting("ALERT_WEBHOOK_URL", &pager.url).start().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    service.terminate().await;
    service.database().back_up().await;
    service.restart().await;
    let payment = order.pay_successfully().await;
    let charge = service.charges_for(payment).await.remove(0);
    service.terminate().await;
    service.database().restore().await;
    service.restart().await;

    wait_until_recorded_once(&service, &[("unknown reference", charge.reference)]).await;
    assert_eq!(discrepancies(&service).await[0].2, charge.id);
    assert_eq!(count_of_kind(&service, "orphan").await, 1);
    let alert = eventually("the alert arrives", async || pager.all("unknown reference").pop()).await;
    assert_eq!(alert["metadata"]["id"], json!(charge.reference));
    eventually("the gauge counts the discrepancy", async || {
        (service.metric("payment_discrepancies_open").await == 1).then_some(())
    })
    .await;
    assert_eq!(order.status().await, "pending_payment", "reconciliation must settle nothing");
    assert_eq!(service.gateway().ledger().refunds.len(), 0, "reconciliation must refund nothing");
}

#[tokio::test]
async fn a_gateway_refund_without_a_refund_row_is_found() {
    let service = start_reconciling().await;
    let payment = service.customer().await.places_an_order().await.pay_successfully().await;
    let charge = service.charges_for(payment).await.remove(0);
    let reference = Uuid::now_v7();
    let refund = Refund {
        id: "re_unknown".to_owned(),
        reference,
        charge_id: charge.id,
        status: GatewayRefundStatus::Succeeded,
        amount: 100,
    };
    service.gateway().record_refund(refund).unwrap();
    wait_until_recorded_once(&service, &[("unknown reference", reference)]).await;
    assert_eq!(count_of_kind(&service, "orphan").await, 1);
}

#[tokio::test]
async fn a_second_charge_another_amount_and_another_result_are_found() {
    let service = start_reconciling().await;
    let customer = service.customer().await;
    let pays = async |card: &str| {
        let payment = customer.places_an_order().await.pay(card).await.assert_status(201).id();
        (payment, service.charges_for(payment).await.remove(0))
    };
    let (twice, charge) = pays("pm_card_ok").await;
    service.gateway().record(Charge { id: "ch_second".to_owned(), ..charge }).unwrap();
    let (larger, charge) = pays("pm_card_ok").await;
    service.gateway().record(Charge { id: "ch_more".to_owned(), amount: 2581, ..charge }).unwrap();
    let (declined, charge) = pays("pm_card_declined").await;
    let succeeded = Charge { status: ChargeStatus::Succeeded, decline_code: None, ..charge };
    service.gateway().record(Charge { id: "ch_contradicts".to_owned(), ..succeeded }).unwrap();

    let expected = [("second charge", twice), ("amount", larger), ("contradiction", declined)];
    wait_until_recorded_once(&service, &expected).await;
    for kind in ["duplicate", "mismatch", "contradiction"] {
        assert_eq!(count_of_kind(&service, kind).await, 1, "{kind}");
    }
}

#[tokio::test]
async fn a_second_refund_and_a_refund_of_another_amount_are_found() {
    let service = start_reconciling().await;
    let payment = service.customer().await.places_an_order().await.pay_successfully().await;
    let support = service.support().await;
    let refund = support.refund(payment, Some(500)).await.assert_status(201).id();
    let gateway_refund = service.gateway().ledger().refunds.remove(0);
    service.gateway().record_refund(Refund { id: "re_second".to_owned(), ..gateway_refund.clone() }).unwrap();
    service
        .gateway()
        .record_refund(Refund { id: "re_more".to_owned(), amount: 501, ..gateway_refund })
        .unwrap();
    wait_until_recorded_once(&service, &[("second refund", refund), ("amount", refund)]).await;
}

/// Returns this `UUIDv7` with a timestamp that is eleven minutes earlier.
fn eleven_minutes_older(id: Uuid) -> Uuid {
    Uuid::from_u128(id.as_u128() - ((11 * 60 * 1000) << 80))
}

/// Replaces the ids of a payment and of its refund by ids that are eleven minutes older, and clears `listed_at` of
/// both. Reconciliation reports a record as missing at the gateway only if it is older than ten minutes and was not
/// listed yet. Returns the new ids.
async fn backdate_records(service: &Service, payment: Uuid, refund: Uuid) -> (Uuid, Uuid) {
    let (aged, aged_refund) = (eleven_minutes_older(payment), eleven_minutes_older(refund));
    // The setting disables the foreign keys, which the statements violate until the last row is changed.
    let statements = format!(
        "set session_replication_role = replica;
         update orders set live_payment_id = '{aged}' where live_payment_id = '{payment}';
         update payments set id = '{aged}', listed_at = null where id = '{payment}';
         update refunds set id = '{aged_refund}', payment_id = '{aged}', listed_at = null where id = '{refund}';"
    );
    service.database().execute_as_administrator(&statements).await;
    (aged, aged_refund)
}

#[tokio::test]
async fn a_payment_or_refund_that_the_gateway_does_not_have_is_found() {
    let service = start_reconciling().await;
    wait_for_first_window(&service).await;
    let payment = service.customer().await.places_an_order().await.pay_successfully().await;
    let refund = service.support().await.refund(payment, Some(500)).await.assert_status(201).id();
    let (charge, gateway_refund) = (service.gateway_key(payment).await, service.gateway_key(refund).await);
    // The new keys are unknown to the gateway, and the gateway's charge and refund are unknown to the database.
    let lose = |table: &str, id: Uuid| {
        format!("update {table} set listed_at = null, gateway_key = gen_random_uuid() where id = '{id}'")
    };
    service.database().execute(lose("payments", payment)).await;
    service.database().execute(lose("refunds", refund)).await;
    compare_window(&service).await;
    let orphans = [("unknown reference", charge), ("unknown reference", gateway_refund)];
    wait_until_recorded_once(&service, &orphans).await;

    let (payment, refund) = backdate_records(&service, payment, refund).await;
    compare_window(&service).await;
    let missing = [("payment without charge", payment), ("refund without gateway refund", refund)];
    wait_until_recorded_once(&service, &[orphans, missing].concat()).await;
    assert_eq!(count_of_kind(&service, "missing").await, 2);
    compare_window(&service).await;
    assert_eq!(discrepancies(&service).await.len(), 4);
}

#[tokio::test]
async fn a_charge_missing_in_the_listing_is_no_discrepancy() {
    let service = start_reconciling().await;
    wait_for_first_window(&service).await;
    service.gateway().faults().set(Faults { list_omit_rate: 1.0, ..no_webhooks() });
    let payment = service.customer().await.places_an_order().await.pay_successfully().await;
    let refund = service.support().await.refund(payment, Some(500)).await.assert_status(201).id();
    backdate_records(&service, payment, refund).await;
    compare_window(&service).await;
    assert_nothing_recorded(&service).await;
    let unlisted = "select (select count(*) from payments where listed_at is null)
                         + (select count(*) from refunds where listed_at is null)";
    assert_eq!(service.database().number(unlisted).await, 0, "the gateway was not polled for both records");
}

#[tokio::test]
async fn an_unreliable_listing_gives_no_missed_or_false_discrepancy() {
    let service = start_reconciling().await;
    service.gateway().faults().set(Faults {
        list_omit_rate: 0.3,
        list_lost_page_rate: 0.3,
        list_repeat_rate: 0.5,
        list_reorder_rate: 0.5,
        list_delay_ms: 2000,
        seed: 7,
        ..no_webhooks()
    });
    let customer = service.customer().await;
    let support = service.support().await;
    for card in ["pm_card_ok", "pm_card_declined", "pm_card_ok"] {
        let paid = customer.places_an_order().await.pay(card).await.assert_status(201);
        if paid.text("status") == "succeeded" {
            let _refunded = support.refund(paid.id(), Some(100)).await.assert_status(201);
        }
    }
    for _ in 0..3 {
        wait_for_two_runs(&service).await;
    }
    compare_window(&service).await;
    assert_nothing_recorded(&service).await;

    let orphans = [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()];
    for orphan in orphans {
        service.gateway().record(charge_of(orphan, &format!("ch_{}", orphan.simple()))).unwrap();
    }
    wait_until_recorded_once(&service, &orphans.map(|orphan| ("unknown reference", orphan))).await;
}

#[tokio::test]
async fn the_window_finds_records_older_than_the_newest_minutes() {
    let service = start_reconciling().await;
    wait_for_first_window(&service).await;
    let orphan = Uuid::now_v7();
    for hours in [1, 49] {
        let charge = charge_of(if hours == 1 { orphan } else { Uuid::now_v7() }, &format!("ch_{hours}"));
        service.gateway().record_at(Utc::now() - TimeDelta::hours(hours), charge).unwrap();
    }
    wait_for_two_runs(&service).await;
    assert_nothing_recorded(&service).await;
    compare_window(&service).await;
    wait_until_recorded_once(&service, &[("unknown reference", orphan)]).await;
}

#[tokio::test]
async fn an_unreadable_record_is_found_and_hides_no_other() {
    let service = start_reconciling().await;
    let payment = service.customer().await.places_an_order().await.pay_successfully().await;
    service.gateway().faults().set(Faults {
        malformation_rate: 1.0,
        malformation: Malformation::Record,
        ..no_webhooks()
    });
    wait_until_recorded_once(&service, &[("unreadable charge", payment)]).await;
    assert_eq!(count_of_kind(&service, "unreadable").await, 1);
    assert!(completed(&service, "recent").await > 0);
}

#[tokio::test]
async fn reconciliation_settles_payments_and_refunds_in_progress() {
    let service = reconciling().setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600").start().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay("pm_card_timeout").await.assert_status(202).id();
    let backdate_first_send = |table: &str, id: Uuid| {
        format!("update {table} set first_sent_at = now() - interval '1 minute' where id = '{id}'")
    };
    service.database().execute(backdate_first_send("payments", payment)).await;
    order.wait_until("paid").await;
    assert_eq!(service.count_requests_for(payment).await, 1);

    let support = service.support().await;
    service.gateway().faults().set(Faults { cut_rate: 1.0, ..no_webhooks() });
    let refund = support.refund(payment, Some(500)).await.assert_status(202).id();
    service.gateway().faults().set(no_webhooks());
    service.database().execute(backdate_first_send("refunds", refund)).await;
    order.wait_until("partially_refunded").await;
    assert_nothing_recorded(&service).await;
    service.invariants_hold().await;
}

#[tokio::test]
async fn reconciliation_settles_no_payment_with_two_charges() {
    let service = reconciling().setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600").start().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay("pm_card_timeout").await.assert_status(202).id();
    let charge = service.charges_for(payment).await.remove(0);
    service.gateway().record(Charge { id: "ch_second".to_owned(), ..charge }).unwrap();
    let backdate_first_send =
        format!("update payments set first_sent_at = now() - interval '1 minute' where id = '{payment}'");
    service.database().execute(backdate_first_send).await;
    wait_until_recorded_once(&service, &[("several charges", payment)]).await;
    assert_eq!(order.status().await, "pending_payment");
}

/// Returns the times at which the gateway's charges were listed.
fn listings(service: &Service) -> Vec<chrono::DateTime<Utc>> {
    let requests = service.gateway().requests();
    let listings = requests.iter().filter(|request| request.path.starts_with("/v1/charges?created_after"));
    listings.map(|request| request.at).collect()
}

#[tokio::test]
async fn one_replica_reads_the_listing_and_another_takes_over() {
    let one = start_reconciling().await;
    let two = one.replica().await;
    wait_for_first_window(&two).await;
    let before = listings(&one).len();
    within(Duration::from_mins(1), "ten runs have begun", async || {
        (listings(&one).len() >= before + 10).then_some(())
    })
    .await;
    let times = listings(&one).split_off(before);
    let seconds = (times[9] - times[0]).num_seconds();
    assert!(seconds >= 7, "ten runs began within {seconds} s, although one is due every second");

    one.kill_9().await;
    let orphan = Uuid::now_v7();
    one.gateway().record(charge_of(orphan, "ch_orphan")).unwrap();
    wait_until_recorded_once(&two, &[("unknown reference", orphan)]).await;
}

#[tokio::test]
async fn every_page_of_the_listing_is_compared() {
    let service = start_reconciling().await;
    // A page has at most 100 charges.
    for number in 0..101 {
        service.gateway().record(charge_of(Uuid::now_v7(), &format!("ch_{number}"))).unwrap();
    }
    within(Duration::from_mins(1), "each charge is recorded as a discrepancy", async || {
        (discrepancies(&service).await.len() == 101).then_some(())
    })
    .await;
}

#[tokio::test]
async fn while_the_gateway_is_down_no_run_completes() {
    let service = start_reconciling().await;
    wait_for_two_runs(&service).await;
    service.gateway().faults().set(outage());
    let attempts = async |count: usize| {
        let before = listings(&service).len();
        within(Duration::from_mins(1), "the listing is retried", async || {
            (listings(&service).len() >= before + count).then_some(())
        })
        .await;
    };
    attempts(2).await;
    let completed_at = completed(&service, "recent").await;
    attempts(2).await;
    assert_eq!(completed(&service, "recent").await, completed_at);
    let exported = service.gauge("reconciliation_last_success_timestamp_seconds{scope=\"recent\"}").await;
    let expected = TimeDelta::microseconds(completed_at).as_seconds_f64();
    assert!((exported - expected).abs() < 0.01, "{exported} {expected}");
    let orphan = Uuid::now_v7();
    service.gateway().record(charge_of(orphan, "ch_orphan")).unwrap();
    attempts(1).await;
    assert_nothing_recorded(&service).await;

    service.gateway().faults().set(no_webhooks());
    wait_until_recorded_once(&service, &[("unknown reference", orphan)]).await;
}

#[tokio::test]
async fn the_command_repeats_a_page_that_the_gateway_failed_to_list() {
    let service = builder().setting("PAYMENT_RECONCILIATION_INTERVAL_SECONDS", "600").start().await;
    wait_for_first_window(&service).await;
    service.gateway().faults().set(outage());
    let before = listings(&service).len();
    let (compared, ()) =
        tokio::join!(service.command(&["payments", "reconcile", "--since", "1h"], &[]), async {
            eventually("the gateway fails to list a page", async || {
                (listings(&service).len() > before).then_some(())
            })
            .await;
            service.gateway().faults().set(no_webhooks());
        });
    compared.succeeded();
}

#[tokio::test]
async fn the_command_prints_each_difference_until_it_is_closed() {
    let service = builder().start().await;
    service.disable_webhooks();
    wait_for_first_window(&service).await;
    service.customer().await.places_an_order().await.pay_successfully().await;
    let reconcile = ["payments", "reconcile", "--since", "1h"];
    let printed = service.command(&reconcile, &[]).await.succeeded();
    assert!(
        printed.contains("compared 1 charges and 0 refunds") && printed.contains("0 differences open"),
        "{printed}"
    );

    let (orphan, old) = (Uuid::now_v7(), Uuid::now_v7());
    service.gateway().record(charge_of(orphan, "ch_orphan")).unwrap();
    service.gateway().record_at(Utc::now() - TimeDelta::hours(2), charge_of(old, "ch_old")).unwrap();
    for state in ["recorded now", "recorded before"] {
        let found = service.command(&reconcile, &[]).await;
        assert_eq!(found.code(), Some(1), "{}", found.stderr);
        let line = found.stdout.lines().find(|line| line.contains(&orphan.to_string())).unwrap();
        assert!(line.contains("unknown reference") && line.contains(state), "{line}");
        assert!(!found.stdout.contains(&old.to_string()), "{}", found.stdout);
        assert!(found.stderr.contains("1 difference with the gateway is open"), "{}", found.stderr);
    }
    assert_eq!(discrepancies(&service).await.len(), 1);

    let listed = service.command(&["payments", "discrepancy", "list"], &[]).await.succeeded();
    let id = listed.split_whitespace().next().unwrap();
    let close = ["payments", "discrepancy", "close", id, "--reason", "refunded at the gateway"];
    service.command(&close, &[]).await.succeeded();
    let closed = service.command(&reconcile, &[]).await.succeeded();
    assert!(closed.contains("(closed)") && closed.contains("0 differences open, 1 closed"), "{closed}");

    let since = ["payments", "reconcile", "--since", "yesterday"];
    assert_eq!(service.command(&since, &[]).await.code(), Some(2));
    let down = service.command(&reconcile, &[("GATEWAY_URL", "http://127.0.0.1:1")]).await;
    assert_eq!(down.code(), Some(1));
    assert!(down.stderr.contains("the comparison is incomplete"), "{}", down.stderr);
}
