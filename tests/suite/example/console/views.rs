//! Each view in a real browser.
use dev::{
    faults::Fault,
    harness::{WAIT_TIMEOUT, eventually},
    process::Launch,
};
use serde_json::json;

use crate::console::fixture::{ConsoleFixture, get};

#[tokio::test]
async fn each_view_shows_recent_activity() {
    let (fixture, _traffic) = ConsoleFixture::with_traffic(20.0).await;
    fixture.paid_order("a-checkout").await;
    let Some(browser) = fixture.open("/").await else { return };

    browser.wait_until_shown("[data-tile=Service]", "ready").await;
    browser.wait_until_shown("[data-tile=Breaker]", "closed").await;
    browser.wait_until_shown("[data-tile=Requests]", "/s").await;
    browser.wait_until_shown("[data-chart=latency] .legend", "p95").await;
    browser.wait_until_shown("[data-chart=money] .legend", "succeeded").await;
    browser.wait_until_shown("[data-chart=requests] .legend", "4xx").await;
    let legend = "return [...document.querySelectorAll('[data-chart=requests] .legend li')].map((line) => line.textContent.split(' ')[0])";
    assert_eq!(browser.run(legend).await, json!(["all", "4xx", "5xx"]));
    browser.wait_until_shown(".tour", "Follow the first paid order").await;
    let tour = "return document.querySelector('.tour a').getAttribute('href')";
    assert_eq!(browser.run(tour).await, json!("/traces/first"));
    browser.wait_until_shown("table", "/v1/orders/{id}/payments").await;
    browser.wait_until_shown(".checks", "payment recovery").await;
    assert_eq!(browser.location().await, "/now");

    browser.click("nav a[data-view=traces]").await;
    browser.wait_until_shown(".row.trace .name", "POST /v1/orders/{id}/payments").await;
    browser.go("/traces?correlation_id=a-checkout&route=payments&status=2xx").await;
    browser.wait_until_shown(".count", "The newest 1 that match").await;

    browser.click("nav a[data-view=logs]").await;
    browser.wait_until_shown(".line .message", "request").await;
    browser.go("/logs?correlation_id=a-checkout&level=INFO&text=%7Bid%7D%2Fpayments").await;
    browser.wait_until_shown(".line .message", "request").await;
    assert_eq!(browser.run("return document.querySelectorAll('.line.debug').length").await, json!(0));
    browser.click(".line .where a").await;
    browser.wait_until_shown(".title h1", "POST /v1/orders/{id}/payments").await;

    browser.click("nav a[data-view=alerts]").await;
    browser.wait_until_shown("#evaluator", "the console itself").await;
    browser.wait_until_shown("[data-rule=DatabasePoolExhausted]", "not firing").await;
    browser.wait_until_shown("[data-rule='ServiceAvailabilityBudgetBurn 1h/5m']", "not computed").await;

    browser.click("nav a[data-view=faults]").await;
    browser.wait_until_shown("#reconciliation", "All invariants hold").await;

    browser.click("nav a[data-view=audit]").await;
    browser.wait_until_shown(".events", "payments").await;
    browser.wait_until_shown(".seals", "events").await;
    browser.click("#verify").await;
    browser.wait_until_shown("#verification", "The chain is intact").await;
    fixture
        .service
        .database()
        .execute("alter table audit_events disable trigger user; update audit_events set action = 'forged' where sequence = (select min(sequence) from audit_events)")
        .await;
    browser.click("#verify").await;
    browser.wait_until_shown("#verification", "The verification failed").await;
    browser.assert_no_errors().await;
}

#[tokio::test]
async fn a_deep_link_opens_a_payment_trace_with_its_log_lines() {
    let fixture = ConsoleFixture::start().await;
    fixture.paid_order("the-first").await;
    let trace = fixture.wait_for_payment_trace("the-first").await;
    let Some(browser) = fixture.open(&format!("/traces/{trace}")).await else {
        return;
    };
    browser.wait_until_shown(".title h1", "201 POST /v1/orders/{id}/payments").await;
    browser.wait_until_shown(".title code", &trace).await;
    browser.wait_until_shown(".waterfall", "INSERT payments").await;
    let gateway = fixture.service.gateway().address();
    browser.wait_until_shown("[data-span=POST]", &format!("POST {gateway}/v1/charges")).await;
    browser.wait_until_shown(".trace-logs .line .message", "request").await;

    browser.click("[data-span='SETTLE payments']").await;
    browser.wait_until_shown(".details", "db.collection.name").await;
    let place = browser.location().await;
    assert!(place.starts_with(&format!("/traces/{trace}?span=")), "{place}");
    browser.go(&place).await;
    browser.wait_until_shown(".details h2", "SETTLE payments").await;

    browser.go("/traces/first").await;
    browser.wait_until_shown(".title code", &trace).await;
    assert_eq!(browser.location().await, format!("/traces/{trace}"));
    browser.assert_no_errors().await;
}

#[tokio::test]
async fn every_view_shows_a_fault_until_it_is_switched_off() {
    let (fixture, _traffic) = ConsoleFixture::with_traffic(40.0).await;
    let Some(browser) = fixture.open("/faults").await else { return };
    eventually("customers pay", async || {
        (fixture.service.gateway().ledger().charges.len() > 5).then_some(())
    })
    .await;
    browser.click("[data-fault=gateway-outage] button").await;
    browser.wait_until_shown("#banner", "Gateway outage").await;
    assert!((fixture.service.gateway().faults().get().error_rate - 1.0).abs() < f64::EPSILON);

    browser.click("nav a[data-view=now]").await;
    browser.wait_until_shown("[data-tile=Breaker]", "open").await;
    browser.wait_until_shown("#banner", "Gateway outage").await;
    browser.wait_until_shown(".shade", "Gateway outage").await;
    eventually("the period of the fault is marked in the charts", async || {
        let bands = browser.run("return document.querySelectorAll('.band').length").await;
        (bands.as_u64() > Some(0)).then_some(())
    })
    .await;
    browser.go("/traces?status=5xx").await;
    browser.wait_until_shown(".row.trace .status", "503").await;
    browser.go("/logs?text=circuit").await;
    browser.wait_until_shown(".line .message", "circuit breaker").await;
    browser.go("/alerts").await;
    browser.wait_until_shown(".received", "from the service").await;
    browser.go("/audit").await;
    browser.wait_until_shown("#banner", "Gateway outage").await;

    browser.click("#normal").await;
    browser.wait_until_absent("#banner").await;
    assert!(fixture.service.gateway().faults().get().error_rate.abs() < f64::EPSILON);
    assert!(!fixture.faults.is_on(Fault::named("gateway-outage").unwrap()));
    browser.go("/now").await;
    browser.wait_until_shown("[data-tile=Breaker]", "closed").await;
    browser.assert_no_errors().await;
}

#[tokio::test]
async fn markup_in_data_is_shown_as_text() {
    const MARKUP: &str =
        "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>";
    let fixture = ConsoleFixture::start().await;
    let named = json!({ "email": "markup@example.com", "password": dev::harness::PASSWORD, "name": MARKUP });
    let _registered = fixture.service.anonymous().post("/v1/users").json(&named).await.assert_status(201);
    let request = fixture.service.anonymous().get("/v1/products").header("user-agent", MARKUP);
    let _served = request.header("x-correlation-id", "markup").await.assert_status(200);
    let line = json!({ "timestamp": "2026-01-01T00:00:00Z", "level": "ERROR", "target": MARKUP, "message": MARKUP, MARKUP: MARKUP, "trace_id": "abc" });
    let printed = Launch::new("printf").args(["%s\\n", &line.to_string(), MARKUP]).start().unwrap();
    fixture.console.follow("http://127.0.0.1:9/".parse().unwrap(), printed.follow());
    printed.wait(WAIT_TIMEOUT).await.unwrap();

    let Some(browser) = fixture.open("/logs?text=onerror").await else { return };
    browser.wait_until_shown(".line .message", MARKUP).await;
    let trace = eventually("the trace is received", async || {
        let traces = get(&fixture.console, "/api/traces?correlation_id=markup").await;
        Some(traces[0]["trace_id"].as_str()?.to_owned())
    })
    .await;
    browser.go(&format!("/traces/{trace}")).await;
    browser.click(".span").await;
    browser.wait_until_shown(".details", MARKUP).await;
    browser.go(&format!("/logs?text={}", "%3Cimg%20src%3Dx%20onerror%3D1%3E")).await;
    browser.wait_until_shown(".count", "The newest 0").await;
    for path in ["/now", "/traces", "/audit", "/logs"] {
        browser.go(path).await;
        browser.wait_until_shown("nav a[aria-current]", "").await;
        let images = "return document.images.length + document.querySelectorAll('body script').length";
        assert_eq!(browser.run(images).await, json!(0), "{path}");
        assert_ne!(browser.run("return document.title").await, json!("taken"), "{path}");
    }
    browser.assert_no_errors().await;
}

#[tokio::test]
async fn every_view_is_reachable_by_keyboard() {
    let fixture = ConsoleFixture::start().await;
    fixture.paid_order("by-keyboard").await;
    fixture.wait_for_payment_trace("by-keyboard").await;
    let Some(browser) = fixture.open("/now").await else { return };
    browser.wait_until_shown("[data-tile=Service]", "ready").await;
    for (key, place) in
        [("3", "/logs"), ("4", "/alerts"), ("5", "/faults"), ("6", "/audit"), ("2", "/traces")]
    {
        browser.press(key).await;
        assert_eq!(browser.location().await, place);
    }
    browser.wait_until_shown(".row.trace .name", "POST /v1/orders/{id}/payments").await;
    browser.press("j").await;
    browser.wait_until_shown(".row.trace:focus .name", "").await;
    browser.press("Enter").await;
    // The opened trace is the newest one, and can belong to any request. So the test checks only the time scale, which
    // starts at zero in every trace.
    browser.wait_until_shown(".waterfall", "0 µs").await;
    browser.press("t").await;
    assert_eq!(browser.run("return document.documentElement.dataset.theme").await, json!("light"));
    browser.assert_no_errors().await;
}
