//! Tests of the console's views with notes.
use dev::{faults::Fault, harness::eventually};

use crate::console::fixture::{ConsoleFixture, get};

#[tokio::test]
async fn each_view_shows_recent_activity() {
    let (fixture, _traffic) = ConsoleFixture::with_traffic(20.0).await;
    let Some(browser) = fixture.open("/").await else { return };
    browser.wait_until_shown("[data-tile=Service]", "ready").await;
    browser.wait_until_shown("[data-tile=Notes]", "created since the service started").await;
    browser.wait_until_shown("[data-chart=created] .legend", "notes").await;
    browser.go("/traces").await;
    browser.wait_until_shown(".row.trace .name", "POST /v1/notes").await;
    browser.go("/faults").await;
    browser.click("[data-fault=slow-database] button").await;
    browser.wait_until_shown("#banner", "Slow database").await;
    assert!(fixture.faults.is_on(Fault::SLOW_DATABASE));
    browser.click("#normal").await;
    browser.wait_until_absent("#banner").await;
    browser.assert_no_errors().await;
}

#[tokio::test]
async fn a_deep_link_opens_the_trace_of_a_note() {
    let fixture = ConsoleFixture::start().await;
    let customer = fixture.service.customer().await;
    let _created = customer.creates().header("x-correlation-id", "the-first").await.assert_status(201);
    let trace = eventually("the trace is received", async || {
        let traces = get(&fixture.console, "/api/traces?correlation_id=the-first").await;
        Some(traces[0]["trace_id"].as_str()?.to_owned())
    })
    .await;
    let Some(browser) = fixture.open(&format!("/traces/{trace}")).await else { return };
    browser.wait_until_shown(".title h1", "201 POST /v1/notes").await;
    browser.wait_until_shown(".waterfall", "INSERT notes").await;
    browser.go("/traces/first").await;
    browser.wait_until_shown(".title code", &trace).await;
    browser.assert_no_errors().await;
}
