//! Medians and bootstrap intervals of paired rounds.

use crate::random::Random;

const RESAMPLES: usize = 2_000;

/// A median with the ends that belong to it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimate {
    /// The middle.
    pub median: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Median, and smallest and largest value.
pub fn range(values: &[f64]) -> Estimate {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Estimate { median: median(values), low, high }
}

/// Median of `values` and its 95 % percentile bootstrap interval.
pub fn bootstrap(values: &[f64]) -> Estimate {
    if values.is_empty() {
        return Estimate { median: f64::NAN, low: f64::NAN, high: f64::NAN };
    }
    let mut random = Random(1);
    let mut resampled = vec![0.0; values.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            resampled.fill_with(|| values[random.below(values.len() as u64) as usize]);
            median(&resampled)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |quantile: f64| medians[((RESAMPLES - 1) as f64 * quantile).round() as usize];
    Estimate { median: median(values), low: at(0.025), high: at(0.975) }
}

/// The median; not a number where there are no values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}
