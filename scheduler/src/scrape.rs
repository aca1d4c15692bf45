//! Watches one replica: its metrics, its health, the models that it serves, and what it tells of its cache.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use strata_hop::{Body, SendError, forward};
use strata_wire::models::ModelList;
use tokio_util::sync::CancellationToken;

use crate::adapters::Shown;
use crate::follow::follow;
use crate::replica::{Replica, ScrapeFailure};
use crate::scheduler::Scheduler;
use crate::telemetry::Reading;

/// Largest text of metrics, or list of models, that is read.
const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// A ready replica's health and models are asked for once in so many scrapes.
const SELDOM: u64 = 10;
/// Shortest time between two scrapes, however often one is asked for.
const PACE: Duration = Duration::from_millis(10);

/// Starts watching a replica, until it is no longer listed or the scheduler stops.
pub fn watch(scheduler: Scheduler, replica: Arc<Replica>) {
    tokio::spawn(async move {
        let (gone, stop): (CancellationToken, CancellationToken) =
            (replica.stop.clone(), scheduler.stop.clone());
        tokio::select! {
            () = gone.cancelled() => {}
            () = stop.cancelled() => {}
            () = look_again_and_again(&scheduler, &replica) => {}
            () = follow(&scheduler, &replica) => {}
        }
    });
}

async fn look_again_and_again(scheduler: &Scheduler, replica: &Arc<Replica>) {
    let mut round = 0u64;
    loop {
        let seldom = round.is_multiple_of(SELDOM);
        look(scheduler, replica, seldom).await;
        round += 1;
        tokio::time::sleep(PACE).await;
        tokio::select! {
            () = tokio::time::sleep(scheduler.options.scrape_interval.saturating_sub(PACE)) => {}
            () = replica.wake.notified() => {}
        }
    }
}

async fn look(scheduler: &Scheduler, replica: &Arc<Replica>, seldom: bool) {
    let own = replica.own();
    let was_ready = replica.is_ready();
    let result = async {
        let text = numbers(scheduler, replica).await?;
        if !was_ready || seldom {
            health(scheduler, replica).await?;
        }
        if !was_ready || seldom || replica.models().is_empty() {
            models(scheduler, replica).await?;
        }
        Ok::<_, ScrapeFailure>(text)
    };
    match result.await {
        Ok(text) => {
            let shown = Shown::parse(&text);
            if replica.scraped(Reading::parse(&text), own, scheduler.now()) {
                tracing::info!(replica = replica.name(), "replica is ready");
            }
            replica.shows(shown);
        }
        Err(failure) => {
            let (ScrapeFailure::Certain(why) | ScrapeFailure::Passing(why)) = &failure;
            let why = why.clone();
            if replica.scrape_failed(failure) {
                tracing::warn!(replica = replica.name(), %why, "replica is not ready");
            }
        }
    }
    scheduler.registry.changed.notify_waiters();
}

/// The same, empty too of one that is well and only slow to show them: then what was sent there counts. Both
/// are asked at once after a look that failed, so that one that is frozen is not found out later.
async fn numbers(scheduler: &Scheduler, replica: &Replica) -> Result<String, ScrapeFailure> {
    let well = || async { health(scheduler, replica).await == Ok(true) };
    let (text, is_well) = if replica.is_silent() {
        tokio::join!(metrics(scheduler, replica), well())
    } else {
        let text = metrics(scheduler, replica).await;
        let is_well = matches!(text, Err(ScrapeFailure::Passing(_))) && well().await;
        (text, is_well)
    };
    match text {
        Err(ScrapeFailure::Passing(why)) if is_well => {
            tracing::debug!(replica = replica.name(), %why, "replica shows no metrics");
            Ok(String::new())
        }
        text => text,
    }
}

/// The text of its metrics; empty when it has none, which is no failure.
async fn metrics(scheduler: &Scheduler, replica: &Replica) -> Result<String, ScrapeFailure> {
    let (status, body) = get(scheduler, replica, "/metrics").await?;
    match status.as_u16() {
        200 => Ok(String::from_utf8_lossy(&body).into_owned()),
        404 | 405 | 501 => Ok(String::new()),
        401 | 403 => Err(refuses_token(replica, "/metrics", status)),
        _ => Err(ScrapeFailure::Passing(format!("GET /metrics answered {}", status.as_u16()))),
    }
}

/// Whether it says that it is well; `false` of one that does not say.
async fn health(scheduler: &Scheduler, replica: &Replica) -> Result<bool, ScrapeFailure> {
    let (status, _) = get(scheduler, replica, "/health").await?;
    // An engine without a health route is as healthy as its metrics.
    if status.is_success() || [404, 405, 501].contains(&status.as_u16()) {
        return Ok(status.is_success());
    }
    Err(ScrapeFailure::Certain(format!("GET /health answered {}", status.as_u16())))
}

async fn models(scheduler: &Scheduler, replica: &Arc<Replica>) -> Result<(), ScrapeFailure> {
    let (status, body) = get(scheduler, replica, "/v1/models").await?;
    let required = scheduler.learns();
    if [401, 403].contains(&status.as_u16()) {
        return Err(refuses_token(replica, "/v1/models", status));
    }
    match serde_json::from_slice::<ModelList>(&body) {
        Ok(list) if status.is_success() => scheduler.learnt(replica, list.data),
        // Listed by somebody who knows, it need not tell which models it serves.
        _ if !required => {}
        _ => {
            let what = if status.is_success() { "no list of models" } else { status.as_str() };
            return Err(ScrapeFailure::Passing(format!("GET /v1/models answered {what}")));
        }
    }
    Ok(())
}

fn refuses_token(replica: &Replica, path: &str, status: StatusCode) -> ScrapeFailure {
    ScrapeFailure::Certain(format!(
        "GET {path} answered {}: {} takes this scheduler for somebody else; see its log, and {} or {} of both",
        status.as_u16(),
        replica.name(),
        strata_hop::token::ENV,
        strata_hop::tls::DIR_ENV
    ))
}

/// A request of the scheduler's own to a replica.
pub(crate) fn asking(scheduler: &Scheduler, replica: &Replica, path: &str) -> http::Result<Request<Body>> {
    let mut request = Request::get(format!("{}{path}", replica.url())).body(Body::empty())?;
    if let Some(token) = &scheduler.options.hop_token {
        token.attach(request.headers_mut());
    }
    Ok(request)
}

async fn get(
    scheduler: &Scheduler,
    replica: &Replica,
    path: &str,
) -> Result<(StatusCode, bytes::Bytes), ScrapeFailure> {
    let limit = scheduler.options.scrape_timeout;
    let passing = |error: String| ScrapeFailure::Passing(error);
    let request =
        asking(scheduler, replica, path).map_err(|error| ScrapeFailure::Certain(error.to_string()))?;
    let response: Response<_> = match scheduler.upstream.send(request, limit).await {
        Ok(response) => response,
        Err(error @ (SendError::Connect { .. } | SendError::Untrusted { .. })) => {
            return Err(ScrapeFailure::Certain(error.to_string()));
        }
        Err(SendError::Timeout { .. }) => {
            return Err(passing(format!("GET {path} took longer than {} ms", limit.as_millis())));
        }
        Err(error @ SendError::Broken { .. }) => return Err(passing(error.to_string())),
    };
    let status = response.status();
    let body = forward::collect(response.into_body(), limit, MAX_ANSWER);
    match tokio::time::timeout(limit, body).await {
        Ok(Ok(body)) => Ok((status, body)),
        Ok(Err(error)) => Err(passing(format!("GET {path}: {error}"))),
        Err(_) => Err(passing(format!("GET {path} took longer than {} ms", limit.as_millis()))),
    }
}
