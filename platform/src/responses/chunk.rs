//! One chunk of a streamed chat completion, read leniently: other engines add members and reasons.

use serde::Deserialize;
use strata_wire::Usage;

/// A chunk, or an error in its place.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Chunk {
    #[serde(default)]
    pub(crate) choices: Vec<Choice>,
    #[serde(default)]
    pub(crate) usage: Option<Usage>,
    /// What some engines send when a stream fails.
    #[serde(default)]
    pub(crate) error: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Choice {
    #[serde(default)]
    pub(crate) delta: Delta,
    #[serde(default)]
    pub(crate) finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Delta {
    #[serde(default)]
    pub(crate) content: Option<String>,
    #[serde(default)]
    pub(crate) tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct CallDelta {
    #[serde(default)]
    pub(crate) index: u32,
    #[serde(default)]
    pub(crate) id: Option<String>,
    #[serde(default)]
    pub(crate) function: FunctionDelta,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct FunctionDelta {
    #[serde(default)]
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) arguments: Option<String>,
}

/// Why the model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// It was done, or it calls tools.
    Done,
    /// The limit on tokens was reached.
    Length,
    /// A filter stopped it.
    Filtered,
    /// It was stopped from outside.
    Aborted,
}

impl Finish {
    pub(crate) fn read(reason: &str) -> Self {
        match reason {
            "length" => Self::Length,
            "content_filter" => Self::Filtered,
            "abort" | "error" => Self::Aborted,
            _ => Self::Done,
        }
    }
}
