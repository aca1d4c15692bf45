//! How a scheduler chose: `GET /debug/decisions`. Of a request there is its id and its size, never its text.

use serde::{Deserialize, Serialize};

use crate::replicas::Policy;

/// The route. `?request=ID` finds the attempts of one request, `?model=NAME` those of one model, `?last=N`
/// the latest N.
pub const DECISIONS: &str = "/debug/decisions";

/// What the route returns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Decisions {
    /// The latest first.
    pub decisions: Vec<Explained>,
}

/// One choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The id that the layers know the request by. A request that failed somewhere is chosen for again.
    pub request: String,
    /// The model that it asks for.
    pub model: String,
    /// Milliseconds that it was held back for a place.
    pub held_ms: f64,
    /// How one is picked.
    pub policy: Policy,
    /// The replica that was picked.
    pub replica: String,
    /// Why, in one sentence.
    pub why: String,
    /// Whole blocks of the prompt's canonical prefix.
    pub blocks: usize,
    /// Tokens that are expected of its answer, where the model's answers have told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_tokens: Option<f64>,
    /// How the scores count.
    pub weights: Weights,
    /// All that there was to choose from; empty where that is not kept.
    pub candidates: Vec<Considered>,
}

/// How scores count: queue, decode and latency against a replica, the others for it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Weights {
    pub prefix: f64,
    pub queue: f64,
    pub decode: f64,
    pub latency: f64,
    #[serde(default)]
    pub session: f64,
    #[serde(default)]
    pub adapter: f64,
}

/// How a replica stood in a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It was picked.
    Picked,
    /// It could have taken the request.
    Open,
    /// It had no room.
    Full,
    /// It is not ready, is of the other track, or has failed this request.
    Out,
}

/// One replica in a choice. Scores are from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Considered {
    /// Its name.
    pub replica: String,
    /// How it stood.
    pub standing: Standing,
    /// The weighted sum.
    pub score: f64,
    /// Prefill time that its cache saves.
    pub hit: f64,
    /// Prompt tokens that wait there.
    pub queue: f64,
    /// Sequences that run there.
    pub decode: f64,
    /// Its time between two tokens.
    pub latency: f64,
    /// Whether the request's session belongs there: 1 or 0. Absent without a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<f64>,
    /// How near its adapter is there. Absent where the request is for no adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<f64>,
    /// Tokens of the prompt that it has.
    pub cached_tokens: f64,
    /// Whether it tells so itself; else it is guessed by what was sent there.
    pub told: bool,
    /// Requests of this scheduler under way there.
    pub in_flight: u64,
    /// Sequences running, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<f64>,
    /// Sequences waiting, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<f64>,
    /// Prompt tokens waiting.
    pub waiting_tokens: f64,
    /// Milliseconds to the first token, as learnt from other requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<f64>,
    /// Milliseconds between two tokens, as learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inter_token_ms: Option<f64>,
}
