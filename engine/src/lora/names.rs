//! What PEFT calls an adapter's tensors.

use super::weights::Target;

/// What PEFT puts before the name that a transformers class gives a module.
const PREFIX: &str = "base_model.model.";
/// Where the layers of a `…ForCausalLM` class are.
const LAYERS: &str = "model.layers.";

/// A module of a layer that an adapter may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Module {
    /// Its name within the layer.
    pub(super) path: &'static str,
    /// The projections that it is, one below the other.
    pub(super) targets: &'static [Target],
}

/// All of them.
pub(super) const MODULES: [Module; 9] = [
    Module { path: "self_attn.q_proj", targets: &[Target::Query] },
    Module { path: "self_attn.k_proj", targets: &[Target::Key] },
    Module { path: "self_attn.v_proj", targets: &[Target::Value] },
    Module { path: "self_attn.qkv_proj", targets: &[Target::Query, Target::Key, Target::Value] },
    Module { path: "self_attn.o_proj", targets: &[Target::Output] },
    Module { path: "mlp.gate_proj", targets: &[Target::Gate] },
    Module { path: "mlp.up_proj", targets: &[Target::Up] },
    Module { path: "mlp.gate_up_proj", targets: &[Target::Gate, Target::Up] },
    Module { path: "mlp.down_proj", targets: &[Target::Down] },
];

impl Module {
    /// Its name, without where it is.
    pub(super) fn short(self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }
}

/// The short names of all modules, for messages.
pub(super) fn known() -> String {
    MODULES.map(Module::short).join(", ")
}

/// Which half of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Half {
    A,
    B,
}

/// Which tensor of an adapter a name is of: the layer, the module and the half; or what is wrong with
/// it, and what to do.
pub(super) fn parse(name: &str) -> Result<(usize, Module, Half), String> {
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
    let inside = module.strip_prefix(PREFIX).and_then(|module| module.strip_prefix(LAYERS));
    let placed = inside.and_then(|inside| inside.split_once('.'));
    let Some((layer, path)) = placed.and_then(|(at, path)| Some((at.parse().ok()?, path))) else {
        return Err(format!("is not below `{PREFIX}{LAYERS}`, where this model's layers are"));
    };
    let module = MODULES.into_iter().find(|module| module.path == path);
    let module = module
        .ok_or_else(|| format!("changes `{path}`, which is not supported; supported are {}", known()))?;
    Ok((layer, module, half))
}
