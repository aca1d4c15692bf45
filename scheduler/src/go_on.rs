//! Goes on with an answer that broke off: finds another replica of Strata's own, makes sure that the words so
//! far are the tokens that they were ([`crate::continuation`]), and asks it for the rest.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request};
use serde::Deserialize;
use strata_hop::{Body, forward};
use strata_wire::rope::Rope;
use strata_wire::sse::Splitter;
use strata_wire::toplevel::TopLevel;
use tokio::time::Instant;

use crate::call::Call;
use crate::choose::{Tried, choose};
use crate::class::is_ours;
use crate::continuation::{Join, Plan, Sent};
use crate::proxy::{Begun, attempt, is_events, may_retry, note};
use crate::replica::{Lease, Replica, Verdict};
use crate::scheduler::Scheduler;
use crate::stream::Chunks;
use crate::traces::Trace;

/// Largest list of tokens that is read.
const MAX_TOKENS: usize = 32 * 1024 * 1024;

/// Why an answer is not gone on with, as metrics name it.
pub(crate) type Not = &'static str;

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<u32>,
}

/// Sends the rest of a request of which a client has got these events to another replica than those tried.
/// Returns where it goes on, and what comes from there, as if it came from the first.
pub(crate) async fn go_on(
    scheduler: &Scheduler,
    call: &Call,
    tried: &Tried,
    events: &[Bytes],
    trace: &mut Trace,
) -> Result<(Lease, Chunks), Not> {
    let plan = Plan::of(&call.path, &call.body.joined(0..call.body.len())).ok_or("not_exact")?;
    let sent = Sent::read(events).ok_or("not_exact")?;
    let pool = scheduler.registry.pool(&call.model).ok_or("no_replica")?;
    if tried.times() >= pool.replicas.load().len().max(2) || !may_retry(scheduler) {
        return Err("no_retry");
    }
    let began = Instant::now();
    let chosen = choose(scheduler, &pool, &call.wanted, tried).await;
    let mut lease = chosen.map_err(|_| {
        trace.not_placed(began.into_std());
        "no_replica"
    })?;
    trace.placed(&lease, began.into_std());
    note(scheduler, (&call.id, &call.model), &mut lease, began);
    if !is_ours(&lease.replica) {
        return Err("not_exact");
    }
    let (prompt, with) = tokio::join!(
        tokens(scheduler, call, &lease.replica, plan.to_tokenize(None)),
        tokens(scheduler, call, &lease.replica, plan.to_tokenize(Some(&sent.text))),
    );
    let (prompt, with) = prompt.zip(with).ok_or("failed")?;
    let more = sent.tokens(&prompt, &with).ok_or("not_exact")?;
    let body = Bytes::from(plan.body(&sent.text, more).ok_or("not_exact")?);
    let top = TopLevel::scan(&body).map_err(|_| "failed")?;
    let body = Rope::from(body);
    let body = call.wanted.class.told(&call.path, &body, &top, &lease.replica);
    trace.attempt(&lease);
    let Ok(Begun { head, first, rest }) = attempt(scheduler, call, &body, &lease, trace).await else {
        trace.attempt_failed("continuation");
        return Err("failed");
    };
    if !head.status.is_success() || !is_events(&head.headers) {
        trace.attempt_failed("continuation");
        return Err("failed");
    }
    lease.begun(Some(scheduler.now()));
    lease.says(Verdict::Worked, scheduler.now());
    tracing::info!(request = ?call.id, replica = lease.replica.name(), tokens = more, "an answer that broke off goes on at another replica");
    Ok((lease, joined(first, rest, Join::new(sent, prompt.len() as u64, more))))
}

/// The tokens of a prompt, as this replica reads it.
async fn tokens(scheduler: &Scheduler, call: &Call, replica: &Replica, body: String) -> Option<Vec<u32>> {
    let left = call.wanted.deadline.saturating_duration_since(Instant::now());
    let limit: Duration = scheduler.options.first_byte_timeout.min(left);
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(format!("{}/tokenize", replica.url()))
        .body(Body::from(body))
        .ok()?;
    *request.headers_mut() = call.headers(scheduler, left);
    let response = scheduler.upstream.send(request, limit).await.ok()?;
    if !response.status().is_success() {
        return None;
    }
    let answer = forward::collect(response.into_body(), limit, MAX_TOKENS).await.ok()?;
    serde_json::from_slice::<Tokens>(&answer).ok().map(|said| said.tokens)
}

/// The events of the second part, as they follow the first.
fn joined(first: Option<Bytes>, rest: Chunks, join: Join) -> Chunks {
    let chunks = stream::iter(first.map(Ok)).chain(rest);
    let state = (Box::pin(chunks), Splitter::default(), join);
    Box::pin(stream::unfold(state, |(mut chunks, mut splitter, join)| async move {
        loop {
            while let Some(event) = splitter.next_event() {
                if let Some(event) = join.event(&event.data) {
                    return Some((Ok(event), (chunks, splitter, join)));
                }
            }
            match chunks.next().await? {
                Ok(chunk) => splitter.push(&chunk),
                Err(error) => return Some((Err(error), (chunks, splitter, join))),
            }
        }
    }))
}
