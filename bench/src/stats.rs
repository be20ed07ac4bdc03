//! Medians and spreads.

/// The middle of `runs`; 0 without any.
pub fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The least and the most.
pub fn range(runs: &[f64]) -> (f64, f64) {
    if runs.is_empty() {
        return (0.0, 0.0);
    }
    runs.iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), run| {
            (low.min(*run), high.max(*run))
        })
}

/// What each of `ours` is of that of `theirs` in the same round.
pub fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter()
        .zip(theirs)
        .map(|(ours, theirs)| ours / theirs)
        .collect()
}

/// A number in as many digits as matter.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1_000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert!((super::median(&[4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < 1e-9);
    }
}
