//! The response object.

use serde_json::{Value, json};
use strata_wire::Usage;

use super::item::Item;
use super::model::Failure;
use super::request::Create;

/// What does not change while a response is made.
pub(crate) struct Frame {
    pub(crate) id: String,
    pub(crate) created_at: i64,
    pub(crate) create: Create,
}

/// How a response stands.
pub(crate) enum State<'s> {
    InProgress,
    /// Done, at this time.
    Completed(i64),
    /// Cut short, for one of OpenAI's reasons.
    Incomplete(&'static str),
    Failed(&'s Failure),
    /// The client left.
    Cancelled,
}

impl State<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed(_) => "completed",
            Self::Incomplete(_) => "incomplete",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Frame {
    /// The object as OpenAI's SDKs read it.
    pub(crate) fn object(&self, state: &State<'_>, output: &[Item], usage: Option<Usage>) -> Value {
        let create = &self.create;
        let completed_at = if let State::Completed(at) = state { Some(*at) } else { None };
        let error = if let State::Failed(failure) = state {
            Some(json!({"code": failure.code(), "message": failure.message}))
        } else {
            None
        };
        let incomplete = if let State::Incomplete(why) = state { Some(json!({"reason": why})) } else { None };
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": state.name(),
            "background": false,
            "completed_at": completed_at,
            "conversation": create.conversation.as_ref().map(|id| json!({"id": id})),
            "error": error,
            "incomplete_details": incomplete,
            "instructions": create.instructions,
            "max_output_tokens": create.max_output_tokens,
            "max_tool_calls": create.max_tool_calls,
            "metadata": create.metadata,
            "model": create.model,
            "output": output,
            "parallel_tool_calls": create.parallel_tool_calls,
            "previous_response_id": create.previous,
            "reasoning": {"effort": null, "summary": null},
            "safety_identifier": create.safety_identifier,
            "service_tier": "default",
            "store": create.store,
            "temperature": create.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": create.tool_choice.shown,
            "tools": create.tools.shown,
            "top_logprobs": 0,
            "top_p": create.top_p,
            "truncation": "disabled",
            "usage": usage.map(|u| json!({
                "input_tokens": u.prompt_tokens,
                "input_tokens_details": {"cached_tokens": u.cached_tokens(), "cache_write_tokens": 0},
                "output_tokens": u.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": u.prompt_tokens + u.completion_tokens,
            })),
            "user": create.user,
        })
    }
}
