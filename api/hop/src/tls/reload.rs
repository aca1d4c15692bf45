//! One process's credentials, followed as they change.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::ServerConfig;

use super::credentials::{Credentials, CredentialsError, Files};
use super::identity::{Component, Identity};
use super::{CALLERS_ENV, DIR_ENV, MtlsError, server_config};

/// How often the files are looked at. The kubelet takes a minute to write them.
const LOOK: Duration = Duration::from_secs(5);
/// How often it is said again that the certificate has expired, in seconds.
const REMIND: i64 = 3600;

/// A process's own certificate and the authorities it trusts, kept up to date. Cloning shares it.
#[derive(Clone)]
pub struct Mtls(Arc<Shared>);

struct Shared {
    /// What messages call the place that the credentials are from.
    place: String,
    current: ArcSwap<Loaded>,
    callers: Option<Vec<Component>>,
}

/// One state of the credentials.
pub(crate) struct Loaded {
    /// Grows with every state that is taken over.
    pub(crate) generation: u64,
    pub(crate) credentials: Credentials,
    pub(crate) server: Arc<ServerConfig>,
    files: Files,
}

impl fmt::Debug for Mtls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mtls({})", self.identity())
    }
}

impl PartialEq for Mtls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Mtls {
    /// The credentials of this process's environment: none where `STRATA_HOP_DIR` is not set, and an
    /// error where its files are missing, expired, or not those of `component`.
    pub fn from_env(component: Component) -> Result<Option<Self>, MtlsError> {
        let Some(folder) = std::env::var_os(DIR_ENV).filter(|v| !v.is_empty()) else { return Ok(None) };
        let callers = match std::env::var(CALLERS_ENV) {
            Ok(list) if !list.trim().is_empty() => {
                Some(list.split(',').map(|name| name.trim().parse()).collect::<Result<_, _>>()?)
            }
            _ => None,
        };
        Self::open_as(Path::new(&folder), component, callers, LOOK).map(Some)
    }

    /// The credentials in a folder, which must be those of `component`. They are followed until the
    /// last clone is dropped.
    pub fn open(folder: &Path, component: Component) -> Result<Self, MtlsError> {
        Self::open_as(folder, component, None, LOOK)
    }

    /// The same, where only `callers` may call, and the files are looked at once in `look`.
    pub fn open_as(
        folder: &Path,
        component: Component,
        callers: Option<Vec<Component>>,
        look: Duration,
    ) -> Result<Self, MtlsError> {
        let place = format!("{} ({DIR_ENV})", folder.display());
        let files =
            Files::read(folder).map_err(|source| MtlsError::Credentials { place: place.clone(), source })?;
        let mtls = Self::made(files, component, callers, place)?;
        let (weak, folder) = (Arc::downgrade(&mtls.0), folder.to_owned());
        // A thread, for reading files blocks, and listeners of any runtime share it.
        std::thread::Builder::new()
            .name("hop-credentials".to_owned())
            .spawn(move || follow(&weak, &folder, look))
            .map_err(MtlsError::Thread)?;
        Ok(mtls)
    }

    /// Credentials that are in no file, which must be those of `component`. Others take their place by
    /// [`Mtls::replace`].
    pub fn of(files: Files, component: Component) -> Result<Self, MtlsError> {
        Self::made(files, component, None, "memory".to_owned())
    }

    fn made(
        files: Files,
        component: Component,
        callers: Option<Vec<Component>>,
        place: String,
    ) -> Result<Self, MtlsError> {
        let unusable = |source| MtlsError::Credentials { place: place.clone(), source };
        let credentials = Credentials::parse(&files, now()).map_err(unusable)?;
        let found = credentials.certificate.identity.clone();
        if found.component() != component {
            return Err(MtlsError::Component { place, found, wanted: component });
        }
        let server = Arc::new(server_config(&credentials).map_err(unusable)?);
        tracing::info!(
            identity = %found,
            place,
            valid_for_s = credentials.certificate.not_after - now(),
            authorities = credentials.roots.len(),
            "hops use mutual TLS"
        );
        let loaded = Loaded { generation: 1, credentials, server, files };
        Ok(Self(Arc::new(Shared { place, current: ArcSwap::from_pointee(loaded), callers })))
    }

    /// Takes over other credentials of the same component: connections made from now on use them.
    /// `false` when they are those already in use. On an error the last good ones stay in force.
    pub fn replace(&self, files: Files) -> Result<bool, MtlsError> {
        self.0.take_over(&self.current(), files, now())
    }

    /// Who this process is.
    pub fn identity(&self) -> Identity {
        self.0.current.load().credentials.certificate.identity.clone()
    }

    /// Which of these may call, where it has been told that fewer do.
    pub(crate) fn narrowed(&self, callers: &[Component]) -> Vec<Component> {
        let told = self.0.callers.as_ref();
        callers.iter().copied().filter(|c| told.is_none_or(|told| told.contains(c))).collect()
    }

    /// How often credentials have been taken over: 1 at first.
    pub fn generation(&self) -> u64 {
        self.0.current.load().generation
    }

    pub(crate) fn current(&self) -> Arc<Loaded> {
        self.0.current.load_full()
    }
}

pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

fn follow(shared: &Weak<Shared>, folder: &Path, look: Duration) {
    let mut said = Said::default();
    loop {
        std::thread::sleep(look);
        let Some(shared) = shared.upgrade() else { return };
        shared.look(Files::read(folder), now(), &mut said);
    }
}

/// What the log has been told, so that it is told once.
#[derive(Default)]
struct Said {
    complaint: Option<String>,
    expired_at: Option<i64>,
}

impl Shared {
    fn look(&self, read: Result<Files, CredentialsError>, now: i64, said: &mut Said) {
        let before = self.current.load_full();
        let taken_over = read
            .map_err(|source| MtlsError::Credentials { place: self.place.clone(), source })
            .and_then(|files| self.take_over(&before, files, now));
        match taken_over.map_err(without_age) {
            Ok(taken_over) => {
                if taken_over {
                    said.expired_at = None;
                }
                said.complaint = None;
            }
            Err(why) => {
                if said.complaint.as_ref() != Some(&why) {
                    tracing::warn!(why, "certificates not taken over; the last good ones stay in force");
                    said.complaint = Some(why);
                }
            }
        }
        let ended = self.current.load().credentials.certificate.not_after;
        if now > ended && said.expired_at.is_none_or(|at| now - at >= REMIND) {
            tracing::error!(
                place = self.place,
                expired_s_ago = now - ended,
                "this component's certificate has expired and nobody has renewed it: others refuse it"
            );
            said.expired_at = Some(now);
        }
    }

    /// Takes the files over if they are others than before. `false` when they are not.
    fn take_over(&self, before: &Loaded, files: Files, now: i64) -> Result<bool, MtlsError> {
        if files == before.files {
            return Ok(false);
        }
        let place = || self.place.clone();
        let unusable = |source| MtlsError::Credentials { place: place(), source };
        let credentials = Credentials::parse(&files, now).map_err(unusable)?;
        let (old, new) = (&before.credentials.certificate, &credentials.certificate);
        if old.identity != new.identity {
            let (found, own) = (new.identity.clone(), old.identity.clone());
            return Err(MtlsError::Another { place: place(), found, own });
        }
        let server = Arc::new(server_config(&credentials).map_err(unusable)?);
        tracing::info!(
            identity = %new.identity,
            valid_for_s = new.not_after - now,
            authorities = credentials.roots.len(),
            "certificates taken over"
        );
        let generation = before.generation + 1;
        self.current.store(Arc::new(Loaded { generation, credentials, server, files }));
        Ok(true)
    }
}

/// An error's text that stays the same from one look to the next.
#[allow(clippy::needless_pass_by_value)] // for map_err
fn without_age(error: MtlsError) -> String {
    match error {
        MtlsError::Credentials { place, source: CredentialsError::Time { identity, .. } } => {
            format!("the certificate of {identity} in {place} has expired, or does not hold yet")
        }
        other => other.to_string(),
    }
}
