//! The models that the layer below serves, as it lists them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::Request;
use serde::Deserialize;
use serde_json::value::RawValue;
use strata_hop::{Body, Fault, HopToken, Upstream, forward};
use strata_wire::models::Model;
use strata_wire::{ErrorKind, defaults};
use tokio::sync::Mutex;

use crate::ask::ModelFacts;
use crate::clock::Clock;
use crate::place::Pool;

/// How long a list is good for.
const FRESH_MS: i64 = 1_000;
/// How long a list is good for that does not hold the model asked for: asking for models that do not
/// exist must not become requests to the layer below.
const MISS_MS: i64 = 250;
/// How long to wait for a list.
const PATIENCE: Duration = Duration::from_secs(3);
/// What errors call the layer below.
const LAYER: &str = "the inference scheduler";
/// Longest list.
const MAX_LIST: usize = 8 * 1024 * 1024;

/// One list.
#[derive(Debug)]
pub(crate) struct Listing {
    at: i64,
    /// The models in their order: name, and the entry to the byte.
    pub entries: Vec<(String, Box<RawValue>)>,
    facts: HashMap<String, ModelFacts>,
}

/// Fetches the list and keeps it for a short time.
#[derive(Debug)]
pub(crate) struct Catalog {
    upstream: Upstream,
    pool: Arc<Pool>,
    hop_token: Option<HopToken>,
    clock: Clock,
    latest: ArcSwapOption<Listing>,
    fetching: Mutex<Option<Failure>>,
}

/// A list that could not be had.
#[derive(Debug)]
struct Failure {
    at: i64,
    fault: Fault,
}

#[derive(Deserialize)]
struct RawList {
    data: Vec<Box<RawValue>>,
}

impl Listing {
    fn parse(body: &[u8], at: i64) -> Option<Self> {
        let list: RawList = serde_json::from_slice(body).ok()?;
        let (mut entries, mut facts) = (Vec::new(), HashMap::new());
        for raw in list.data {
            let model: Model = serde_json::from_str(raw.get()).ok()?;
            let fact =
                ModelFacts { template_overhead: model.template_overhead, max_model_len: model.max_model_len };
            facts.insert(model.id.clone(), fact);
            entries.push((model.id, raw));
        }
        Some(Self { at, entries, facts })
    }

    /// Whether the model is served.
    pub(crate) fn serves(&self, model: &str) -> bool {
        self.facts.contains_key(model)
    }

    /// What is known of the model.
    pub(crate) fn facts(&self, model: &str) -> ModelFacts {
        self.facts.get(model).copied().unwrap_or_default()
    }
}

impl Catalog {
    /// A catalog of what listens at the pool.
    pub(crate) fn new(
        upstream: Upstream,
        pool: Arc<Pool>,
        hop_token: Option<HopToken>,
        clock: Clock,
    ) -> Self {
        Self { upstream, pool, hop_token, clock, latest: ArcSwapOption::empty(), fetching: Mutex::default() }
    }

    fn fresh(&self, needs: Option<&str>) -> Option<Arc<Listing>> {
        let age = |listing: &Listing| self.clock.now_ms().saturating_sub(listing.at);
        self.latest.load_full().filter(|l| {
            let served = needs.is_none_or(|model| l.serves(model));
            (0..if served { FRESH_MS } else { MISS_MS }).contains(&age(l))
        })
    }

    /// The list, fetched again when it is old. While the layer below is away, the last one it gave.
    pub(crate) async fn listing(&self) -> Result<Arc<Listing>, Fault> {
        self.listing_for(None).await
    }

    /// The same, for one model: a list that does not know it is fetched again, at most once for all
    /// who wait.
    pub(crate) async fn listing_for(&self, model: Option<&str>) -> Result<Arc<Listing>, Fault> {
        if let Some(listing) = self.fresh(model) {
            return Ok(listing);
        }
        let before = self.latest.load_full().map(|l| Arc::as_ptr(&l) as usize);
        let asked = self.clock.now_ms();
        let mut failed = self.fetching.lock().await;
        if let Some(listing) = self.fresh(None)
            && Some(Arc::as_ptr(&listing) as usize) != before
        {
            return Ok(listing);
        }
        let fault = match &*failed {
            // Tried in vain while this one waited: it waits no longer.
            Some(failure) if failure.at > asked => failure.fault.clone(),
            _ => match self.fetch().await {
                Ok(listing) => {
                    let listing = Arc::new(listing);
                    self.latest.store(Some(listing.clone()));
                    *failed = None;
                    return Ok(listing);
                }
                Err(fault) => {
                    *failed = Some(Failure { at: self.clock.now_ms(), fault: fault.clone() });
                    fault
                }
            },
        };
        self.latest.load_full().ok_or(fault)
    }

    /// What is known of a model that a manifest declares. What was known before is good enough while the
    /// list is fetched again.
    pub(crate) async fn facts(self: &Arc<Self>, model: &str) -> ModelFacts {
        if let Some(listing) = self.latest.load_full().filter(|l| l.serves(model)) {
            if self.fresh(Some(model)).is_none() && self.fetching.try_lock().is_ok() {
                let catalog = self.clone();
                tokio::spawn(async move { catalog.listing().await });
            }
            return listing.facts(model);
        }
        self.listing_for(Some(model)).await.map_or_else(|_| ModelFacts::default(), |l| l.facts(model))
    }

    async fn fetch(&self) -> Result<Listing, Fault> {
        let sent = self.pool.send(&self.upstream, PATIENCE, |base| {
            let mut request = Request::get(format!("{base}/v1/models")).body(Body::empty())?;
            if let Some(token) = &self.hop_token {
                token.attach(request.headers_mut());
            }
            Ok(request)
        });
        let (response, _in_flight) = sent.await.map_err(|e| e.fault(LAYER))?;
        let failed = || Fault::new(ErrorKind::BadGateway, format!("{LAYER} gave no list of models"));
        if !response.status().is_success() {
            return Err(failed());
        }
        let body: Bytes =
            forward::collect(response.into_body(), defaults::IDLE_TIMEOUT.min(PATIENCE), MAX_LIST)
                .await
                .map_err(|_| failed())?;
        Listing::parse(&body, self.clock.now_ms()).ok_or_else(failed)
    }
}
