//! The test of normal traffic: simulated customers create and read notes, repeat requests and send invalid ones.
use std::time::Duration;

use dev::{
    harness::within,
    traffic::{Settings, Traffic},
};

use crate::service;

#[tokio::test]
async fn normal_traffic_has_no_unexpected_response() {
    let service = service().await;
    let settings = Settings { rate_per_second: 25.0, ..Settings::new(service.api_url().clone()) };
    let traffic = Traffic::start(settings).unwrap();
    within(Duration::from_mins(2), "every kind of request was sent", async || {
        let report = traffic.report();
        let is_complete = report.counts.created >= 20 && report.replays >= 1 && report.rejections >= 3;
        (is_complete || report.unexpected > 0).then_some(())
    })
    .await;
    let report = traffic.stop().await;
    assert_eq!((report.unexpected, report.without_response), (0, 0), "{report}\n{:#?}", report.samples);
    let stored = service.database().number("select count(*) from notes").await;
    assert!(
        u64::try_from(stored).unwrap() >= report.counts.created,
        "only {stored} notes are stored: {report}"
    );
    service.invariants_hold().await;
}
