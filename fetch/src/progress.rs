//! How far the fetch is: counted here, shown by log lines and over HTTP.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use strata_wire::download::{DownloadProgress, DownloadState};

/// Over how long the rate is measured.
const WINDOW: Duration = Duration::from_secs(10);
const UNKNOWN: u64 = u64::MAX;

/// Shared by all who fetch and all who look.
pub(crate) struct Progress {
    told: Mutex<Told>,
    done: AtomicU64,
    total: AtomicU64,
    /// Bytes that came in this run, thrown away or not.
    received: AtomicU64,
    samples: Mutex<VecDeque<(Instant, u64)>>,
}

#[derive(Default)]
struct Told {
    state: DownloadState,
    file: String,
    message: String,
    /// What the process says that is waited for.
    other: Option<DownloadProgress>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            told: Mutex::default(),
            done: AtomicU64::new(0),
            total: AtomicU64::new(UNKNOWN),
            received: AtomicU64::new(0),
            samples: Mutex::default(),
        }
    }

    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock().expect("no holder panics"));
    }

    pub(crate) fn state(&self, state: DownloadState) {
        self.tell(|told| {
            told.state = state;
            told.message.clear();
            told.other = None;
        });
    }

    pub(crate) fn failed(&self, why: &str) {
        self.tell(|told| {
            told.state = DownloadState::Failed;
            why.clone_into(&mut told.message);
            told.other = None;
        });
    }

    /// Another process fetches; this is what it says of itself.
    pub(crate) fn waiting(&self, other: Option<DownloadProgress>) {
        self.tell(|told| {
            told.state = DownloadState::Waiting;
            "another process fetches this model to this place".clone_into(&mut told.message);
            told.other = other;
        });
    }

    /// What a person should know while it goes on.
    pub(crate) fn note(&self, message: &str) {
        self.tell(|told| message.clone_into(&mut told.message));
    }

    /// Begins a round: what is there already, and how much there is to be.
    pub(crate) fn begin(&self, done: u64, total: Option<u64>) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }

    pub(crate) fn add(&self, file: &str, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.tell(|told| {
            if told.file != file {
                file.clone_into(&mut told.file);
            }
            told.message.clear();
        });
    }

    /// Bytes were thrown away.
    pub(crate) fn take_back(&self, bytes: u64) {
        let _ = self
            .done
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |done| Some(done.saturating_sub(bytes)));
    }

    /// To be called about once a second.
    pub(crate) fn sample(&self, now: Instant) {
        let mut samples = self.samples.lock().expect("no holder panics");
        samples.push_back((now, self.received.load(Ordering::Relaxed)));
        while samples.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            samples.pop_front();
        }
    }

    pub(crate) fn report(&self) -> DownloadProgress {
        let told = self.told.lock().expect("no holder panics");
        if let Some(other) = &told.other {
            return DownloadProgress { state: told.state, message: told.message.clone(), ..other.clone() };
        }
        let rate = if told.state == DownloadState::Fetching {
            rate(self.samples.lock().expect("no holder panics").iter())
        } else {
            0
        };
        let done = self.done.load(Ordering::Relaxed);
        let total = Some(self.total.load(Ordering::Relaxed)).filter(|&total| total != UNKNOWN);
        DownloadProgress {
            state: told.state,
            bytes_done: done,
            bytes_total: total,
            bytes_per_s: rate,
            remaining_s: total.and_then(|total| remaining(total.saturating_sub(done), rate, told.state)),
            file: told.file.clone(),
            message: told.message.clone(),
        }
    }
}

fn rate<'a>(mut samples: impl DoubleEndedIterator<Item = &'a (Instant, u64)>) -> u64 {
    let (Some((from, before)), Some((to, after))) = (samples.next(), samples.next_back()) else { return 0 };
    let seconds = to.duration_since(*from).as_secs_f64();
    if seconds > 0.0 { (after.saturating_sub(*before) as f64 / seconds) as u64 } else { 0 }
}

fn remaining(left: u64, rate: u64, state: DownloadState) -> Option<u64> {
    match state {
        DownloadState::Done => Some(0),
        DownloadState::Fetching if rate > 0 => Some(left.div_ceil(rate)),
        _ => None,
    }
}

/// Bytes as people read them.
pub(crate) fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["bytes", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "bytes" { format!("{bytes} bytes") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_remaining_time() {
        let progress = Progress::new();
        let start = Instant::now();
        progress.state(DownloadState::Fetching);
        progress.begin(100, Some(1100));
        progress.sample(start);
        assert_eq!(progress.report().remaining_s, None);
        progress.add("a", 200);
        progress.sample(start + Duration::from_secs(2));
        let report = progress.report();
        assert_eq!((report.bytes_done, report.bytes_per_s, report.remaining_s), (300, 100, Some(8)));
        progress.sample(start + Duration::from_secs(13));
        assert_eq!(progress.report().bytes_per_s, 0, "what is older than the window does not count");
        progress.take_back(1000);
        assert_eq!(progress.report().bytes_done, 0);
    }

    #[test]
    fn one_that_waits_shows_the_other() {
        let progress = Progress::new();
        let other = DownloadProgress { bytes_done: 7, state: DownloadState::Fetching, ..Default::default() };
        progress.waiting(Some(other));
        let report = progress.report();
        assert_eq!((report.state, report.bytes_done), (DownloadState::Waiting, 7));
        progress.failed("why");
        assert_eq!((progress.report().message.as_str(), progress.report().bytes_done), ("why", 0));
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!([human(12), human(1536), human(5 << 30)], ["12 bytes", "1.5 KiB", "5.0 GiB"]);
    }
}
