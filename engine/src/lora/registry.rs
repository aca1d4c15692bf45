//! Which adapters are served now, by the names that requests ask for.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::read::{Confined, Read, read};
use super::{AdapterId, AdapterKey, LoraError, LoraOptions, LoraWeights};
use crate::model::spec::ModelSpec;

/// An adapter that requests may run with.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// What it is known by.
    pub key: Arc<AdapterKey>,
    /// What it changes.
    pub weights: LoraWeights,
    /// Seconds since 1970 when it began to be served.
    pub created: i64,
}

/// Why an adapter is not loaded or unloaded; the messages are vLLM's where it has one.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Adapters do not come and go here.
    #[error(
        "adapters are not loaded and unloaded at run time here; start the engine with --enable-lora, \
         --allow-runtime-lora-updating and --lora-folder"
    )]
    Off,
    /// No name or no path.
    #[error("Both 'lora_name' and 'lora_path' must be provided.")]
    Incomplete,
    /// No name.
    #[error("'lora_name' needs to be provided to unload a LoRA adapter.")]
    Nameless,
    /// The base's name.
    #[error("The lora adapter '{0}' conflicts with a served base model.")]
    Base(String),
    /// The name is taken.
    #[error(
        "The lora adapter '{0}' has already been loaded. If you want to load the adapter in place, set \
         'load_inplace' to True."
    )]
    Taken(String),
    /// The name is nobody's.
    #[error("The lora adapter '{0}' cannot be found.")]
    Unknown(String),
    /// Nothing is there.
    #[error("Loading lora {name} failed: No adapter found for {path}")]
    Missing {
        /// The adapter's name.
        name: String,
        /// Where it was looked for.
        path: String,
    },
    /// It cannot be used.
    #[error("Loading lora {name} failed: {source}")]
    Unusable {
        /// The adapter's name.
        name: String,
        /// Why.
        source: LoraError,
    },
    /// So many are served already.
    #[error("{0} adapters are served already, as many as may be; unload one, or raise --max-cpu-loras")]
    Full(usize),
    /// The device refuses it, or is gone.
    #[error("Loading lora {name} failed: {message}")]
    Device {
        /// The adapter's name.
        name: String,
        /// What it said.
        message: String,
    },
}

/// The adapters of one engine.
#[derive(Debug)]
pub struct Adapters {
    spec: ModelSpec,
    base: String,
    options: LoraOptions,
    /// Where those of requests must lie; none when none come so.
    within: Option<Confined>,
    served: RwLock<Served>,
    /// Held by whoever loads or unloads.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Served {
    by_name: BTreeMap<String, Arc<Adapter>>,
    /// How many have been read.
    loadings: u64,
    /// How many names there have been.
    names: u64,
}

impl Adapters {
    /// Reads the adapters that the options name, for a model of this shape which is served as `base`.
    pub fn open(spec: ModelSpec, base: &str, options: LoraOptions, now: i64) -> Result<Self, String> {
        options.check()?;
        let confined = |folder: &Path| {
            let problem = |e| format!("the folder {} cannot be used: {e}; make it", folder.display());
            Confined::below(folder).map_err(problem)
        };
        let within = options.runtime.as_ref().map(|runtime| confined(&runtime.folder)).transpose()?;
        let modules = options.modules.clone();
        let (served, turn) = (RwLock::default(), tokio::sync::Mutex::default());
        let adapters = Self { spec, base: base.to_owned(), options, within, served, turn };
        for module in modules {
            if let Some(other) = module.base_model_name.filter(|name| name != base) {
                let name = module.name;
                return Err(format!("the adapter `{name}` is for `{other}`, and `{base}` is served"));
            }
            adapters.check(&module.name, &module.path, false).map_err(|e| e.to_string())?;
            let read = adapters.read(&module.name, &module.path, None, now).map_err(|e| e.to_string())?;
            adapters.serve(Arc::new(read));
        }
        Ok(adapters)
    }

    /// Different adapters in one step.
    pub fn at_once(&self) -> usize {
        self.options.max_loras
    }

    /// The adapter of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Adapter>> {
        self.served().by_name.get(name).cloned()
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<Adapter>> {
        self.served().by_name.values().cloned().collect()
    }

    /// Waits until nobody else loads or unloads, and keeps others from it; or says that requests may
    /// not.
    pub(crate) async fn turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Refusal> {
        if self.within.is_none() {
            return Err(Refusal::Off);
        }
        Ok(self.turn.lock().await)
    }

    /// Reads an adapter as a request asks for it. Blocks.
    pub(crate) fn requested(
        &self,
        name: &str,
        path: &Path,
        in_place: bool,
        now: i64,
    ) -> Result<Adapter, Refusal> {
        self.check(name, path, in_place)?;
        self.read(name, path, self.within.as_ref(), now)
    }

    fn check(&self, name: &str, path: &Path, in_place: bool) -> Result<(), Refusal> {
        if name.is_empty() || path.as_os_str().is_empty() {
            return Err(Refusal::Incomplete);
        }
        if name == self.base {
            return Err(Refusal::Base(name.into()));
        }
        let served = self.served();
        let (taken, count) = (served.by_name.contains_key(name), served.by_name.len());
        if taken && !in_place {
            return Err(Refusal::Taken(name.into()));
        }
        if !taken && count >= self.options.held() {
            return Err(Refusal::Full(count));
        }
        Ok(())
    }

    fn read(&self, name: &str, path: &Path, within: Option<&Confined>, now: i64) -> Result<Adapter, Refusal> {
        let how = Read { spec: &self.spec, max_rank: self.options.max_lora_rank, within };
        let weights = read(path, how).map_err(|source| match source {
            LoraError::NotAnAdapter { path: ref place, .. } if !place.exists() => {
                Refusal::Missing { name: name.into(), path: path.display().to_string() }
            }
            source => Refusal::Unusable { name: name.into(), source },
        })?;
        let mut served = self.served_mut();
        served.loadings += 1;
        let before = served.by_name.get(name).map(|before| before.key.number);
        let number = before.unwrap_or_else(|| {
            served.names += 1;
            served.names
        });
        let (id, digest) = (AdapterId(served.loadings), weights.digest());
        let key = Arc::new(AdapterKey { id, name: name.into(), number, digest });
        Ok(Adapter { key, weights, created: now })
    }

    /// Serves an adapter from now on; returns the one that had its name.
    pub(crate) fn serve(&self, adapter: Arc<Adapter>) -> Option<Arc<Adapter>> {
        self.served_mut().by_name.insert(adapter.key.name.to_string(), adapter)
    }

    /// Serves the adapter of this name no longer.
    pub(crate) fn remove(&self, name: &str) -> Result<Arc<Adapter>, Refusal> {
        if name.is_empty() {
            return Err(Refusal::Nameless);
        }
        self.served_mut().by_name.remove(name).ok_or_else(|| Refusal::Unknown(name.into()))
    }

    fn served(&self) -> RwLockReadGuard<'_, Served> {
        self.served.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn served_mut(&self) -> RwLockWriteGuard<'_, Served> {
        self.served.write().unwrap_or_else(PoisonError::into_inner)
    }
}
