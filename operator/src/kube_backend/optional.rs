//! Kinds that a cluster may have or not: watched from when their definition comes until it goes.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, ResourceExt};
use tokio::task::AbortHandle;

use super::caches::definition;
use super::schedule::Lane;
use super::shell::Shell;
use super::watch::{Expected, Filling};
use super::watches::Watches;

type Definition = PartialObjectMeta<CustomResourceDefinition>;

/// The API group that an autoscaler reads an engine's signals from.
const EXTERNAL_METRICS: &str = "v1beta1.external.metrics.k8s.io";

/// Follows which of the optional kinds there are.
pub(super) struct Optional {
    watches: Watches,
    /// By place in the list of other kinds: what ends its watches.
    running: HashMap<usize, Vec<AbortHandle>>,
    tasks: tokio::task::JoinSet<()>,
}

impl Optional {
    pub(super) fn new(watches: &Watches) -> Self {
        let watches = Watches {
            shell: watches.shell.clone(),
            client: watches.client.clone(),
            filling: watches.filling.clone(),
        };
        Self { watches, running: HashMap::new(), tasks: tokio::task::JoinSet::new() }
    }

    /// Begins and ends watches as definitions come and go, for ever.
    pub(super) async fn follow_definitions(mut self, definitions: Api<Definition>, expected: Expected) {
        let mut expected = Some(expected);
        let mut events = pin!(watch(definitions, watcher::Config::default()).default_backoff());
        let mut listed: Vec<usize> = Vec::new();
        let mut told = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(found)) => {
                    if let Some(index) = self.index(&found) {
                        listed.push(index);
                        self.begin(index);
                    }
                }
                Ok(Event::InitDone) => {
                    let gone: Vec<usize> =
                        self.running.keys().filter(|i| !listed.contains(i)).copied().collect();
                    for index in gone {
                        self.end(index);
                    }
                    expected = None;
                }
                Ok(Event::Apply(found)) => {
                    if let Some(index) = self.index(&found) {
                        self.begin(index);
                    }
                }
                Ok(Event::Delete(gone)) => {
                    if let Some(index) = self.index(&gone) {
                        self.end(index);
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "cannot watch the definitions of kinds: HTTPRoute, InferencePool and ScaledObject are not rendered");
                    }
                    // Everything else goes on without them.
                    if is_forbidden(&error) {
                        expected = None;
                    }
                }
            }
        }
        drop(expected);
    }

    fn index(&self, found: &Definition) -> Option<usize> {
        let name = found.name_any();
        let others = &self.watches.shell.caches.others;
        others.iter().position(|o| o.optional && definition(&o.resource) == name)
    }

    fn begin(&mut self, index: usize) {
        if self.running.contains_key(&index) {
            return;
        }
        let shell = self.watches.shell.clone();
        let name = definition(&shell.caches.others[index].resource);
        // The first lists of all count as filled only with these.
        let outer = self.watches.filling.expect();
        let filling = Filling::new();
        let mut handles: Vec<AbortHandle> = Vec::new();
        for scope in self.watches.model_scopes() {
            handles.push(self.tasks.spawn(self.watches.other(index, scope.namespace, &filling)));
        }
        handles.push(self.tasks.spawn(async move {
            // A kind that is defined but not served in our version never fills, and never holds up the rest.
            let patience = std::time::Duration::from_secs(10);
            let filled = tokio::time::timeout(patience, filling.full()).await;
            drop(outer);
            if filled.is_err() {
                tracing::warn!(
                    kind = name,
                    "is defined, but cannot be listed in the version that Strata knows"
                );
                filling.full().await;
            }
            tracing::info!(kind = name, "the cluster has this kind");
            shell.caches.set_present(&name, true);
            shell.poke_all(Lane::Bulk);
        }));
        self.running.insert(index, handles);
    }

    fn end(&mut self, index: usize) {
        let Some(handles) = self.running.remove(&index) else { return };
        handles.iter().for_each(AbortHandle::abort);
        let shell = &self.watches.shell;
        let other = &shell.caches.others[index];
        let name = definition(&other.resource);
        tracing::info!(kind = name, "the cluster has this kind no more");
        shell.caches.set_present(&name, false);
        other.cache.clear();
        shell.poke_all(Lane::Bulk);
    }
}

/// Whether asking again will not help. After any other failure the answer is yet to come, and working
/// without it would take for absent what is there.
fn is_forbidden(error: &watcher::Error) -> bool {
    let watcher::Error::InitialListFailed(kube::Error::Api(status)) = error else { return false };
    matches!(status.code, 401 | 403 | 404)
}

/// Follows whether the cluster has an external metrics API, for ever.
pub(super) async fn follow_external_metrics(client: Client, shell: Arc<Shell>, expected: Expected) {
    let api: Api<PartialObjectMeta<APIService>> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("metadata.name={EXTERNAL_METRICS}"));
    let mut events = pin!(watch(api, config).default_backoff());
    let mut expected = Some(expected);
    let (mut has, mut seen, mut told) = (false, false, false);
    while let Some(event) = events.next().await {
        let now = match event {
            Ok(Event::Init) => {
                seen = false;
                continue;
            }
            Ok(Event::InitApply(_)) => {
                seen = true;
                continue;
            }
            Ok(Event::InitDone) => {
                expected = None;
                seen
            }
            Ok(Event::Apply(_)) => true,
            Ok(Event::Delete(_)) => false,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "cannot see whether the cluster has external metrics");
                }
                if is_forbidden(&error) {
                    expected = None;
                }
                continue;
            }
        };
        if now != has {
            has = now;
            tracing::info!(has, "external metrics");
            shell.caches.set_external_metrics(has);
            shell.poke_all(Lane::Bulk);
        }
    }
    drop(expected);
}
