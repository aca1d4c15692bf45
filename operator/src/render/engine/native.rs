//! Strata's own engine.

use k8s_openapi::api::core::v1::Container;
use strata_kinds::model_deployment::PodTemplate;

use super::source::Source;
use crate::cluster::ClusterSite;
use crate::render::pod::{self, Parts};
use crate::render::{args, hop};
use crate::workload::{Component, EngineWorkload};

pub(super) fn parts(
    engine: &EngineWorkload,
    source: &Source,
    added: &PodTemplate,
    site: &ClusterSite,
) -> Parts {
    let hop = hop::of(Component::Engine, site);
    let mut env = pod::environment(site);
    env.push(pod::drain_grace(added));
    env.extend(hop.env);
    env.extend(pod::added_env(added));
    let main = Container {
        args: Some(args::engine(engine, &source.path, &source.adapters)),
        env: Some(env),
        resources: pod::resources(added),
        startup_probe: Some(super::startup(&engine.spec, hop.scheme)),
        readiness_probe: Some(hop.scheme.probe("/ready", 1, 2, 2)),
        liveness_probe: Some(hop.scheme.probe("/health", 10, 5, 3)),
        volume_mounts: (!hop.mounts.is_empty()).then_some(hop.mounts),
        ..pod::strata(Component::Engine, Some(site))
    };
    Parts { main, init: Vec::new(), volumes: hop.volumes }
}
