//! All pods of a run.

use std::collections::BTreeSet;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::HostError;
use super::super::container::Recipe;
use super::super::pod::{Address, Order, Pod, Tools, View};
use super::super::status::{LayerStatus, Phase};
use super::site::Addresses;
use crate::render::Rendered;
use crate::rollout::{self, Replica, Step, Turnover};
use crate::workload::{Component, Workload};

/// A pod and the way to it.
#[derive(Debug)]
pub(super) struct Handle {
    pub name: String,
    pub component: Component,
    pub workload: String,
    pub served: Option<String>,
    /// The adapters that it serves beside its model.
    pub adapters: Vec<String>,
    pub revision: String,
    ordinal: u32,
    view: watch::Receiver<View>,
    order: watch::Sender<Order>,
    task: JoinHandle<()>,
}

impl Handle {
    pub(super) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    fn leaving(&self) -> bool {
        *self.order.borrow() != Order::Run
    }
}

/// The next steps: pods to start, by workload and number, and names of pods to take out of use.
#[derive(Debug, Default)]
pub(super) struct Steps {
    start: Vec<(String, u32)>,
    retire: BTreeSet<String>,
}

/// All pods.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    pods: Vec<Handle>,
}

impl Fleet {
    /// Pods that have ended for good are gone.
    pub(super) fn forget_the_stopped(&mut self) {
        self.pods.retain(|pod| !(pod.leaving() && pod.task.is_finished()));
    }

    /// What to do next, of which nothing is done yet.
    pub(super) fn steps(&self, wanted: &[(Workload, Rendered)]) -> Steps {
        let mut steps = Steps::default();
        for (_, rendered) in wanted {
            let pods: Vec<&Handle> = self.of(rendered.name()).collect();
            let replicas: Vec<Replica> = pods
                .iter()
                .map(|pod| Replica {
                    revision: pod.revision.clone(),
                    ordinal: pod.ordinal,
                    ready: pod.view.borrow().ready,
                    leaving: pod.leaving(),
                })
                .collect();
            let turnover = if rendered.recreates() { Turnover::Recreate } else { Turnover::OneMore };
            for step in rollout::steps(rendered.replicas(), &rendered.revision(), turnover, &replicas) {
                match step {
                    Step::Start { ordinal } => steps.start.push((rendered.name().to_owned(), ordinal)),
                    Step::Retire { index } => {
                        steps.retire.insert(pods[index].name.clone());
                    }
                }
            }
        }
        let unwanted =
            |pod: &&Handle| !pod.leaving() && !wanted.iter().any(|(_, w)| w.name() == pod.workload);
        steps.retire.extend(self.pods.iter().filter(unwanted).map(|pod| pod.name.clone()));
        steps
    }

    /// Does it.
    pub(super) fn take(
        &mut self,
        steps: &Steps,
        wanted: &[(Workload, Rendered)],
        addresses: &Addresses,
        scheduler: Option<&String>,
        tools: &Tools,
    ) -> Result<(), HostError> {
        for pod in self.pods.iter().filter(|pod| steps.retire.contains(&pod.name)) {
            let routed = pod.component == Component::Engine;
            tools.events.progress(format!("{} is drained", pod.name));
            pod.order.send_replace(Order::Drain { scheduler: scheduler.filter(|_| routed).cloned() });
        }
        for (name, ordinal) in &steps.start {
            let Some((workload, rendered)) = wanted.iter().find(|(_, w)| w.name() == name) else { continue };
            let handle = start(workload, rendered, *ordinal, addresses, tools)?;
            tools.events.progress(format!("{} is starting", handle.name));
            self.pods.push(handle);
        }
        Ok(())
    }

    fn of(&self, workload: &str) -> impl Iterator<Item = &Handle> {
        self.pods.iter().filter(move |pod| pod.workload == workload)
    }

    /// Pods of a workload that are not on their way out.
    pub(super) fn staying(&self, workload: &str) -> impl Iterator<Item = &Handle> {
        self.of(workload).filter(|pod| !pod.leaving())
    }

    /// Pods of a workload that should get traffic after these steps.
    pub(super) fn serving(&self, workload: &str, steps: &Steps) -> impl Iterator<Item = &Handle> {
        self.staying(workload).filter(|pod| pod.view.borrow().ready && !steps.retire.contains(&pod.name))
    }

    /// Whether every replica of a workload's current template serves.
    pub(super) fn serves(&self, rendered: &Rendered) -> bool {
        let revision = rendered.revision();
        let ready =
            self.staying(rendered.name()).filter(|p| p.revision == revision && p.view.borrow().ready).count();
        ready >= rendered.replicas() as usize
    }

    /// Where the first process of a layer listens.
    pub(super) fn address_of(&self, component: Component) -> Option<Address> {
        self.pods
            .iter()
            .find(|pod| pod.component == component && !pod.leaving())
            .map(|pod| pod.view().address)
    }

    /// Every process, top layer first.
    pub(super) fn layers(&self) -> Vec<LayerStatus> {
        let mut layers: Vec<LayerStatus> = self
            .pods
            .iter()
            .map(|pod| {
                let view = pod.view();
                let leaving = pod.leaving() && view.phase != Phase::Stopped;
                LayerStatus {
                    component: pod.component,
                    name: pod.name.clone(),
                    model: pod.served.clone(),
                    url: view.address.url(),
                    pid: view.pid,
                    ready: view.ready && !leaving,
                    phase: if leaving { Phase::Draining } else { view.phase },
                    restarts: view.restarts,
                    revision: pod.revision.clone(),
                    message: view.message,
                }
            })
            .collect();
        layers.sort_by(|a, b| (a.component, &a.name).cmp(&(b.component, &b.name)));
        layers
    }

    /// Stops all pods of a layer and waits until they have ended.
    pub(super) async fn stop(&mut self, component: Component, kill: &CancellationToken) {
        let (stopping, rest): (Vec<Handle>, Vec<Handle>) =
            std::mem::take(&mut self.pods).into_iter().partition(|pod| pod.component == component);
        self.pods = rest;
        for pod in &stopping {
            pod.order.send_if_modified(|order| {
                let running = *order == Order::Run;
                if running {
                    *order = Order::Drain { scheduler: None };
                }
                running
            });
        }
        for mut pod in stopping {
            tokio::select! {
                _ = &mut pod.task => continue,
                () = kill.cancelled() => {}
            }
            pod.order.send_replace(Order::Kill);
            let _ = (&mut pod.task).await;
        }
    }
}

fn start(
    workload: &Workload,
    rendered: &Rendered,
    ordinal: u32,
    addresses: &Addresses,
    tools: &Tools,
) -> Result<Handle, HostError> {
    let (revision, component) = (rendered.revision(), rendered.component);
    let name = format!("{}-{}-{ordinal}", rendered.name(), &revision[..5]);
    let recipe = Recipe::of(&rendered.template())
        .map_err(|message| HostError::Manifests(vec![format!("{}: {message}", rendered.name())]))?;
    let fixed_engine = rendered.recreates();
    let address = addresses
        .for_new_pod(component, fixed_engine, &tools.ports)
        .map_err(|source| HostError::System { what: "cannot find a free port".to_owned(), source })?;
    let view = View {
        phase: Phase::Starting,
        pid: None,
        ready: false,
        restarts: 0,
        failures: 0,
        address,
        message: None,
    };
    let (view_from, view) = watch::channel(view);
    let (order, orders) = watch::channel(Order::Run);
    let pod = Pod { name: name.clone(), recipe, tools: tools.clone(), view: view_from, order: orders };
    let (served, adapters) = match workload {
        Workload::Engine(engine) => {
            let names = engine.spec.adapters.iter().map(|adapter| adapter.name.clone());
            (Some(engine.spec.model.name.clone()), names.collect())
        }
        _ => (None, Vec::new()),
    };
    Ok(Handle {
        name,
        component,
        workload: rendered.name().to_owned(),
        served,
        adapters,
        revision,
        ordinal,
        view,
        order,
        task: tokio::spawn(pod.run()),
    })
}
