//! The values below which a part of many measured ones lies.

/// The value below which `percent` of these lie; they are put in order. `None` of nothing.
pub fn percentile<T: Copy + Ord>(values: &mut [T], percent: f64) -> Option<T> {
    let last = values.len().checked_sub(1)?;
    let at = (last as f64 * percent / 100.0).round() as usize;
    Some(*values.select_nth_unstable(at).1)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn ends_and_middle() {
        let mut values: Vec<u32> = (0..=100).rev().collect();
        let at = [0.0, 50.0, 99.0, 100.0].map(|percent| percentile(&mut values, percent));
        assert_eq!(at, [Some(0), Some(50), Some(99), Some(100)]);
        assert_eq!(percentile::<u32>(&mut [], 50.0), None);
    }
}
