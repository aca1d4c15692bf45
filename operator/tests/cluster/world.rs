//! A cluster in memory, driven by hand: what the operator applies is kept, and what Kubernetes would make
//! of it is made one step at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use strata_kinds::ModelDeployment;
use strata_operator::Mode;
use strata_operator::cluster::{
    Child, ClusterSite, ModelSeen, ModelStep, Progress, REVISION_LABEL, Refused, SchedulerView, TRACK_LABEL,
    judge, model_status, model_step,
};
use strata_wire::replicas::{Demand, ReplicaReport, ReplicaState};

/// A device that pods ask for.
pub const GPU: &str = "nvidia.com/gpu";

/// What a pod is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No node has been looked for yet.
    Pending,
    /// No node has room, since then.
    Unschedulable(i64),
    /// It is on a node and loads.
    Loading,
    /// It serves, since then.
    Ready(i64),
    /// It ends again and again.
    Crashing,
}

/// A pod.
#[derive(Clone, Debug)]
pub struct SimPod {
    pub name: String,
    pub track: String,
    pub revision: String,
    pub phase: Phase,
    /// Seconds that are left of it once it is told to go.
    pub leaving: Option<u32>,
    /// Parts of `status` that a test sets itself.
    pub says: Option<Value>,
}

impl SimPod {
    pub fn stays(&self) -> bool {
        self.leaving.is_none()
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready(_))
    }

    pub fn is_placed(&self) -> bool {
        !matches!(self.phase, Phase::Pending | Phase::Unschedulable(_))
    }
}

/// A Deployment as applied, with the number of replicas that it has now.
#[derive(Clone, Debug)]
pub struct SimDeployment {
    pub object: Value,
    pub replicas: i32,
    /// Whether `/scale` was written: then the number stays when what is applied lets go of it.
    pub scaled: bool,
    /// The number that pods were last made for.
    pub seen_replicas: Option<i32>,
    /// Pods wanted of each revision.
    pub sets: BTreeMap<String, i32>,
    pub refusal: Option<String>,
}

/// The cluster.
pub struct World {
    pub site: ClusterSite,
    pub model: Value,
    pub deployments: BTreeMap<String, SimDeployment>,
    pub revisions: Vec<Arc<ControllerRevision>>,
    pub others: BTreeMap<String, Value>,
    pub pods: Vec<SimPod>,
    pub devices: Option<usize>,
    /// Pods that the namespace may have.
    pub quota: Option<usize>,
    /// Values of the environment variable `V` with which an engine never serves.
    pub bad: BTreeSet<String>,
    pub schedulers: Vec<SchedulerView>,
    pub demand: Demand,
    /// Whether schedulers have seen what there is.
    pub routed: bool,
    /// Names that schedulers have not heard of.
    pub unheard: BTreeSet<String>,
    pub downloads: BTreeMap<String, Progress>,
    pub autoscaler: Option<HorizontalPodAutoscaler>,
    pub refused: Vec<Refused>,
    pub now: i64,
    pub made: usize,
}

impl World {
    pub fn new(spec: Value) -> Self {
        let mut world = Self {
            site: ClusterSite::new("strata:1", Mode::Production, "strata"),
            model: json!({
                "apiVersion": "strata.dev/v1alpha1", "kind": "ModelDeployment",
                "metadata": { "name": "a", "namespace": "models", "uid": "1-2-3", "generation": 0 },
                "spec": { "model": { "name": "m", "uri": "pvc://models/m.gguf" } },
            }),
            deployments: BTreeMap::new(),
            revisions: Vec::new(),
            others: BTreeMap::new(),
            pods: Vec::new(),
            devices: None,
            quota: None,
            bad: BTreeSet::new(),
            schedulers: Vec::new(),
            demand: Demand::default(),
            routed: true,
            unheard: BTreeSet::new(),
            downloads: BTreeMap::new(),
            autoscaler: None,
            refused: Vec::new(),
            now: 1_000_000,
            made: 0,
        };
        world.edit(spec);
        world
    }

    /// Sets members of the spec; null takes one away.
    pub fn edit(&mut self, spec: Value) {
        for (name, value) in spec.as_object().unwrap().clone() {
            let members = self.model["spec"].as_object_mut().unwrap();
            if value.is_null() {
                members.remove(&name);
            } else {
                members.insert(name, value);
            }
        }
        let generation = self.model["metadata"]["generation"].as_i64().unwrap();
        self.model["metadata"]["generation"] = json!(generation + 1);
    }

    pub fn object(&self) -> ModelDeployment {
        serde_json::from_value(self.model.clone()).unwrap()
    }

    pub fn time(&self) -> Timestamp {
        Timestamp::from_second(self.now).unwrap()
    }

    /// What the operator sees, passed on.
    pub fn look<T>(&self, then: impl FnOnce(&ModelSeen<'_>) -> T) -> T {
        let deployments: Vec<Arc<Deployment>> =
            self.deployments.values().map(|d| Arc::new(d.typed())).collect();
        let pods: Vec<Arc<Pod>> = self.pods.iter().map(|p| Arc::new(self.typed(p))).collect();
        let schedulers = self.scheduler_views();
        then(&ModelSeen {
            deployments: &deployments,
            pods: &pods,
            revisions: &self.revisions,
            schedulers: &schedulers,
            downloads: &self.downloads,
            autoscaler: self.autoscaler.as_ref(),
            refused: &self.refused,
        })
    }

    fn scheduler_views(&self) -> Vec<SchedulerView> {
        if !self.schedulers.is_empty() || !self.site.mode.has_scheduler() {
            return self.schedulers.clone();
        }
        let object = self.object();
        let names: Vec<&str> =
            object.spec.served_names().filter(|name| !self.unheard.contains(*name)).collect();
        let states = |name: &str| -> Vec<ReplicaState> {
            let routed = self.pods.iter().filter(|p| self.routed && p.stays() && p.is_ready());
            let serves = |p: &&SimPod| {
                let adapters = self.annotations(p)["strata.dev/adapters"].as_str().unwrap_or("").to_owned();
                name == "m" || adapters.split(',').any(|adapter| adapter == name)
            };
            routed
                .filter(serves)
                .map(|p| {
                    serde_json::from_value(json!({
                        "name": p.name, "url": "http://10.0.0.1:8000", "ready": true, "in_flight": 0,
                        "running": 0.0, "waiting": 0.0, "kv_usage": 0.0, "prefix_queries": 0.0,
                        "prefix_hits": 0.0, "requests": 0,
                        "role": if p.track == "prefill" { "prefill" } else { "decode" },
                    }))
                    .unwrap()
                })
                .collect()
        };
        let report = ReplicaReport {
            models: names.iter().map(|name| ((*name).to_owned(), states(name))).collect(),
            demand: names.iter().map(|name| ((*name).to_owned(), self.demand)).collect(),
        };
        ["strata-scheduler-0", "strata-scheduler-1"]
            .map(|pod| SchedulerView {
                pod: pod.to_owned(),
                ready: true,
                report: Ok(Arc::new(report.clone())),
            })
            .into()
    }

    /// What the operator would do now.
    pub fn decide(&self) -> Option<ModelStep> {
        let object = self.object();
        let (_, engine) = judge(&object, &[Arc::new(object.clone())], &self.site);
        let engine = engine?;
        Some(self.look(|seen| model_step(&engine, seen, &self.site, self.time())))
    }

    /// The operator looks once and applies what it decides. Returns whether anything was written.
    pub fn operate(&mut self) -> bool {
        let Some(step) = self.decide() else { return false };
        self.carry_out(&step)
    }

    pub fn carry_out(&mut self, step: &ModelStep) -> bool {
        let mut wrote = false;
        if let Some(replicas) = step.scale
            && let Some(deployment) = self.deployments.get_mut("a-engine")
        {
            wrote |= deployment.replicas != replicas || deployment.owns_replicas();
            deployment.scale(replicas);
        }
        let mut applied = BTreeSet::new();
        for child in &step.apply {
            applied.insert(format!("{}/{}", child.key().kind, child.name()));
            wrote |= self.apply(child);
        }
        let stays = |kind: &str, name: &str| applied.contains(&format!("{kind}/{name}"));
        let before = (self.deployments.len(), self.revisions.len(), self.others.len());
        self.deployments.retain(|name, _| stays("Deployment", name));
        self.revisions.retain(|r| {
            let name = r.metadata.name.as_deref().unwrap();
            stays("ControllerRevision", name) || step.keep.iter().any(|k| k == name)
        });
        self.others.retain(|key, _| applied.contains(key));
        wrote | (before != (self.deployments.len(), self.revisions.len(), self.others.len()))
    }

    fn apply(&mut self, child: &Child) -> bool {
        let (kind, name) = (child.key().kind, child.name().to_owned());
        match kind.as_str() {
            "Deployment" => {
                let replicas = child.object["spec"]["replicas"].as_i64().map(|n| n as i32);
                let Some(live) = self.deployments.get_mut(&name) else {
                    let made = SimDeployment {
                        object: child.object.clone(),
                        replicas: replicas.unwrap_or(1),
                        scaled: false,
                        seen_replicas: None,
                        sets: BTreeMap::new(),
                        refusal: None,
                    };
                    self.deployments.insert(name, made);
                    return true;
                };
                let changed = live.object != child.object;
                // A field that is let go of, and that nobody else holds, falls to its default.
                let falls = live.owns_replicas() && !live.scaled;
                live.object = child.object.clone();
                live.replicas = replicas.unwrap_or(if falls { 1 } else { live.replicas });
                changed
            }
            "ControllerRevision" => {
                let new: ControllerRevision = serde_json::from_value(child.object.clone()).unwrap();
                let Some(old) = self.revisions.iter_mut().find(|r| r.metadata.name == new.metadata.name)
                else {
                    self.revisions.push(Arc::new(new));
                    return true;
                };
                assert_eq!(old.data, new.data, "the data of a ControllerRevision cannot be changed");
                let changed = old.revision != new.revision;
                *old = Arc::new(new);
                changed
            }
            _ => {
                self.others.insert(format!("{kind}/{name}"), child.object.clone()).as_ref()
                    != Some(&child.object)
            }
        }
    }

    /// The status that the operator would write; it is written.
    pub fn status(&mut self) -> Value {
        let object = self.object();
        let (verdict, engine) = judge(&object, &[Arc::new(object.clone())], &self.site);
        let status =
            self.look(|seen| model_status(&object, &verdict, engine.as_ref(), seen, &self.site, self.time()));
        let status = serde_json::to_value(status).unwrap();
        self.model["status"] = status.clone();
        status
    }

    /// The conditions in words, one a line.
    pub fn said(&mut self) -> String {
        let status = self.status();
        let one = |c: &Value| {
            let text = |name: &str| c[name].as_str().unwrap().to_owned();
            format!("{}={} {}: {}", text("type"), text("status"), text("reason"), text("message"))
        };
        status["conditions"].as_array().unwrap().iter().map(one).collect::<Vec<_>>().join("\n")
    }

    pub fn ready(&mut self) -> bool {
        self.status()["conditions"][0]["status"] == "True"
    }

    /// Operator and Kubernetes take turns until nothing moves.
    pub fn settle(&mut self) {
        for _ in 0..200 {
            let wrote = self.operate();
            let moved = self.kubernetes();
            if !wrote && !moved {
                return;
            }
        }
        panic!("it does not settle: {:#?}", self.pods);
    }

    pub fn of_track(&self, track: &str) -> Vec<&SimPod> {
        self.pods.iter().filter(|p| p.track == track && p.stays()).collect()
    }

    /// Those of the template that a pod was made of.
    fn annotations(&self, pod: &SimPod) -> Value {
        let is_its =
            |r: &&Arc<ControllerRevision>| r.metadata.name.as_deref().unwrap().ends_with(&pod.revision);
        let revision = self.revisions.iter().find(is_its).and_then(|r| r.data.as_ref());
        revision.map_or(Value::Null, |data| data.0["template"]["metadata"]["annotations"].clone())
    }

    fn typed(&self, pod: &SimPod) -> Pod {
        let at = |second: i64| Timestamp::from_second(second).unwrap().to_string();
        let mut status = json!({ "phase": "Running" });
        match &pod.phase {
            Phase::Pending => status["phase"] = json!("Pending"),
            Phase::Unschedulable(since) => {
                status["phase"] = json!("Pending");
                status["conditions"] = json!([{
                    "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                    "lastTransitionTime": at(*since),
                    "message": format!("0/1 nodes are available: 1 Insufficient {GPU}. preemption: 0/1 nodes are available."),
                }]);
            }
            Phase::Loading => {}
            Phase::Ready(since) => {
                status["conditions"] =
                    json!([{ "type": "Ready", "status": "True", "lastTransitionTime": at(*since) }]);
            }
            Phase::Crashing => {
                status["containerStatuses"] = json!([{
                    "name": "engine", "image": "i", "imageID": "", "ready": false, "restartCount": 4,
                    "state": { "waiting": { "reason": "CrashLoopBackOff" } },
                    "lastState": { "terminated": { "exitCode": 1, "message": "error: no such flag" } },
                }]);
            }
        }
        if let Some(says) = &pod.says {
            for (name, value) in says.as_object().unwrap() {
                status[name] = value.clone();
            }
        }
        let deleted = pod.leaving.map(|_| at(self.now));
        serde_json::from_value(json!({
            "metadata": {
                "name": pod.name, "namespace": "models", "deletionTimestamp": deleted,
                "annotations": self.annotations(pod), "labels": { REVISION_LABEL: pod.revision, TRACK_LABEL: pod.track },
            },
            "spec": { "containers": [], "nodeName": pod.is_placed().then_some("node-0") },
            "status": status,
        }))
        .unwrap()
    }
}

impl SimDeployment {
    pub fn revision(&self) -> String {
        self.object["spec"]["template"]["metadata"]["labels"][REVISION_LABEL].as_str().unwrap().to_owned()
    }

    pub fn owns_replicas(&self) -> bool {
        self.object["spec"].get("replicas").is_some()
    }

    /// What an autoscaler does.
    pub fn scale(&mut self, replicas: i32) {
        self.replicas = replicas;
        self.scaled = true;
    }

    fn typed(&self) -> Deployment {
        let mut object = self.object.clone();
        object["spec"]["replicas"] = json!(self.replicas);
        let fields = if self.owns_replicas() { json!({ "f:spec": { "f:replicas": {} } }) } else { json!({}) };
        object["metadata"]["managedFields"] = json!([{
            "manager": "strata-operator", "operation": "Apply", "apiVersion": "apps/v1",
            "fieldsType": "FieldsV1", "fieldsV1": fields,
        }]);
        if let Some(refusal) = &self.refusal {
            object["status"] = json!({ "conditions": [{
                "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": refusal,
            }] });
        }
        serde_json::from_value(object).unwrap()
    }
}
