//! The workers of the audit log, and the audit events of changes and rejected changes of the log filter.
use std::time::Duration;

use platform::{
    alerts::Alerts,
    audit::{self, Denials, Event, EventResult, EventType, Sealer, WriteFailureAlert},
    database::Database,
    ops::log_level::{self, LogLevelEvent},
    workers::{BackgroundTasks, Progress, Workers},
};

use crate::config::Config;

/// Interval at which the audit log's partitions of the coming months are created.
const PARTITION_INTERVAL: Duration = Duration::from_hours(6);

/// Interval at which summary events are recorded for denials that have no event of their own. After many denials from
/// one address in a minute, [`Denials`] only counts further ones.
const DENIAL_INTERVAL: Duration = Duration::from_mins(1);

/// Interval at which the service checks whether an audit event could not be recorded since the previous check.
const FAILURE_INTERVAL: Duration = Duration::from_secs(2);

/// Starts the workers that seal the audit log (add hashes of its new events to a chain), measure the age of its oldest
/// event without a seal, and create its partitions. Further workers record summary events for counted denials, and raise an alert if events cannot be recorded.
pub(super) fn start(
    workers: &Workers,
    config: &Config,
    database: &Database,
    alerts: &Alerts,
    denials: &Denials,
) {
    let interval = config.audit.seal_interval;
    let sealing = Sealer::new(database.clone(), alerts.clone(), interval);
    let lag_sealer = sealing.clone();
    workers.spawn("audit_sealing", interval, move || sealing.clone().run());
    workers.spawn("audit_seal_lag", interval, move || lag_sealer.clone().measure_lag());
    let denials = denials.clone();
    workers.spawn("audit_refusals", DENIAL_INTERVAL, move || {
        let denials = denials.clone();
        async move { denials.flush().await.map(|()| Progress::Idle) }
    });
    let failures = WriteFailureAlert::new(alerts.clone());
    workers.spawn("audit_write_failures", FAILURE_INTERVAL, move || {
        failures.raise_alert();
        std::future::ready(Ok::<_, std::convert::Infallible>(Progress::Idle))
    });
    let (database, alerts) = (database.clone(), alerts.clone());
    workers.spawn("audit_partitions", PARTITION_INTERVAL, move || {
        let (database, alerts) = (database.clone(), alerts.clone());
        async move { audit::make_partitions(&database, &alerts).await.map(|()| Progress::Idle) }
    });
}

/// Returns the function that audits changes and rejected changes of the log filter. The audit event is recorded in the
/// background, so that an operator can change the log filter while the database is unreachable.
pub(super) fn log_level_auditor(
    database: &Database,
    denials: &Denials,
    tasks: &BackgroundTasks,
) -> impl Fn(log_level::LogLevelEvent) + use<> {
    let (database, denials, tasks) = (database.clone(), denials.clone(), tasks.clone());
    move |event| match event {
        LogLevelEvent::Changed(changed) => {
            let event =
                Event::new(EventType::Configuration, "log_level", changed.action, EventResult::Success)
                    .with("before", changed.before)
                    .with("after", changed.after)
                    .with("ttl_seconds", changed.ttl_seconds);
            let database = database.clone();
            drop(tasks.run(async move { audit::record_once_possible(&database, event).await }));
        }
        LogLevelEvent::Rejected { reason } => {
            let event = Event::new(EventType::Authorization, "log_level", "change", EventResult::Denied)
                .with("reason", reason);
            let denials = denials.clone();
            drop(tasks.run(async move {
                if let Err(error) = denials.record(event).await {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "failed to audit a denied request"
                    );
                }
            }));
        }
    }
}
