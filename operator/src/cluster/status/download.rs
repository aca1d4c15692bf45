//! How far the download of a model is.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use strata_kinds::model_deployment::DownloadStatus;
use strata_wire::download::DownloadState;

use super::super::{ModelSeen, Progress, pods};

/// Progress is written again after this long, or after a twentieth of the whole.
const EVERY: Duration = Duration::from_secs(10);
const STEPS: i64 = 20;

/// The download that is furthest behind, of the pods that stay.
fn slowest<'a>(seen: &ModelSeen<'a>) -> Option<(String, &'a Progress)> {
    let waiting = seen.pods.iter().filter(|p| pods::stays(p) && !pods::is_ready(p));
    let mut downloads: Vec<_> = waiting
        .filter_map(|p| {
            let name = p.name_any();
            let progress = seen.downloads.get(&name)?;
            Some((name, progress))
        })
        .filter(|(_, progress)| !is_whole(progress))
        .collect();
    downloads.sort_by(|a, b| (a.1.bytes_done, &a.0).cmp(&(b.1.bytes_done, &b.0)));
    downloads.into_iter().next()
}

fn is_whole(progress: &Progress) -> bool {
    progress.state == DownloadState::Done
}

/// In words, while one runs.
pub(super) fn running(seen: &ModelSeen<'_>) -> Option<String> {
    let (_, progress) = slowest(seen)?;
    let done = match progress.bytes_total {
        Some(total) if total > 0 => {
            // In steps, so that the condition is not written for each percent.
            let step = (u128::from(progress.bytes_done) * 20 / u128::from(total)).min(20) * 5;
            format!("the model is being fetched: over {step}% of {}", size(total))
        }
        _ => "the model is being fetched".to_owned(),
    };
    // What stands in the way, as long as it does.
    Some(match progress.message.as_str() {
        "" => done,
        trouble => format!("{done}; {trouble}"),
    })
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{} MB", bytes.div_ceil(1_000_000)),
        _ => format!("{}.{} GB", bytes / 1_000_000_000, bytes / 100_000_000 % 10),
    }
}

/// The status to write: what is there already, until enough has changed.
pub(super) fn status(
    before: Option<&DownloadStatus>,
    seen: &ModelSeen<'_>,
    now: Timestamp,
) -> Option<DownloadStatus> {
    let (pod, progress) = slowest(seen)?;
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let new = DownloadStatus {
        pod,
        bytes_done: number(progress.bytes_done),
        bytes_total: progress.bytes_total.map(number),
        remaining_seconds: progress.remaining_s.map(number),
        message: (!progress.message.is_empty()).then(|| progress.message.clone()),
        observed_at: Time(now),
    };
    match before {
        Some(old) if !is_news(old, &new, now) => Some(old.clone()),
        _ => Some(new),
    }
}

fn is_news(old: &DownloadStatus, new: &DownloadStatus, now: Timestamp) -> bool {
    let same = old.pod == new.pod && old.message == new.message && old.bytes_total == new.bytes_total;
    let moved = new.bytes_done.abs_diff(old.bytes_done);
    let step = new.bytes_total.map_or(u64::MAX, |total| total.unsigned_abs() / STEPS.unsigned_abs());
    let old_enough = moved > 0 && pods::age(old.observed_at.0, now) >= EVERY;
    !same || (moved > 0 && moved >= step) || old_enough
}
