//! What can be wrong with a Hugging Face checkpoint.

/// What is wrong with a file of a Hugging Face checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Not JSON, or not of the expected form.
    #[error("not the JSON that was expected: {0}")]
    Json(#[from] serde_json::Error),
    /// The safetensors header is damaged, or the file is cut.
    #[error("not a whole safetensors file: {0}; download it again")]
    Header(#[from] ::safetensors::SafeTensorError),
    /// The index names a file outside its folder.
    #[error("the index names {0:?}, which is not a file beside it")]
    OutsidePath(String),
    /// No weights.
    #[error("neither model.safetensors nor model.safetensors.index.json is in the folder")]
    NoWeights,
    /// A configuration key that is needed.
    #[error("the key `{0}` is missing")]
    MissingKey(&'static str),
}
