//! The platform layer: the Responses and Conversations APIs above any OpenAI-compatible model API,
//! and a pass-through of the rest of it.
//!
//! It answers one question, what workflow is being executed, and stores what that needs: responses,
//! their items and conversations, each belonging to one owner and invisible to every other. It knows
//! nothing of quotas, replicas or GPUs; those are asked of the layer below by ordinary HTTP.
//!
//! [`run`] serves a [`PlatformOptions`]; [`router`] is the same without the listener.

mod app;
mod calculator;
mod conversations;
mod extract;
mod fields;
mod identity;
mod mint;
mod options;
mod page;
mod refusal;
mod relay;
mod request_id;
mod responses;
mod router;
mod run;
mod store;
mod tool;

pub use app::App;
pub use options::{PlatformError, PlatformOptions, UpstreamKind};
pub use router::router;
pub use run::{Platform, run};
pub use tool::{Definition, ServerTool, ToolError, Tools};
