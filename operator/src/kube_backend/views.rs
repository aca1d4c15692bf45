//! What schedulers, gateways and downloads answered last.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use strata_wire::governance::GatewayStatus;
use strata_wire::replicas::ReplicaReport;

use super::key::Key;
use crate::cluster::{GatewayView, Progress, SchedulerView};

/// Whether a pod is one of a component of Strata.
pub(super) fn is_component(pod: &Pod, component: &str) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|l| l.get("app.kubernetes.io/component")).is_some_and(|c| c == component)
}

/// Whether the kubelet says that a pod serves.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

type Report = Result<Arc<ReplicaReport>, String>;
type Governance = Result<Arc<GatewayStatus>, String>;

#[derive(Debug, Default)]
struct Inner {
    schedulers: HashMap<Key, Report>,
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
                let report = report.unwrap_or_else(|| Err("it was not asked yet".to_owned()));
                SchedulerView { pod: key.name, ready: is_ready(pod), report }
            })
            .collect()
    }

    /// Takes a scheduler's answer. Returns the one before.
    pub(super) fn set_scheduler(&self, pod: Key, report: Report) -> Option<Report> {
        self.lock().schedulers.insert(pod, report)
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
        inner.downloads.retain(|key, _| download(key));
        inner.gateways.retain(|key, _| gateway(key));
    }

    /// Takes a gateway's answer. Returns the one before.
    pub(super) fn set_gateway(&self, pod: Key, says: Governance) -> Option<Governance> {
        self.lock().gateways.insert(pod, says)
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
                let report = report.unwrap_or_else(|| Err("it was not asked yet".to_owned()));
                GatewayView { pod: key.name, report }
            })
            .collect()
    }
}
