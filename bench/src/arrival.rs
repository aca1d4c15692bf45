//! When requests are sent.

use std::time::Duration;

use crate::Random;

/// How requests arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// Requests a second, on average; infinite sends all at once.
    pub rate: f64,
    /// Shape of the gamma distribution of the gaps: 1 is a Poisson process, less is burstier, more is
    /// more even.
    pub burstiness: f64,
}

impl Arrival {
    /// The times of `count` requests, from the start on. As in vLLM, they are stretched so that the last
    /// comes when the rate says, whatever was drawn.
    pub fn times(self, count: usize, random: &mut Random) -> Vec<Duration> {
        if self.rate.is_infinite() {
            return vec![Duration::ZERO; count];
        }
        let mut at = 0.0;
        let drawn: Vec<f64> = (0..count)
            .map(|_| {
                at += random.gamma(self.burstiness);
                at
            })
            .collect();
        let stretch = if at > 0.0 { count as f64 / at } else { 1.0 };
        drawn.into_iter().map(|t| Duration::from_secs_f64(t * stretch / self.rate)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_comes_when_the_rate_says() {
        for burstiness in [0.2, 1.0, 50.0] {
            let times = Arrival { rate: 4.0, burstiness }.times(100, &mut Random::new(3));
            assert!(times.is_sorted());
            assert!((times[99].as_secs_f64() - 25.0).abs() < 1e-6, "{:?}", times[99]);
        }
        let at_once = Arrival { rate: f64::INFINITY, burstiness: 1.0 }.times(3, &mut Random::new(3));
        assert_eq!(at_once, [Duration::ZERO; 3]);
    }

    #[test]
    fn even_arrivals_are_even() {
        let times = Arrival { rate: 10.0, burstiness: 1e6 }.times(50, &mut Random::new(3));
        for pair in times.windows(2) {
            let gap = pair[1].abs_diff(pair[0]).as_secs_f64();
            assert!((gap - 0.1).abs() < 0.002, "{gap}");
        }
    }
}
