//! `adapter_config.json`, as PEFT writes it: what of it is computed, and what is refused.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::LoraError;
use super::names::{MODULES, Module, known};
use super::patterns::Patterns;

/// How PEFT initialises an adapter without changing the base's weights, so that what was saved is a plain
/// adapter.
const PLAIN_INITS: [&str; 5] = ["gaussian", "eva", "orthogonal", "mica", "lora_ga"];
/// Members that PEFT's other kinds of adapters set, and what to do instead.
const UNBUILT: [(&str, &str); 6] = [
    ("modules_to_save", "train the adapter without them"),
    ("layer_replication", "use an adapter of the model's own layers"),
    ("alora_invocation_tokens", "use a plain LoRA adapter"),
    ("target_parameters", "use `target_modules`"),
    ("trainable_token_indices", "train the adapter without them"),
    ("lora_bias", "train the adapter without biases"),
];
/// Settings of how an adapter was begun, of which nothing is left in a saved one, and of how it is run.
const SPENT: [&str; 3] = ["eva_config", "lora_ga_config", "runtime_config"];

/// What is computed of a configuration.
pub(super) struct Config {
    rank: usize,
    alpha: f64,
    /// Whether the scale goes by the root of the rank.
    stabilised: bool,
    ranks: Patterns,
    alphas: Patterns,
    /// The modules that it names; none when it names them by a pattern.
    pub(super) modules: Option<Vec<Module>>,
}

/// Whether a member asks for something.
fn asks(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(values) => !values.is_empty(),
        Value::Object(members) => !members.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => true,
    }
}

impl Config {
    /// Reads a configuration whose ranks may be up to `most`; `path` is for messages.
    pub(super) fn read(members: &Map<String, Value>, path: &Path, most: usize) -> Result<Self, LoraError> {
        let bad = |field: &str, problem: String| LoraError::Field {
            path: path.into(),
            field: field.into(),
            problem,
        };
        let get = |field: &str| members.get(field).filter(|value| !value.is_null());
        match get("peft_type").map(Value::as_str) {
            None | Some(Some("LORA")) => {}
            _ => return Err(bad("peft_type", "must be \"LORA\"; other kinds are not supported".into())),
        }
        if let Some(bias) = get("bias").filter(|bias| *bias != "none") {
            let problem = format!("is {}, and only \"none\" is supported; train the adapter so", shown(bias));
            return Err(bad("bias", problem));
        }
        if let Some(init) = get("init_lora_weights").and_then(Value::as_str)
            && !PLAIN_INITS.contains(&init.to_lowercase().as_str())
        {
            let problem = "changes the base's weights when PEFT loads it, which is not supported; convert it to a \
                           plain LoRA adapter (PEFT's path_initial_model_for_weight_conversion)";
            return Err(bad("init_lora_weights", problem.into()));
        }
        for (field, instead) in UNBUILT {
            if get(field).is_some_and(asks) {
                return Err(bad(field, format!("is not supported; {instead}")));
            }
        }
        // `use_dora`, `arrow_config`, and whatever PEFT comes to have: each may change what is computed.
        let is_kind = |field: &str| field.starts_with("use_") || field.ends_with("_config");
        let other = members.iter().find(|(field, value)| {
            is_kind(field) && *field != "use_rslora" && !SPENT.contains(&field.as_str()) && asks(value)
        });
        if let Some((field, _)) = other {
            let field: String = field.chars().take(80).collect();
            return Err(bad(&field, "is not supported; use a plain LoRA adapter".into()));
        }
        if get("fan_in_fan_out").is_some_and(asks) {
            let problem =
                "is not supported: this model's weights are outputs by inputs; use an adapter of it";
            return Err(bad("fan_in_fan_out", problem.into()));
        }
        let rank = match get("r").map(Value::as_u64) {
            Some(Some(rank)) if (1..=most as u64).contains(&rank) => rank as usize,
            Some(Some(rank)) if rank > most as u64 => {
                let problem = format!("is {rank} and at most {most} is taken; raise --max-lora-rank");
                return Err(bad("r", problem));
            }
            _ => return Err(bad("r", "must be the rank, a whole number from 1 on".into())),
        };
        let alpha = get("lora_alpha").and_then(Value::as_f64).filter(|alpha| alpha.is_finite());
        let alpha = alpha.ok_or_else(|| bad("lora_alpha", "must be a number".into()))?;
        let stabilised = match get("use_rslora") {
            None => false,
            Some(Value::Bool(stabilised)) => *stabilised,
            Some(_) => return Err(bad("use_rslora", "must be true or false".into())),
        };
        let is_alpha = |alpha: f64| {
            // At the smallest rank.
            if (alpha as f32).is_finite() { Ok(()) } else { Err("is too large".to_owned()) }
        };
        is_alpha(alpha).map_err(|problem| bad("lora_alpha", problem))?;
        let is_rank = |rank: f64| {
            if rank > most as f64 {
                return Err(format!("is {rank} and at most {most} is taken; raise --max-lora-rank"));
            }
            let whole = rank >= 1.0 && rank.fract() == 0.0;
            if whole {
                Ok(())
            } else {
                Err(format!("is {rank} and must be a rank, a whole number from 1 on"))
            }
        };
        let ranks =
            Patterns::read(get("rank_pattern"), is_rank).map_err(|problem| bad("rank_pattern", problem))?;
        let alphas = Patterns::read(get("alpha_pattern"), is_alpha)
            .map_err(|problem| bad("alpha_pattern", problem))?;
        let modules = modules(get("target_modules")).map_err(|problem| bad("target_modules", problem))?;
        Ok(Self { rank, alpha, stabilised, ranks, alphas, modules })
    }

    /// The rank of a module of this name, and by what its product is multiplied.
    pub(super) fn of(&self, module: &str) -> (usize, f32) {
        let rank = self.ranks.get(module).map_or(self.rank, |rank| rank as usize);
        let alpha = self.alphas.get(module).unwrap_or(self.alpha);
        let divisor = if self.stabilised { (rank as f64).sqrt() } else { rank as f64 };
        (rank, (alpha / divisor) as f32)
    }
}

/// The modules that are named; none for a pattern, of which the weights tell.
fn modules(value: Option<&Value>) -> Result<Option<Vec<Module>>, String> {
    let names = match value {
        Some(Value::String(_)) => return Ok(None),
        Some(Value::Array(names)) => names,
        _ => return Err("must be an array of modules' names, or a pattern".into()),
    };
    let module = |name: &Value| {
        let name = name.as_str().ok_or("must be an array of modules' names")?;
        let short = name.rsplit('.').next().unwrap_or(name);
        MODULES.into_iter().find(|module| module.short == short).ok_or_else(|| {
            let name: String = name.chars().take(80).collect();
            format!("names `{name}`, which is not supported; supported are {}", known())
        })
    };
    let mut modules: Vec<Module> = names.iter().map(module).collect::<Result<_, String>>()?;
    modules.sort_unstable();
    modules.dedup();
    if modules.is_empty() { Err("names no module".into()) } else { Ok(Some(modules)) }
}

fn shown(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}
