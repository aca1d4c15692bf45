//! Whether an answer means something else than the one before. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use strata_wire::replicas::ReplicaReport;

use crate::cluster::Progress;

/// Which models a scheduler's answer is news for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changed {
    /// For all: the scheduler went or came.
    All,
    /// For these, by the name that requests ask for.
    Models(BTreeSet<String>),
}

impl Changed {
    pub(super) fn touches(&self, model: &str) -> bool {
        match self {
            Self::All => true,
            Self::Models(models) => models.contains(model),
        }
    }
}

type Report = Result<Arc<ReplicaReport>, String>;

/// What of a model's part of a report decides anything: who is routed to, and whether anybody asks.
/// Counters and loads change all the time, and decide nothing.
#[derive(Debug, PartialEq, Eq)]
struct Decisive {
    /// Replicas by name, and whether they get requests.
    routed: Vec<(String, bool)>,
    /// Whether requests wait, and whether any is served.
    asked: Option<(bool, bool)>,
}

fn of_model(report: &ReplicaReport, model: &str) -> Decisive {
    let replicas = report.models.get(model).into_iter().flatten();
    let mut routed: Vec<(String, bool)> = replicas.map(|r| (r.name.clone(), r.ready)).collect();
    routed.sort();
    let demand = report.demand.get(model).map(|d| (d.held > 0, d.in_flight > 0));
    Decisive { routed, asked: demand }
}

/// What is new in a scheduler's answer.
pub(super) fn changed(before: Option<&Report>, now: &Report) -> Changed {
    match (before, now) {
        (Some(Ok(before)), Ok(now)) => {
            let names = before.models.keys().chain(before.demand.keys());
            let names = names.chain(now.models.keys()).chain(now.demand.keys());
            let changed = names.filter(|name| of_model(before, name) != of_model(now, name));
            Changed::Models(changed.cloned().collect())
        }
        (Some(Err(_)), Err(_)) => Changed::Models(BTreeSet::new()),
        _ => Changed::All,
    }
}

/// Whether a download has gone on by a hundredth, or says something else.
pub(super) fn download_changed(before: Option<&Progress>, now: &Progress) -> bool {
    let hundredth = |p: &Progress| {
        let total = p.bytes_total.filter(|t| *t > 0)?;
        Some(u128::from(p.bytes_done) * 100 / u128::from(total))
    };
    let gibibytes = |p: &Progress| p.bytes_done >> 30;
    before.is_none_or(|b| {
        b.message != now.message
            || b.state != now.state
            || hundredth(b) != hundredth(now)
            || (now.bytes_total.is_none() && gibibytes(b) != gibibytes(now))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    // As the one that is compared with.
    #[allow(clippy::unnecessary_wraps)]
    fn report(ready: bool, running: f64, held: u64) -> Report {
        let state = json!({
            "name": "pod", "url": "http://10.0.0.1:8000", "ready": ready, "in_flight": 0, "running": running,
            "waiting": 0.0, "kv_usage": 0.0, "prefix_queries": 0.0, "prefix_hits": 0.0, "requests": 7,
        });
        let report = json!({
            "models": { "a": [state], "b": [] },
            "demand": { "a": { "held": held, "in_flight": 0, "idle_s": running } },
        });
        Ok(Arc::new(serde_json::from_value(report).unwrap()))
    }

    fn names(changed: &Changed) -> Vec<&str> {
        match changed {
            Changed::All => vec!["all"],
            Changed::Models(models) => models.iter().map(String::as_str).collect(),
        }
    }

    #[test]
    fn loads_are_no_news_and_routing_is() {
        let before = report(true, 1.0, 0);
        assert!(names(&changed(Some(&before), &report(true, 9.0, 0))).is_empty());
        assert_eq!(names(&changed(Some(&before), &report(false, 1.0, 0))), ["a"]);
        assert_eq!(names(&changed(Some(&before), &report(true, 1.0, 2))), ["a"], "somebody waits");
        assert!(names(&changed(Some(&report(true, 1.0, 1)), &report(true, 1.0, 2))).is_empty());
    }

    #[test]
    fn a_scheduler_that_goes_or_comes_is_news_for_all() {
        let (up, down) = (report(true, 1.0, 0), Err("refused".to_owned()));
        assert_eq!(names(&changed(None, &up)), ["all"]);
        assert_eq!(names(&changed(Some(&up), &down)), ["all"]);
        assert_eq!(names(&changed(Some(&down), &up)), ["all"]);
        assert!(names(&changed(Some(&down), &Err("timed out".to_owned()))).is_empty());
    }

    #[test]
    fn a_download_is_told_of_by_the_hundredth() {
        let at = |done, total| Progress { bytes_done: done, bytes_total: total, ..Progress::default() };
        assert!(download_changed(None, &at(0, None)));
        assert!(!download_changed(Some(&at(1, Some(1000))), &at(9, Some(1000))));
        assert!(download_changed(Some(&at(9, Some(1000))), &at(10, Some(1000))));
        assert!(!download_changed(Some(&at(1, None)), &at(1 << 29, None)));
        assert!(download_changed(Some(&at(1, None)), &at(1 << 31, None)));
    }
}
