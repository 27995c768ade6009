//! The samples of the last 15 minutes.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use promql_parser::label::Matchers;

use super::{
    Labels,
    exposition::{self, NAME},
};

/// Retention time of samples.
pub const RETENTION: Duration = Duration::from_mins(15);

/// Maximum number of series. Samples of further series are ignored. A replica has about 1,000 series.
const MAX_SERIES: usize = 5_000;

/// The value that marks the end of a series, as in Prometheus.
const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

/// A value and its time, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    pub(super) at: i64,
    pub(super) value: f64,
}

impl Sample {
    pub(super) fn is_stale(&self) -> bool {
        self.value.to_bits() == STALE.to_bits()
    }
}

#[derive(Debug)]
pub(super) struct Series {
    pub(super) labels: Labels,
    pub(super) samples: VecDeque<Sample>,
}

/// The scraped series of one or several targets.
#[derive(Debug, Default)]
pub struct Store {
    series: BTreeMap<u64, Series>,
    /// Ids of the series of each metric name.
    names: HashMap<String, BTreeSet<u64>>,
    /// Ids of the series, first by target (`instance`), then by the unparsed name and labels in the target's response.
    series_by_text: HashMap<String, HashMap<String, u64>>,
    next: u64,
}

impl Store {
    /// Stores the samples of a target's response, and a sample of `up`. `None` means that the scrape failed. Series of
    /// the target that are missing in the response are marked as ended. Samples older than [`RETENTION`] are dropped.
    pub fn record_scrape(&mut self, at: i64, job: &str, instance: &str, text: Option<&str>) {
        let up = if text.is_some() { "up 1" } else { "up 0" };
        let mut ids_by_text = self.series_by_text.remove(instance).unwrap_or_default();
        let mut seen = BTreeSet::new();
        for (head, value) in exposition::samples(text.unwrap_or_default()).chain(exposition::samples(up)) {
            let id = match ids_by_text.get(head) {
                Some(id) if self.series.contains_key(id) => Some(*id),
                _ => self.add_series(head, job, instance),
            };
            let Some(id) = id else { continue };
            self.push(id, Sample { at, value });
            ids_by_text.insert(head.to_owned(), id);
            seen.insert(id);
        }
        for id in ids_by_text.values().filter(|id| !seen.contains(id)) {
            self.mark_ended(*id, at);
        }
        self.series_by_text.insert(instance.to_owned(), ids_by_text);
        self.drop_old_samples(at);
    }

    fn add_series(&mut self, head: &str, job: &str, instance: &str) -> Option<u64> {
        if self.series.len() >= MAX_SERIES {
            return None;
        }
        let mut labels = exposition::labels(head)?;
        labels.insert("job".to_owned(), job.to_owned());
        labels.insert("instance".to_owned(), instance.to_owned());
        let id = self.next;
        self.next += 1;
        self.names.entry(labels.get(NAME)?.clone()).or_default().insert(id);
        self.series.insert(id, Series { labels, samples: VecDeque::new() });
        Some(id)
    }

    fn push(&mut self, id: u64, sample: Sample) {
        if let Some(series) = self.series.get_mut(&id) {
            series.samples.push_back(sample);
        }
    }

    fn mark_ended(&mut self, id: u64, at: i64) {
        let ended =
            self.series.get(&id).and_then(|series| series.samples.back()).is_none_or(Sample::is_stale);
        if !ended {
            self.push(id, Sample { at, value: STALE });
        }
    }

    fn drop_old_samples(&mut self, now: i64) {
        let oldest = now - milliseconds(RETENTION);
        self.series.retain(|id, series| {
            while series.samples.front().is_some_and(|sample| sample.at < oldest) {
                series.samples.pop_front();
            }
            let is_used = !series.samples.is_empty();
            if !is_used && let Some(ids) = series.labels.get(NAME).and_then(|name| self.names.get_mut(name)) {
                ids.remove(id);
            }
            is_used
        });
        for ids_by_text in self.series_by_text.values_mut() {
            ids_by_text.retain(|_, id| self.series.contains_key(id));
        }
    }

    /// Returns the series that match a selector. A selector without a metric name matches no series.
    pub(super) fn select<'a>(
        &'a self,
        name: Option<&str>,
        matchers: &'a Matchers,
    ) -> impl Iterator<Item = &'a Series> {
        let ids = name.and_then(|name| self.names.get(name)).into_iter().flatten();
        ids.filter_map(|id| self.series.get(id)).filter(move |series| {
            let is_match = |matcher: &promql_parser::label::Matcher| {
                matcher.is_match(series.labels.get(&matcher.name).map_or("", String::as_str))
            };
            matchers.matchers.iter().all(is_match)
        })
    }

    /// Returns the number of series and of samples.
    pub fn size(&self) -> (usize, usize) {
        (self.series.len(), self.series.values().map(|series| series.samples.len()).sum())
    }
}

pub(super) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_for_scrapes_is_bounded() {
        let mut store = Store::default();
        let mut sizes = Vec::new();
        for scrape in 0..4_000_i64 {
            // Each scrape has a new label value, as if a label contained the id of a request.
            let text = format!("steady 1\nfleeting{{number=\"{scrape}\"}} 1\n");
            store.record_scrape(scrape * 2_000, "service", "one", Some(&text));
            sizes.push(store.size());
        }
        assert_eq!(sizes[1_000], sizes[3_999]);
        let (series, samples) = sizes[3_999];
        assert!(series <= 460 && samples <= 2_000, "{series} series, {samples} samples");
        assert_eq!(store.series_by_text["one"].len(), series);
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let mut store = Store::default();
        let lines: Vec<_> = (0..9_000).map(|number| format!("many{{number=\"{number}\"}} 1\n")).collect();
        let text = lines.concat();
        store.record_scrape(0, "service", "one", Some(&text));
        assert_eq!(store.size().0, MAX_SERIES);
    }
}
