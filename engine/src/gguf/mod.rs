//! GGUF, the file format of llama.cpp: typed metadata, then tensors, in one file. Versions 2 and 3,
//! little-endian.

mod error;
mod header;
mod keys;
mod model;
mod shape;
#[cfg(test)]
pub(crate) mod tests;
mod value;

pub use error::GgufError;
pub use header::{Header, TensorInfo};
pub(crate) use model::load;
pub use value::Value;
