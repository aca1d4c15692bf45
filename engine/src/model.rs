//! What a checkpoint says about itself: the shape of the network, its tokenizer and chat template.

pub mod encoder;
pub mod load;
pub(crate) mod rope;
pub mod source;
pub mod spec;
pub mod vectors;
