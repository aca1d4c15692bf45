//! Follows what one replica tells of its cache and its load, where it does: `GET /internal/v1/events`
//! ([`strata_wire::engine_events`]); or, where it has none of these and publishes as vLLM does, that
//! ([`crate::vllm`]).

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::StatusCode;
use strata_hop::forward;
use strata_wire::engine_events::EngineEvent;
use strata_wire::sse::Splitter;

use crate::index::Told;
use crate::replica::Replica;
use crate::scheduler::Scheduler;
use crate::scrape::asking;
use crate::vllm::{self, Following};

/// An engine tells its load every two seconds when nothing changes.
const SILENCE: Duration = Duration::from_secs(7);
/// What a replica that broke off had told counts for so long.
const REMEMBERED: Duration = Duration::from_secs(15);
/// Between two tries to follow a replica that broke off, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Before a replica that tells nothing is asked again: it may have been replaced by one that does.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Largest message that is kept until it is whole.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Why a stream ended.
enum Ended {
    /// The replica has none.
    TellsNothing(StatusCode),
    /// It broke off, or could not be had.
    Broke(String),
    /// A message cannot follow what came before.
    OutOfOrder(String),
}

/// Follows a replica until the task is dropped.
pub async fn follow(scheduler: &Scheduler, replica: &Arc<Replica>) {
    let (mut told, mut pause, mut heard) = (Told::default(), AGAIN.0, scheduler.now());
    let mut following = Following::new(&scheduler.registry.blocks);
    loop {
        let began = scheduler.now();
        match listen(scheduler, replica, &mut told, &mut heard).await {
            Ended::TellsNothing(status) => {
                let status = status.as_u16();
                tracing::debug!(replica = replica.name(), status, "replica tells nothing of its cache");
                told = Told::default();
                if let (Some(events), Some(notes)) = (&replica.endpoint().kv_events, replica.notes()) {
                    tokio::select! {
                        () = vllm::follow::follow(scheduler, replica, notes, events, &mut following) => {}
                        () = replica.became_ready() => {}
                    }
                } else {
                    replica.told(None);
                    tokio::select! {
                        () = tokio::time::sleep(ASK_AGAIN) => {}
                        () = replica.became_ready() => {}
                    }
                }
                continue;
            }
            Ended::Broke(why) => {
                tracing::debug!(replica = replica.name(), %why, "a replica's events broke off");
                scheduler.metrics.events_ended("broken");
            }
            Ended::OutOfOrder(why) => {
                tracing::info!(replica = replica.name(), %why, "a replica's events are taken up anew");
                scheduler.metrics.events_ended("out_of_order");
                told.distrust();
            }
        }
        if scheduler.now().saturating_sub(heard) > REMEMBERED {
            told = Told::default();
            replica.told(None);
        }
        // What could be followed for a while is not what cannot be had or read.
        if heard.saturating_sub(began) > AGAIN.1 {
            pause = AGAIN.0;
        }
        let jitter = 0.5 + (scheduler.random() % 1024) as f64 / 1024.0;
        tokio::time::sleep(pause.mul_f64(jitter)).await;
        pause = (pause * 2).min(AGAIN.1);
    }
}

/// Takes what a replica tells, and notes when it was last `heard`.
async fn listen(
    scheduler: &Scheduler,
    replica: &Arc<Replica>,
    told: &mut Told,
    heard: &mut Duration,
) -> Ended {
    let limit = scheduler.options.first_byte_timeout.min(SILENCE);
    let from = told.position().map(|(engine, after)| format!("?engine={engine}&after={after}"));
    let path = format!("/internal/v1/events{}", from.unwrap_or_default());
    let request = match asking(scheduler, replica, &path) {
        Ok(request) => request,
        Err(error) => return Ended::Broke(error.to_string()),
    };
    let response = match scheduler.upstream.send(request, limit).await {
        Ok(response) => response,
        Err(error) => return Ended::Broke(error.to_string()),
    };
    if !response.status().is_success() {
        let passing = response.status() == StatusCode::SERVICE_UNAVAILABLE;
        return if passing {
            Ended::Broke("it answered 503".to_owned())
        } else {
            Ended::TellsNothing(response.status())
        };
    }
    let mut chunks = std::pin::pin!(forward::chunks(response.into_body(), SILENCE));
    let mut splitter = Splitter::default();
    loop {
        match chunks.next().await {
            Some(Ok(chunk)) => splitter.push(&chunk),
            Some(Err(error)) => return Ended::Broke(error.to_string()),
            None => return Ended::Broke("it ended".to_owned()),
        }
        while let Some(event) = splitter.next_event() {
            let event: EngineEvent = match serde_json::from_str(&event.data) {
                Ok(event) => event,
                Err(error) => return Ended::OutOfOrder(format!("a message cannot be read: {error}")),
            };
            match told.take(event, &scheduler.registry.blocks) {
                Ok(None) => replica.told(told.lane().cloned()),
                Ok(Some(load)) => {
                    replica.told_load(load, scheduler.now());
                    scheduler.registry.changed.notify_waiters();
                }
                Err(error) => return Ended::OutOfOrder(error.to_string()),
            }
            *heard = scheduler.now();
        }
        sweep(scheduler);
        if splitter.pending() > MAX_MESSAGE {
            return Ended::OutOfOrder(format!("a message is longer than {MAX_MESSAGE} bytes"));
        }
    }
}

/// Frees what replicas no longer hold, when there is much of it.
pub(crate) fn sweep(scheduler: &Scheduler) {
    if scheduler.registry.blocks.is_littered() {
        let scheduler = scheduler.clone();
        tokio::task::spawn_blocking(move || scheduler.registry.blocks.sweep());
    }
}
