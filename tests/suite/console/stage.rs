//! A console and the service that it watches.
use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use dev::{
    console::{Console, Scene},
    faults::{Stage as Surroundings, Switchboard},
    harness::{Browser, Order, SOON, Service, eventually},
    invariants,
    traffic::{self, Traffic},
};
use reqwest::Url;
use serde_json::Value;

use crate::{
    EXECUTABLE, builder,
    stack::{repository, tool},
};

/// Both, running. What a test does not need, it does not have: no traffic until it asks for some.
pub(super) struct Stage {
    pub(super) console: Console,
    pub(super) service: Service,
    pub(super) faults: Switchboard,
}

/// A console that has nothing to show yet.
pub(super) async fn console() -> Console {
    Console::start((Ipv4Addr::LOCALHOST, 0).into(), &repository().join("prometheus/rules")).await.unwrap()
}

impl Stage {
    pub(super) async fn set() -> Self {
        Self::with_traffic(0.0).await.0
    }

    /// With so many requests a second.
    pub(super) async fn with_traffic(rate_per_second: f64) -> (Self, Option<Traffic>) {
        let console = console().await;
        let service = builder()
            .setting("OTEL_EXPORTER_OTLP_ENDPOINT", &console.url())
            .setting("OTEL_BSP_SCHEDULE_DELAY", "50")
            .setting("ALERT_WEBHOOK_URL", &console.alerts_url())
            .setting("AUDIT_SEAL_INTERVAL_SECONDS", "1")
            .setting("APP_ENV", "development")
            .start()
            .await;
        let faults = Switchboard::new(Surroundings {
            gateway: service.gateway().url(),
            owner_url: service.database().owner_url().clone(),
            api: service.api_url().clone(),
        });
        let traffic = (rate_per_second > 0.0).then(|| {
            let settings =
                traffic::Settings { rate_per_second, ..traffic::Settings::new(service.api_url().clone()) };
            Traffic::start(settings).unwrap()
        });
        console.follow(service.ops_url().clone(), service.follow());
        console.watch(Scene {
            executable: PathBuf::from(EXECUTABLE),
            database_url: service.database().service_url().clone(),
            owner_url: service.database().owner_url().clone(),
            log: None,
            faults: faults.clone(),
            books: Some(invariants::for_the_console(
                service.database().owner_url().clone(),
                service.gateway().url(),
            )),
            traffic: traffic.as_ref().map(Traffic::switch),
            prometheus: None,
            scrape_interval: Duration::from_millis(500),
        });
        (Self { console, service, faults }, traffic)
    }

    /// A browser on a page of the console; `None` where there is none to start, and none is required.
    pub(super) async fn open(&self, path: &str) -> Option<Browser> {
        let (program, driver) = (tool("chromium")?, tool("chromedriver")?);
        Some(Browser::open(&program, &driver, &self.console.url(), path).await)
    }

    /// Somebody's order, paid under a correlation id of its own.
    pub(super) async fn paid_order(&self, correlation_id: &str) -> Order {
        let order = self.service.customer().await.places_an_order().await;
        let _paid = order.pay("pm_card_ok").header("x-correlation-id", correlation_id).await.is(201);
        order
    }

    /// The id of the trace with this correlation id, once the whole of it is there.
    pub(super) async fn trace_of(&self, correlation_id: &str) -> String {
        let path = format!("/api/traces?correlation_id={correlation_id}&route=POST%20%2Fv1%2Forders");
        eventually("the trace comes in", async || {
            let traces = get(&self.console, &path).await;
            let trace = traces.as_array()?.iter().find(|trace| trace["spans"].as_u64() > Some(5))?.clone();
            Some(trace["trace_id"].as_str()?.to_owned())
        })
        .await
    }
}

/// What the console answers.
pub(super) async fn get(console: &Console, path: &str) -> Value {
    let url = Url::parse(&console.url()).unwrap().join(path).unwrap();
    let answer = dev::http::client(SOON).unwrap().get(url).send().await.unwrap();
    assert!(answer.status().is_success(), "{path}: {}", answer.status());
    answer.json().await.unwrap()
}
