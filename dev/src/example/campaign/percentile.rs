//! Percentiles of measured times.
use std::time::Duration;

/// Returns the smallest of the times, in seconds, that at least `percent` percent of the times do not exceed. Returns
/// zero if there are no times.
pub(super) fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort();
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(rank).copied().unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_percentage_of_times_does_not_exceed_a_percentile() {
        let times: Vec<_> = (1..=200).rev().map(Duration::from_secs).collect();
        let shown = [50, 99, 100].map(|percent| percentile(&times, percent).to_string());
        assert_eq!(shown, ["100", "198", "200"]);
        assert_eq!(percentile(&[], 99).to_bits(), 0.0_f64.to_bits());
    }
}
