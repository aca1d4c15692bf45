//! What a namespace has beside models and pods of engines: priorities by name, and other schedulers. Nothing
//! waits for these, and where they cannot be read they are missing.

use std::borrow::Cow;
use std::collections::BTreeMap;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::NamespaceResourceScope;
use serde::Deserialize;

use super::object::{PodStatus, Readable};
use super::{AT_ONCE, Cluster};
use crate::discovery::{Change, Kept};
use crate::inference_pool::{AnyPod, Objective, peers, priorities};
use crate::scheduler::Scheduler;

/// `InferenceObjective` of `inference.networking.x-k8s.io/v1alpha2`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ObjectiveObject {
    metadata: ObjectMeta,
    spec: ObjectiveSpec,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectiveSpec {
    priority: Option<i32>,
    pool_ref: PoolRef,
}

#[derive(Clone, Debug, Deserialize)]
struct PoolRef {
    name: String,
}

impl Resource for ObjectiveObject {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "InferenceObjective".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "inference.networking.x-k8s.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1alpha2".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "inferenceobjectives".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Readable for ObjectiveObject {
    type Plain = Objective;
    const LABELS: Option<&str> = None;
    const KIND: &str = "InferenceObjective";
    const OPTIONAL: bool = true;

    fn plain(self) -> Objective {
        Objective {
            pool: self.spec.pool_ref.name,
            priority: self.spec.priority.unwrap_or(0),
            leaving: self.metadata.deletion_timestamp.is_some(),
        }
    }
}

/// A pod of a scheduler that the operator runs.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = k8s_openapi::api::core::v1::Pod)]
pub(super) struct SchedulerPodObject {
    metadata: ObjectMeta,
    status: Option<PodStatus>,
}

impl Readable for SchedulerPodObject {
    type Plain = AnyPod;
    const LABELS: Option<&str> = Some("app.kubernetes.io/component=scheduler");
    const KIND: &str = "Pod";

    fn plain(self) -> AnyPod {
        AnyPod::read(self.metadata, self.status)
    }
}

enum Event {
    Objective(Change<Objective>),
    Pod(Change<AnyPod>),
}

/// Follows them, for ever. Where the replicas are an InferencePool's, the pods are followed as that is.
pub(super) async fn take_over(scheduler: &Scheduler, cluster: &Cluster) {
    let objectives = cluster.changes::<ObjectiveObject>(scheduler).map(Event::Objective).boxed();
    let pods: BoxStream<'_, Event> = match &cluster.pool {
        Some(_) => futures::stream::pending().boxed(),
        None => cluster.changes::<SchedulerPodObject>(scheduler).map(Event::Pod).boxed(),
    };
    let mut events = futures::stream::select(objectives, pods).ready_chunks(AT_ONCE);
    let (mut objectives, mut pods) = (Kept::default(), Kept::default());
    let mut known = BTreeMap::new();
    while let Some(events) = events.next().await {
        for event in events {
            match event {
                Event::Objective(change) => objectives.take(change),
                Event::Pod(change) => pods.take(change),
            }
        }
        if objectives.is_whole() {
            let found = priorities(objectives.objects(), cluster.pool.as_deref());
            if found != known {
                tracing::info!(objectives = found.len(), "priorities are named anew");
                scheduler.name_priorities(found.clone());
                known = found;
            }
        }
        if pods.is_whole() {
            scheduler.beside(peers(pods.objects(), cluster.pod.as_deref(), false));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_matters_of_an_objective() {
        let mut object = json!({
            "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceObjective",
            "metadata": {"name": "batch"},
            "spec": {"priority": -5, "poolRef": {"name": "llama", "group": "inference.networking.k8s.io"}},
        });
        let read = |object: &serde_json::Value| {
            serde_json::from_value::<ObjectiveObject>(object.clone()).unwrap().plain()
        };
        assert_eq!(read(&object), Objective { pool: "llama".to_owned(), priority: -5, leaving: false });
        object["spec"]["priority"] = json!(null);
        assert_eq!(read(&object).priority, 0);
    }
}
