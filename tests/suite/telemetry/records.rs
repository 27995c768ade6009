//! Log records that the service exports to a collector, in addition to the log lines that it writes to stdout. Also the
//! rejection of exporters that the service does not support.
use chrono::DateTime;
use dev::harness::{Collector, PATH, Record};
use serde_json::{Value, json};

use crate::{
    builder,
    operations::startup::{command, minimum_settings},
};

/// Returns the log line that corresponds to a record: the line has the same fields with the same names.
fn line_of(record: &Record) -> Value {
    let mut line = json!({
        "timestamp": DateTime::from_timestamp_nanos(record.at.try_into().unwrap())
            .to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
        "level": record.severity_text,
        "target": record.target,
        "message": record.body,
        "service": record.resource["service.name"],
        "version": record.resource["service.version"],
    });
    let fields = line.as_object_mut().unwrap();
    fields.extend(record.attributes.clone());
    if !record.trace_id.is_empty() {
        fields.insert("trace_id".to_owned(), json!(record.trace_id));
        fields.insert("span_id".to_owned(), json!(record.span_id));
    }
    line
}

#[tokio::test]
async fn every_log_line_is_exported_with_the_same_fields() {
    for protocol in ["grpc", "http/protobuf"] {
        let collector = Collector::start().await;
        let service =
            builder().with_logs_to(&collector).setting("OTEL_EXPORTER_OTLP_PROTOCOL", protocol).start().await;
        let customer = service.customer().await;
        let _created = customer.creates().header("x-correlation-id", "exported").await.assert_status(201);
        let _unknown = service.anonymous().get("/nowhere").await.assert_status(404);
        assert!(service.terminate().await.success());

        let records = collector.records();
        let key = |line: &Value| line.to_string();
        let mut exported: Vec<_> = records.iter().map(line_of).collect();
        let mut written = service.logs();
        exported.sort_by_key(key);
        written.sort_by_key(key);
        assert_eq!(exported, written, "{protocol}");

        let access = records.iter().find(|record| {
            record.target == "access" && record.attributes.get("correlation_id") == Some(&json!("exported"))
        });
        let access = access.unwrap();
        assert_eq!((access.severity, access.attributes["route"].clone()), (9, json!(PATH)));
        assert_eq!(access.attributes["user_id"], json!(customer.id));
        let span = collector.wait_for_request(PATH, "exported").await;
        assert_eq!((&access.trace_id, &access.span_id), (&span.trace_id, &span.span_id));
        assert_eq!(access.resource["service.instance.id"], span.resource["service.instance.id"]);
    }
}

#[tokio::test]
async fn the_export_does_not_export_its_own_log_lines() {
    let collector = Collector::start().await;
    let service = builder().with_logs_to(&collector).setting("RUST_LOG", "debug").start().await;
    let of_export =
        |target: &str| ["h2", "hyper", "opentelemetry"].iter().any(|name| target.starts_with(name));
    let is_written = |line: &Value| of_export(line["target"].as_str().unwrap());
    service.wait_for_log("a line of the export", is_written).await;
    let _served =
        service.anonymous().get("/problems").header("x-correlation-id", "exported").await.assert_status(200);
    let has_id = |record: &Record| record.attributes.get("correlation_id") == Some(&json!("exported"));
    collector.wait_for_record("the access line", has_id).await;
    let exported_line = collector.records().into_iter().find(|record| of_export(&record.target));
    assert!(exported_line.is_none(), "{exported_line:#?}");
}

#[tokio::test]
async fn other_lines_do_not_displace_exported_audit_lines() {
    let collector = Collector::start().await;
    let service = builder()
        .with_logs_to(&collector)
        .setting("OTEL_BLRP_SCHEDULE_DELAY", "600000")
        .setting("OTEL_BLRP_MAX_QUEUE_SIZE", "32")
        .start()
        .await;
    for _ in 0..32 {
        let _served = service.anonymous().get("/problems").await.assert_status(200);
    }
    assert!(service.metric("log_lines_dropped_total").await > 0);
    let late = service.customer().await.creates().header("x-correlation-id", "late");
    let _created = late.await.assert_status(201);
    assert!(service.terminate().await.success());
    let records = collector.records();
    let is_late = |record: &&Record| record.attributes.get("correlation_id") == Some(&json!("late"));
    let targets: Vec<_> = records.iter().filter(is_late).map(|record| record.target.as_str()).collect();
    assert_eq!(targets, ["audit"]);
    assert!(
        records.iter().any(|record| record.target == "access"),
        "the queue must accept some access lines"
    );
}

#[tokio::test]
async fn unusable_exporters_are_rejected_by_name() {
    for (settings, rule) in [
        (&[("OTEL_METRICS_EXPORTER", "otlp")][..], "OTEL_METRICS_EXPORTER must be prometheus or none"),
        (&[("OTEL_LOGS_EXPORTER", "console")], "OTEL_LOGS_EXPORTER must be none or otlp"),
        (&[("OTEL_LOGS_EXPORTER", "otlp")], "OTEL_LOGS_EXPORTER=otlp needs OTEL_EXPORTER_OTLP_ENDPOINT"),
        (
            &[("OTEL_LOGS_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "collector:4317")],
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT must be an http or https URL",
        ),
    ] {
        let stopped = command(&["serve"], &[&minimum_settings()[..], settings].concat()).await;
        assert_eq!(stopped.code(), Some(1), "{settings:?}");
        assert!(stopped.stderr.contains(rule), "{settings:?}: {}", stopped.stderr);
    }
}
