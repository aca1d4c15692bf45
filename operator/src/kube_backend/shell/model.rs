//! A ModelDeployment: what it owns, and its status.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use strata_kinds::ModelDeployment;

use super::{Failure, Reconciled, Shell, words};
use crate::cluster::{
    ChildKey, ClusterSite, ModelSeen, ModelStep, Refused, SchedulerView, judge, model_status, model_step,
};
use crate::kube_backend::api;
use crate::kube_backend::apply::Family;
use crate::kube_backend::kept::Parsed;
use crate::kube_backend::key::Key;
use crate::kube_backend::views;

impl Shell {
    pub(super) async fn model(&self, key: &Key) -> Reconciled {
        let Some(parsed) = self.caches.models.get(key) else { return Ok(None) };
        let model = match &*parsed {
            Parsed::Good(model) => model,
            Parsed::Bad(invalid) => return self.say_malformed::<ModelDeployment>(invalid).await,
        };
        if model.metadata.deletion_timestamp.is_some() {
            // Everything is owned: the garbage collector undoes it.
            return Ok(None);
        }
        let site = self.site();
        let (verdict, engine) = judge(model, &self.caches.good_models(), &site);
        let (namespace, name) = (key.namespace.as_str(), Some(key.name.as_str()));
        let schedulers = if site.mode.has_scheduler() { self.schedulers(namespace) } else { Vec::new() };
        let downloads = self.views.downloads(namespace);
        let autoscaler = self.caches.autoscalers.get(&Key::new(namespace, format!("{}-engine", key.name)));
        let mut refused: Vec<Refused> = Vec::new();
        let mut failure = None;
        let step = match &engine {
            Some(engine) => {
                let (deployments, pods, revisions) = self.children(namespace, name);
                let seen = ModelSeen {
                    deployments: &deployments,
                    pods: &pods,
                    revisions: &revisions,
                    schedulers: &schedulers,
                    downloads: &downloads,
                    autoscaler: autoscaler.as_deref(),
                    refused: &[],
                };
                let step = model_step(engine, &seen, &site, Timestamp::now());
                failure = self.carry_out(key, model, &step, &site, &mut refused).await?;
                step
            }
            // What runs already is left alone: a mistake in an object must not take a model down.
            None => ModelStep::default(),
        };
        // What was written is in the caches now.
        let (deployments, pods, revisions) = self.children(namespace, name);
        let seen = ModelSeen {
            deployments: &deployments,
            pods: &pods,
            revisions: &revisions,
            schedulers: &schedulers,
            downloads: &downloads,
            autoscaler: autoscaler.as_deref(),
            refused: &refused,
        };
        let told = model.status.as_ref().is_some_and(|s| s.observed_generation == model.metadata.generation);
        if told && views::is_unasked(&schedulers) {
            // A new leader has asked nobody yet. The first answer, good or bad, brings us back.
            return failure.map_or(Ok(step.look_again), Err);
        }
        let status = model_status(model, &verdict, engine.as_ref(), &seen, &site, Timestamp::now());
        self.say(&**model, model.status.as_ref(), &status, |s| &s.conditions).await?;
        failure.map_or(Ok(step.look_again), Err)
    }

    #[allow(clippy::type_complexity)]
    fn children(
        &self,
        namespace: &str,
        model: Option<&str>,
    ) -> (
        Vec<Arc<k8s_openapi::api::apps::v1::Deployment>>,
        Vec<Arc<k8s_openapi::api::core::v1::Pod>>,
        Vec<Arc<k8s_openapi::api::apps::v1::ControllerRevision>>,
    ) {
        let caches = &self.caches;
        (
            caches.deployments.group(namespace, model),
            caches.pods.group(namespace, model),
            caches.revisions.group(namespace, model),
        )
    }

    fn schedulers(&self, namespace: &str) -> Vec<SchedulerView> {
        let pods = self.caches.pods.group(namespace, None);
        self.views.schedulers(pods.iter().map(Arc::as_ref))
    }

    /// Applies what the step asks for, as far as the API server takes it. Returns the first failure.
    async fn carry_out(
        &self,
        key: &Key,
        model: &ModelDeployment,
        step: &ModelStep,
        site: &ClusterSite,
        refused: &mut Vec<Refused>,
    ) -> Result<Option<Failure>, Failure> {
        let mut failure = None;
        let mut note = |what: String, error: &kube::Error, refused: &mut Vec<Refused>| {
            if api::is_not_leader(error) {
                return Err(Failure::NotLeader);
            }
            refused.push(refusal(what.clone(), error));
            failure.get_or_insert_with(|| Failure::new(what, error));
            Ok(())
        };
        if let Some(replicas) = step.scale {
            let deployment = format!("{}-engine", key.name);
            if let Err(error) = self.applier.scale(&key.namespace, &deployment, replicas).await {
                note(format!("the scale of Deployment {deployment}"), &error, refused)?;
            }
        }
        let mut wanted = HashSet::new();
        for child in &step.apply {
            if let Err(error) = self.applier.apply(child).await {
                note(format!("{} {}", child.resource.kind, child.name()), &error, refused)?;
            }
            wanted.insert(child.key());
        }
        wanted.extend(step.keep.iter().map(|name| ChildKey {
            group: "apps".to_owned(),
            kind: "ControllerRevision".to_owned(),
            namespace: key.namespace.clone(),
            name: name.clone(),
        }));
        let uid = model.metadata.uid.as_deref().unwrap_or_default();
        let family = Family::Model { name: &key.name, uid };
        if let Err(error) = self.applier.sweep(&key.namespace, family, &wanted, site.capabilities).await {
            note("an object that is no longer wanted".to_owned(), &error, refused)?;
        }
        Ok(failure)
    }
}

fn refusal(what: String, error: &kube::Error) -> Refused {
    match error {
        kube::Error::Api(status) => Refused {
            what,
            reason: status.reason.clone(),
            message: status.message.trim().to_owned(),
            transient: matches!(status.code, 409 | 429 | 500..=599),
        },
        _ => Refused { what, reason: "NoAnswer".to_owned(), message: words(error), transient: true },
    }
}
