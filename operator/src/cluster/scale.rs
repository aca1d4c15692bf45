//! How many replicas, where the user leaves it to an autoscaler.
//!
//! The autoscaler's object owns one to many; between none and one the operator alone decides, from what
//! the schedulers say is asked.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, ExternalMetricSource, HPAScalingPolicy, HPAScalingRules,
    HorizontalPodAutoscaler, HorizontalPodAutoscalerBehavior, HorizontalPodAutoscalerSpec, MetricIdentifier,
    MetricSpec, MetricTarget,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use strata_kinds::model_deployment::Autoscaling;
use strata_kinds::quantity;
use strata_wire::replicas::Track;
use strata_wire::{defaults, metrics};

use super::{Capabilities, Child, ClusterSite, ModelSeen, SchedulerView, TRACK_LABEL, pods};
use crate::render::{PORT, Scheme};
use crate::workload::EngineWorkload;

/// KV-cache use that is aimed at when nothing is said, in percent.
const KV_USAGE: i32 = 80;
/// Label of external metrics: the ModelDeployment's name.
pub const METRIC_LABEL: &str = "model_deployment";
/// How long less load must last until replicas go.
const CALM: i32 = 300;

/// What to do with the number of replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// The number to set.
    pub set: Option<i32>,
    /// When to ask again.
    pub look_again: Option<Duration>,
}

/// Decides for a model that an autoscaler scales and whose Deployment has `replicas`.
pub(super) fn decide(
    engine: &EngineWorkload,
    scaling: &Autoscaling,
    replicas: i32,
    seen: &ModelSeen<'_>,
    scaled_by_others: bool,
    now: Timestamp,
) -> Decision {
    let set = |n: i32| Decision { set: (n != replicas).then_some(n), look_again: None };
    let least = scaling.min.max(1);
    if replicas == 0 {
        let asked = scaling.min > 0 || engine.spec.served_names().any(|name| is_asked(seen.schedulers, name));
        return if asked { set(least) } else { Decision::default() };
    }
    if scaling.min == 0 {
        match calm(engine, scaling, replicas, seen, now) {
            Calm::Enough => return set(0),
            Calm::For(left) => return Decision { set: None, look_again: Some(left) },
            Calm::No => {}
        }
    }
    if scaled_by_others { Decision::default() } else { set(replicas.clamp(least, scaling.max.max(least))) }
}

fn is_asked(schedulers: &[SchedulerView], model: &str) -> bool {
    schedulers.iter().any(|view| {
        let demand = view.report.as_ref().ok().and_then(|r| r.demand.get(model));
        demand.is_some_and(|d| d.held > 0 || d.in_flight > 0)
    })
}

enum Calm {
    /// Nobody has asked for long enough.
    Enough,
    /// Nobody asks; it has to last this long.
    For(Duration),
    /// Somebody asks, or may.
    No,
}

/// Nobody asks when every scheduler says so; a replica that loads was asked for.
fn calm(
    engine: &EngineWorkload,
    scaling: &Autoscaling,
    replicas: i32,
    seen: &ModelSeen<'_>,
    now: Timestamp,
) -> Calm {
    let after = scaling.sleep_after.as_deref().and_then(quantity::duration).unwrap_or(defaults::SLEEP_AFTER);
    let mut left = Duration::ZERO;
    if seen.schedulers.is_empty() {
        return Calm::No;
    }
    for view in seen.schedulers {
        let Ok(report) = &view.report else { return Calm::No };
        for name in engine.spec.served_names() {
            let Some(demand) = report.demand.get(name) else { return Calm::No };
            if demand.held > 0 || demand.in_flight > 0 {
                return Calm::No;
            }
            let idle = Duration::try_from_secs_f64(demand.idle_s.max(0.0)).unwrap_or_default();
            left = left.max(after.saturating_sub(idle));
        }
    }
    // A canary's are not among the replicas, nor are those that compute prompts for them.
    let is_stable =
        |p: &&Pod| pods::label(p, TRACK_LABEL) != Track::Canary.to_string() && !pods::is_prefill(p);
    let serving: Vec<&Pod> =
        seen.pods.iter().map(|p| &**p).filter(|p| pods::stays(p)).filter(is_stable).collect();
    if serving.len() as i64 != i64::from(replicas) {
        return Calm::No;
    }
    for pod in serving {
        let Some(since) = pods::ready_since(pod) else { return Calm::No };
        left = left.max(after.saturating_sub(pods::age(since, now)));
    }
    if left.is_zero() { Calm::Enough } else { Calm::For(left) }
}

/// Whether something in the cluster can scale by load.
pub(super) fn has_autoscaler(capabilities: Capabilities) -> bool {
    capabilities.scaled_object || capabilities.external_metrics
}

/// The object by which the cluster's autoscaler scales the Deployment `target`.
pub(super) fn object(
    engine: &EngineWorkload,
    scaling: &Autoscaling,
    target: &str,
    asleep: bool,
    meta: &ObjectMeta,
    site: &ClusterSite,
) -> Option<Child> {
    let capabilities = site.capabilities;
    if capabilities.scaled_object {
        Some(scaled_object(engine, scaling, target, asleep, meta, site))
    } else if capabilities.external_metrics {
        Some(Child::of(&hpa(engine, scaling, target, meta)))
    } else {
        None
    }
}

fn targets(scaling: &Autoscaling) -> (Option<i32>, Option<i32>) {
    let kv_usage = scaling.target_kv_usage.or(scaling.target_waiting.is_none().then_some(KV_USAGE));
    (kv_usage, scaling.target_waiting)
}

/// The engines' own metrics, summed over the replicas: Kubernetes divides by their number.
fn hpa(
    engine: &EngineWorkload,
    scaling: &Autoscaling,
    target: &str,
    meta: &ObjectMeta,
) -> HorizontalPodAutoscaler {
    let metric = |name: &str, average: String| MetricSpec {
        type_: "External".to_owned(),
        external: Some(ExternalMetricSource {
            metric: MetricIdentifier {
                name: name.to_owned(),
                selector: Some(LabelSelector {
                    match_labels: Some([(METRIC_LABEL.to_owned(), engine.owner.name.clone())].into()),
                    ..LabelSelector::default()
                }),
            },
            target: MetricTarget {
                type_: "AverageValue".to_owned(),
                average_value: Some(Quantity(average)),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    };
    let (kv_usage, waiting) = targets(scaling);
    let kv_usage =
        kv_usage.map(|percent| metric(metrics::engine::KV_USAGE, format!("{}m", i64::from(percent) * 10)));
    let waiting = waiting.map(|n| metric(metrics::engine::WAITING, n.to_string()));
    HorizontalPodAutoscaler {
        metadata: ObjectMeta { name: Some(target.to_owned()), ..meta.clone() },
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some("apps/v1".to_owned()),
                kind: "Deployment".to_owned(),
                name: target.to_owned(),
            },
            min_replicas: Some(scaling.min.max(1)),
            max_replicas: scaling.max.max(1),
            metrics: Some(kv_usage.into_iter().chain(waiting).collect()),
            behavior: Some(HorizontalPodAutoscalerBehavior {
                scale_down: Some(HPAScalingRules {
                    stabilization_window_seconds: Some(CALM),
                    policies: Some(vec![HPAScalingPolicy {
                        type_: "Pods".to_owned(),
                        value: 1,
                        period_seconds: 60,
                    }]),
                    ..HPAScalingRules::default()
                }),
                scale_up: None,
            }),
        }),
        ..HorizontalPodAutoscaler::default()
    }
}

/// KEDA asks a scheduler, which has the replicas' averages. It is paused while the model sleeps: it would
/// wake it to its own minimum.
fn scaled_object(
    engine: &EngineWorkload,
    scaling: &Autoscaling,
    target: &str,
    asleep: bool,
    meta: &ObjectMeta,
    site: &ClusterSite,
) -> Child {
    let scheme = Scheme::of(site);
    let url = format!("{}://strata-scheduler.{}.svc:{PORT}/metrics", scheme.as_str(), engine.namespace);
    let name = engine.spec.model.name.replace(['\\', '"'], "");
    let trigger = |metric: &str, value: String| {
        let mut metadata = json!({
            "url": url, "format": "prometheus", "valueLocation": format!("{metric}{{name=\"{name}\"}}"),
            "targetValue": value,
        });
        if scheme == Scheme::Https {
            // The certificates name components, not hosts.
            metadata["unsafeSsl"] = json!("true");
        }
        json!({ "type": "metrics-api", "metricType": "Value", "metadata": metadata })
    };
    let (kv_usage, waiting) = targets(scaling);
    let kv_usage = kv_usage.map(|percent| {
        let share = format!("{}.{:02}", percent / 100, percent % 100);
        trigger("inference_pool_average_kv_cache_utilization", share)
    });
    let waiting = waiting.map(|n| trigger("inference_pool_average_queue_size", n.to_string()));
    let triggers: Vec<_> = kv_usage.into_iter().chain(waiting).collect();
    let mut meta = ObjectMeta { name: Some(target.to_owned()), ..meta.clone() };
    if asleep {
        let paused = ("autoscaling.keda.sh/paused".to_owned(), "true".to_owned());
        meta.annotations.get_or_insert_default().extend([paused]);
    }
    let [.., kind] = Capabilities::kinds();
    Child::custom(
        kind,
        json!({
            "metadata": meta,
            "spec": {
                "scaleTargetRef": { "name": target },
                "minReplicaCount": scaling.min.max(1),
                "maxReplicaCount": scaling.max.max(1),
                "cooldownPeriod": CALM,
                "triggers": triggers,
            },
        }),
    )
}
