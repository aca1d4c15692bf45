//! `GET /internal/v1/events`: what is cached and how busy the engine is, as it changes.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, stream};
use serde::Deserialize;
use strata_hop::Fault;
use strata_wire::engine_events::EngineEvent;
use tokio::time::Instant;

use super::answer;
use crate::events::Reader;
use crate::runtime::Engine;

/// Two messages about the load are at least this far apart, so that a burst of requests is few of them;
/// the second is never later than this.
const LOAD_PACE: Duration = Duration::from_millis(20);
/// The load is told this often when it does not change, so that silence means a broken connection.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// From where on to follow.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    engine: Option<String>,
    after: Option<u64>,
}

/// Follows the engine's events.
pub(super) async fn follow(
    State(engine): State<Arc<Engine>>,
    from: Result<Query<From>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Fault> {
    let Query(from) = from.map_err(|error| {
        Fault::invalid(format!("the query takes `engine`, a text, and `after`, a whole number: {error}"))
    })?;
    let from = match (&from.engine, from.after) {
        (Some(engine), Some(after)) => Some((engine.as_str(), after)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err(Fault::invalid("`engine` and `after` go together: send both, or none of them"));
        }
    };
    Ok(answer::stream(events(Reader::new(engine.events().clone(), from))))
}

/// The reader's messages, each as one SSE event, until the engine takes no more requests.
fn events(reader: Reader) -> impl Stream<Item = Bytes> + Send + 'static {
    struct Follower {
        reader: Reader,
        ready: std::vec::IntoIter<EngineEvent>,
        load_sent: Option<Instant>,
    }
    let follower = Follower { reader, ready: Vec::new().into_iter(), load_sent: None };
    stream::unfold(follower, |mut f| async move {
        loop {
            if let Some(event) = f.ready.next() {
                return Some((answer::event(&event), f));
            }
            let (now, due) = (Instant::now(), |sent: Option<Instant>, pace| sent.map(|sent| sent + pace));
            if due(f.load_sent, LOAD_PACE).is_none_or(|due| due <= now)
                && let Some(load) = f.reader.changed_load()
            {
                f.load_sent = Some(now);
                return Some((answer::event(&EngineEvent::Load(load)), f));
            }
            f.ready = f.reader.read().into_iter();
            if f.ready.len() > 0 {
                continue;
            }
            if f.reader.is_closed() {
                return None;
            }
            let paced = due(f.load_sent, LOAD_PACE).unwrap_or(now);
            let heartbeat = due(f.load_sent, HEARTBEAT).unwrap_or(now);
            let beat = tokio::select! {
                () = f.reader.news(paced) => false,
                () = tokio::time::sleep_until(heartbeat) => true,
            };
            if beat {
                f.load_sent = Some(Instant::now());
                return Some((answer::event(&EngineEvent::Load(f.reader.load())), f));
            }
        }
    })
}
