//! What PEFT calls an adapter's tensors.

use super::weights::{Part, Target};

/// What PEFT puts before the name that a transformers class gives a module.
const PREFIX: &str = "base_model.model.";
/// Where the layers of a `…ForCausalLM` class are.
const LAYERS: &str = "model.layers.";

/// A module of a layer that an adapter may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Module {
    /// Its name, without where it is.
    pub(super) short: &'static str,
    /// Where it is in a layer.
    places: &'static [&'static str],
    /// Where the experts that have one are.
    experts: &'static [&'static str],
    /// The projections that it is, one below the other.
    pub(super) targets: &'static [Target],
}

const ATTENTION: &[&str] = &["self_attn"];
const DENSE: &[&str] = &["mlp"];
/// Qwen's, and as Mixtral has them under either of its names.
const EXPERTS: &[&str] = &["mlp.experts"];
const MIXTRAL: &[&str] = &["block_sparse_moe.experts", "mlp.experts"];

/// All of them.
pub(super) const MODULES: [Module; 13] = [
    Module { short: "q_proj", places: ATTENTION, experts: &[], targets: &[Target::Query] },
    Module { short: "k_proj", places: ATTENTION, experts: &[], targets: &[Target::Key] },
    Module { short: "v_proj", places: ATTENTION, experts: &[], targets: &[Target::Value] },
    Module {
        short: "qkv_proj",
        places: ATTENTION,
        experts: &[],
        targets: &[Target::Query, Target::Key, Target::Value],
    },
    Module { short: "o_proj", places: ATTENTION, experts: &[], targets: &[Target::Output] },
    Module { short: "gate_proj", places: DENSE, experts: EXPERTS, targets: &[Target::Gate] },
    Module { short: "up_proj", places: DENSE, experts: EXPERTS, targets: &[Target::Up] },
    Module { short: "gate_up_proj", places: DENSE, experts: &[], targets: &[Target::Gate, Target::Up] },
    Module { short: "down_proj", places: DENSE, experts: EXPERTS, targets: &[Target::Down] },
    Module { short: "w1", places: &[], experts: MIXTRAL, targets: &[Target::Gate] },
    Module { short: "w3", places: &[], experts: MIXTRAL, targets: &[Target::Up] },
    Module { short: "w2", places: &[], experts: MIXTRAL, targets: &[Target::Down] },
    Module { short: "gate", places: &["mlp", "block_sparse_moe"], experts: &[], targets: &[Target::Router] },
];

impl Module {
    /// The module of this name within a layer, and the part of the layer that it is in.
    fn find(path: &str) -> Option<(Self, Part)> {
        let (place, short) = path.rsplit_once('.')?;
        let module = MODULES.into_iter().find(|module| module.short == short)?;
        if module.places.contains(&place) {
            return Some((module, Part::Shared));
        }
        let (experts, index) = place.rsplit_once('.')?;
        let index = index.parse().ok().filter(|_| module.experts.contains(&experts))?;
        Some((module, Part::Expert(index)))
    }
}

/// The short names of all modules, for messages.
pub(super) fn known() -> String {
    MODULES.map(|module| module.short).join(", ")
}

/// Which half of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Half {
    A,
    B,
}

/// Which tensor of an adapter a name is of.
pub(super) struct Named<'a> {
    pub(super) layer: usize,
    pub(super) part: Part,
    pub(super) module: Module,
    pub(super) half: Half,
    /// What transformers calls the module.
    pub(super) path: &'a str,
}

/// Which tensor of an adapter a name is of; or what is wrong with it, and what to do.
pub(super) fn parse(name: &str) -> Result<Named<'_>, String> {
    if name.contains("lora_magnitude_vector") {
        return Err("is of DoRA, which is not supported; use a plain LoRA adapter".into());
    }
    if name.contains("lora_embedding_") || name.contains("embed_tokens") || name.contains("lm_head") {
        let problem = "changes the embeddings or the output head, which is not supported; train the adapter \
                       without them";
        return Err(problem.into());
    }
    let stem = |suffix: &str| name.strip_suffix(suffix);
    let (module, half) = match (stem(".lora_A.weight"), stem(".lora_B.weight")) {
        (Some(module), _) => (module, Half::A),
        (_, Some(module)) => (module, Half::B),
        _ => {
            return Err("is neither `….lora_A.weight` nor `….lora_B.weight`; only these are supported".into());
        }
    };
    let module_path = module.strip_prefix(PREFIX).unwrap_or(module);
    let inside = module.strip_prefix(PREFIX).and_then(|module| module.strip_prefix(LAYERS));
    let placed = inside.and_then(|inside| inside.split_once('.'));
    let Some((layer, path)) = placed.and_then(|(at, path)| Some((at.parse().ok()?, path))) else {
        return Err(format!("is not below `{PREFIX}{LAYERS}`, where this model's layers are"));
    };
    let (module, part) = Module::find(path)
        .ok_or_else(|| format!("changes `{path}`, which is not supported; supported are {}", known()))?;
    Ok(Named { layer, part, module, half, path: module_path })
}
