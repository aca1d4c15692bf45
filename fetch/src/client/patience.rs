//! When to try again, and when to stop.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

use super::{Ask, host_of};
use crate::error::FetchError;

/// The longest wait that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(5 * 60);

/// How long to wait between attempts, and how many there are without progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failure; it doubles from there.
    pub first: Duration,
    /// The longest wait.
    pub most: Duration,
    /// Attempts in a row that may fail without a byte of progress.
    pub attempts: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(500), most: Duration::from_secs(30), attempts: 8 }
    }
}

impl Backoff {
    /// The wait after `failed` failures in a row (from 1), between half of it and all of it as `random`
    /// (0..1) says, so that many clients do not come back at once.
    pub fn wait(&self, failed: u32, random: f64) -> Duration {
        let doubled =
            self.first.saturating_mul(1_u32.checked_shl(failed.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.most).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }
}

/// The wait that a server asks for by `Retry-After`, in seconds or as a date.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    Some(httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default())
}

/// Counts failures in a row.
pub(crate) struct Patience {
    backoff: Backoff,
    failed: u32,
}

/// The end of it.
#[derive(Debug)]
pub(crate) struct End {
    attempts: u32,
    last: String,
}

impl End {
    pub(crate) fn error(self, ask: &Ask) -> FetchError {
        let (attempts, last) = (self.attempts, self.last);
        FetchError::GaveUp { host: host_of(&ask.url), what: ask.what.clone(), attempts, last }
    }
}

impl Patience {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { backoff, failed: 0 }
    }

    /// Bytes came: earlier failures are forgotten.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// The wait until the next attempt. `after` is what the server asked for.
    pub(crate) fn failed(&mut self, why: &str, after: Option<Duration>) -> Result<Duration, End> {
        self.failed += 1;
        if let Some(after) = after
            && after > LONGEST_WAIT
        {
            let last =
                format!("{why}; it asks to come back in {} s, which is too long to wait", after.as_secs());
            return Err(End { attempts: self.failed, last });
        }
        if self.failed >= self.backoff.attempts {
            return Err(End { attempts: self.failed, last: why.to_owned() });
        }
        let own = self.backoff.wait(self.failed, random());
        Ok(after.map_or(own, |after| after.max(own)))
    }
}

fn random() -> f64 {
    // Without randomness there is only less jitter.
    getrandom::u32().map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_up_to_a_limit() {
        let backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_secs(10), attempts: 5 };
        let waits: Vec<u64> = (1..=6).map(|n| backoff.wait(n, 1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
        assert_eq!(backoff.wait(2, 0.0), Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_the_limit(failed in any::<u32>(), random in any::<f64>()) {
            let backoff = Backoff::default();
            prop_assert!(backoff.wait(failed, random) <= backoff.most);
        }
    }

    #[test]
    fn a_server_may_say_when() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").unwrap();
        let after = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Wed, 21 Oct 2026 07:28:09 GMT"), Some(Duration::from_secs(9)));
        assert_eq!(after("Wed, 21 Oct 2026 07:27:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-1"), None);
    }

    #[test]
    fn patience_ends_and_progress_renews_it() {
        let mut patience = Patience::new(Backoff { attempts: 3, ..Backoff::default() });
        assert!(patience.failed("x", None).is_ok());
        assert!(patience.failed("x", None).is_ok());
        patience.progressed();
        assert!(patience.failed("x", None).is_ok());
        assert!(patience.failed("x", Some(Duration::from_secs(9))).unwrap() >= Duration::from_secs(9));
        assert_eq!(patience.failed("why", None).unwrap_err().attempts, 3);
        let mut patience = Patience::new(Backoff::default());
        let end = patience.failed("busy", Some(Duration::from_secs(3600))).unwrap_err();
        assert!(end.last.contains("3600 s"), "{}", end.last);
    }
}
