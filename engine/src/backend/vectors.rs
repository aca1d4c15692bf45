//! The seam to whatever turns texts into vectors, as [`Backend`](super::Backend) is to what generates.

use super::BackendError;
use crate::model::vectors::VectorOutput;

/// One text, as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextInput {
    /// The tokens, special ones included.
    pub tokens: Vec<u32>,
    /// From which token on it is the second of a pair; none when it is one text.
    pub second: Option<usize>,
}

/// What a model that reads texts is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorInfo {
    /// The architecture's name in its file, for messages.
    pub architecture: String,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Tokens of the longest text that it takes.
    pub max_tokens: usize,
    /// Length of a vector.
    pub width: usize,
    /// What the vectors are.
    pub output: VectorOutput,
}

/// Turns texts into vectors.
pub trait VectorBackend: Send {
    /// What this model is.
    fn info(&self) -> &VectorInfo;

    /// The vector of each text, [`VectorInfo::width`] long: its embedding, or its classes' scores before
    /// any activation. A text has the same bits alone and with others.
    fn run(&mut self, texts: &[TextInput]) -> Result<Vec<Vec<f32>>, BackendError>;
}
