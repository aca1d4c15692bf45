//! What an operator says about adapters, in vLLM's terms.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::LoraModule;

/// Largest rank that may be asked for: vLLM's own.
pub const MAX_RANK: usize = 512;
/// Adapters that are held in memory when nothing is said of it.
const HELD: usize = 32;

/// Which adapters there are, and how many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraOptions {
    /// Adapters that are served from the start.
    pub modules: Vec<LoraModule>,
    /// Different adapters in one step.
    pub max_loras: usize,
    /// Largest rank of an adapter.
    pub max_lora_rank: usize,
    /// Adapters that are served at the same time; without one, 32, or more where more are named.
    pub max_cpu_loras: Option<usize>,
    /// Whether adapters come and go by requests.
    pub runtime: Option<RuntimeLora>,
}

/// How adapters come by requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeLora {
    /// The folder below which they must lie.
    pub folder: PathBuf,
}

impl Default for LoraOptions {
    /// vLLM's.
    fn default() -> Self {
        Self { modules: Vec::new(), max_loras: 1, max_lora_rank: 16, max_cpu_loras: None, runtime: None }
    }
}

impl LoraOptions {
    /// What is out of range, in words.
    pub fn check(&self) -> Result<(), String> {
        let (most, rank) = (self.max_loras, self.max_lora_rank);
        if most == 0 {
            return Err("max_loras must be at least 1".into());
        }
        if !(1..=MAX_RANK).contains(&rank) {
            return Err(format!("max_lora_rank must be from 1 to {MAX_RANK}, and it is {rank}"));
        }
        if let Some(held) = self.max_cpu_loras.filter(|held| *held < most) {
            return Err(format!("max_cpu_loras is {held} and must be at least max_loras, which is {most}"));
        }
        let named = self.modules.len();
        if let Some(held) = self.max_cpu_loras.filter(|held| *held < named) {
            return Err(format!("max_cpu_loras is {held} and lora_modules names {named}; raise it"));
        }
        Ok(())
    }

    /// Adapters that are served at the same time.
    pub fn held(&self) -> usize {
        self.max_cpu_loras.unwrap_or_else(|| HELD.max(self.max_loras).max(self.modules.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_do_not_fit_together_are_said() {
        let said = |max_loras, max_lora_rank, max_cpu_loras| {
            let modules = vec!["a=/a".parse().unwrap(), "b=/b".parse().unwrap(), "c=/c".parse().unwrap()];
            let options =
                LoraOptions { modules, max_loras, max_lora_rank, max_cpu_loras, ..LoraOptions::default() };
            options.check().err().unwrap_or_default()
        };
        assert_eq!(said(1, 16, None), "");
        assert_eq!(said(0, 16, None), "max_loras must be at least 1");
        assert_eq!(said(1, 513, None), "max_lora_rank must be from 1 to 512, and it is 513");
        assert_eq!(said(4, 16, Some(3)), "max_cpu_loras is 3 and must be at least max_loras, which is 4");
        assert_eq!(said(1, 16, Some(2)), "max_cpu_loras is 2 and lora_modules names 3; raise it");
        assert_eq!(LoraOptions { max_loras: 64, ..LoraOptions::default() }.held(), 64);
    }
}
