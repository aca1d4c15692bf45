//! What the tests across the layers share: the built binary as a process, and a recorder that stands
//! at a boundary and writes down what crosses it.

pub mod process;
pub mod recorder;
