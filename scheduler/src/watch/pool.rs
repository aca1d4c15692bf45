//! An InferencePool of the Gateway API and the pods that it selects.

use std::borrow::Cow;
use std::collections::BTreeMap;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::NamespaceResourceScope;
use serde::Deserialize;

use super::object::{PodStatus, Readable};
use super::{AT_ONCE, Cluster};
use crate::discovery::{Change, Kept};
use crate::inference_pool::{AnyPod, InferencePool, Members, members, peers};
use crate::scheduler::Scheduler;

/// `InferencePool` of `inference.networking.k8s.io/v1`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PoolObject {
    metadata: ObjectMeta,
    spec: PoolSpec,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PoolSpec {
    selector: Selector,
    target_ports: Vec<TargetPort>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
struct TargetPort {
    number: u16,
}

impl Resource for PoolObject {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "InferencePool".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "inference.networking.k8s.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "inferencepools".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Readable for PoolObject {
    type Plain = InferencePool;
    const LABELS: Option<&str> = None;
    const KIND: &str = "InferencePool";

    fn plain(self) -> InferencePool {
        InferencePool {
            labels: self.spec.selector.match_labels,
            ports: self.spec.target_ports.into_iter().map(|port| port.number).collect(),
            leaving: self.metadata.deletion_timestamp.is_some(),
        }
    }
}

/// A pod of anybody's.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = k8s_openapi::api::core::v1::Pod)]
pub(super) struct AnyPodObject {
    metadata: ObjectMeta,
    status: Option<PodStatus>,
}

impl Readable for AnyPodObject {
    type Plain = AnyPod;
    const LABELS: Option<&str> = None;
    const KIND: &str = "Pod";

    fn plain(self) -> AnyPod {
        AnyPod::read(self.metadata, self.status)
    }
}

impl AnyPod {
    /// What matters of a pod with these parts.
    pub(super) fn read(metadata: ObjectMeta, status: Option<PodStatus>) -> Self {
        let status = status.unwrap_or_default();
        Self {
            ip: status.ip().map(str::to_owned),
            ready: status.is_ready(),
            started: status.is_started(),
            labels: metadata.labels.unwrap_or_default(),
            leaving: metadata.deletion_timestamp.is_some(),
        }
    }
}

enum Event {
    Pod(Change<AnyPod>),
    Pool(Change<InferencePool>),
}

/// Follows the pool of this name, for ever.
pub(super) async fn take_over(scheduler: &Scheduler, cluster: &Cluster, name: &str) {
    let pods = cluster.changes::<AnyPodObject>(scheduler).map(Event::Pod);
    let pools = cluster.changes::<PoolObject>(scheduler).map(Event::Pool);
    let mut events = std::pin::pin!(futures::stream::select(pods, pools).ready_chunks(AT_ONCE));
    let (mut pods, mut pools, mut known) = (Kept::default(), Kept::default(), Members::default());
    let mut was_there = true;
    while let Some(events) = events.next().await {
        for event in events {
            match event {
                Event::Pod(change) => pods.take(change),
                Event::Pool(change) => pools.take(change),
            }
        }
        if !pods.is_whole() || !pools.is_whole() {
            continue;
        }
        let pool = pools.objects().get(name);
        if was_there && pool.is_none() {
            tracing::warn!(
                name,
                namespace = cluster.namespace,
                "there is no such InferencePool; it is waited for"
            );
        }
        was_there = pool.is_some();
        scheduler.beside(peers(pods.objects(), cluster.pod.as_deref(), true));
        let found = members(pool, pods.objects());
        if found != known || !scheduler.is_discovered() {
            scheduler.members(&found.serving, &found.resting);
            scheduler.discovered();
            known = found;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_matters_of_a_pool() {
        let object = json!({
            "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
            "metadata": {"name": "vllm"},
            "spec": {
                "selector": {"matchLabels": {"app": "vllm"}},
                "targetPorts": [{"number": 8000}],
                "endpointPickerRef": {"name": "strata", "port": {"number": 9002}},
            },
        });
        let pool = serde_json::from_value::<PoolObject>(object).unwrap().plain();
        let labels = [("app".to_owned(), "vllm".to_owned())].into();
        assert_eq!(pool, InferencePool { labels, ports: vec![8000], leaving: false });
    }
}
