//! Screenshots of every view, for reviews of the console and for the picture in the README. Every view fits the width
//! of its window.
use std::time::Duration;

use dev::{faults::Fault, harness::within};
use serde_json::json;

use crate::console::fixture::{ConsoleFixture, get};

/// Takes a screenshot of every view at the width of a desktop and of a phone, with the light and the dark theme. Checks
/// that no view is wider than its window.
#[tokio::test]
async fn every_view_fits_a_window_and_a_phone_in_light_and_in_dark() {
    let (fixture, traffic) = ConsoleFixture::with_traffic(25.0).await;
    let Some(browser) = fixture.open("/now").await else { return };
    wait_for_points(&fixture, 60).await;
    fixture.faults.set(Fault::named("gateway-outage").unwrap(), true).await.unwrap();
    browser.wait_until_shown("[data-tile=Breaker]", "open").await;
    wait_for_points(&fixture, 85).await;
    fixture.faults.clear().await.unwrap();
    browser.wait_until_shown("[data-tile=Breaker]", "closed").await;
    wait_for_points(&fixture, 120).await;
    // The console stores a limited number of traces. On a slow machine, traces of the traffic would displace the trace
    // of the next payment.
    if let Some(traffic) = traffic {
        traffic.stop().await;
    }
    fixture.paid_order("a-checkout").await;
    let trace = fixture.wait_for_payment_trace("a-checkout").await;

    let views = [
        ("now", "/now?minutes=2".to_owned(), ".chart"),
        ("traces", "/traces".to_owned(), ".row.trace"),
        ("trace", format!("/traces/{trace}"), ".span"),
        ("logs", "/logs?level=INFO".to_owned(), ".line"),
        ("alerts", "/alerts".to_owned(), ".rule"),
        ("faults", "/faults".to_owned(), "#reconciliation"),
        ("audit", "/audit".to_owned(), ".seals li"),
    ];
    for (name, path, part) in views {
        for (device, width, height) in [("window", 1280, 900), ("phone", 390, 844)] {
            for scheme in ["light", "dark"] {
                browser.resize(width, height).await;
                browser.set_color_scheme(scheme).await;
                browser.go(&path).await;
                browser.wait_until_shown(part, "").await;
                if name == "audit" {
                    browser.click("#verify").await;
                    browser.wait_until_shown("#verification", "The chain is intact").await;
                }
                let wider = browser.run("return document.documentElement.scrollWidth - innerWidth").await;
                assert_eq!(wider, json!(0), "{name} is wider than the {device}");
                browser.screenshot(&format!("{name}-{device}-{scheme}")).await;
            }
        }
    }
    browser.assert_no_errors().await;
}

/// Waits until the charts have at least this number of points.
async fn wait_for_points(fixture: &ConsoleFixture, count: usize) {
    within(Duration::from_mins(3), "the charts have points", async || {
        let now = get(&fixture.console, "/api/now").await;
        (now["points"].as_array()?.len() >= count).then_some(())
    })
    .await;
}
