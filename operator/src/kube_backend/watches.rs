//! Which watches there are, and which item a change of each concerns.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Resource};
use strata_kinds::ModelDeployment;
use tokio::task::JoinSet;

use super::cache::{Cache, Change, Held};
use super::caches::Other;
use super::hop;
use super::kept::{Kind, Meta, Parsed};
use super::key::{Item, Key};
use super::optional::Optional;
use super::schedule::Lane;
use super::shell::Shell;
use super::views::is_component;
use super::watch::{Filling, Keep, Scope, feed};
use crate::Mode;
use crate::cluster::MANAGED_LABEL;
use crate::cluster::pods::is_ready;
use crate::render::MODEL_LABEL;

/// Label of all pods of Strata.
const PODS: &str = "app.kubernetes.io/part-of=strata";

/// Begins watches.
pub(super) struct Watches {
    pub(super) shell: Arc<Shell>,
    pub(super) client: Client,
    pub(super) filling: Filling,
}

impl Watches {
    /// Begins all of them. They end when the set is dropped.
    pub(super) fn begin(&self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let caches = |shell: &Shell| shell.caches.clone();
        let models = self.model_scopes();
        let own = self.own_scope();
        let with_own = self.scopes_with_own();

        for scope in &models {
            let (shell, caches) = (self.shell.clone(), caches(&self.shell));
            let tell =
                move |change: &Change<Parsed<ModelDeployment>>, lane| model_changed(&shell, change, lane);
            self.spawn(&mut tasks, scope, "ModelDeployment", move || caches, |c| &c.models, tell);
        }
        {
            let (shell, caches) = (self.shell.clone(), caches(&self.shell));
            let tell = move |change: &Change<Parsed<strata_kinds::Tenant>>, lane| {
                governed_changed(&shell, change, lane, Item::Tenant);
                // There may be a priority more or less, which its namespace looks after.
                shell.queue.poke(Item::Namespace(shell.site.namespace.clone()), lane);
            };
            self.spawn(&mut tasks, &own, "Tenant", move || caches, |c| &c.tenants, tell);
        }
        {
            let (shell, caches) = (self.shell.clone(), caches(&self.shell));
            let tell = move |change: &Change<Parsed<strata_kinds::QuotaPolicy>>, lane| {
                governed_changed(&shell, change, lane, Item::Policy);
            };
            self.spawn(&mut tasks, &own, "QuotaPolicy", move || caches, |c| &c.policies, tell);
        }
        for scope in &models {
            let scope = labelled(scope, &format!("{}={}", MANAGED_LABEL.0, MANAGED_LABEL.1));
            let (shell, kept) = (self.shell.clone(), caches(&self.shell));
            let tell = move |change: &Change<_>, lane| child_changed(&shell, change, lane);
            self.spawn(&mut tasks, &scope, "Deployment", move || kept, |c| &c.deployments, tell);
            let (shell, kept) = (self.shell.clone(), caches(&self.shell));
            let tell = move |change: &Change<_>, lane| child_changed(&shell, change, lane);
            self.spawn(&mut tasks, &scope, "ControllerRevision", move || kept, |c| &c.revisions, tell);
            let (shell, kept) = (self.shell.clone(), caches(&self.shell));
            let tell = move |change: &Change<_>, lane| child_changed(&shell, change, lane);
            self.spawn(&mut tasks, &scope, "HorizontalPodAutoscaler", move || kept, |c| &c.autoscalers, tell);
            for index in 0..self.shell.caches.others.len() {
                if !self.shell.caches.others[index].optional {
                    tasks.spawn(self.other(index, scope.namespace.clone(), &self.filling));
                }
            }
        }
        for scope in &with_own {
            let (shell, kept) = (self.shell.clone(), caches(&self.shell));
            let tell = move |change: &Change<Pod>, lane| pod_changed(&shell, change, lane);
            self.spawn(&mut tasks, &labelled(scope, PODS), "Pod", move || kept, |c| &c.pods, tell);
            let (shell, kept) = (self.shell.clone(), caches(&self.shell));
            let tell = move |change: &Change<_>, lane| secret_changed(&shell, change, lane);
            let named = Scope { fields: Some(format!("metadata.name={}", hop::NAME)), ..scope.clone() };
            self.spawn(&mut tasks, &named, "Secret", move || kept, |c| &c.secrets, tell);
        }
        if self.shell.authority.is_some() {
            self.watch_certificates(&mut tasks, &models, &own);
        }
        let definitions: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(self.client.clone());
        let optional = Optional::new(self);
        tasks.spawn(optional.follow_definitions(definitions, self.filling.expect()));
        tasks.spawn(super::optional::follow_external_metrics(
            self.client.clone(),
            self.shell.clone(),
            self.filling.expect(),
        ));
        tasks
    }

    fn watch_certificates(&self, tasks: &mut JoinSet<()>, models: &[Scope], own: &Scope) {
        for (index, certificates) in self.shell.caches.certificates.iter().enumerate() {
            let scopes = if certificates.beside_models { models } else { std::slice::from_ref(own) };
            for scope in scopes {
                let fields = Some(format!("metadata.name={}", certificates.name));
                let named = Scope { fields, ..scope.clone() };
                let (shell, kept) = (self.shell.clone(), self.shell.caches.clone());
                let tell = move |_: &Change<Secret>, lane| shell.queue.poke(Item::Trust, lane);
                self.spawn(
                    tasks,
                    &named,
                    "Secret",
                    move || kept,
                    move |c| &c.certificates[index].cache,
                    tell,
                );
            }
        }
    }

    /// One watch for each allowed namespace, or one for all.
    pub(super) fn model_scopes(&self) -> Vec<Scope> {
        let allowed = &self.shell.site.model_namespaces;
        if allowed.is_empty() {
            return vec![Scope::default()];
        }
        allowed.iter().map(|n| Scope { namespace: Some(n.clone()), ..Scope::default() }).collect()
    }

    fn own_scope(&self) -> Scope {
        Scope { namespace: Some(self.shell.site.namespace.clone()), ..Scope::default() }
    }

    fn scopes_with_own(&self) -> Vec<Scope> {
        let mut scopes = self.model_scopes();
        let own = self.own_scope();
        if scopes.iter().all(|s| s.namespace.is_some() && s.namespace != own.namespace) {
            scopes.push(own);
        }
        scopes
    }

    fn spawn<K, F>(
        &self,
        tasks: &mut JoinSet<()>,
        scope: &Scope,
        kind: &'static str,
        caches: impl FnOnce() -> Arc<super::caches::Caches>,
        of: F,
        tell: impl Fn(&Change<K>, Lane) + Send + Sync + 'static,
    ) where
        K: Keep,
        K::Watched: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
        F: Fn(&super::caches::Caches) -> &Cache<K> + Send + Sync + 'static,
    {
        let api: Api<K::Watched> = match &scope.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let (caches, scope, expected) = (caches(), scope.clone(), self.filling.expect());
        tasks.spawn(async move { feed(api, scope, kind, of(&caches), expected, tell).await });
    }

    /// The watch of a kind of which only metadata is kept.
    pub(super) fn other(
        &self,
        index: usize,
        namespace: Option<String>,
        filling: &Filling,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (shell, client, expected) = (self.shell.clone(), self.client.clone(), filling.expect());
        async move {
            let Other { resource, cache, .. } = &shell.caches.others[index];
            let api: Api<<Meta as Keep>::Watched> = match &namespace {
                Some(namespace) => Api::namespaced_with(client, namespace, resource),
                None => Api::all_with(client, resource),
            };
            let scope = labelled(
                &Scope { namespace, ..Scope::default() },
                &format!("{}={}", MANAGED_LABEL.0, MANAGED_LABEL.1),
            );
            feed(api, scope, &resource.kind, cache, expected, |change, lane| {
                child_changed(&shell, change, lane);
            })
            .await;
        }
    }
}

fn labelled(scope: &Scope, labels: &str) -> Scope {
    Scope { labels: Some(labels.to_owned()), ..scope.clone() }
}

fn model_of(meta: &kube::core::ObjectMeta) -> Option<&String> {
    meta.labels.as_ref()?.get(MODEL_LABEL)
}

/// A child concerns its model, or what the models of its namespace share.
fn child_changed<K: Held + Debug>(shell: &Shell, change: &Change<K>, lane: Lane) {
    let meta = change.object().meta();
    let namespace = meta.namespace.clone().unwrap_or_default();
    let item = match model_of(meta) {
        Some(model) => Item::Model(Key::new(namespace, model.clone())),
        None => Item::Namespace(namespace),
    };
    shell.queue.poke(item, lane);
}

fn pod_changed(shell: &Shell, change: &Change<Pod>, lane: Lane) {
    let pod = change.object();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(model) = model_of(&pod.metadata) {
        shell.queue.poke(Item::Model(Key::new(namespace, model.clone())), lane);
    } else if lane == Lane::Urgent && changes_who_serves(change) {
        // Nobody is asked who does not serve, so that no answer tells of it.
        if is_component(pod, "scheduler") {
            for model in shell.caches.models_in(&namespace) {
                shell.queue.poke(Item::Model(Key::of(&model.metadata)), Lane::Bulk);
            }
        } else if is_component(pod, "gateway") && namespace == shell.site.namespace {
            shell.poke_governed(Lane::Bulk);
        }
    }
}

/// Whether a pod has begun or ceased to serve, or to be there.
fn changes_who_serves(change: &Change<Pod>) -> bool {
    let serves = |p: &Pod| (p.metadata.deletion_timestamp.is_none(), is_ready(p));
    match change {
        Change::Set { before, now } => before.as_ref().is_none_or(|b| serves(b) != serves(now)),
        Change::Gone(_) => true,
    }
}

/// The credential concerns its namespace; that of Strata's own namespace all.
fn secret_changed<K: Held>(shell: &Shell, change: &Change<K>, lane: Lane) {
    let namespace = change.object().meta().namespace.clone().unwrap_or_default();
    if namespace == shell.site.namespace && lane == Lane::Urgent {
        shell.poke_all(Lane::Bulk);
    }
    shell.queue.poke(Item::Namespace(namespace), lane);
}

fn governed_changed<K: Kind + Send + Sync + 'static>(
    shell: &Shell,
    change: &Change<Parsed<K>>,
    lane: Lane,
    item: fn(Key) -> Item,
) {
    shell.queue.poke(item(Key::of(change.object().meta())), lane);
}

/// A model concerns itself, its namespace, and those whose verdict may be another now.
fn model_changed(shell: &Shell, change: &Change<Parsed<ModelDeployment>>, lane: Lane) {
    let key = Key::of(change.object().meta());
    shell.queue.poke(Item::Model(key.clone()), lane);
    let (before, now) = match change {
        Change::Set { before, now } => (before.as_ref().and_then(|b| b.good()), now.good()),
        Change::Gone(before) => (before.good(), None),
    };
    if let (Some(before), Some(now)) = (before, now)
        && before.same_wish(now)
    {
        return;
    }
    shell.queue.poke(Item::Namespace(key.namespace.clone()), lane);
    // Of a first list all are looked at anyway.
    if lane == Lane::Bulk {
        return;
    }
    for other in shell.caches.good_models() {
        let other_key = Key::of(&other.metadata);
        let concerned = before.into_iter().chain(now).any(|m| concerns(m, &other, shell.site.mode));
        if concerned && other_key != key {
            shell.queue.poke(Item::Model(other_key), Lane::Urgent);
        }
    }
}

/// Whether the verdict on `other` may depend on `model`.
fn concerns(model: &ModelDeployment, other: &ModelDeployment, mode: Mode) -> bool {
    model.spec.shares_a_name(&other.spec) || mode == Mode::Development
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_that_ceases_to_serve_is_news() {
        let pod = |ready: &str, leaving: bool| -> Arc<Pod> {
            let mut pod = json!({
                "metadata": { "name": "s" },
                "status": { "conditions": [{ "type": "Ready", "status": ready }] },
            });
            if leaving {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let news = |before: Option<Arc<Pod>>, now| changes_who_serves(&Change::Set { before, now });
        assert!(news(None, pod("False", false)), "it is new");
        assert!(news(Some(pod("True", false)), pod("False", false)), "dynamo#13622: Ready, and not routable");
        assert!(news(Some(pod("False", false)), pod("True", false)));
        assert!(news(Some(pod("True", false)), pod("True", true)));
        assert!(!news(Some(pod("True", false)), pod("True", false)));
        assert!(changes_who_serves(&Change::Gone(pod("True", true))));
    }

    #[test]
    fn those_are_judged_again_whom_a_model_may_stand_in_the_way_of() {
        let model = |namespace: &str, name: &str| -> ModelDeployment {
            serde_json::from_value(json!({
                "apiVersion": "strata.dev/v1alpha1", "kind": "ModelDeployment",
                "metadata": { "name": "x", "namespace": namespace },
                "spec": { "model": { "name": name, "uri": "/m" } },
            }))
            .unwrap()
        };
        let a = model("n", "a");
        let say = |other: &ModelDeployment, mode| concerns(&a, other, mode);
        assert!(say(&model("elsewhere", "a"), Mode::Enterprise), "the same name anywhere");
        assert!(!say(&model("n", "b"), Mode::Enterprise));
        assert!(say(&model("elsewhere", "b"), Mode::Development), "only one model at all");
    }
}
