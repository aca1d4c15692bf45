//! Lists one kind, watches it, and begins again when the API server says that too much was missed.
//!
//! Written out instead of kube's `watcher`, which waits for a list without limit, and which watches
//! again without a pause when a server ends every watch at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::DeserializeGuard;
use tokio::time::{Instant, timeout};

use super::cache::Key;
use super::object::Object;
use super::{Watched, lock};
use crate::follow::pause;
use crate::gateway::Inner;

/// Objects on one page of a list.
const PAGE: u32 = 500;
/// Seconds after which the API server is asked to end a watch, so that one whose connection was lost
/// without a word is noticed.
const WATCH_SECONDS: u32 = 60;
/// Longest silence of a watch: what the API server was asked for, and some more.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);
/// A watch that lasts at least this long was a good one.
const GOOD_WATCH: Duration = Duration::from_secs(1);

/// Follows one kind in one namespace, or in all.
pub(super) struct Reflector<O: Object> {
    inner: Arc<Inner>,
    api: Api<DeserializeGuard<O>>,
    namespace: Option<String>,
    labels: Option<&'static str>,
    answer_within: Duration,
    what: String,
}

/// How a watch ended.
enum Ended {
    /// The server closed it.
    Closed,
    /// What happened since is no longer known; everything is to be listed again.
    Expired,
    /// It failed.
    Failed(String),
}

/// How long to wait after the nth failure in a row: from 200 ms to 5 s, and up to half of that more, so
/// that those who failed together do not come back together.
fn delay(failures: u32, random: u8) -> Duration {
    let base = 200u64.saturating_mul(1 << failures.min(10)).min(5_000);
    Duration::from_millis(base + base * u64::from(random) / 512)
}

fn describe(what: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => match status.code {
            403 => format!("the gateway's account may not read {what}: {}", status.message),
            404 => format!("the API server knows no {what}: install the chart strata-crds"),
            code => format!("the API server answers {code} {}: {}", status.reason, status.message),
        },
        // What could not be read is not shown: it may be a Secret.
        kube::Error::SerdeError(_) => "the API server's answer cannot be read".to_owned(),
        other => {
            let mut cause: &dyn std::error::Error = other;
            while let Some(next) = cause.source() {
                cause = next;
            }
            format!("the API server cannot be reached: {cause}")
        }
    }
}

impl<O: Object> Reflector<O> {
    pub(super) fn new(
        inner: Arc<Inner>,
        api: &super::Api,
        namespace: Option<&str>,
        labels: Option<&'static str>,
    ) -> Self {
        let (client, answer_within) = (&api.client, api.cluster.answer_within);
        let plural = O::plural(&());
        let (api, what) = match namespace {
            None => (Api::all(client.clone()), plural.into_owned()),
            Some(n) => (Api::namespaced(client.clone(), n), format!("{plural} in {n}")),
        };
        Self { inner, api, namespace: namespace.map(str::to_owned), labels, answer_within, what }
    }

    /// What is followed, in words.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    /// Follows until the gateway stops.
    pub(super) async fn run(self) {
        let inner = self.inner.clone();
        tokio::select! {
            () = inner.stop.cancelled() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(self) {
        let Some(watched) = &self.inner.watched else { return };
        let mut failures = 0;
        loop {
            let mut version = match self.list(watched).await {
                Ok(version) => version,
                Err(why) => {
                    self.failed(watched, &why);
                    if !self.rest(&mut failures).await {
                        return;
                    }
                    continue;
                }
            };
            loop {
                let began = Instant::now();
                let ended = self.watch(watched, &mut version).await;
                if began.elapsed() >= GOOD_WATCH {
                    failures = 0;
                }
                match &ended {
                    Ended::Closed if began.elapsed() >= GOOD_WATCH => continue,
                    Ended::Closed | Ended::Expired => {}
                    Ended::Failed(why) => self.failed(watched, why),
                }
                if !self.rest(&mut failures).await {
                    return;
                }
                if matches!(ended, Ended::Expired) {
                    tracing::debug!(what = self.what, "the watch missed too much; listing again");
                    break;
                }
            }
        }
    }

    async fn rest(&self, failures: &mut u32) -> bool {
        let mut random = [0];
        // Without randomness they come back together, which is all that is lost.
        let _ = getrandom::fill(&mut random);
        let time = delay(*failures, random[0]);
        *failures = failures.saturating_add(1);
        pause(&self.inner, time).await
    }

    fn failed(&self, watched: &Watched, why: &str) {
        self.inner.metrics.watch_failures.inc();
        if watched.failed(&self.what, why) {
            tracing::warn!(
                what = self.what,
                why,
                "cannot follow the API server; what was read last stays in force"
            );
        }
    }

    fn went_well(&self, watched: &Watched, listed: bool) {
        if watched.went_well(&self.what, listed) {
            tracing::info!(what = self.what, "follows the API server again");
        }
    }

    /// Lists everything, page by page, and returns the version from which to watch. What was there
    /// before stays until the list is whole.
    async fn list(&self, watched: &Watched) -> Result<String, String> {
        let mut params = ListParams::default().limit(PAGE);
        params.label_selector = self.labels.map(str::to_owned);
        let mut objects = Vec::new();
        let version = loop {
            let page = timeout(self.answer_within, self.api.list(&params))
                .await
                .map_err(|_| format!("no list within {:?}", self.answer_within))?
                .map_err(|error| describe(&self.what, &error))?;
            objects.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break page.metadata.resource_version.unwrap_or_default(),
            }
        };
        let mut changed = Vec::new();
        {
            let mut seen = lock(&watched.seen);
            let cache = O::cache(&mut seen);
            let listed: BTreeSet<Key> =
                objects.iter().map(|object| Key::of(kube::Resource::meta(object))).collect();
            for object in objects {
                let key = Key::of(kube::Resource::meta(&object));
                if cache.apply(object) {
                    changed.push(key);
                }
            }
            changed.extend(cache.retain(self.namespace.as_deref(), &listed));
        }
        self.went_well(watched, true);
        // Told even when nothing changed: the first list of an empty kind is what a start waits for.
        O::changed(&self.inner, watched, &changed);
        Ok(version)
    }

    async fn watch(&self, watched: &Watched, version: &mut String) -> Ended {
        let mut params = WatchParams::default().timeout(WATCH_SECONDS);
        params.label_selector = self.labels.map(str::to_owned);
        let Ok(begun) = timeout(self.answer_within, self.api.watch(&params, version)).await else {
            return Ended::Failed(format!("no watch within {:?}", self.answer_within));
        };
        let gone = |code: u16| code == 410;
        let mut events = match begun {
            Ok(events) => std::pin::pin!(events),
            Err(kube::Error::Api(status)) if gone(status.code) => return Ended::Expired,
            Err(error) => return Ended::Failed(describe(&self.what, &error)),
        };
        self.went_well(watched, false);
        loop {
            let event = match timeout(SILENCE, events.next()).await {
                // A connection that was lost without a word.
                Err(_) | Ok(None) => return Ended::Closed,
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(kube::Error::Api(status)))) if gone(status.code) => return Ended::Expired,
                Ok(Some(Err(error))) => return Ended::Failed(describe(&self.what, &error)),
            };
            let (object, deleted) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark(bookmark) => {
                    *version = bookmark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Error(status) if gone(status.code) => return Ended::Expired,
                WatchEvent::Error(status) => {
                    return Ended::Failed(describe(&self.what, &kube::Error::Api(status)));
                }
            };
            let meta = kube::Resource::meta(&object);
            let key = Key::of(meta);
            if let Some(newer) = meta.resource_version.clone().filter(|v| !v.is_empty()) {
                *version = newer;
            }
            let changed = {
                let mut seen = lock(&watched.seen);
                let cache = O::cache(&mut seen);
                if deleted { cache.delete(&key) } else { cache.apply(object) }
            };
            if changed {
                O::changed(&self.inner, watched, std::slice::from_ref(&key));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        let ms = |failures, random| delay(failures, random).as_millis();
        assert_eq!([0, 1, 2, 4, 5, 99].map(|n| ms(n, 0)), [200, 400, 800, 3200, 5000, 5000]);
        assert!(ms(0, 255) > 290 && ms(0, 255) < 300);
        assert!(ms(u32::MAX, 255) < 7_500);
    }
}
