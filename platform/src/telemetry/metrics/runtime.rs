//! Metrics of the Tokio runtime's load. Tasks in the runtime's global queue are ready and wait for a thread.
use prometheus::{
    Counter, IntGauge, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use tokio::runtime::{Handle, RuntimeMetrics};

/// Metrics that are read from the runtime at each scrape, so that they are current.
struct Runtime {
    metrics: RuntimeMetrics,
    workers: IntGauge,
    alive_tasks: IntGauge,
    queue_depth: IntGauge,
    busy: Counter,
}

/// Registers the runtime's metrics. They have no labels, because a process has only one runtime.
pub(super) fn register(runtime: &Handle) {
    let registered =
        Runtime::new(runtime.metrics()).and_then(|runtime| prometheus::register(Box::new(runtime)));
    if let Err(error) = registered {
        tracing::warn!(error = &error as &dyn std::error::Error, "failed to register runtime metrics");
    }
}

impl Runtime {
    fn new(metrics: RuntimeMetrics) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| IntGauge::with_opts(Opts::new(name, help));
        Ok(Self {
            metrics,
            workers: gauge("tokio_workers", "Threads that run tasks")?,
            alive_tasks: gauge("tokio_alive_tasks", "Tasks that have not ended")?,
            queue_depth: gauge("tokio_global_queue_depth", "Tasks that are ready and wait for a thread")?,
            busy: Counter::new(
                "tokio_worker_busy_seconds_total",
                "Time that all threads together have spent on tasks",
            )?,
        })
    }

    fn families(&self) -> [&dyn Collector; 4] {
        [&self.workers, &self.alive_tasks, &self.queue_depth, &self.busy]
    }
}

impl Collector for Runtime {
    fn desc(&self) -> Vec<&Desc> {
        self.families().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let metrics = &self.metrics;
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.workers.set(gauge(metrics.num_workers()));
        self.alive_tasks.set(gauge(metrics.num_alive_tasks()));
        self.queue_depth.set(gauge(metrics.global_queue_depth()));
        let busy: f64 = (0..metrics.num_workers())
            .map(|worker| metrics.worker_total_busy_duration(worker).as_secs_f64())
            .sum();
        self.busy.inc_by((busy - self.busy.get()).max(0.0));
        self.families().into_iter().flat_map(Collector::collect).collect()
    }
}
