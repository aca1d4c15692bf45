//! What schedulers, gateways and downloads answered last.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use strata_wire::governance::GatewayStatus;
use strata_wire::replicas::ReplicaReport;

use super::key::Key;
use crate::cluster::pods::is_ready;
use crate::cluster::{GatewayView, Progress, SchedulerView};

/// Whether a pod is one of a component of Strata.
pub(super) fn is_component(pod: &Pod, component: &str) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|l| l.get("app.kubernetes.io/component")).is_some_and(|c| c == component)
}

/// What stands in the place of an answer before the first.
const NOT_ASKED: &str = "it was not asked yet";

/// How many times in a row a scheduler may fail to answer before its last answer counts no more: a busy
/// one still routes.
const MISSES: u32 = 3;

/// Whether one that serves was not asked yet.
pub(super) fn is_unasked(schedulers: &[SchedulerView]) -> bool {
    schedulers.iter().any(|s| s.ready && s.report.as_ref().is_err_and(|e| e == NOT_ASKED))
}

/// Whether one was not asked yet.
pub(super) fn is_unasked_of(gateways: &[GatewayView]) -> bool {
    gateways.iter().any(|g| g.report.as_ref().is_err_and(|e| e == NOT_ASKED))
}

type Report = Result<Arc<ReplicaReport>, String>;
type Governance = Result<Arc<GatewayStatus>, String>;

#[derive(Debug, Default)]
struct Inner {
    schedulers: HashMap<Key, Report>,
    /// Failures in a row since the last answer.
    misses: HashMap<Key, u32>,
    downloads: HashMap<Key, Progress>,
    gateways: HashMap<Key, Governance>,
}

/// The answers.
#[derive(Debug, Default)]
pub(super) struct Views(Mutex<Inner>);

impl Views {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One view for each scheduler pod that stays, of the pods given.
    pub(super) fn schedulers<'a>(&self, pods: impl Iterator<Item = &'a Pod>) -> Vec<SchedulerView> {
        let inner = self.lock();
        let staying =
            pods.filter(|p| is_component(p, "scheduler") && p.metadata.deletion_timestamp.is_none());
        staying
            .map(|pod| {
                let key = Key::of(&pod.metadata);
                let report = inner.schedulers.get(&key).cloned();
                let report = report.unwrap_or_else(|| Err(NOT_ASKED.to_owned()));
                SchedulerView { pod: key.name, ready: is_ready(pod), report }
            })
            .collect()
    }

    /// Takes a scheduler's answer, or that it gave none. Returns what counted before and what counts now.
    pub(super) fn set_scheduler(&self, pod: Key, report: Report) -> (Option<Report>, Report) {
        let Inner { schedulers, misses, .. } = &mut *self.lock();
        take(schedulers, misses, pod, report)
    }

    /// Downloads of a namespace, by pod.
    pub(super) fn downloads(&self, namespace: &str) -> BTreeMap<String, Progress> {
        let inner = self.lock();
        let here = inner.downloads.iter().filter(|(key, _)| key.namespace == namespace);
        here.map(|(key, progress)| (key.name.clone(), progress.clone())).collect()
    }

    /// Takes a download's answer. Returns the one before.
    pub(super) fn set_download(&self, pod: Key, progress: Progress) -> Option<Progress> {
        self.lock().downloads.insert(pod, progress)
    }

    /// Drops the answers of pods that are no more, or download no more.
    pub(super) fn retain(
        &self,
        scheduler: impl Fn(&Key) -> bool,
        download: impl Fn(&Key) -> bool,
        gateway: impl Fn(&Key) -> bool,
    ) {
        let mut inner = self.lock();
        inner.schedulers.retain(|key, _| scheduler(key));
        inner.misses.retain(|key, _| scheduler(key) || gateway(key));
        inner.downloads.retain(|key, _| download(key));
        inner.gateways.retain(|key, _| gateway(key));
    }

    /// The same for a gateway.
    pub(super) fn set_gateway(&self, pod: Key, says: Governance) -> (Option<Governance>, Governance) {
        let Inner { gateways, misses, .. } = &mut *self.lock();
        take(gateways, misses, pod, says)
    }

    /// One view for each ready gateway pod that stays, of the pods given.
    pub(super) fn gateways<'a>(&self, pods: impl Iterator<Item = &'a Pod>) -> Vec<GatewayView> {
        let inner = self.lock();
        let stays =
            |p: &Pod| is_component(p, "gateway") && p.metadata.deletion_timestamp.is_none() && is_ready(p);
        pods.filter(|p| stays(p))
            .map(|pod| {
                let key = Key::of(&pod.metadata);
                let report = inner.gateways.get(&key).cloned();
                let report = report.unwrap_or_else(|| Err(NOT_ASKED.to_owned()));
                GatewayView { pod: key.name, report }
            })
            .collect()
    }
}

/// Takes an answer, or a failure unless it is one of the first after an answer.
fn take<T: Clone>(
    answers: &mut HashMap<Key, Result<T, String>>,
    misses: &mut HashMap<Key, u32>,
    pod: Key,
    answer: Result<T, String>,
) -> (Option<Result<T, String>>, Result<T, String>) {
    if answer.is_ok() {
        misses.remove(&pod);
    } else {
        let misses = misses.entry(pod.clone()).or_insert(0);
        *misses = misses.saturating_add(1);
        if *misses < MISSES
            && let Some(good) = answers.get(&pod).filter(|r| r.is_ok()).cloned()
        {
            return (Some(good.clone()), good);
        }
    }
    (answers.insert(pod, answer.clone()), answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_may_miss_a_question_or_two() {
        let (views, pod) = (Views::default(), Key::new("n", "p"));
        let good: Report = Ok(Arc::new(ReplicaReport::default()));
        let bad: Report = Err("no answer".to_owned());
        assert_eq!(views.set_scheduler(pod.clone(), bad.clone()), (None, bad.clone()), "nothing to keep");
        assert_eq!(views.set_scheduler(pod.clone(), good.clone()).1, good);
        assert_eq!(views.set_scheduler(pod.clone(), bad.clone()).1, good);
        assert_eq!(views.set_scheduler(pod.clone(), bad.clone()).1, good);
        assert_eq!(views.set_scheduler(pod.clone(), bad.clone()), (Some(good.clone()), bad));
        assert_eq!(views.set_scheduler(pod, good.clone()).1, good);
    }

    #[test]
    fn a_gateway_may_miss_a_question_too() {
        let (views, pod) = (Views::default(), Key::new("n", "g"));
        let good: Governance = Ok(Arc::new(GatewayStatus::default()));
        let bad: Governance = Err("no answer".to_owned());
        assert_eq!(views.set_gateway(pod.clone(), good.clone()), (None, good.clone()));
        assert_eq!(views.set_gateway(pod.clone(), bad.clone()), (Some(good.clone()), good.clone()));
        assert_eq!(views.set_gateway(pod.clone(), bad.clone()).1, good);
        assert_eq!(views.set_gateway(pod, bad.clone()).1, bad);
    }
}
