//! The engine at run time: one thread owns the backend and runs step after step; requests reach it
//! over a channel and get their tokens over another.

mod adapters;
mod blocks;
mod choice;
mod drive;
mod generation;
mod handle;
mod operate;
mod operate_handle;
mod score;
mod speculate;
mod structured;
mod trace;
mod watch;

pub use generation::{
    Blame, Event, Failure, Generation, GenerationRequest, OutputRules, Piece, PieceToken, StopCause,
};
pub use handle::{Engine, EngineConfig, EngineParts, MAX_TEXT_BYTES, ModelCard, StartError, SubmitError};
pub use operate::{PauseMode, Reopen, SleepLevel};
pub use operate_handle::Unwell;
pub use speculate::{Speculation, SpeculativeConfig};
pub use structured::{Structure, Thinking};
pub use watch::Condition;
