//! Metrics of the database: the pool, and each named statement.
use prometheus::{
    IntGauge,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::Database;

const BUCKETS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

crate::metrics! {
    /// Time spent waiting for a pool connection, including waits that timed out.
    pub(super) static ACQUIRE_DURATION: histogram(BUCKETS) = "db_connection_acquire_duration_seconds";
    /// Waits for a pool connection that exceeded DATABASE_ACQUIRE_TIMEOUT_MS.
    pub(super) static ACQUIRE_TIMEOUTS: counter = "db_connection_acquire_timeouts_total";
    /// Duration of a statement, by its name.
    pub(super) static QUERY_DURATION: histogram(BUCKETS) = "db_query_duration_seconds" { query_type };
}

/// The pool's gauges. They are read from the pool at each scrape, so that they are current.
struct Pool {
    database: Database,
    active: IntGauge,
    idle: IntGauge,
    max: IntGauge,
}

/// Creates the series of the metrics above, and registers the pool's gauges. A process has one pool.
pub(super) fn register_pool(database: Database) {
    initialize();
    let gauge = |name, help| IntGauge::new(name, help);
    let pool = (|| {
        Ok::<_, prometheus::Error>(Pool {
            database,
            active: gauge("db_connections_active", "Pool connections in use")?,
            idle: gauge("db_connections_idle", "Idle pool connections")?,
            max: gauge("db_connections_max", "Maximum number of pool connections")?,
        })
    })();
    if let Err(error) = pool.and_then(|pool| prometheus::register(Box::new(pool))) {
        tracing::warn!(error = &error as &dyn std::error::Error, "failed to register pool metrics");
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
