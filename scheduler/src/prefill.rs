//! The first leg of a request with a long prompt, of a model that has replicas to compute it: one of them
//! gets a copy that ends with the prompt, and says where it keeps what it has made of it; the replica that
//! answers gets the request with these words, and fetches it from there.
//!
//! The words are vLLM's (`kv_transfer_params`), and nobody but the two replicas reads them. Whatever goes
//! wrong, the replica that answers computes the prompt itself: a prefill replica can make a request
//! slower, and not fail it.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value};
use strata_hop::{SendError, forward};
use strata_wire::defaults::{BLOCK_BYTES, PREFILL_BYTES};
use strata_wire::extract::Extracted;
use strata_wire::hops::Hop;
use strata_wire::patch::{self, Patch};
use strata_wire::prefix::Prefix;
use strata_wire::rope::Rope;
use strata_wire::toplevel::{ScanError, TopLevel};
use tokio::time::Instant;

use crate::call::Call;
use crate::choose::{NoRoom, place_prompt};
use crate::pick::Prompt;
use crate::proxy::is_failure;
use crate::registry::Pool;
use crate::replica::{Lease, Replica, Verdict};
use crate::scheduler::Scheduler;
use crate::traces::Trace;

/// Routes whose requests have a prompt and an answer.
const GENERATES: &[&str] = &["/v1/chat/completions", "/v1/completions"];
/// Members that ask for several answers, or for something about the prompt itself: what was computed of a
/// prompt is fetched once, and holds no probabilities.
const UNDIVIDED: &[&str] = &["best_of", "use_beam_search", "prompt_logprobs", "echo"];
/// What the prefill replica is asked for: to keep what it makes of the prompt, and to say where it is.
const ASK: &str = r#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;
/// Largest answer of a prefill replica that is read. It lists the blocks: seven bytes for 16 tokens.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Whether one replica may compute the prompt of this request and another answer.
pub(crate) fn is_divisible(path: &str, body: &Extracted) -> bool {
    let says = |key: &str| body.scalar(key).is_some_and(|raw| !matches!(&*raw, b"null" | b"false"));
    let answers = body.scalar("n").is_none_or(|n| matches!(&*n, b"null" | b"1"));
    GENERATES.contains(&path) && answers && !UNDIVIDED.iter().any(|key| says(key))
}

/// Whether the replica that answers lacks so much of the prompt that it is worth the way.
fn is_worth_it(prefix: &Prefix, cached_blocks: usize) -> bool {
    prefix.bytes.saturating_sub(cached_blocks * BLOCK_BYTES) >= PREFILL_BYTES
}

/// The copy of a body that ends with the prompt.
fn for_prefill(body: &Rope, top: &TopLevel) -> Result<Rope, ScanError> {
    let mut patches = vec![
        Patch::Set("max_tokens", "1".to_owned()),
        Patch::Remove("min_tokens"),
        Patch::Set("stream", "false".to_owned()),
        Patch::Remove("stream_options"),
        Patch::Set("kv_transfer_params", ASK.to_owned()),
    ];
    if top.get("max_completion_tokens").is_some() {
        patches.push(Patch::Set("max_completion_tokens", "1".to_owned()));
    }
    debug_assert!(patches.iter().all(|p| p.is_allowed(&Hop::SchedulerToPrefill.patches())));
    patch::splice(body, top, &patches).map(|(body, _)| body)
}

/// The body with the words of the prefill replica.
fn for_decode(body: &Rope, top: &TopLevel, words: String) -> Result<(Rope, TopLevel), ScanError> {
    let patch = Patch::Set("kv_transfer_params", words);
    debug_assert!(patch.is_allowed(&Hop::SchedulerToEngine.patches()));
    patch::splice(body, top, &[patch])
}

/// What a prefill replica says in its answer, as JSON. `None` when it has kept nothing: vLLM says so when
/// the first token was the last, and ends when it is sent to fetch and not told what.
fn words(answer: &[u8]) -> Option<String> {
    let top = TopLevel::scan(answer).ok()?;
    let raw = top.raw(answer, "kv_transfer_params")?;
    let said: Map<String, Value> = serde_json::from_slice(raw).ok()?;
    let keeps_some = said.get("remote_block_ids").is_none_or(holds_any);
    (!said.is_empty() && keeps_some).then(|| String::from_utf8_lossy(raw).into_owned())
}

fn holds_any(ids: &Value) -> bool {
    match ids {
        Value::Null => false,
        Value::Array(list) => list.iter().any(holds_any),
        _ => true,
    }
}

/// The lease of the replica that is to compute a prompt before the one of `lease` answers, where a proxy only
/// names it and a sidecar beside that one goes the first leg. `None` where there is no such leg.
pub(crate) fn named(scheduler: &Scheduler, call: &Call, pool: &Pool, lease: &mut Lease) -> Option<Lease> {
    let listed = !pool.prefill.load().is_empty();
    if !call.divisible || !listed || !is_worth_it(&call.wanted.prefix, lease.decision.cached_blocks) {
        return None;
    }
    let placed = place_prompt(scheduler, pool, &call.wanted, &lease.replica);
    let (outcome, prompt) = match &placed {
        Ok(by) => ("named", Prompt::By(by.replica.name().to_owned())),
        Err(no_room) => (no_room.reason(), Prompt::Here(no_room.reason())),
    };
    scheduler.metrics.prefilled(&pool.name, outcome);
    lease.decision.prompt = Some(prompt);
    let placed = placed.ok();
    if placed.is_some() {
        lease.spare();
    }
    placed
}

/// What is known of a request's first leg.
pub(crate) struct Prefill<'c> {
    call: &'c Call,
    /// What came of it, once it was tried or given up.
    came: Option<Prompt>,
    /// Whether the request may still have one.
    open: bool,
}

impl<'c> Prefill<'c> {
    pub(crate) fn new(call: &'c Call) -> Self {
        Self { call, came: None, open: call.divisible }
    }

    /// Goes the first leg, when there is one to go, before the request is sent to the replica of `lease`.
    /// Returns the body to send there and its top level, where these are not the call's own.
    pub(crate) async fn before(
        &mut self,
        scheduler: &Scheduler,
        pool: &Pool,
        lease: &mut Lease,
        trace: &mut Trace,
    ) -> Option<(Rope, TopLevel)> {
        let mut body = None;
        let listed = !pool.prefill.load().is_empty();
        if self.open && listed && is_worth_it(&self.call.wanted.prefix, lease.decision.cached_blocks) {
            lease.spare();
            let came = compute(scheduler, self.call, pool, &lease.replica, trace).await;
            let came = came.and_then(|(by, words)| {
                let patched = for_decode(&self.call.body, &self.call.top, words).map_err(|_| "error")?;
                Ok((by, patched))
            });
            scheduler.metrics.prefilled(&pool.name, came.as_ref().map_or_else(|why| *why, |_| "computed"));
            match came {
                Ok((by, patched)) => {
                    body = Some(patched);
                    self.came = Some(Prompt::By(by));
                }
                Err(why) => {
                    lease.burden();
                    self.give_up(why);
                }
            }
        }
        lease.decision.prompt.clone_from(&self.came);
        body
    }

    /// The replica that answers computes the prompt from now on. What was kept of it elsewhere may have
    /// been fetched, and goes by itself when nobody does.
    pub(crate) fn give_up(&mut self, why: &'static str) {
        if self.open && (self.came.is_some() || why != "retry") {
            self.came = Some(Prompt::Here(why));
        }
        self.open = false;
    }

    /// Whether an answer of this status may be owed to a prompt that was computed elsewhere: vLLM fails a
    /// request whose blocks it cannot fetch.
    pub(crate) fn is_cause(&self, status: StatusCode) -> bool {
        self.open && status == StatusCode::INTERNAL_SERVER_ERROR && matches!(self.came, Some(Prompt::By(_)))
    }
}

/// Lets a prefill replica compute the prompt for the one that answers. Returns its name and what it says,
/// or why not.
async fn compute(
    scheduler: &Scheduler,
    call: &Call,
    pool: &Pool,
    answers: &Replica,
    trace: &mut Trace,
) -> Result<(String, String), &'static str> {
    let mut lease = place_prompt(scheduler, pool, &call.wanted, answers).map_err(NoRoom::reason)?;
    let left = call.wanted.deadline.saturating_duration_since(Instant::now());
    // Half of what is left, so that the other leg has a chance when this one takes too long.
    let limit = scheduler.options.first_byte_timeout.min(left / 2);
    trace.first_leg(&lease);
    let asked = tokio::time::timeout(limit, ask(scheduler, call, &lease, limit, trace)).await;
    let failure = match asked.unwrap_or(Err(Failure::told("timeout", "it took too long".to_owned()))) {
        Ok(words) => {
            trace.attempt_ended();
            lease.begun(Some(scheduler.now()));
            lease.says(Verdict::Worked, scheduler.now());
            return Ok((lease.replica.name().to_owned(), words));
        }
        Err(failure) => failure,
    };
    trace.attempt_failed(failure.reason);
    let name = lease.replica.name();
    if failure.is_its_own && lease.says(Verdict::Failed(scheduler.chance()), scheduler.now()) {
        scheduler.metrics.breaker_opened();
        tracing::warn!(replica = name, why = %failure.detail, "replica is passed over: its answers fail");
    }
    if failure.is_down && lease.replica.failed(&failure.detail, lease.epoch) {
        tracing::warn!(replica = name, why = %failure.detail, "replica is not ready");
    }
    tracing::info!(request = ?call.id, prefill = name, reason = failure.reason, why = %failure.detail, "a prompt is computed where it is answered");
    Err(failure.reason)
}

/// Why a prefill replica computed nothing.
struct Failure {
    reason: &'static str,
    detail: String,
    /// Whether it says that the replica cannot serve.
    is_down: bool,
    /// Whether it was the replica's failure, and neither the request's nor that of its time.
    is_its_own: bool,
}

impl Failure {
    fn told(reason: &'static str, detail: String) -> Self {
        Self { reason, detail, is_down: false, is_its_own: false }
    }

    fn not_sent(error: &SendError) -> Self {
        let (reason, is_down) = match error {
            SendError::Timeout { .. } => ("timeout", false),
            SendError::Connect { .. } => ("connect", true),
            SendError::Untrusted { .. } => ("untrusted", true),
            SendError::Broken { .. } => ("broken", true),
        };
        Self { reason, detail: error.to_string(), is_down, is_its_own: is_down }
    }
}

async fn ask(
    scheduler: &Scheduler,
    call: &Call,
    lease: &Lease,
    limit: Duration,
    trace: &Trace,
) -> Result<String, Failure> {
    let body =
        for_prefill(&call.body, &call.top).map_err(|error| Failure::told("error", error.to_string()))?;
    let mut request = call
        .request(scheduler, &lease.replica, &body, limit)
        .map_err(|fault| Failure::told("error", fault.body.error.message))?;
    trace.tell(request.headers_mut());
    let response =
        scheduler.upstream.send(request, limit).await.map_err(|error| Failure::not_sent(&error))?;
    let (head, body) = response.into_parts();
    if head.status == StatusCode::SERVICE_UNAVAILABLE {
        let detail = "it answered a prompt with 503".to_owned();
        return Err(Failure { reason: "refused", detail, is_down: true, is_its_own: false });
    }
    if !head.status.is_success() {
        let told = Failure::told("error", format!("it answered {}", head.status.as_u16()));
        return Err(Failure { is_its_own: is_failure(head.status), ..told });
    }
    let answer = forward::collect(body, limit, MAX_ANSWER)
        .await
        .map_err(|error| Failure::told("broken", error.to_string()))?;
    words(&answer).ok_or_else(|| Failure::told("no_params", "it did not say what it has kept".to_owned()))
}

#[cfg(test)]
mod tests;
