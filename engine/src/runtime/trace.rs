//! A request's span: what became of all its answers, under the names of OpenTelemetry's conventions for
//! generative AI and, for what these lack, vLLM's.

use std::time::Instant;

use strata_trace::{ActiveSpan, Status, Value};

use super::choice::Choice;

/// What is known of a request's answers so far.
#[derive(Debug)]
pub(super) struct RequestTrace {
    span: ActiveSpan,
    /// Why each answer ended, by its place in the request.
    reasons: Vec<&'static str>,
    prompt_tokens: usize,
    completion_tokens: usize,
    arrived: Option<Instant>,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl RequestTrace {
    /// Of a request that asks for this many answers.
    pub(super) fn new(span: ActiveSpan, answers: usize) -> Self {
        Self {
            span,
            // Until something is known of an answer.
            reasons: vec!["error"; answers],
            prompt_tokens: 0,
            completion_tokens: 0,
            arrived: None,
            scheduled: None,
            first_token: None,
            last_token: None,
        }
    }

    /// Notes an answer that has ended. `of_prompt` is how many answers a prompt has.
    pub(super) fn note(&mut self, choice: &Choice, of_prompt: usize, reason: &'static str) {
        let first = |mine: Option<Instant>, other: Option<Instant>| mine.into_iter().chain(other).min();
        let times = &choice.times;
        if let Some(place) = self.reasons.get_mut(choice.index) {
            *place = reason;
        }
        if choice.index.is_multiple_of(of_prompt) {
            self.prompt_tokens += choice.prompt_tokens;
        }
        self.completion_tokens += choice.generated;
        self.arrived = Some(times.arrived);
        self.scheduled = first(self.scheduled, times.scheduled);
        self.first_token = first(self.first_token, times.first_token);
        self.last_token = self.last_token.max(times.last_token);
    }

    /// Ends the span: the request is over.
    pub(super) fn end(self) {
        let Self { mut span, reasons, arrived, scheduled, first_token, last_token, .. } = self;
        span.set("gen_ai.usage.prompt_tokens", Value::Int(self.prompt_tokens as i64));
        span.set("gen_ai.usage.completion_tokens", Value::Int(self.completion_tokens as i64));
        let mut latency = |name, from: Option<Instant>, to: Option<Instant>| {
            if let (Some(from), Some(to)) = (from, to) {
                let seconds = to.saturating_duration_since(from).as_secs_f64();
                span.set(name, Value::Float(seconds));
            }
        };
        latency("gen_ai.latency.time_in_queue", arrived, scheduled);
        latency("gen_ai.latency.time_to_first_token", arrived, first_token);
        latency("gen_ai.latency.e2e", arrived, Some(last_token.unwrap_or_else(Instant::now)));
        latency("gen_ai.latency.time_in_model_prefill", scheduled, first_token);
        latency("gen_ai.latency.time_in_model_decode", first_token, last_token);
        latency("gen_ai.latency.time_in_model_inference", scheduled, last_token);
        let failed = reasons.contains(&"error");
        let reasons = reasons.into_iter().map(str::to_owned).collect();
        span.set("gen_ai.response.finish_reasons", Value::Texts(reasons));
        span.end(if failed { Status::Error } else { Status::Unset });
    }
}
