//! What can be wrong with an adapter.

use std::path::PathBuf;

use crate::model::load::LoadError;

/// Why an adapter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// There is no adapter.
    #[error(
        "{} is not an adapter: expected a folder with adapter_config.json and adapter_model.safetensors, as PEFT \
         saves them ({found})",
        path.display()
    )]
    NotAnAdapter {
        /// Where it was looked for.
        path: PathBuf,
        /// What was found there.
        found: String,
    },
    /// What it asks for is not built, or makes no sense.
    #[error("{}: `{field}` {problem}", path.display())]
    Field {
        /// The configuration.
        path: PathBuf,
        /// Which member of it.
        field: String,
        /// What about it, and what to do.
        problem: String,
    },
    /// A weight is of no use.
    #[error("{}: tensor `{tensor}` {problem}", path.display())]
    Tensor {
        /// The weights.
        path: PathBuf,
        /// Which of them.
        tensor: String,
        /// What about it, and what to do.
        problem: String,
    },
    /// More bytes than an adapter of this rank can have.
    #[error(
        "{} is {bytes} bytes, and an adapter of rank {rank} for this model is at most {most}; check that it is \
         one, or raise --max-lora-rank",
        path.display()
    )]
    TooLarge {
        /// The weights.
        path: PathBuf,
        /// Their size.
        bytes: u64,
        /// The largest rank that is taken.
        rank: usize,
        /// The largest size.
        most: u64,
    },
    /// A file that leads out of where adapters may be.
    #[error("{} leads out of the folder that adapters may be loaded from, {}", path.display(), folder.display())]
    Outside {
        /// Which file.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
    },
    /// A file cannot be read, or is damaged.
    #[error(transparent)]
    Load(#[from] LoadError),
}
