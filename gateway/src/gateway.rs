//! A running gateway: its state, how it starts and how it stops.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use strata_hop::{Above, Bound, Component, HopToken, Upstream};
use strata_kinds::manifest::Folder;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accounts::Accounts;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::directory::Directory;
use crate::follow::Pending;
use crate::guard::Guard;
use crate::identity::Opaque;
use crate::keys::{KeyRing, KeyStore};
use crate::ledger::{Entry, Ledger, LedgerError, Writer};
use crate::metrics::Metrics;
use crate::options::{GatewayError, GatewayOptions, Source, base};
use crate::place::{Place, Places, Pool};
use crate::watch::Watched;
use crate::{folder, follow, routes, watch};

/// How long calls whose client has gone may take to write what they used, after a stop.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A running gateway. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Gateway(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) directory: ArcSwap<Directory>,
    pub(crate) ring: ArcSwap<KeyRing>,
    /// The version of the run-time keys in the ring.
    ring_version: AtomicI64,
    /// Held while the directory or the ring is replaced.
    pub(crate) replacing: Mutex<()>,
    pub(crate) pending: Pending,
    /// What is watched, where the state comes from a cluster.
    pub(crate) watched: Option<Watched>,
    pub(crate) accounts: Accounts,
    pub(crate) keys: KeyStore,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) writer: Writer,
    pub(crate) opaque: Opaque,
    pub(crate) places: Places,
    pub(crate) upstream: Upstream,
    pub(crate) hop_token: Option<HopToken>,
    /// By which it knows the platform and the operator.
    pub(crate) above: Above,
    pub(crate) adopt_local: Option<String>,
    pub(crate) guard: Guard,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Gateway {
    /// Starts a gateway without a listener: opens the ledger, settles what a dead gateway left open,
    /// rebuilds the counters, and follows the folder and the keys.
    pub async fn start(options: &GatewayOptions, clock: Clock) -> Result<Self, GatewayError> {
        let upstream = Upstream::to(options.mtls.as_ref(), &[Component::Scheduler]);
        let place = |bases: Vec<String>| place(upstream.clone(), bases, options.hop_token.as_ref(), &clock);
        let (directory, places, origin) = match &options.source {
            Source::Folder { upstream, folder } => {
                let base = base(upstream)?;
                let (read, directory) = folder::first(folder)?;
                (directory, Places::One(Arc::new(place(vec![base]))), Origin::Folder(folder.clone(), read))
            }
            Source::Kubernetes(cluster) => {
                let places = Places::ByNamespace(Mutex::new(BTreeMap::new()));
                (Directory::default(), places, Origin::Cluster(Box::new(watch::Api::connect(cluster).await?)))
            }
        };
        let state = options.state.clone();
        let time = clock.clone();
        let opened = tokio::task::spawn_blocking(move || open_state(&state, time));
        let (keys, ledger, writer, opaque) =
            opened.await.map_err(|error| LedgerError::Write(error.to_string()))??;
        let accounts = Accounts::open(ledger.clone(), &directory, clock.clone())?;
        let ring_version = keys.version()?;
        let ring = KeyRing::new(keys.stored()?, &directory.keys);
        let watched = match &origin {
            Origin::Folder(..) => None,
            Origin::Cluster(_) => Some(Watched::default()),
        };
        let directory = Arc::new(directory);
        let gateway = Self(Arc::new(Inner {
            pending: Pending::none(&directory),
            directory: ArcSwap::new(directory),
            ring: ArcSwap::from_pointee(ring),
            ring_version: AtomicI64::new(ring_version),
            replacing: Mutex::new(()),
            watched,
            accounts,
            keys,
            ledger,
            writer,
            opaque,
            places,
            upstream: upstream.clone(),
            hop_token: options.hop_token.clone(),
            above: Above::new(
                options.hop_token.clone(),
                options.mtls.as_ref(),
                &[Component::Platform, Component::Operator],
            ),
            adopt_local: options.adopt_local.clone(),
            guard: Guard::default(),
            metrics: Metrics::default(),
            clock: clock.clone(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }));
        follow::keys(&gateway);
        match origin {
            Origin::Folder(path, read) => folder::spawn(&gateway, path, read),
            Origin::Cluster(api) => watch::spawn(&gateway, &api),
        }
        Ok(gateway)
    }

    /// The gateway's HTTP interface.
    pub fn router(&self) -> axum::Router {
        routes::router(self.clone())
    }

    /// Lets calls write what they used, and makes the ledger safe against a power loss.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        if tokio::time::timeout(LAST_WORDS, self.0.tasks.wait()).await.is_err() {
            tracing::warn!(
                calls = self.0.tasks.len(),
                "stopped with calls open; the next start settles them"
            );
        }
        if let Err(error) = self.0.writer.write(Entry::Sync).await {
            tracing::error!(%error, "could not sync the ledger");
        }
    }
}

/// Where the manifests were found at the start.
enum Origin {
    Folder(PathBuf, Folder),
    Cluster(Box<watch::Api>),
}

fn place(upstream: Upstream, bases: Vec<String>, hop_token: Option<&HopToken>, clock: &Clock) -> Place {
    let pool = Arc::new(Pool::new(bases, clock.clone()));
    let catalog = Catalog::new(upstream.clone(), pool.clone(), hop_token.cloned(), clock.clone());
    Place { pool, catalog: Arc::new(catalog), upstream }
}

impl Inner {
    /// Whether it is known who may call. From a folder it is from the start.
    pub(crate) fn has_state(&self) -> bool {
        self.watched.as_ref().is_none_or(Watched::is_taken_over)
    }

    /// The schedulers of a namespace, known or not.
    pub(crate) fn place(&self, namespace: &Arc<str>) -> Arc<Place> {
        let upstream = || self.upstream.within(namespace);
        self.places.of(namespace, || place(upstream(), Vec::new(), self.hop_token.as_ref(), &self.clock))
    }

    /// Reads the run-time keys again if any process has changed them. `true` when one has.
    pub(crate) fn refresh_keys(&self) -> Result<bool, LedgerError> {
        let changed = self.keys.version()? != self.ring_version.load(Ordering::Acquire);
        if changed {
            self.reload_keys()?;
        }
        Ok(changed)
    }

    /// Reads the run-time keys again.
    pub(crate) fn reload_keys(&self) -> Result<(), LedgerError> {
        let _one_at_a_time = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        // Read before the keys: a change in between is then seen as one that is not in the ring yet.
        let version = self.keys.version()?;
        let ring = KeyRing::new(self.keys.stored()?, &self.directory.load().keys);
        self.ring.store(Arc::new(ring));
        self.ring_version.store(version, Ordering::Release);
        Ok(())
    }
}

type State = (KeyStore, Arc<Ledger>, Writer, Opaque);

fn open_state(path: &std::path::Path, clock: Clock) -> Result<State, LedgerError> {
    let (writer, _thread, closed) = Writer::start(path)?;
    if closed > 0 {
        tracing::warn!(
            calls = closed,
            "settled calls that a gateway left open at what was reserved for them"
        );
    }
    let ledger = Arc::new(Ledger::open(path)?);
    let opaque = Opaque::new(ledger.identity_secret()?);
    Ok((KeyStore::open_at(path, clock)?, ledger, writer, opaque))
}

/// Runs a gateway until `shutdown`, then lets open requests finish.
pub async fn run(options: GatewayOptions, shutdown: CancellationToken) -> Result<(), GatewayError> {
    let bound = Bound::bind(&options.listen).await?;
    let internal = match (&options.internal_listen, &options.mtls) {
        (None, _) => None,
        (Some(_), None) => return Err(GatewayError::InternalWithoutCertificates),
        (Some(addr), mtls) => Some(Bound::bind(addr).await?.secured(mtls.clone())),
    };
    let gateway = Gateway::start(&options, Clock::System).await?;
    let (tenants, models, rules) = gateway.0.directory.load().sizes();
    tracing::info!(
        listen = %bound.addr(),
        source = %options.source,
        internal_listen = internal.as_ref().map(Bound::url),
        mtls = ?options.mtls,
        state = %options.state.display(),
        hop_token = if options.hop_token.is_some() { "set, redacted" } else { "none" },
        grace_s = options.grace.as_secs(),
        tenants,
        models,
        rules,
        "gateway listens"
    );
    let inside = async {
        if let Some(internal) = internal {
            internal.serve(gateway.router(), shutdown.clone(), options.grace).await;
        }
    };
    tokio::join!(bound.serve(gateway.router(), shutdown.clone(), options.grace), inside);
    gateway.stop().await;
    Ok(())
}
