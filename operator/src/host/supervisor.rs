//! Brings what runs in line with what is wanted, again and again.
//!
//! Everything is decided anew from what is seen, so that it does not matter what was decided before:
//! each turn plans, renders, takes the next rollout steps, and writes endpoints and status.

mod fleet;
mod site;
mod start;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use strata_kinds::manifest::{self, Folder};
use strata_wire::replicas::{Endpoint, Endpoints, ModelEndpoints, ReplicaReport};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::fleet::{Fleet, Handle};
use self::site::Addresses;
use super::events::Standing;
use super::pod::Tools;
use super::registry::{Planned, Registry};
use super::status::{self, StackStatus};
use super::watch::FolderWatch;
use super::{HostError, HostEvent, HostOptions, container, drain, lock, replace};
use crate::Mode;
use crate::condition::Truth;
use crate::plan::{ModelObservation, ObjectStatus, statuses};
use crate::render::{Rendered, Site, render};
use crate::workload::{self, Component, Workload};

/// How often the folder is looked at.
const FOLDER_POLL: Duration = Duration::from_millis(250);
/// How often the scheduler is asked what it routes to, while not everything is routed.
const ROUTE_POLL: Duration = Duration::from_millis(100);
/// How often it is asked otherwise.
const ROUTE_POLL_IDLE: Duration = Duration::from_secs(1);

/// Runs a folder until `shutdown`.
pub(super) async fn run(
    options: HostOptions,
    events: UnboundedSender<HostEvent>,
    shutdown: CancellationToken,
) -> Result<(), HostError> {
    let (mut supervisor, _lock) = start::start(options, events).await?;
    let kill = supervisor.options.kill.clone();
    let result = tokio::select! {
        result = supervisor.serve(&shutdown) => result,
        () = kill.cancelled() => Ok(()),
    };
    supervisor.stop(&kill).await;
    result
}

struct Supervisor {
    options: HostOptions,
    mode: Mode,
    folder: Folder,
    watch: FolderWatch,
    registry: Registry,
    planned: Planned,
    addresses: Addresses,
    fleet: Fleet,
    tools: Tools,
    standing: Standing,
    endpoints: Option<Endpoints>,
    status: Option<StackStatus>,
    told: Vec<ObjectStatus>,
    report: watch::Receiver<Option<ReplicaReport>>,
    report_from: watch::Sender<(Option<String>, Duration)>,
    announced: bool,
}

impl Supervisor {
    async fn serve(&mut self, shutdown: &CancellationToken) -> Result<(), HostError> {
        let mut folder_tick = tokio::time::interval(FOLDER_POLL);
        folder_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let wake = self.tools.wake.clone();
        self.turn()?;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = wake.notified() => {}
                _ = self.report.changed() => {}
                _ = folder_tick.tick() => {
                    if self.watch.has_settled_change() {
                        self.read_folder().await;
                    }
                }
            }
            // What serves goes on serving: a full disk, say, is a problem until the turn that succeeds.
            if let Err(error) = self.turn() {
                let mut problems = self.problems();
                problems.push(error.to_string());
                self.standing.update(&problems, &self.tools.events);
            }
        }
    }

    fn problems(&self) -> Vec<String> {
        let folder = self.folder.problems.iter().map(ToString::to_string);
        folder.chain(self.planned.problems.iter().cloned()).collect()
    }

    /// Takes the folder's new content over, as far as it is good.
    async fn read_folder(&mut self) {
        let mut next = manifest::keep_last_good(&self.folder, manifest::load(&self.options.folder));
        self.registry.stamp(&mut next, Timestamp::now());
        self.tools.events.progress("the folder has changed");
        self.folder = next;
        self.call_hook().await;
        *self.tools.secrets.write().unwrap_or_else(std::sync::PoisonError::into_inner) =
            container::secrets(&self.folder);
        self.planned = self.registry.plan(&self.folder, self.mode);
    }

    async fn call_hook(&self) {
        if let Err(message) = start::call_hook(&self.options, &self.folder).await {
            self.tools.events.problem(message);
        }
    }

    fn turn(&mut self) -> Result<(), HostError> {
        self.fleet.forget_the_stopped();
        self.addresses.follow(&self.fleet);
        let host = self.addresses.site(&self.options, self.mode)?;
        let site = Site::Host(&host);
        let wanted: Vec<(Workload, Rendered)> =
            self.planned.plan.workloads.iter().map(|w| (w.clone(), render(w, site))).collect();
        let scheduler = self.scheduler_url();

        // Un-route first: the file is written without a replica before the replica is told.
        let steps = self.fleet.steps(&wanted);
        self.write_endpoints(&wanted, &steps)?;
        self.fleet.take(&steps, &wanted, &self.addresses, scheduler.as_ref(), &self.tools)?;

        let objects = statuses(&self.planned.plan, &self.observe(&wanted));
        self.tell_changes(&objects);
        let all_layers = wanted.iter().all(|(_, w)| w.component == Component::Engine || self.fleet.serves(w));
        let all_models = objects.iter().filter(|o| o.kind == "ModelDeployment").all(ObjectStatus::is_good);
        let ready = all_layers && all_models;
        let period = if ready { ROUTE_POLL_IDLE } else { ROUTE_POLL };
        self.report_from.send_if_modified(|ask| {
            let new = (scheduler, period);
            let changed = *ask != new;
            *ask = new;
            changed
        });
        let problems = self.problems();
        self.write_status(ready, objects, problems.clone())?;
        self.standing.update(&problems, &self.tools.events);
        if ready && !self.announced {
            self.announced = true;
            self.tools.events.ready(&self.addresses.url());
        }
        Ok(())
    }

    /// Tells of objects whose condition is another than before.
    fn tell_changes(&mut self, objects: &[ObjectStatus]) {
        let known: BTreeMap<_, _> = self.told.iter().map(|o| ((&o.kind, &o.name), &o.conditions)).collect();
        for object in objects.iter().filter(|o| known.get(&(&o.kind, &o.name)) != Some(&&o.conditions)) {
            for condition in &object.conditions {
                let is = if condition.status == Truth::True { "is" } else { "is not" };
                self.tools.events.progress(format!(
                    "{} {} {is} {}: {}",
                    object.kind, object.name, condition.kind, condition.message
                ));
            }
        }
        self.told = objects.to_vec();
    }

    fn scheduler_url(&self) -> Option<String> {
        self.mode.has_scheduler().then(|| self.addresses.scheduler())
    }

    /// The replicas that should get traffic: ready, and not about to leave.
    fn write_endpoints(
        &mut self,
        wanted: &[(Workload, Rendered)],
        steps: &fleet::Steps,
    ) -> Result<(), HostError> {
        let mut endpoints = Endpoints::default();
        for (workload, rendered) in wanted {
            let Workload::Engine(engine) = workload else { continue };
            let serving: Vec<_> = self.fleet.serving(rendered.name(), steps).collect();
            for name in engine.spec.served_names() {
                // Of an adapter that is new, only the new ones know.
                let serves = |pod: &&&Handle| {
                    *name == engine.spec.model.name || pod.adapters.iter().any(|a| a == name)
                };
                let endpoint = |pod: &&Handle| Endpoint::new(&pod.name, pod.view().address.url());
                let replicas = serving.iter().filter(serves).map(endpoint).collect();
                let (weights, policy) = (workload::weights(&engine.spec), workload::policy(&engine.spec));
                let objectives = workload::objectives(&engine.spec);
                let affinity = workload::affinity(&engine.spec);
                let model =
                    ModelEndpoints { replicas, weights, policy, objectives, affinity, canary_percent: None };
                endpoints.models.insert(name.to_owned(), model);
            }
        }
        if self.endpoints.as_ref() == Some(&endpoints) {
            return Ok(());
        }
        let path = status::endpoints_file(&self.options.state);
        let text = serde_json::to_vec_pretty(&endpoints).unwrap_or_default();
        replace::file(&path, &text, 0o600).map_err(|source| cannot_write(&path, source))?;
        self.endpoints = Some(endpoints);
        Ok(())
    }

    fn observe(&self, wanted: &[(Workload, Rendered)]) -> BTreeMap<(String, String), ModelObservation> {
        let report = self.report.borrow();
        let mut seen = BTreeMap::new();
        for (workload, rendered) in wanted {
            let Workload::Engine(engine) = workload else { continue };
            let revision = rendered.revision();
            let mut observation = ModelObservation {
                routed: self.mode.has_scheduler().then_some(0),
                url: Some(self.addresses.url()),
                revision: Some(revision.clone()),
                ..ModelObservation::default()
            };
            for pod in self.fleet.staying(rendered.name()) {
                let view = pod.view();
                observation.replicas += 1;
                if pod.revision != revision {
                    observation.outdated += 1;
                } else if view.ready {
                    observation.ready += 1;
                    let is_routed = report.as_ref().is_some_and(|r| drain::is_routed(r, &pod.name));
                    if let Some(routed) = observation.routed.as_mut().filter(|_| is_routed) {
                        *routed += 1;
                    }
                }
                if view.failures > 1 && !view.ready && observation.trouble.is_none() {
                    observation.trouble.clone_from(&view.message);
                }
            }
            seen.insert((engine.namespace.clone(), engine.owner.name.clone()), observation);
        }
        seen
    }

    fn write_status(
        &mut self,
        ready: bool,
        objects: Vec<ObjectStatus>,
        problems: Vec<String>,
    ) -> Result<(), HostError> {
        let status = StackStatus {
            pid: std::process::id(),
            mode: self.mode,
            listen: self.addresses.listen().to_string(),
            url: self.addresses.url(),
            ready,
            folder: self.options.folder.clone(),
            layers: self.fleet.layers(),
            objects,
            problems,
        };
        if self.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let path = status::file(&self.options.state);
        let text = serde_json::to_vec_pretty(&status).unwrap_or_default();
        replace::file(&path, &text, 0o600).map_err(|source| cannot_write(&path, source))?;
        self.status = Some(status);
        Ok(())
    }

    /// Stops everything, top layer first, and cleans the state folder of what speaks of this run.
    async fn stop(&mut self, kill: &CancellationToken) {
        self.tools.events.progress("stopping");
        for component in [Component::Platform, Component::Gateway, Component::Scheduler, Component::Engine] {
            self.fleet.stop(component, kill).await;
        }
        for path in [
            status::file(&self.options.state),
            status::token_file(&self.options.state),
            status::endpoints_file(&self.options.state),
        ] {
            let _ = std::fs::remove_file(path);
        }
        self.tools.events.progress("stopped");
    }
}

fn cannot_write(path: &std::path::Path, source: std::io::Error) -> HostError {
    HostError::System { what: format!("cannot write {}", path.display()), source }
}

/// Asks the scheduler now and then what it routes to.
async fn follow_routes(
    tools: Tools,
    mut from: watch::Receiver<(Option<String>, Duration)>,
    told: watch::Sender<Option<ReplicaReport>>,
) {
    loop {
        let (scheduler, period) = from.borrow_and_update().clone();
        if let Some(scheduler) = scheduler {
            let report = drain::report(&tools.client, &scheduler, &tools.token).await.map(only_routes);
            told.send_if_modified(|last| {
                let changed = *last != report;
                *last = report;
                changed
            });
        }
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            changed = from.changed() => if changed.is_err() { return },
        }
    }
}

/// Of a report, what says whether replicas are routed to: the counters change all the time.
fn only_routes(report: ReplicaReport) -> ReplicaReport {
    let mut report = report;
    report.demand.clear();
    for replica in report.models.values_mut().flatten() {
        replica.in_flight = 0;
        replica.requests = 0;
        for gauge in [
            &mut replica.running,
            &mut replica.waiting,
            &mut replica.kv_usage,
            &mut replica.prefix_queries,
            &mut replica.prefix_hits,
        ] {
            *gauge = 0.0;
        }
    }
    report
}

/// Keeps the lock's type in one place.
type Held = lock::StateLock;
