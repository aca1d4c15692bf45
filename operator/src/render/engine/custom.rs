//! Any server with the same HTTP interface. It is told where the model is by `STRATA_MODEL_PATH` and what
//! it is called by `STRATA_MODEL_NAME`, and listens on port 8000. Of a model whose prompts are computed by
//! replicas of their own it is told which part it has by `STRATA_ROLE`, `prefill` or `decode`, and is asked
//! to hand over and to take by `kv_transfer_params`, as vLLM is.

use strata_kinds::model_deployment::PodTemplate;

use super::{empty_dir, events, foreign};
use crate::cluster::ClusterSite;
use crate::render::pod::Parts;
use crate::workload::EngineWorkload;

pub(super) fn parts(engine: &EngineWorkload, path: &str, added: &PodTemplate, site: &ClusterSite) -> Parts {
    let mut main = foreign(engine, path, added);
    main.ports.get_or_insert_default().extend(events::of(&engine.spec, site).ports);
    let settings = engine.spec.engine.clone().unwrap_or_default();
    main.command = (!settings.command.is_empty()).then_some(settings.command);
    main.args = (!settings.args.is_empty()).then_some(settings.args);
    Parts { main, init: Vec::new(), volumes: vec![empty_dir("tmp", None)] }
}
