//! `PromQL` functions over the samples of a range and over histogram buckets.
use super::store::Sample;

/// A time range in milliseconds, which excludes its start.
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

/// Computes `increase`: the growth of a counter over the range, corrected for resets and extrapolated towards both
/// edges.
pub(super) fn increase(samples: &[Sample], range: Range) -> Option<f64> {
    let [first, .., last] = samples else { return None };
    let resets = samples.windows(2).filter_map(|pair| match pair {
        [before, after] if after.value < before.value => Some(before.value),
        _ => None,
    });
    let growth = last.value - first.value + resets.sum::<f64>();

    let covered = seconds(last.at - first.at);
    let average_interval = covered / count(samples.len() - 1);
    let (mut to_start, mut to_end) = (seconds(first.at - range.start), seconds(range.end - last.at));
    // If an edge is at least 1.1 average intervals from the nearest sample, the series is assumed to begin or end half
    // an average interval from that sample.
    if to_start >= average_interval * 1.1 {
        to_start = average_interval / 2.0;
    }
    if growth > 0.0 && first.value >= 0.0 {
        // A counter is not extrapolated below zero.
        to_start = to_start.min(covered * (first.value / growth));
    }
    if to_end >= average_interval * 1.1 {
        to_end = average_interval / 2.0;
    }
    Some(growth * ((covered + to_start + to_end) / covered))
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
pub(super) fn quantile(level: f64, mut buckets: Vec<(f64, f64)>) -> f64 {
    if !(0.0..=1.0).contains(&level) {
        return if level.is_nan() { f64::NAN } else { level.signum() * f64::INFINITY };
    }
    buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
    // A cumulative count can be slightly less than the count of the previous bucket if the scrape ran between two
    // updates of the histogram.
    let mut largest = f64::NEG_INFINITY;
    for (_, cumulative) in &mut buckets {
        largest = largest.max(*cumulative);
        *cumulative = largest;
    }
    let [finite @ .., (f64::INFINITY, all)] = buckets.as_slice() else { return f64::NAN };
    let Some((highest, _)) = finite.last() else { return f64::NAN };
    if *all == 0.0 {
        return f64::NAN;
    }
    let rank = level * all;
    let Some(index) = finite.iter().position(|(_, cumulative)| *cumulative >= rank) else { return *highest };
    let below = index.checked_sub(1).and_then(|below| finite.get(below)).copied();
    let Some((end, cumulative)) = finite.get(index).copied() else { return f64::NAN };
    if below.is_none() && end <= 0.0 {
        return end;
    }
    let (start, count_below) = below.unwrap_or((0.0, 0.0));
    start + (end - start) * ((rank - count_below) / (cumulative - count_below))
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
    fn a_counter_reset_is_not_negative_growth() {
        let samples = [(1_000, 10.0), (2_000, 14.0), (3_000, 1.0), (4_000, 3.0)]
            .map(|(at, value)| Sample { at, value });
        let growth = increase(&samples, Range { start: 0, end: 4_000 }).unwrap();
        // The counter grew by 4 before the restart and by 3 after it, in three seconds. The first second of the range
        // is extrapolated.
        assert!((growth - 7.0 * 4.0 / 3.0).abs() < 1e-9, "{growth}");
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
