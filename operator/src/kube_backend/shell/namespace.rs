//! What the models of a namespace share.

use std::collections::HashSet;

use super::{Failure, Reconciled, Shell};
use crate::cluster::{NamespaceSeen, judge, namespace_step, workload};
use kube::core::ObjectMeta;

use crate::kube_backend::apply::Family;
use crate::kube_backend::kept::Parsed;
use crate::kube_backend::key::{Item, Key};
use crate::kube_backend::schedule::Lane;
use crate::workload::EngineWorkload;

impl Shell {
    pub(super) async fn namespace(&self, namespace: &str) -> Reconciled {
        self.find_priorities();
        let site = self.site();
        let engines = self.engines(namespace);
        let mut failure = None;
        let mut note = |what: String, error: &kube::Error| {
            let new = Failure::new(what, error);
            if matches!(new, Failure::NotLeader) {
                return Err(new);
            }
            failure.get_or_insert(new);
            Ok(())
        };
        if self.is_news_to_trust(namespace, &engines) {
            self.queue.poke(Item::Trust, Lane::Urgent);
        }
        // Pods mount it, so that it comes first.
        let needs_token = !engines.is_empty() || namespace == site.namespace;
        if let Err(error) = self.hop.keep(self, namespace, needs_token, &engines).await {
            note("Secret strata-hop".to_owned(), &error)?;
        }
        if self.has_unread(namespace) {
            // What they share stays as it is: the pods of one that cannot be read still serve.
            return failure.map_or(Ok(None), Err);
        }
        let mut wanted = HashSet::new();
        let revisions = self.caches.revisions.group(namespace, None);
        let seen = NamespaceSeen { revisions: &revisions };
        for child in namespace_step(namespace, &engines, &seen, &site) {
            if let Err(error) = self.applier.apply(&child).await {
                note(format!("{} {}", child.resource.kind, child.name()), &error)?;
            }
            wanted.insert(child.key());
        }
        if let Err(error) = self.applier.sweep(namespace, Family::Namespace, &wanted, site.capabilities).await
        {
            note("an object that is no longer wanted".to_owned(), &error)?;
        }
        failure.map_or(Ok(None), Err)
    }

    /// The models of a namespace that stay: the accepted ones, and those that were refused after they
    /// had been accepted, since their pods still serve.
    pub(super) fn engines(&self, namespace: &str) -> Vec<EngineWorkload> {
        let (all, site) = (self.caches.good_models(), self.site());
        let mut engines: Vec<EngineWorkload> = all
            .iter()
            .filter(|m| m.metadata.namespace.as_deref() == Some(namespace))
            .filter(|m| m.metadata.deletion_timestamp.is_none())
            .filter_map(|m| {
                judge(m, &all, &site).1.or_else(|| self.has_pods(&m.metadata).then(|| workload(m)))
            })
            .collect();
        engines.sort_by(|a, b| a.owner.name.cmp(&b.owner.name));
        engines
    }

    /// Whether a model that has pods cannot be read.
    fn has_unread(&self, namespace: &str) -> bool {
        self.caches.models.all().iter().any(|model| {
            let Parsed::Bad(bad) = &**model else { return false };
            bad.meta.namespace.as_deref() == Some(namespace) && self.has_pods(&bad.meta)
        })
    }

    fn has_pods(&self, model: &ObjectMeta) -> bool {
        let key = Key::of(model);
        let deployment = Key::new(key.namespace, format!("{}-engine", key.name));
        self.caches.deployments.get(&deployment).is_some()
    }
}
