//! Leads while the Lease is ours, and waits for it while it is not.

use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use super::gate::Gate;
use super::lease::{self, RENEW_DEADLINE, RENEW_EVERY, Sighting};

/// The name of the Lease, and of the operator's account.
pub(super) const NAME: &str = "strata-operator";
/// One request about the Lease must not eat up the time in which another could still succeed.
const PATIENCE: Duration = Duration::from_secs(4);
/// Between two tries to take a Lease that looks free, or to renew after a failure.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// What the kubelet tells every container.
const IN_A_POD: &str = "KUBERNETES_SERVICE_HOST";

/// The operator's own account.
enum Account {
    Is(OwnerReference),
    /// There is none to speak of: this process runs outside the cluster, or under another account.
    Unknown,
    Gone,
}

/// One who wants to lead.
pub(super) struct Candidate<'a> {
    /// Not behind the gate, which this opens.
    pub(super) client: Client,
    pub(super) namespace: String,
    /// Unlike any other's.
    pub(super) identity: String,
    pub(super) gate: &'a Gate,
}

impl Candidate<'_> {
    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Waits, leads, waits again, until `shutdown`. Then it gives the Lease back, once `idle` says that
    /// nothing is being written any more.
    pub(super) async fn run(&self, shutdown: &CancellationToken, idle: impl AsyncFn()) {
        while !shutdown.is_cancelled() {
            let Some(lease) = self.wait(shutdown).await else { return };
            tracing::info!(identity = self.identity, "leads");
            if let Some(lease) = self.lead(lease, shutdown).await {
                // What has begun may be finished, while the Lease is ours.
                idle().await;
                self.gate.shut();
                self.release(&lease).await;
                return;
            }
            self.gate.shut();
            tracing::error!(identity = self.identity, "leads no more");
            idle().await;
        }
    }

    /// Waits until the Lease is ours. `None` on shutdown.
    async fn wait(&self, shutdown: &CancellationToken) -> Option<Lease> {
        let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        let mut events = watch(self.api(), config).default_backoff().boxed();
        let mut seen: Option<Sighting> = None;
        let mut try_at = Instant::now();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return None,
                Some(event) = events.next() => match event {
                    Ok(Event::Apply(lease) | Event::InitApply(lease)) => {
                        sight(&mut seen, lease);
                        try_at = seen.as_ref().map_or_else(Instant::now, |s| s.free_at(&self.identity));
                    }
                    Ok(Event::Delete(_)) => {
                        seen = None;
                        try_at = Instant::now();
                    }
                    Ok(Event::Init | Event::InitDone) => {}
                    Err(error) => tracing::warn!(%error, "cannot watch the Lease"),
                },
                () = tokio::time::sleep_until(try_at.into()) => {
                    match self.try_take(&mut seen).await {
                        Ok(Some(lease)) => return Some(lease),
                        // Somebody was faster, or it is not free after all.
                        Ok(None) => {}
                        Err(error) => tracing::warn!(%error, "cannot take the Lease"),
                    }
                    let free_at = seen.as_ref().map_or_else(Instant::now, |s| s.free_at(&self.identity));
                    try_at = free_at.max(Instant::now() + TRY_AGAIN);
                }
            }
        }
    }

    /// Takes the Lease if it is free by the newest state of it.
    async fn try_take(&self, seen: &mut Option<Sighting>) -> Result<Option<Lease>, kube::Error> {
        let api = self.api();
        let Some(lease) = patiently(api.get_opt(NAME)).await? else {
            *seen = None;
            let owner = match self.account().await {
                Account::Is(owner) => Some(owner),
                Account::Unknown => None,
                // Uninstalled: a Lease without it would stay for ever.
                Account::Gone => return Ok(None),
            };
            let first = lease::first(&self.namespace, NAME, owner, &self.identity, Timestamp::now());
            return self.put(api.create(&PostParams::default(), &first)).await;
        };
        let sighting = sight(seen, lease);
        if sighting.free_at(&self.identity) > Instant::now() {
            return Ok(None);
        }
        let mine = lease::held(sighting.lease(), &self.identity, Timestamp::now());
        self.put(api.replace(NAME, &PostParams::default(), &mine)).await
    }

    /// What the Lease goes away with: the account that the chart makes for the operator. Without a chart
    /// there is none, and the Lease stays.
    async fn account(&self) -> Account {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = match patiently(accounts.get_metadata_opt(NAME)).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "the Lease gets no owner");
                return Account::Unknown;
            }
        };
        match found.and_then(|account| account.metadata.uid) {
            Some(uid) => Account::Is(OwnerReference {
                api_version: "v1".to_owned(),
                kind: "ServiceAccount".to_owned(),
                name: NAME.to_owned(),
                uid,
                ..OwnerReference::default()
            }),
            None if std::env::var_os(IN_A_POD).is_some() => Account::Gone,
            None => Account::Unknown,
        }
    }

    /// Writes the Lease. Success opens the gate for a time counted from before the request, since the
    /// others count from after it. `None` when somebody else wrote it first.
    async fn put(
        &self,
        request: impl Future<Output = Result<Lease, kube::Error>>,
    ) -> Result<Option<Lease>, kube::Error> {
        let begun = Instant::now();
        match patiently(request).await {
            Ok(lease) => {
                self.gate.open(Some(begun + RENEW_DEADLINE));
                Ok(Some(lease))
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Renews until that fails for too long (`None`) or `shutdown` (the Lease).
    async fn lead(&self, mut lease: Lease, shutdown: &CancellationToken) -> Option<Lease> {
        let api = self.api();
        let mut until = Instant::now() + RENEW_DEADLINE;
        let mut wait = RENEW_EVERY;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Some(lease),
                () = tokio::time::sleep_until(until.into()) => return None,
                () = tokio::time::sleep(wait) => {}
            }
            let begun = Instant::now();
            let renewed = lease::held(&lease, &self.identity, Timestamp::now());
            let params = PostParams::default();
            let request = self.put(api.replace(NAME, &params, &renewed));
            let result = tokio::select! {
                result = request => result,
                () = tokio::time::sleep_until(until.into()) => return None,
            };
            wait = TRY_AGAIN;
            match result {
                Ok(Some(now)) => {
                    lease = now;
                    until = begun + RENEW_DEADLINE;
                    wait = RENEW_EVERY;
                }
                // Written by somebody else, or by a request of ours whose answer was lost.
                Ok(None) => match patiently(api.get_opt(NAME)).await {
                    Ok(Some(now)) if lease::holder(&now) == Some(&self.identity) => lease = now,
                    Ok(other) => {
                        let holder = other.as_ref().and_then(lease::holder).unwrap_or("nobody");
                        tracing::warn!(holder, "the Lease is another's");
                        return None;
                    }
                    Err(error) => tracing::warn!(%error, "cannot read the Lease"),
                },
                Err(error) => tracing::warn!(%error, "cannot renew the Lease"),
            }
        }
    }

    async fn release(&self, lease: &Lease) {
        let free = lease::released(lease, Timestamp::now());
        match patiently(self.api().replace(NAME, &PostParams::default(), &free)).await {
            Ok(_) => tracing::info!("gave the Lease back"),
            Err(error) => tracing::warn!(%error, "could not give the Lease back; it runs out by itself"),
        }
    }
}

fn sight(seen: &mut Option<Sighting>, lease: Lease) -> &Sighting {
    let now = Instant::now();
    match seen {
        Some(known) => known.update(lease, now),
        None => *seen = Some(Sighting::new(lease, now)),
    }
    seen.get_or_insert_with(|| unreachable!("set above"))
}

/// A request of bounded length.
async fn patiently<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(result) => result,
        Err(_) => Err(kube::Error::Service("no answer within 4 s".into())),
    }
}
