//! `PromQL` functions over the samples of a range and over histogram buckets.
use super::store::Sample;

/// A time range in milliseconds, excluding its beginning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) start: i64,
    pub(super) end: i64,
}

impl Range {
    pub(super) fn contains(self, at: i64) -> bool {
        self.start < at && at <= self.end
    }
}

/// Computes `increase`: the growth of a counter over the range, corrected for resets and extrapolated to both edges.
pub(super) fn increase(samples: &[Sample], range: Range) -> Option<f64> {
    let [first, .., last] = samples else { return None };
    let resets = samples.windows(2).filter_map(|pair| match pair {
        [before, after] if after.value < before.value => Some(before.value),
        _ => None,
    });
    let grown = last.value - first.value + resets.sum::<f64>();

    let covered = seconds(last.at - first.at);
    let between = covered / count(samples.len() - 1);
    let (mut to_start, mut to_end) = (seconds(first.at - range.start), seconds(range.end - last.at));
    // If a sample is at least 1.1 average intervals from an edge, the series is assumed to begin or end there.
    if to_start >= between * 1.1 {
        to_start = between / 2.0;
    }
    if grown > 0.0 && first.value >= 0.0 {
        // A counter is not extrapolated below zero.
        to_start = to_start.min(covered * (first.value / grown));
    }
    if to_end >= between * 1.1 {
        to_end = between / 2.0;
    }
    Some(grown * ((covered + to_start + to_end) / covered))
}

/// Computes `changes`: how often the value differs from the previous value.
pub(super) fn changes(samples: &[Sample]) -> Option<f64> {
    let changed = samples.windows(2).filter(|pair| match pair {
        [before, after] => before.value.to_bits() != after.value.to_bits(),
        _ => false,
    });
    (!samples.is_empty()).then(|| count(changed.count()))
}

/// Computes `avg_over_time`: the mean of the samples.
pub(super) fn mean(samples: &[Sample]) -> Option<f64> {
    let sum: f64 = samples.iter().map(|sample| sample.value).sum();
    (!samples.is_empty()).then(|| sum / count(samples.len()))
}

/// Computes `histogram_quantile`, interpolated within the bucket that contains the quantile. Buckets are upper bounds
/// with cumulative counts.
pub(super) fn quantile(wanted: f64, mut buckets: Vec<(f64, f64)>) -> f64 {
    if !(0.0..=1.0).contains(&wanted) {
        return if wanted.is_nan() { f64::NAN } else { wanted.signum() * f64::INFINITY };
    }
    buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
    // Rates of buckets can be slightly out of order if the scrape ran between two updates of the histogram.
    let mut largest = f64::NEG_INFINITY;
    for (_, counted) in &mut buckets {
        largest = largest.max(*counted);
        *counted = largest;
    }
    let [finite @ .., (f64::INFINITY, all)] = buckets.as_slice() else { return f64::NAN };
    let Some((highest, _)) = finite.last() else { return f64::NAN };
    if *all == 0.0 {
        return f64::NAN;
    }
    let rank = wanted * all;
    let Some(found) = finite.iter().position(|(_, counted)| *counted >= rank) else { return *highest };
    let below = found.checked_sub(1).and_then(|below| finite.get(below)).copied();
    let Some((end, counted)) = finite.get(found).copied() else { return f64::NAN };
    if below.is_none() && end <= 0.0 {
        return end;
    }
    let (start, counted_below) = below.unwrap_or((0.0, 0.0));
    start + (end - start) * ((rank - counted_below) / (counted - counted_below))
}

#[expect(clippy::cast_precision_loss, reason = "less than a million")]
fn count(number: usize) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "less than an hour")]
fn seconds(milliseconds: i64) -> f64 {
    milliseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_in_between_is_no_negative_growth() {
        let samples = [(1_000, 10.0), (2_000, 14.0), (3_000, 1.0), (4_000, 3.0)]
            .map(|(at, value)| Sample { at, value });
        let grown = increase(&samples, Range { start: 0, end: 4_000 }).unwrap();
        // The counter grew by 4 before the restart and by 3 after it, in three seconds. A third is added for the second
        // before.
        assert!((grown - 7.0 * 4.0 / 3.0).abs() < 1e-9, "{grown}");
        assert_eq!(increase(&samples[..1], Range { start: 0, end: 4_000 }), None);
    }

    #[test]
    fn a_quantile_is_interpolated_and_never_beyond_the_last_bound() {
        let buckets = vec![(f64::INFINITY, 10.0), (0.1, 5.0), (0.5, 9.0)];
        assert!((quantile(0.5, buckets.clone()) - 0.1).abs() < 1e-9);
        assert!((quantile(0.7, buckets.clone()) - 0.3).abs() < 1e-9);
        assert!((quantile(0.99, buckets) - 0.5).abs() < 1e-9);
        assert!(quantile(0.5, vec![(0.1, 0.0), (f64::INFINITY, 0.0)]).is_nan());
        assert!(quantile(0.5, vec![(0.1, 5.0)]).is_nan());
    }
}
