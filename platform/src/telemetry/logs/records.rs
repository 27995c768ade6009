//! Export of log lines as OpenTelemetry log records, in addition to the lines themselves.
//!
//! The attributes of a record have the same names as the fields of the JSON line. The crate
//! `opentelemetry-appender-tracing` is not used, because it omits the causes of errors and the task's context. It also
//! reads the trace from `opentelemetry::Context`, which is empty because the tracing layer is built without context
//! activation.
use std::{error::Error, fmt::Debug, time::Duration};

use opentelemetry::{
    InstrumentationScope, Key,
    logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity},
};
use opentelemetry_otlp::LogExporter as OtlpExporter;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    logs::{
        BatchConfigBuilder, BatchLogProcessor, LogBatch, LogExporter, LogProcessor, SdkLogRecord, SdkLogger,
        SdkLoggerProvider,
    },
};
use prometheus::IntCounter;
use tracing::{
    Level,
    field::{Field, Visit},
};

use super::{Line, chain, display, is_audit, is_written_separately, json::KEYS};
use crate::telemetry::{
    otlp::{self, ExportError, Queue, Signal, Transport},
    settings::OpenTelemetry,
};

/// The export of log records. Cheap to clone.
#[derive(Clone)]
pub(in crate::telemetry) struct Records {
    logger: SdkLogger,
    provider: SdkLoggerProvider,
    lost: IntCounter,
}

impl Records {
    /// Starts the export, or returns `None` if log records are not exported.
    ///
    /// Must be called within the tokio runtime, because the gRPC client needs the runtime.
    ///
    /// # Errors
    /// An environment variable of the export is invalid or missing, or the exporter cannot be created.
    pub(in crate::telemetry) fn start(
        resource: &Resource,
        settings: &OpenTelemetry,
    ) -> Result<Option<Self>, super::LogsError> {
        if settings.disabled {
            return Ok(None);
        }
        let exporter = match otlp::transport(Signal::Logs, settings)? {
            None => return Ok(None),
            Some(Transport::Grpc(grpc)) => grpc.configure(OtlpExporter::builder().with_tonic()).build(),
            Some(Transport::Http(http)) => http.configure(OtlpExporter::builder().with_http()).build(),
        };
        let lost = IntCounter::new("lost", "Lost log records.")?;
        let processor = counting_processor(exporter.map_err(ExportError::from)?, lost.clone());
        let provider = SdkLoggerProvider::builder()
            .with_log_processor(processor)
            .with_resource(resource.clone())
            .build();
        Ok(Some(Self { logger: provider.logger(""), provider, lost }))
    }

    /// Returns the number of lost records.
    pub(super) fn lost(&self) -> u64 {
        self.lost.get()
    }

    /// Exports the remaining records, for at most `timeout`.
    pub(in crate::telemetry) fn finish(&self, timeout: Duration) {
        // The processor logs the number of lost records.
        let _lost = self.provider.shutdown_with_timeout(timeout);
    }

    /// Queues a line for the export, unless the line is from a library that the export uses.
    pub(super) fn write(&self, line: &Line<'_>, text: &mut String) {
        let target = line.metadata.target();
        if otlp::is_export_target(target) {
            return;
        }
        let mut record = self.logger.create_log_record();
        record.set_timestamp(line.at.into());
        record.set_observed_timestamp(line.at.into());
        record.set_target(target.to_owned());
        record.set_severity_number(severity(*line.metadata.level()));
        record.set_severity_text(line.metadata.level().as_str());
        line.message(text);
        record.set_body(text.clone().into());
        if let Some(context) = &line.context {
            record.add_attribute("correlation_id", context.correlation_id().as_str().to_owned());
            record.add_attribute("request_id", context.request_id().to_string());
            if let Some(user) = context.user() {
                record.add_attribute("user_id", user.id.to_string());
            }
        }
        if let Some((trace, span)) = line.trace {
            record.set_trace_context(trace, span, None);
        }
        line.event.record(&mut Attributes(&mut record));
        self.logger.emit(record);
    }
}

fn severity(level: Level) -> Severity {
    match level {
        Level::TRACE => Severity::Trace,
        Level::DEBUG => Severity::Debug,
        Level::INFO => Severity::Info,
        Level::WARN => Severity::Warn,
        Level::ERROR => Severity::Error,
    }
}

/// The visitor that adds the event's own fields to a record.
struct Attributes<'a>(&'a mut SdkLogRecord);

impl Attributes<'_> {
    fn field(&mut self, field: &Field, value: impl Into<AnyValue>) {
        let name = field.name();
        if is_written_separately(name) {
            return;
        }
        let key = if KEYS.contains(&name) { Key::from(format!("field.{name}")) } else { Key::from(name) };
        self.0.add_attribute(key, value);
    }

    /// Adds a field as text, which `write` formats.
    fn text(&mut self, field: &Field, write: impl FnOnce(&mut String)) {
        let mut text = String::new();
        write(&mut text);
        self.field(field, text);
    }
}

impl Visit for Attributes<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, value);
    }

    /// Adds an integer. A value above `i64::MAX` is added as text, because OTLP has no unsigned numbers.
    fn record_u64(&mut self, field: &Field, value: u64) {
        match i64::try_from(value) {
            Ok(value) => self.field(field, value),
            Err(_) => self.field(field, value.to_string()),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.text(field, |text| chain(text, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if !is_written_separately(field.name()) {
            self.text(field, |text| display(text, format_args!("{value:?}")));
        }
    }
}

/// Returns a processor that exports records in batches from a separate thread, and counts lost records.
fn counting_processor(exporter: impl LogExporter + 'static, lost: IntCounter) -> impl LogProcessor + 'static {
    let queue = Queue::new("OTEL_BLRP_MAX_QUEUE_SIZE", lost);
    let exporter = CountingExporter { inner: exporter, queue: queue.clone() };
    let batches = BatchConfigBuilder::default().with_max_queue_size(queue.capacity()).build();
    let inner = BatchLogProcessor::builder(exporter).with_batch_config(batches).build();
    BoundedProcessor { inner, queue }
}

#[derive(Debug)]
struct BoundedProcessor {
    inner: BatchLogProcessor,
    queue: Queue,
}

impl LogProcessor for BoundedProcessor {
    /// Queues a record. A quarter of the queue is reserved for the audit log, so that a flood of other lines leaves
    /// space for audit log lines.
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        let capacity = self.queue.capacity();
        let is_audit = record.target().is_some_and(|target| is_audit(target));
        let limit = if is_audit { capacity } else { capacity - capacity / 4 };
        if self.queue.try_add(limit) {
            self.inner.emit(record, scope);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    /// Exports the remaining records. Counts the lost records, and logs their number.
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let (result, lost) = self.queue.finish(|| self.inner.shutdown_with_timeout(timeout));
        if lost > 0 {
            tracing::warn!(
                records = lost,
                "log records were lost at the end: the collector did not accept them in time"
            );
        }
        result
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[derive(Debug)]
struct CountingExporter<E> {
    inner: E,
    queue: Queue,
}

impl<E: LogExporter> LogExporter for CountingExporter<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let records = batch.iter().count();
        self.queue.export(records, self.inner.export(batch)).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
