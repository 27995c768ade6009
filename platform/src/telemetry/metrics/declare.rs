//! The macro that declares metrics, and the series that exist from the start.
use prometheus::core::{MetricVec, MetricVecBuilder};

use super::TracedHistograms;

/// Declares metrics. The doc comment is the help text, and the labels are in braces:
///
/// ```
/// enum Cause { Dropped, BoiledDry }
///
/// impl Cause {
///     const ALL: [Self; 2] = [Self::Dropped, Self::BoiledDry];
///
///     fn as_str(self) -> &'static str {
///         match self { Self::Dropped => "dropped", Self::BoiledDry => "boiled_dry" }
///     }
/// }
///
/// platform::metrics! {
///     /// Teapots made.
///     pub static MADE: counter = "teapots_made_total";
///     /// Teapots broken, by cause.
///     static BROKEN: counter = "teapots_broken_total" { cause in Cause::ALL.map(Cause::as_str) };
///     /// Time to boil the water.
///     static BOILING: histogram(&[1.0, 10.0, 100.0]) = "teapot_boiling_seconds" { size };
/// }
///
/// initialize();
/// MADE.inc();
/// BROKEN.with_label_values(&[Cause::Dropped.as_str()]).inc();
/// BOILING.observe(&["small"], std::time::Duration::from_secs(5));
/// ```
///
/// A kind is `counter`, `gauge` (integers), `float_gauge` or `histogram(BUCKETS)` (seconds).
///
/// The macro also generates a function `initialize`, to be called once at start. `initialize` creates every series
/// without labels, and every series whose label values are all listed with `in`. Otherwise a series would appear only
/// with its first event. Then `rate()` misses that event, and an alert rule with `rate()` does not fire.
#[macro_export]
macro_rules! metrics {
    ($(
        $(#[doc = $help:literal])+
        $(pub $(($($vis:tt)+))?)? static $NAME:ident: $kind:ident $(($buckets:expr))? = $name:literal
        $({ $($label:ident $(in $values:expr)?),+ })?;
    )+) => {
        lazy_static::lazy_static! {$(
            $(#[doc = $help])+
            $(pub $(($($vis)+))?)? static ref $NAME: $crate::metrics!(@type $kind $($($label)+)?) =
                $crate::metrics!(@new $kind $(($buckets))? $name, concat!($($help),+).trim() $(, [$($label),+])?);
        )+}

        /// Creates every series without labels and every series whose label values are all listed, so that they exist
        /// before their first event.
        pub fn initialize() {
            $($crate::metrics!(@initialize $NAME $({ $($label $(in $values)?),+ })?);)+
        }
    };
    (@type counter) => { prometheus::IntCounter };
    (@type counter $($label:ident)+) => { prometheus::IntCounterVec };
    (@type gauge) => { prometheus::IntGauge };
    (@type gauge $($label:ident)+) => { prometheus::IntGaugeVec };
    (@type float_gauge) => { prometheus::Gauge };
    (@type float_gauge $($label:ident)+) => { prometheus::GaugeVec };
    (@type histogram) => { prometheus::Histogram };
    (@type histogram $($label:ident)+) => { $crate::telemetry::metrics::TracedHistograms };
    (@new counter $name:expr, $help:expr) => {
        $crate::telemetry::metrics::registered(prometheus::register_int_counter!($name, $help))
    };
    (@new counter $name:expr, $help:expr, [$($label:ident),+]) => {
        $crate::telemetry::metrics::registered(prometheus::register_int_counter_vec!($name, $help, &[$(stringify!($label)),+]))
    };
    (@new gauge $name:expr, $help:expr) => {
        $crate::telemetry::metrics::registered(prometheus::register_int_gauge!($name, $help))
    };
    (@new gauge $name:expr, $help:expr, [$($label:ident),+]) => {
        $crate::telemetry::metrics::registered(prometheus::register_int_gauge_vec!($name, $help, &[$(stringify!($label)),+]))
    };
    (@new float_gauge $name:expr, $help:expr) => {
        $crate::telemetry::metrics::registered(prometheus::register_gauge!($name, $help))
    };
    (@new float_gauge $name:expr, $help:expr, [$($label:ident),+]) => {
        $crate::telemetry::metrics::registered(prometheus::register_gauge_vec!($name, $help, &[$(stringify!($label)),+]))
    };
    (@new histogram($buckets:expr) $name:expr, $help:expr) => {
        $crate::telemetry::metrics::registered(prometheus::register_histogram!($name, $help, $buckets.to_vec()))
    };
    (@new histogram($buckets:expr) $name:expr, $help:expr, [$($label:ident),+]) => {
        $crate::telemetry::metrics::TracedHistograms::new($name, $help, &[$(stringify!($label)),+], $buckets)
    };
    (@initialize $NAME:ident { $($label:ident in $values:expr),+ }) => {
        $crate::telemetry::metrics::create_series(&*$NAME, &[$($values.into_iter().collect::<Vec<_>>()),+]);
    };
    (@initialize $NAME:ident $($labels:tt)?) => { lazy_static::initialize(&$NAME); };
}

/// A family of series, which differ in their label values.
pub trait Family {
    /// Creates the series with these label values, at zero.
    fn create(&self, values: &[&str]);
}

impl<B: MetricVecBuilder> Family for MetricVec<B> {
    fn create(&self, values: &[&str]) {
        self.with_label_values(values);
    }
}

impl Family for TracedHistograms {
    fn create(&self, values: &[&str]) {
        self.declare(values);
    }
}

/// Creates a series for every combination of the label values.
pub fn create_series(family: &impl Family, values: &[Vec<&'static str>]) {
    let mut combinations = vec![Vec::new()];
    for label in values {
        let extended = combinations.iter().flat_map(|combination| {
            label.iter().map(move |value| [combination.as_slice(), &[*value]].concat())
        });
        combinations = extended.collect();
    }
    for combination in &combinations {
        family.create(combination);
    }
}
