//! Asks schedulers, downloads and gateways how they are. Not requests to the API server; and only an
//! answer that means something else points at an object.

mod ask;
mod digest;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use strata_hop::HopToken;
use strata_kinds::ModelDeployment;
use tokio::task::JoinSet;

use self::ask::{Answer, Asker, Question};
use super::gate::Gate;
use super::key::{Item, Key};
use super::metrics::Metrics;
use super::schedule::Lane;
use super::shell::Shell;
use super::views::is_component;
use crate::cluster::Progress;
use crate::cluster::pods::is_ready;

/// How often a scheduler is asked.
const SCHEDULER: Duration = Duration::from_secs(1);
/// How often while a model of its namespace is not Ready or sleeps.
const SCHEDULER_SOON: Duration = Duration::from_millis(500);
/// How often a download is asked.
const DOWNLOAD: Duration = Duration::from_secs(2);
/// How often a gateway is asked.
const GATEWAY: Duration = Duration::from_secs(30);
/// How often while it has not taken up a Tenant or QuotaPolicy yet.
const GATEWAY_SOON: Duration = Duration::from_secs(1);
/// Requests at once.
const AT_ONCE: usize = 64;
/// Of these, to downloads: pods that do not answer must not keep schedulers from being asked.
const DOWNLOADS_AT_ONCE: usize = 32;

/// Asks.
pub(super) struct Poller {
    pub(super) shell: Arc<Shell>,
    pub(super) gate: Arc<Gate>,
    pub(super) metrics: Arc<Metrics>,
}

/// Whether an init container runs that fetches the model or an adapter.
fn fetches(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|s| s.init_container_statuses.iter().flatten());
    statuses
        .filter(|s| s.name.starts_with(crate::render::FETCH))
        .any(|s| s.state.as_ref().is_some_and(|state| state.running.is_some()))
}

fn ip(pod: &Pod) -> Option<String> {
    pod.status.as_ref()?.pod_ip.clone().filter(|ip| !ip.is_empty())
}

fn stays(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
}

/// Whether a model is as it should be, so that looking twice a second is not worth it.
fn is_settled(model: &ModelDeployment) -> bool {
    let Some(status) = &model.status else { return false };
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
    ready.is_some_and(|c| c.status == "True" && c.reason != "ScaledToZero")
}

impl Poller {
    /// Asks while this process leads, for ever.
    pub(super) async fn run(&self) {
        let mut asker: Option<Arc<Asker>> = None;
        let mut leads = self.gate.leads();
        let mut ticks = tokio::time::interval(SCHEDULER_SOON);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last: HashMap<Question, Instant> = HashMap::new();
        let mut asking: JoinSet<Answer> = JoinSet::new();
        let mut open: HashSet<Question> = HashSet::new();
        loop {
            tokio::select! {
                changed = leads.wait_for(|leads| *leads), if !*self.gate.leads().borrow() => {
                    if changed.is_err() {
                        return;
                    }
                }
                Some(answer) = asking.join_next() => {
                    if let Ok(answer) = answer {
                        open.remove(&answer.question);
                        self.take(answer);
                    }
                }
                _ = ticks.tick(), if *self.gate.leads().borrow() => {
                    if asker.is_none() {
                        asker = self.asker();
                    }
                    let Some(asker) = &asker else { continue };
                    let now = Instant::now();
                    let due = self.questions();
                    self.forget(&due);
                    last.retain(|question, _| due.iter().any(|(q, _)| q == question));
                    for (question, every) in due {
                        let is_due = last.get(&question).is_none_or(|at| now.duration_since(*at) >= every);
                        if !is_due || open.contains(&question) || open.len() >= AT_ONCE {
                            continue;
                        }
                        if question.is_download()
                            && open.iter().filter(|q| q.is_download()).count() >= DOWNLOADS_AT_ONCE
                        {
                            continue;
                        }
                        last.insert(question.clone(), now);
                        open.insert(question.clone());
                        let token = self.token_for(&question);
                        asking.spawn(asker.clone().ask(question, token));
                    }
                }
            }
        }
    }

    /// The token is shown where layers know each other by it, to the layers alone.
    fn token_for(&self, question: &Question) -> Option<HopToken> {
        (!question.is_download() && self.shell.authority.is_none())
            .then(|| super::hop::token(&self.shell.caches, &self.shell.site.namespace))
            .flatten()
    }

    /// None as long as this process has no certificate to show.
    fn asker(&self) -> Option<Arc<Asker>> {
        let mtls = match &self.shell.authority {
            Some(authority) => Some(authority.own()?),
            None => None,
        };
        Some(Arc::new(Asker::new(mtls)))
    }

    /// Whom to ask, and how often.
    fn questions(&self) -> Vec<(Question, Duration)> {
        let caches = &self.shell.caches;
        let mut questions = Vec::new();
        let mut unsettled: HashSet<String> = HashSet::new();
        let mut with_models: HashSet<String> = HashSet::new();
        for model in caches.good_models() {
            with_models.extend(model.metadata.namespace.clone());
            if !is_settled(&model) {
                unsettled.extend(model.metadata.namespace.clone());
            }
        }
        let gateway_every = if self.gateway_is_behind() { GATEWAY_SOON } else { GATEWAY };
        for pod in caches.pods.all() {
            let key = Key::of(&pod.metadata);
            let Some(ip) = ip(&pod).filter(|_| stays(&pod)) else { continue };
            // Anybody may give a pod such labels, where there is nothing of ours.
            if is_component(&pod, "scheduler") && is_ready(&pod) && with_models.contains(&key.namespace) {
                let soon = unsettled.contains(&key.namespace);
                questions.push((
                    Question::Scheduler { pod: key, ip },
                    if soon { SCHEDULER_SOON } else { SCHEDULER },
                ));
            } else if is_component(&pod, "gateway")
                && is_ready(&pod)
                && key.namespace == self.shell.site.namespace
            {
                questions.push((Question::Gateway { pod: key, ip }, gateway_every));
            } else if fetches(&pod) {
                questions.push((Question::Download { pod: key, ip }, DOWNLOAD));
            }
        }
        questions
    }

    /// Whether a Tenant or QuotaPolicy is not known to be taken up.
    fn gateway_is_behind(&self) -> bool {
        let behind = |conditions: Option<&Vec<_>>, main: &str| {
            let conditions: Option<&Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>> =
                conditions;
            conditions.into_iter().flatten().find(|c| c.type_ == main).is_none_or(|c| c.status == "Unknown")
        };
        let caches = &self.shell.caches;
        let tenants = caches.tenants.all();
        let policies = caches.policies.all();
        tenants
            .iter()
            .filter_map(|t| t.good())
            .any(|t| behind(t.status.as_ref().map(|s| &s.conditions), "Ready"))
            || policies
                .iter()
                .filter_map(|p| p.good())
                .any(|p| behind(p.status.as_ref().map(|s| &s.conditions), "Enforced"))
    }

    fn forget(&self, due: &[(Question, Duration)]) {
        let asked = |wanted: fn(&Question) -> Option<&Key>| -> HashSet<&Key> {
            due.iter().filter_map(|(question, _)| wanted(question)).collect()
        };
        let schedulers = asked(|q| if let Question::Scheduler { pod, .. } = q { Some(pod) } else { None });
        let downloads = asked(|q| if let Question::Download { pod, .. } = q { Some(pod) } else { None });
        let gateways = asked(|q| if let Question::Gateway { pod, .. } = q { Some(pod) } else { None });
        self.shell.views.retain(
            |key| schedulers.contains(key),
            |key| downloads.contains(key),
            |key| gateways.contains(key),
        );
    }

    fn take(&self, answer: Answer) {
        let target = answer.question.target();
        match answer.question {
            Question::Scheduler { pod, .. } => {
                let report = answer.body.and_then(|b| ask::parse(&b)).map(Arc::new);
                self.metrics.polled(target, if report.is_ok() { "ok" } else { "failed" });
                let namespace = pod.namespace.clone();
                let (before, report) = self.shell.views.set_scheduler(pod, report);
                let changed = digest::changed(before.as_ref(), &report);
                for model in self.shell.caches.models_in(&namespace) {
                    if model.spec.served_names().any(|name| changed.touches(name)) {
                        self.shell.queue.poke(Item::Model(Key::of(&model.metadata)), Lane::Urgent);
                    }
                }
            }
            Question::Download { pod, .. } => {
                let progress: Result<Progress, String> = answer.body.and_then(|b| ask::parse(&b));
                self.metrics.polled(target, if progress.is_ok() { "ok" } else { "failed" });
                let Ok(progress) = progress else { return };
                let model = self
                    .shell
                    .caches
                    .pods
                    .get(&pod)
                    .and_then(|p| p.metadata.labels.as_ref()?.get(crate::render::MODEL_LABEL).cloned());
                let namespace = pod.namespace.clone();
                let before = self.shell.views.set_download(pod, progress.clone());
                if digest::download_changed(before.as_ref(), &progress)
                    && let Some(model) = model
                {
                    self.shell.queue.poke(Item::Model(Key::new(namespace, model)), Lane::Urgent);
                }
            }
            Question::Gateway { pod, .. } => {
                let says = answer.body.and_then(|b| ask::parse(&b)).map(Arc::new);
                self.metrics.polled(target, if says.is_ok() { "ok" } else { "failed" });
                let (before, says) = self.shell.views.set_gateway(pod, says);
                if before.as_ref() != Some(&says) {
                    self.shell.poke_governed(Lane::Bulk);
                }
            }
        }
    }
}
