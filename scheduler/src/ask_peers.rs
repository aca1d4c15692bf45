//! Asks other schedulers whether they are there, where they are named on the command line.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use http::Request;
use serde::Deserialize;
use strata_hop::{Body, Component, Upstream, forward};

use crate::scheduler::Scheduler;

/// Between two times that they are asked, and the longest that an answer may take.
const EVERY: Duration = Duration::from_secs(1);
/// One that did not answer so often in a row is not there.
const MISSED: u32 = 3;
/// Largest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// What `GET /ready` says, whatever its status: one without a ready replica is there, too.
#[derive(Deserialize)]
struct Said {
    stopping: bool,
}

/// Asks them until the scheduler stops.
pub(crate) fn follow(scheduler: &Scheduler, urls: Vec<String>) {
    let scheduler = scheduler.clone();
    let upstream = Upstream::to(scheduler.options.mtls.as_ref(), &[Component::Scheduler]);
    tokio::spawn(async move {
        let stop = scheduler.stop.clone();
        let mut missed: BTreeMap<String, u32> = BTreeMap::new();
        loop {
            let asked = urls.iter().map(|url| async {
                let said = tokio::time::timeout(EVERY, ask(&scheduler, &upstream, url)).await;
                (url.clone(), said.ok().flatten())
            });
            for (url, said) in join_all(asked).await {
                match said {
                    Some(Said { stopping: false }) => _ = missed.insert(url, 0),
                    Some(Said { stopping: true }) => _ = missed.remove(&url),
                    None => {
                        if let Some(times) = missed.get_mut(&url) {
                            *times += 1;
                        }
                    }
                }
            }
            missed.retain(|_, times| *times < MISSED);
            scheduler.beside(missed.keys().cloned());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    });
}

async fn ask(scheduler: &Scheduler, upstream: &Upstream, url: &str) -> Option<Said> {
    let mut request = Request::get(format!("{url}/ready")).body(Body::empty()).ok()?;
    if let Some(token) = &scheduler.options.hop_token {
        token.attach(request.headers_mut());
    }
    let response = upstream.send(request, EVERY).await.ok()?;
    let body = forward::collect(response.into_body(), EVERY, MAX_ANSWER).await.ok()?;
    serde_json::from_slice(&body).ok()
}
