//! Statistics over several rounds: the median, minimum and maximum of a figure, ratios of figures, and the format of
//! figures.
//!
//! A ratio is computed in each round, and the result is the median of these ratios. The contenders of a round run
//! directly one after the other. Other activity of the machine (another tenant, a changed clock rate) therefore affects
//! the numerator and the denominator of a ratio alike, and mostly cancels out.
use std::fmt::{self, Display, Formatter};

/// The median, the minimum and the maximum of a figure over several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub minimum: f64,
    pub maximum: f64,
}

/// Returns the spread of the finite values, or `None` if no value is finite.
pub fn spread(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let (minimum, maximum) = (*values.first()?, *values.last()?);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    let median = if values.len().is_multiple_of(2) {
        let lower = *values.get(middle.checked_sub(1)?)?;
        f64::midpoint(lower, upper)
    } else {
        upper
    };
    Some(Spread { median, minimum, maximum })
}

/// Computes the ratio of each round with a positive denominator, and returns the spread of these ratios. Both slices
/// have one value per round, in the same order.
pub fn ratio(numerators: &[f64], denominators: &[f64]) -> Option<Spread> {
    let rounds = numerators.iter().zip(denominators).filter(|(_, denominator)| **denominator > 0.0);
    spread(rounds.map(|(numerator, denominator)| numerator / denominator))
}

/// Formats a value with two decimals if the rounded value is below 10, one if it is below 100, and none otherwise.
pub fn rounded(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 99.95 => format!("{value:.0}"),
        magnitude if magnitude >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Formats as median, minimum and maximum, such as `1320 [1290–1400]`, or as `1320` if all rounds have the same value.
impl Display for Spread {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let Self { median, minimum, maximum } = *self;
        if (maximum - minimum).abs() < f64::EPSILON {
            return formatter.write_str(&rounded(median));
        }
        write!(formatter, "{} [{}–{}]", rounded(median), rounded(minimum), rounded(maximum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value_or_the_mean_of_two() {
        assert_eq!(spread([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, minimum: 1.0, maximum: 3.0 }));
        assert_eq!(spread([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, minimum: 1.0, maximum: 4.0 }));
        assert_eq!(spread([5.0]).map(|spread| spread.median), Some(5.0));
        assert_eq!(spread([]), None);
    }

    #[test]
    fn nan_is_no_measurement() {
        let measured = spread([f64::NAN, 1.0, f64::INFINITY, 3.0]);
        assert_eq!(measured, Some(Spread { median: 2.0, minimum: 1.0, maximum: 3.0 }));
    }

    #[test]
    fn a_ratio_is_computed_within_each_round() {
        // The machine was half as fast in the second round, for both contenders.
        let found = ratio(&[200.0, 100.0, 210.0], &[100.0, 50.0, 100.0]);
        assert_eq!(found, Some(Spread { median: 2.0, minimum: 2.0, maximum: 2.1 }));
        assert_eq!(ratio(&[1.0], &[0.0]), None);
    }

    #[test]
    fn the_decimal_places_depend_on_the_size_of_a_figure() {
        let shown = [0.12345, 9.994, 9.996, 12.34, 99.96, 1234.5].map(rounded);
        assert_eq!(shown, ["0.12", "9.99", "10.0", "12.3", "100", "1234"]);
        assert_eq!(Spread { median: 1.5, minimum: 1.25, maximum: 2.0 }.to_string(), "1.50 [1.25–2.00]");
        assert_eq!(Spread { median: 2.0, minimum: 2.0, maximum: 2.0 }.to_string(), "2.00");
    }
}
