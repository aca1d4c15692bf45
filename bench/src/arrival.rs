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
    /// A rate that rises instead.
    pub ramp: Option<Ramp>,
}

/// A rate that rises from the first request to the last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ramp {
    /// How it rises.
    pub by: Rise,
    /// Requests a second in the beginning.
    pub from: f64,
    /// Requests a second at the end.
    pub to: f64,
}

/// How a rate rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rise {
    /// By the same amount with each request.
    Linear,
    /// By the same factor with each request.
    Exponential,
}

impl Ramp {
    /// The rate before the request of this number of so many.
    fn rate(self, number: usize, count: usize) -> f64 {
        let done = number as f64 / count.saturating_sub(1).max(1) as f64;
        match self.by {
            Rise::Linear => self.from + (self.to - self.from) * done,
            Rise::Exponential => self.from * (self.to / self.from).powf(done),
        }
    }
}

impl Arrival {
    /// The times of `count` requests, from the start on. As in vLLM, they are stretched so that the last
    /// comes when the rate says, whatever was drawn; not those of a rate that rises.
    pub fn times(self, count: usize, random: &mut Random) -> Vec<Duration> {
        if let Some(ramp) = self.ramp {
            let mut at = 0.0;
            let mut next = |number| {
                at += random.gamma(self.burstiness) / ramp.rate(number, count);
                Duration::from_secs_f64(at)
            };
            return (0..count).map(&mut next).collect();
        }
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
            let times = Arrival { rate: 4.0, burstiness, ramp: None }.times(100, &mut Random::new(3));
            assert!(times.is_sorted());
            assert!((times[99].as_secs_f64() - 25.0).abs() < 1e-6, "{:?}", times[99]);
        }
        let at_once =
            Arrival { rate: f64::INFINITY, burstiness: 1.0, ramp: None }.times(3, &mut Random::new(3));
        assert_eq!(at_once, [Duration::ZERO; 3]);
    }

    #[test]
    fn even_arrivals_are_even() {
        let times = Arrival { rate: 10.0, burstiness: 1e6, ramp: None }.times(50, &mut Random::new(3));
        for pair in times.windows(2) {
            let gap = pair[1].abs_diff(pair[0]).as_secs_f64();
            assert!((gap - 0.1).abs() < 0.002, "{gap}");
        }
    }

    #[test]
    fn a_ramp_ends_at_its_rate() {
        for by in [Rise::Linear, Rise::Exponential] {
            let ramp = Some(Ramp { by, from: 2.0, to: 50.0 });
            let arrival = Arrival { rate: f64::INFINITY, burstiness: 1e6, ramp };
            let times = arrival.times(200, &mut Random::new(3));
            let gap = |at: usize| times[at].abs_diff(times[at - 1]).as_secs_f64();
            assert!((times[0].as_secs_f64() - 0.5).abs() < 0.01, "{by:?}: {:?}", times[0]);
            assert!((gap(199) - 0.02).abs() < 0.001, "{by:?}: {}", gap(199));
            let middle = if by == Rise::Linear { 1.0 / 26.0 } else { 0.1 };
            assert!((gap(100) / middle - 1.0).abs() < 0.05, "{by:?}: {}", gap(100));
        }
    }
}
