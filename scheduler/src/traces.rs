//! Spans of requests, for an OpenTelemetry collector, where they are recorded.
//!
//! ```text
//! route_request          the request, from its first byte to the last of its answer
//! ├─ wait_in_queue       when no replica had room
//! ├─ choose_replica      each choice
//! ├─ compute_prompt      the first leg of a request whose prompt is computed elsewhere
//! └─ ask_replica         each attempt at a replica; the parent of the engine's span
//! ```

use std::time::Instant;

use http::{HeaderMap, HeaderValue, StatusCode};
use strata_trace::{ActiveSpan, Kind, Status, Tracer, Value};
use strata_wire::headers;

use crate::call::Call;
use crate::prediction::Usage;
use crate::replica::Lease;

/// The span of an attempt.
const ATTEMPT: &str = "ask_replica";
/// That of a prefill replica's part.
const FIRST_LEG: &str = "compute_prompt";

/// What is recorded of one request. Dropping it ends its spans.
#[derive(Debug, Default)]
pub(crate) struct Trace(Kept);

#[derive(Debug, Default)]
enum Kept {
    /// Nothing, and the caller's trace context goes on as it came.
    #[default]
    Nothing,
    /// Nothing, and those that are called are told so.
    Declined(HeaderValue),
    Spans(Box<Spans>),
}

#[derive(Debug)]
struct Spans {
    /// Gone once it has ended.
    whole: Option<ActiveSpan>,
    attempt: Option<ActiveSpan>,
    attempts: i64,
    /// Whether it is the caller's trace.
    has_parent: bool,
    failed: bool,
    /// Whether its answer was passed on to the end.
    is_over: bool,
}

impl Trace {
    /// Begins the span of a request that has come, at this time, with these headers.
    pub(crate) fn begin(tracer: Option<&Tracer>, path: &str, received: &HeaderMap, arrived: Instant) -> Self {
        let Some(tracer) = tracer else { return Self::default() };
        let mut given = received.get_all(headers::TRACEPARENT).iter();
        // Of several parents none is the one.
        let parent = given.next().filter(|_| given.next().is_none()).and_then(|parent| parent.to_str().ok());
        if let Some(whole) = tracer.answer("route_request", parent) {
            let has_parent = whole.has_parent();
            let mut whole = whole.since(arrived);
            whole.set("http.request.method", Value::Text("POST".to_owned()));
            whole.set("url.path", Value::Text(path.to_owned()));
            let whole = Some(whole);
            let spans =
                Spans { whole, attempt: None, attempts: 0, has_parent, failed: false, is_over: false };
            return Self(Kept::Spans(Box::new(spans)));
        }
        let declined = tracer.decline(parent).and_then(|context| context.header().parse().ok());
        Self(declined.map_or(Kept::Nothing, Kept::Declined))
    }

    fn spans(&mut self) -> Option<&mut Spans> {
        match &mut self.0 {
            Kept::Spans(spans) => Some(spans),
            Kept::Nothing | Kept::Declined(_) => None,
        }
    }

    fn set(&mut self, name: &'static str, value: impl FnOnce() -> Value) {
        if let Some(whole) = self.spans().and_then(|spans| spans.whole.as_mut()) {
            whole.set(name, value());
        }
    }

    /// The request has been read.
    pub(crate) fn read(&mut self, call: &Call) {
        self.set("gen_ai.request.model", || Value::Text(call.model.clone()));
        self.set("gen_ai.request.id", || Value::Text(call.id.to_str().unwrap_or_default().to_owned()));
        self.set("strata.priority", || Value::Int(call.wanted.class.priority.into()));
    }

    /// A replica was chosen, after a choice was first asked for at this time.
    pub(crate) fn placed(&mut self, lease: &Lease, asked: Instant) {
        let Some(spans) = self.spans() else { return };
        let Some((chosen, took)) = lease.chosen else { return };
        if let Some(held) = lease.held {
            spans.part("wait_in_queue", asked, chosen, Status::Unset, []);
            if let Some(whole) = &mut spans.whole {
                whole.set("gen_ai.latency.time_in_queue", Value::Float(held.as_secs_f64()));
            }
        }
        let decision = &lease.decision;
        let said = [
            ("strata.replica", Value::Text(decision.replica.clone())),
            ("strata.candidates", Value::Int(decision.candidates as i64)),
            ("strata.score", Value::Float(decision.score)),
            ("strata.blocks", Value::Int(decision.blocks as i64)),
            ("strata.cached_blocks", Value::Int(decision.cached_blocks as i64)),
            ("strata.why", Value::Text(decision.sentence())),
        ];
        spans.part("choose_replica", chosen, chosen + took, Status::Unset, said);
    }

    /// No replica was chosen: the request was refused, or its time passed.
    pub(crate) fn not_placed(&mut self, asked: Instant) {
        if let Some(spans) = self.spans() {
            spans.part("wait_in_queue", asked, Instant::now(), Status::Error, []);
        }
    }

    /// It is sent to the replica of this lease.
    pub(crate) fn attempt(&mut self, lease: &Lease) {
        if let Some(spans) = self.spans() {
            spans.attempts += 1;
            spans.ask(ATTEMPT, lease);
        }
    }

    /// Its prompt is sent to the prefill replica of this lease.
    pub(crate) fn first_leg(&mut self, lease: &Lease) {
        if let Some(spans) = self.spans() {
            spans.ask(FIRST_LEG, lease);
        }
    }

    /// Writes the context of what was begun last for the one that is called.
    pub(crate) fn tell(&self, to: &mut HeaderMap) {
        let (context, is_new) = match &self.0 {
            Kept::Nothing => return,
            Kept::Declined(context) => (Some(context.clone()), true),
            Kept::Spans(spans) => {
                let last = spans.attempt.as_ref().or(spans.whole.as_ref());
                (last.and_then(|span| span.context().header().parse().ok()), !spans.has_parent)
            }
        };
        if let Some(context) = context {
            to.insert(headers::TRACEPARENT, context);
        }
        if is_new {
            // It tells of a trace that is not this one.
            to.remove(headers::TRACESTATE);
        }
    }

    /// The attempt failed, and the request may go elsewhere.
    pub(crate) fn attempt_failed(&mut self, why: &str) {
        if let Some(mut attempt) = self.spans().and_then(|spans| spans.attempt.take()) {
            attempt.set("error.type", Value::Text(why.to_owned()));
            attempt.end(Status::Error);
        }
    }

    /// The first leg has been gone.
    pub(crate) fn attempt_ended(&mut self) {
        if let Some(attempt) = self.spans().and_then(|spans| spans.attempt.take()) {
            attempt.end(Status::Unset);
        }
    }

    /// The answer of the lease's replica begins, with this status.
    pub(crate) fn answered(&mut self, status: StatusCode, lease: &Lease) {
        self.set("strata.replica", || Value::Text(lease.decision.replica.clone()));
        let predicted = lease.decision.cached.tokens;
        self.set("strata.predicted_cached_tokens", || Value::Int(predicted.round() as i64));
        if let Some(attempt) = self.spans().and_then(|spans| spans.attempt.as_mut()) {
            attempt.set("http.response.status_code", Value::Int(status.as_u16().into()));
        }
        self.replied(status);
    }

    /// The client is answered with this status.
    pub(crate) fn replied(&mut self, status: StatusCode) {
        self.set("http.response.status_code", || Value::Int(status.as_u16().into()));
        if let Some(spans) = self.spans() {
            spans.failed |= status.is_server_error();
            // Of what has no stream of its own nothing more is told.
            spans.is_over |= !status.is_success();
        }
    }

    /// The answer has been passed on to its end, and its engine said this of it.
    pub(crate) fn over(&mut self, usage: Option<&Usage>) {
        if let Some(usage) = usage {
            self.set("gen_ai.usage.prompt_tokens", || Value::Int(usage.prompt as i64));
            if let Some(cached) = usage.cached {
                self.set("gen_ai.usage.cached_tokens", || Value::Int(cached as i64));
            }
            self.set("gen_ai.usage.completion_tokens", || Value::Int(usage.completion as i64));
        }
        if let Some(spans) = self.spans() {
            spans.is_over = true;
        }
    }

    /// The answer broke off.
    pub(crate) fn broke(&mut self) {
        if let Some(spans) = self.spans() {
            (spans.failed, spans.is_over) = (true, true);
        }
        self.set("error.type", || Value::Text("broken".to_owned()));
    }
}

impl Spans {
    fn part<const N: usize>(
        &self,
        name: &'static str,
        from: Instant,
        to: Instant,
        status: Status,
        said: [(&'static str, Value); N],
    ) {
        let part = self.whole.as_ref().and_then(|whole| whole.child(name, Kind::Internal));
        if let Some(part) = part {
            let mut part = part.since(from);
            for (name, value) in said {
                part.set(name, value);
            }
            part.end_at(to, status);
        }
    }

    fn ask(&mut self, name: &'static str, lease: &Lease) {
        self.attempt = self.whole.as_ref().and_then(|whole| whole.child(name, Kind::Client));
        if let Some(attempt) = &mut self.attempt {
            attempt.set("strata.replica", Value::Text(lease.replica.name().to_owned()));
            attempt.set("url.full", Value::Text(lease.replica.url().to_owned()));
        }
    }
}

impl Drop for Spans {
    fn drop(&mut self) {
        let status = if self.failed { Status::Error } else { Status::Unset };
        if let Some(attempt) = self.attempt.take() {
            attempt.end(status);
        }
        if let Some(mut whole) = self.whole.take() {
            whole.set("strata.attempts", Value::Int(self.attempts));
            if !self.is_over {
                whole.set("error.type", Value::Text("client_left".to_owned()));
            }
            whole.end(status);
        }
    }
}
