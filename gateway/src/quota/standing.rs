//! Where a caller stands, for the rate-limit headers.

use super::rule::Measure;
use strata_kinds::quota_policy::Resource;

/// The tightest window of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meter {
    /// How much it allows.
    pub limit: u64,
    /// How much is left.
    pub remaining: u64,
    /// Milliseconds until it is whole again if nothing else is charged.
    pub reset_ms: i64,
}

/// The tightest windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Of those that count requests.
    pub requests: Option<Meter>,
    /// Of those that count tokens.
    pub tokens: Option<Meter>,
}

impl Standing {
    /// Takes one more window into account. Budgets and requests in flight are no rate limits.
    pub fn consider(&mut self, measure: Measure, meter: Meter) {
        let Measure::Window { resource, .. } = measure else { return };
        let place = if resource == Resource::Requests { &mut self.requests } else { &mut self.tokens };
        let tighter = place.is_none_or(|held| {
            (meter.remaining, std::cmp::Reverse(meter.reset_ms))
                < (held.remaining, std::cmp::Reverse(held.reset_ms))
        });
        if tighter {
            *place = Some(meter);
        }
    }
}

/// A duration as OpenAI writes it: `6m0s`, `1.5s`, `20ms`.
pub fn duration(ms: i64) -> String {
    let ms = ms.max(0);
    let (hours, minutes, seconds, rest) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
    let fraction = if rest == 0 { String::new() } else { format!(".{rest:03}") };
    let fraction = fraction.trim_end_matches('0');
    match (hours, minutes) {
        (0, 0) if ms < 1000 => format!("{ms}ms"),
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, _) => format!("{minutes}m{seconds}{fraction}s"),
        _ => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_openais() {
        let shown: Vec<String> =
            [0, 20, 1000, 1500, 60_000, 62_250, 3_600_000, -5].into_iter().map(duration).collect();
        assert_eq!(shown, ["0ms", "20ms", "1s", "1.5s", "1m0s", "1m2.25s", "1h0m0s", "0ms"]);
    }
}
