//! The fixture of the console tests: a console of `cargo dev` that observes a service.
use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use dev::{
    console::{Console, ObservedSystem},
    example,
    faults::{FaultTargets, Switchboard},
    harness::{Browser, Service, WAIT_TIMEOUT},
    traffic::{self, Traffic},
};
use reqwest::Url;
use serde_json::Value;

use crate::{
    EXECUTABLE, builder,
    stack::{repository, tool},
};

/// A running console, the service that it observes, and the switches of the faults. [`Self::with_traffic`] also starts
/// traffic.
pub(crate) struct ConsoleFixture {
    pub(crate) console: Console,
    pub(crate) service: Service,
    pub(crate) faults: Switchboard,
}

/// Starts a console without a service.
pub(crate) async fn console() -> Console {
    Console::start((Ipv4Addr::LOCALHOST, 0).into(), &repository().join("prometheus/rules")).await.unwrap()
}

impl ConsoleFixture {
    pub(crate) async fn start() -> Self {
        Self::with_traffic(0.0).await.0
    }

    /// Starts the console, the service, and traffic with this rate in requests per second. A rate of 0 starts no
    /// traffic.
    pub(crate) async fn with_traffic(rate_per_second: f64) -> (Self, Option<Traffic>) {
        let console = console().await;
        let service = builder()
            .setting("OTEL_EXPORTER_OTLP_ENDPOINT", &console.url())
            .setting("OTEL_BSP_SCHEDULE_DELAY", "50")
            .setting("ALERT_WEBHOOK_URL", &console.alerts_url())
            .setting("AUDIT_SEAL_INTERVAL_SECONDS", "1")
            .setting("APP_ENV", "development")
            .start()
            .await;
        let faults = Switchboard::new(FaultTargets {
            external_services: service.external_services(),
            owner_url: service.database().owner_url().clone(),
            api: service.api_url().clone(),
        });
        let traffic = (rate_per_second > 0.0).then(|| {
            let settings =
                traffic::Settings { rate_per_second, ..traffic::Settings::new(service.api_url().clone()) };
            Traffic::start(settings).unwrap()
        });
        console.follow(service.ops_url().clone(), service.follow());
        console.watch(&ObservedSystem {
            executable: PathBuf::from(EXECUTABLE),
            database_url: service.database().service_url().clone(),
            owner_url: service.database().owner_url().clone(),
            log: None,
            faults: faults.clone(),
            replication: None,
            reconciliation: example::comparison(service.database().owner_url(), &service.external_services()),
            traffic: traffic.as_ref().map(Traffic::switch),
            prometheus: None,
            scrape_interval: Duration::from_millis(500),
        });
        (Self { console, service, faults }, traffic)
    }

    /// Opens a browser on a page of the console. If Chromium or `chromedriver` is not installed, returns `None`, or
    /// panics if `REQUIRE_TOOLS` is set.
    pub(crate) async fn open(&self, path: &str) -> Option<Browser> {
        let (program, driver) = (tool("chromium")?, tool("chromedriver")?);
        Some(Browser::open(&program, &driver, &self.console.url(), path).await)
    }
}

/// Sends a GET request to the console. Returns the JSON body of the response.
pub(crate) async fn get(console: &Console, path: &str) -> Value {
    let url = Url::parse(&console.url()).unwrap().join(path).unwrap();
    let response = dev::http::client(WAIT_TIMEOUT).unwrap().get(url).send().await.unwrap();
    assert!(response.status().is_success(), "{path}: {}", response.status());
    response.json().await.unwrap()
}
