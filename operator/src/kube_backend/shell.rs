//! One item at a time: look into the caches, ask the pure part what should be, carry it out, say what
//! is seen.

mod governed;
mod model;
mod namespace;
mod say;
mod trust;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference};
use kube::runtime::events::Recorder;
use strata_kinds::Tenant;

use super::api;
use super::apply::Applier;
use super::caches::Caches;
use super::hop::HopSecret;
use super::key::Item;
use super::queue::Queue;
use super::schedule::Lane;
use super::views::Views;
use crate::cluster::{ClusterSite, judge_tenant};
use crate::plan::Verdict;
use crate::trust::Authority;

/// What all reconcilers share.
pub(super) struct Shell {
    pub(super) site: ClusterSite,
    pub(super) caches: Arc<Caches>,
    pub(super) queue: Arc<Queue>,
    pub(super) views: Arc<Views>,
    pub(super) applier: Applier,
    pub(super) recorder: Recorder,
    pub(super) hop: HopSecret,
    /// Who vouches for the layers, where they know each other by certificates.
    pub(super) authority: Option<Authority>,
    /// Whose the certificates beside the models are, as of the last look at them, by namespace.
    pub(super) certified: Mutex<BTreeMap<String, Vec<OwnerReference>>>,
    /// Priorities of the accepted tenants, as of the last change of one.
    pub(super) priorities: Mutex<BTreeSet<i32>>,
}

/// Why an item could not be reconciled.
#[derive(Debug)]
pub(super) enum Failure {
    /// Somebody else leads now, and does it.
    NotLeader,
    /// The API server did not take something; it may have said when to try again.
    Refused { what: String, message: String, again: Option<Duration> },
}

impl Failure {
    pub(super) fn new(what: impl Into<String>, error: &kube::Error) -> Self {
        if api::is_not_leader(error) {
            return Self::NotLeader;
        }
        let again = match error {
            kube::Error::Api(status) => {
                status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0)
            }
            _ => None,
        };
        Self::Refused {
            what: what.into(),
            message: words(error),
            again: again.map(|seconds| Duration::from_secs(seconds.into())),
        }
    }
}

/// An API server's error, as a person reads it.
pub(super) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({} {})", status.message.trim(), status.code, status.reason),
        kube::Error::Service(cause) => cause.to_string(),
        other => other.to_string(),
    }
}

/// When to look again, if there is a deadline.
pub(super) type Reconciled = Result<Option<Duration>, Failure>;

impl Shell {
    /// Reconciles an item.
    pub(super) async fn reconcile(&self, item: &Item) -> Reconciled {
        match item {
            Item::Model(key) => self.model(key).await,
            Item::Namespace(namespace) => self.namespace(namespace).await,
            Item::Tenant(key) => self.tenant(key).await,
            Item::Policy(key) => self.policy(key).await,
            Item::Trust => self.trust().await,
        }
    }

    /// The site as it is now: kinds come and go.
    fn site(&self) -> ClusterSite {
        ClusterSite {
            capabilities: self.caches.capabilities(),
            priorities: self.priorities.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ..self.site.clone()
        }
    }

    /// Finds the priorities of tenants, for which something is rendered. All is looked at again when
    /// there is one more or less.
    fn find_priorities(&self) {
        let accepted = |t: &Tenant| judge_tenant(t, &self.site) == Verdict::Accepted;
        let tenants = self.caches.tenants.all();
        let accepted = tenants.iter().filter_map(|t| t.good()).filter(|t| accepted(t));
        let now: BTreeSet<i32> = accepted.filter_map(|t| t.spec.priority).collect();
        let before = std::mem::replace(
            &mut *self.priorities.lock().unwrap_or_else(PoisonError::into_inner),
            now.clone(),
        );
        if before != now {
            self.poke_all(Lane::Bulk);
        }
    }

    /// Looks at everything again.
    pub(super) fn poke_all(&self, lane: Lane) {
        // Pods mount what it makes.
        self.queue.poke(Item::Trust, lane);
        let mut namespaces = BTreeSet::from([self.site.namespace.clone()]);
        for model in self.caches.models.all() {
            let key = super::key::Key::of(super::cache::Held::meta(&*model));
            namespaces.insert(key.namespace.clone());
            self.queue.poke(Item::Model(key), lane);
        }
        for deployment in self.caches.deployments.all() {
            namespaces.extend(deployment.metadata.namespace.clone());
        }
        for namespace in namespaces {
            self.queue.poke(Item::Namespace(namespace), lane);
        }
        self.poke_governed(lane);
    }

    /// Looks at all tenants and policies again.
    pub(super) fn poke_governed(&self, lane: Lane) {
        for tenant in self.caches.tenants.all() {
            self.queue.poke(Item::Tenant(super::key::Key::of(super::cache::Held::meta(&*tenant))), lane);
        }
        for policy in self.caches.policies.all() {
            self.queue.poke(Item::Policy(super::key::Key::of(super::cache::Held::meta(&*policy))), lane);
        }
    }

    /// How many objects there are for each kind and reason of the main condition.
    pub(super) fn by_reason(&self) -> BTreeMap<(&'static str, String), usize> {
        fn reason(conditions: Option<&Vec<Condition>>, main: &str) -> String {
            let found = conditions.into_iter().flatten().find(|c| c.type_ == main);
            found.map_or_else(|| "None".to_owned(), |c| c.reason.clone())
        }
        let mut counts = BTreeMap::new();
        let mut count = |kind, reason| *counts.entry((kind, reason)).or_insert(0) += 1;
        for model in self.caches.models.all() {
            let status = model.good().and_then(|m| m.status.as_ref());
            count("ModelDeployment", reason(status.map(|s| &s.conditions), "Ready"));
        }
        for tenant in self.caches.tenants.all() {
            let status = tenant.good().and_then(|m| m.status.as_ref());
            count("Tenant", reason(status.map(|s| &s.conditions), "Ready"));
        }
        for policy in self.caches.policies.all() {
            let status = policy.good().and_then(|m| m.status.as_ref());
            count("QuotaPolicy", reason(status.map(|s| &s.conditions), "Enforced"));
        }
        counts
    }
}
