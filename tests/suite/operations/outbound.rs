//! Calls to other servers: the service accepts only certificates of trusted authorities, and ignores the proxies that
//! environment variables name.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use dev::harness::{Builder, Collector, PATH, Record, eventually};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle};
use url::Url;

use super::alerts::Pager;
use crate::{
    builder, service,
    tls::{Preamble, TlsProxy},
};

#[tokio::test]
async fn exports_go_to_a_collector_whose_authority_is_trusted() {
    let collector = Collector::start().await;
    let tls = TlsProxy::to(&Url::parse(&collector.endpoint()).unwrap(), Preamble::Nothing).await;
    for protocol in ["grpc", "http/protobuf"] {
        let service = builder()
            .with_logs_to(&collector)
            .setting("OTEL_EXPORTER_OTLP_ENDPOINT", &tls.url())
            .setting("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .setting("SSL_CERT_FILE", tls.authority())
            .start()
            .await;
        let id = protocol.replace('/', "-");
        let _listed =
            service.customer().await.lists().header("x-correlation-id", &id).await.assert_status(200);
        collector.wait_for_request(PATH, &id).await;
        let is_logged = |record: &Record| record.attributes.get("correlation_id") == Some(&json!(id));
        collector.wait_for_record("the access line", is_logged).await;
    }
}

#[tokio::test]
async fn spans_do_not_go_to_a_collector_whose_authority_is_unknown() {
    let collector = Collector::start().await;
    let tls = TlsProxy::to(&Url::parse(&collector.endpoint()).unwrap(), Preamble::Nothing).await;
    for protocol in ["grpc", "http/protobuf"] {
        let service = builder()
            .with_traces_to(&collector)
            .setting("OTEL_EXPORTER_OTLP_ENDPOINT", &tls.url())
            .setting("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .start()
            .await;
        eventually("spans are lost", async || {
            (service.metric("trace_spans_dropped_total").await > 0).then_some(())
        })
        .await;
        assert_eq!((tls.handshakes(), collector.requests()), (0, 0), "{protocol}");
    }
}

#[tokio::test]
async fn the_databases_certificate_is_verified_with_ssl_cert_file() {
    let service = service().await;
    let mut url = service.database().service_url().clone();
    let tls = TlsProxy::to(&url, Preamble::PostgresRequest).await;
    url.set_host(Some("localhost")).unwrap();
    url.set_port(Some(tls.port())).unwrap();
    url.set_query(Some("sslmode=verify-full"));
    let settings = [("DATABASE_URL", url.as_str()), ("SSL_CERT_FILE", tls.authority())];
    let replica = service.replica_with(&settings).await;
    let _created = replica.customer().await.creates().await.assert_status(201);
    assert!(tls.handshakes() > 0);

    let unknown = [("DATABASE_URL", url.as_str()), ("DATABASE_STARTUP_WAIT_SECONDS", "1")];
    let stopped = service.command(&["serve"], &unknown).await;
    assert_eq!(stopped.code(), Some(1), "{}", stopped.stderr);
}

/// A proxy that counts the connections of its clients, and closes each connection without a response.
pub struct CountingProxy {
    url: String,
    clients: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

impl CountingProxy {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let clients: Arc<AtomicUsize> = Arc::default();
        let counted = Arc::clone(&clients);
        let server = tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { url, clients, server }
    }

    /// Sets the environment variables from which HTTP clients read the address of a proxy.
    pub fn set_in_environment(&self, builder: Builder) -> Builder {
        ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
            .into_iter()
            .fold(builder, |builder, name| builder.setting(name, &self.url))
    }

    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }
}

impl Drop for CountingProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[tokio::test]
async fn no_call_goes_through_a_proxy_of_the_environment() {
    let (proxy, pager, collector) =
        (CountingProxy::start().await, Pager::start().await, Collector::start().await);
    for protocol in ["grpc", "http/protobuf"] {
        let service = proxy
            .set_in_environment(builder())
            .with_traces_to(&collector)
            .setting("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .setting("ALERT_WEBHOOK_URL", &pager.url)
            .start()
            .await;
        let id = protocol.replace('/', "-");
        let customer = service.customer().await;
        let _listed = customer.lists().header("x-correlation-id", &id).await.assert_status(200);
        collector.wait_for_request(PATH, &id).await;
        service.database().execute("revoke insert on audit_events from app_runtime").await;
        assert_eq!(customer.creates().await.status, 500);
        let sent = "alerts_sent_total{outcome=\"sent\"}";
        eventually("the alert is sent", async || (service.metric(sent).await > 0).then_some(())).await;
        let url = service.ops_url().join("healthz").unwrap();
        service.command(&["probe", url.as_str()], &[]).await.succeeded();
    }
    assert_eq!(proxy.clients(), 0);
}
