//! Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): small changes to a model's weights that
//! some requests run with and others do not, in one batch.
//!
//! An adapter adds `scale × B (A x)` to the outputs of a projection: `A` is `rank` by inputs, `B` outputs
//! by `rank`. Here are the files it is read from ([`read`]), what it is known by ([`AdapterKey`]) and
//! which are served ([`Adapters`]); how it is computed is the backend's.

mod config;
mod error;
mod key;
mod modules;
mod names;
mod options;
mod patterns;
mod read;
mod registry;
#[cfg(test)]
pub(crate) mod tests;
mod weights;

pub use error::LoraError;
pub use key::{AdapterId, AdapterKey};
pub use modules::LoraModule;
pub use options::{LoraOptions, MAX_RANK, RuntimeLora};
pub use read::{Confined, Read, read};
pub use registry::{Adapter, Adapters, Refusal};
pub use weights::{LayerLora, LoraWeights, LowRank, Part, Target};
