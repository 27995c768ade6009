//! The console's receiver of spans, with both protocols of OTLP: gRPC and HTTP. The console assigns each trace to the
//! replica that sent it.
use dev::harness::eventually;

use super::fixture::{console, get};
use crate::builder;

#[tokio::test]
async fn both_protocols_are_received_and_replicas_distinguished() {
    let console = console().await;
    let service = builder()
        .setting("OTEL_EXPORTER_OTLP_ENDPOINT", &console.url())
        .setting("OTEL_BSP_SCHEDULE_DELAY", "50")
        .start()
        .await;
    let replica = service.replica().await;
    let by_http = builder()
        .setting("OTEL_EXPORTER_OTLP_ENDPOINT", &console.url())
        .setting("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .setting("OTEL_BSP_SCHEDULE_DELAY", "50")
        .start()
        .await;
    for (service, id) in [(&service, "one"), (&replica, "two"), (&by_http, "three")] {
        let _served =
            service.anonymous().get("/problems").header("x-correlation-id", id).await.assert_status(200);
    }
    let mut instances = Vec::new();
    for id in ["one", "two", "three"] {
        let path = format!("/api/traces?correlation_id={id}");
        let instance = eventually("the trace is received", async || {
            Some(get(&console, &path).await[0]["instance"].as_str()?.to_owned())
        })
        .await;
        instances.push(instance);
    }
    assert!(instances.iter().all(|instance| !instance.is_empty()), "{instances:?}");
    assert!(
        instances[0] != instances[1] && instances[1] != instances[2] && instances[0] != instances[2],
        "{instances:?}"
    );
    let traces = get(&console, &format!("/api/traces?instance={}", instances[1])).await;
    let traces = traces.as_array().unwrap();
    assert!(!traces.is_empty() && traces.iter().all(|trace| trace["instance"] == instances[1].as_str()));
}
