//! What the database costs: the pool, and each named statement.
use lazy_static::lazy_static;
use prometheus::{
    Histogram, IntCounter, IntGauge,
    core::{Collector, Desc},
    proto::MetricFamily,
    register_histogram, register_histogram_vec, register_int_counter,
};

use super::Database;

const BUCKETS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

use crate::telemetry::metrics::{TracedHistograms, registered};

lazy_static! {
    pub(super) static ref ACQUIRE_DURATION: Histogram = registered(register_histogram!(
        "db_connection_acquire_duration_seconds",
        "Time until a connection of the pool was had, or was not",
        BUCKETS.to_vec()
    ));
    pub(super) static ref ACQUIRE_TIMEOUTS: IntCounter = registered(register_int_counter!(
        "db_connection_acquire_timeouts_total",
        "Times that no connection was had within DATABASE_ACQUIRE_TIMEOUT_MS"
    ));
    pub(super) static ref QUERY_DURATION: TracedHistograms = TracedHistograms::new(
        register_histogram_vec!(
            "db_query_duration_seconds",
            "Time of a statement, by its name",
            &["query_type"],
            BUCKETS.to_vec()
        ),
        BUCKETS
    );
}

/// The pool's gauges. They are read from the pool when metrics are gathered, so they are true at that moment.
struct Pool {
    database: Database,
    active: IntGauge,
    idle: IntGauge,
    max: IntGauge,
}

/// Adds the pool's gauges to the metrics of the process, which has one pool.
pub(super) fn watch_pool(database: Database) {
    lazy_static::initialize(&ACQUIRE_TIMEOUTS);
    lazy_static::initialize(&ACQUIRE_DURATION);
    let gauge = |name, help| IntGauge::new(name, help);
    let made = (|| {
        Ok::<_, prometheus::Error>(Pool {
            database,
            active: gauge("db_connections_active", "Connections of the pool that are in use")?,
            idle: gauge("db_connections_idle", "Connections of the pool that are open and free")?,
            max: gauge("db_connections_max", "Connections that the pool may open")?,
        })
    })();
    if let Err(error) = made.and_then(|pool| prometheus::register(Box::new(pool))) {
        tracing::warn!(error = &error as &dyn std::error::Error, "the pool is not seen in the metrics");
    }
}

impl Collector for Pool {
    fn desc(&self) -> Vec<&Desc> {
        [&self.active, &self.idle, &self.max].into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let state = self.database.pool_state();
        self.active.set(i64::from(state.active));
        self.idle.set(i64::from(state.idle));
        self.max.set(i64::from(state.max));
        [&self.active, &self.idle, &self.max].into_iter().flat_map(Collector::collect).collect()
    }
}
