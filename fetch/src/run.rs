//! The whole of a fetch: whether it is needed, whose turn it is, and what to do when the source moves.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::routing::get;
use futures::{StreamExt, TryStreamExt};
use strata_hop::listen::Bound;
use strata_wire::download::{self, DownloadState};
use strata_wire::model_uri::{ModelSource, ModelUri, PlainHttp};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::client::{Backoff, Http, host_of};
use crate::credentials::Credentials;
use crate::destination::{Destination, Entry, Found, Lock, Manifest};
use crate::error::{FetchError, at};
use crate::partial::{Partial, Places};
use crate::progress::{Progress, human};
use crate::source::{self, Listing, RemoteFile};
use crate::transfer::{self, Complete, Context, Halt, blocking};

/// How often the source may change under us before we say so.
const ROUNDS: usize = 3;
/// Space that is left free.
const SPARE: u64 = 64 << 20;
const LOG_EVERY: Duration = Duration::from_secs(5);

/// What to fetch, and how.
#[derive(Debug)]
pub struct FetchOptions {
    /// `hf://`, `https://`, `s3://` or `oci://`; `http://` where that is allowed.
    pub uri: String,
    /// Branch, tag, commit or digest, where the URI names none.
    pub revision: Option<String>,
    /// The folder of models; this one gets a folder within it.
    pub to: PathBuf,
    /// Where `GET /progress` and `GET /health` are served while it lasts.
    pub listen: Option<String>,
    /// How long no byte may come before a connection is given up.
    pub stall_timeout: Duration,
    /// Connections at once.
    pub connections: usize,
    /// Compute the checksums of a model that is there already.
    pub verify: bool,
    /// Take servers without encryption, not on this machine alone.
    pub allow_http: bool,
    /// When to try again.
    pub backoff: Backoff,
    /// Bytes of a part of a file; files that are larger come over several connections.
    pub part_bytes: u64,
    /// What may be read with.
    pub credentials: Credentials,
}

impl FetchOptions {
    /// The defaults.
    pub fn new(uri: impl Into<String>, to: impl Into<PathBuf>) -> Self {
        Self {
            uri: uri.into(),
            revision: None,
            to: to.into(),
            listen: None,
            stall_timeout: Duration::from_secs(60),
            connections: 4,
            verify: false,
            allow_http: false,
            backoff: Backoff::default(),
            part_bytes: 32 << 20,
            credentials: Credentials::default(),
        }
    }
}

/// A model that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// What the engine's `--model` names.
    pub path: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Whether it was there before, and nothing was fetched by this process.
    pub was_there: bool,
}

/// Fetches a model, or finds it, or waits for another process that fetches it. Stops at `shutdown` with
/// [`FetchError::Stopped`]; what came so far stays.
pub async fn run(options: FetchOptions, shutdown: CancellationToken) -> Result<Fetched, FetchError> {
    let uri = ModelUri::parse_with(&options.uri, options.revision.as_deref(), PlainHttp::Accepted)?;
    if uri.source() != ModelSource::Fetched {
        return Err(FetchError::NotFetched { uri: uri.to_string() });
    }
    std::fs::create_dir_all(&options.to).map_err(at("make the folder", &options.to))?;
    let progress = Arc::new(Progress::new());
    let done = CancellationToken::new();
    let _end = done.clone().drop_guard();
    if let Some(addr) = &options.listen {
        let bound = Bound::bind(addr).await?;
        tracing::info!(url = %bound.url(), "progress is served");
        tokio::spawn(bound.serve(router(progress.clone()), done, Duration::ZERO));
    }
    let fetch = Fetch { destination: Destination::new(&options.to, &uri.path().dir), uri, options, progress };
    let result = tokio::select! {
        result = fetch.all() => result,
        () = shutdown.cancelled() => Err(FetchError::Stopped),
    };
    match &result {
        Ok(_) => fetch.progress.state(DownloadState::Done),
        Err(error) => fetch.progress.failed(&error.to_string()),
    }
    result
}

fn router(progress: Arc<Progress>) -> axum::Router {
    axum::Router::new()
        .route(download::PATH, get(move || std::future::ready(Json(progress.report()))))
        .route("/health", get(|| std::future::ready("ok")))
}

struct Fetch {
    options: FetchOptions,
    uri: ModelUri,
    destination: Destination,
    progress: Arc<Progress>,
}

impl Fetch {
    async fn all(&self) -> Result<Fetched, FetchError> {
        let mut was_waiting = false;
        let lock = loop {
            if !self.options.verify
                && let Found::Complete(manifest) = self.destination.found()?
            {
                return Ok(self.there(&manifest));
            }
            if let Some(lock) = self.destination.try_lock()? {
                break lock;
            }
            if !was_waiting {
                was_waiting = true;
                tracing::info!("another process fetches this model to this place: waiting for it");
            }
            self.progress.waiting(self.destination.progress());
            tokio::time::sleep(Duration::from_millis(300)).await;
        };
        self.progress.state(DownloadState::Resolving);
        if let Some(fetched) = self.look(&lock).await? {
            return Ok(fetched);
        }
        tokio::select! {
            fetched = self.rounds(&lock) => fetched,
            never = self.tell() => match never {},
        }
    }

    fn there(&self, manifest: &Manifest) -> Fetched {
        let bytes = manifest.files.iter().map(|file| file.size).sum();
        self.progress.begin(bytes, Some(bytes));
        tracing::info!(bytes, "the model is there: nothing to fetch");
        Fetched { path: self.path(), bytes, was_there: true }
    }

    fn path(&self) -> PathBuf {
        self.options.to.join(self.uri.path().entry)
    }

    /// The model if it is there and right; otherwise what is right of it becomes work in progress.
    async fn look(&self, _lock: &Lock) -> Result<Option<Fetched>, FetchError> {
        let good = match self.destination.found()? {
            Found::Nothing => return Ok(None),
            Found::Complete(manifest) if !self.options.verify => return Ok(Some(self.there(&manifest))),
            Found::Complete(manifest) => {
                self.progress.state(DownloadState::Verifying);
                let good = self.good(&manifest).await?;
                if good.len() == manifest.files.len() {
                    return Ok(Some(self.there(&manifest)));
                }
                good
            }
            Found::Damaged(Some(manifest)) => self.good(&manifest).await?,
            Found::Damaged(None) => Vec::new(),
        };
        tracing::warn!(path = %self.destination.model().display(), "the model there is damaged: fetching what is not right");
        self.destination.reopen(&good)?;
        Ok(None)
    }

    /// The files of a model whose checksums are right.
    async fn good(&self, manifest: &Manifest) -> Result<Vec<Entry>, FetchError> {
        let mut good = Vec::new();
        for entry in &manifest.files {
            let path = self.destination.model().join(&entry.path);
            match transfer::sums(path.clone(), None).await {
                Ok(sums) if sums.sha256 == entry.sha256 => good.push(entry.clone()),
                Ok(_) => tracing::warn!(file = %entry.path, "the checksum is not right"),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(at("read", &path)(error)),
            }
        }
        Ok(good)
    }

    async fn rounds(&self, lock: &Lock) -> Result<Fetched, FetchError> {
        let options = &self.options;
        let authorities = options.credentials.authorities.as_deref();
        let http = Http::new(options.stall_timeout, options.backoff, options.allow_http, authorities)?
            .telling(self.progress.clone());
        let context = Context {
            http,
            progress: self.progress.clone(),
            slots: Semaphore::new(options.connections.max(1)),
            connections: options.connections.max(1),
            part: options.part_bytes.max(1),
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok(),
            root: options.to.clone(),
        };
        let mut changed = None;
        for _ in 0..ROUNDS {
            self.progress.state(DownloadState::Resolving);
            let listing =
                source::list(&context.http, &self.uri, &options.credentials, context.connections).await?;
            changed = match self.round(&context, listing, lock).await {
                Ok(fetched) => return Ok(fetched),
                Err((_, Halt::Failed(error))) => return Err(error),
                Err((file, Halt::Changed)) => Some(file),
            };
            tracing::warn!(
                file = changed.as_ref().map(|f| f.path.as_str()),
                "the source has changed: asking anew"
            );
        }
        let (file, host) = changed.map(|f| (f.path, host_of(&f.ask.url))).unwrap_or_default();
        Err(FetchError::Changing { file, host })
    }

    /// Fetches what a listing has. A failure comes with the file that it concerns.
    async fn round(
        &self,
        context: &Context,
        listing: Listing,
        _lock: &Lock,
    ) -> Result<Fetched, (Box<RemoteFile>, Halt)> {
        let Listing { revision, mut files } = listing;
        let first = Box::new(files[0].clone());
        let ours = |error: FetchError| (first.clone(), Halt::Failed(error));
        self.make_room(context, &files).map_err(ours)?;
        let order: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
        // Large files first, so that the last connection is not alone with one of them.
        files.sort_by_key(|file| std::cmp::Reverse(file.size.unwrap_or(u64::MAX)));
        self.progress.state(DownloadState::Fetching);
        let mut complete: Vec<(RemoteFile, Complete)> = futures::stream::iter(files)
            .map(|file| async move {
                let fetched = transfer::fetch(context, &file, self.places(&file)).await;
                match fetched {
                    Ok(complete) => Ok((file, complete)),
                    Err(halt) => Err((Box::new(file), halt)),
                }
            })
            .buffer_unordered(context.connections)
            .try_collect()
            .await?;
        complete.sort_by_key(|(file, _)| order.iter().position(|path| *path == file.path));

        self.progress.state(DownloadState::Verifying);
        let mut entries: Vec<Entry> = Vec::new();
        for (file, complete) in complete {
            if file.unpack.is_some() {
                // A later layer of an image overrides an earlier one.
                let unpacked = self.unpack(&file).await.map_err(ours)?;
                entries.retain(|old| unpacked.iter().all(|new| new.path != old.path));
                entries.extend(unpacked);
            } else {
                let Complete { size, sha256 } = complete;
                entries.push(Entry { path: file.path, size, sha256, identity: file.identity });
            }
        }
        if entries.is_empty() {
            let problem = "has no files of a model: an image must have them in its folder /models".to_owned();
            return Err(ours(FetchError::Unusable { uri: source::shown(&self.uri), problem }));
        }
        if matches!(self.uri, ModelUri::Oci { .. }) {
            // `oras push REFERENCE model/` has everything in a folder; the engine is given what is above it.
            self.destination.lift(&mut entries).map_err(ours)?;
        }
        let bytes = entries.iter().map(|file| file.size).sum();
        let manifest = Manifest { uri: source::shown(&self.uri), revision, files: entries };
        self.destination.complete(&manifest).map_err(ours)?;
        self.progress.begin(bytes, Some(bytes));
        tracing::info!(bytes, path = %self.path().display(), "the model is complete");
        Ok(Fetched { path: self.path(), bytes, was_there: false })
    }

    fn places(&self, file: &RemoteFile) -> Places {
        if file.unpack.is_some() {
            self.destination.archive(&file.path)
        } else {
            self.destination.file(&file.path)
        }
    }

    /// Counts what is there, and fails when the rest does not fit.
    fn make_room(&self, context: &Context, files: &[RemoteFile]) -> Result<(), FetchError> {
        let (mut present, mut total) = (0, Some(0_u64));
        for file in files {
            total = total.zip(file.size).map(|(total, size)| total.saturating_add(size));
            let Some(size) = file.size else { continue };
            let places = self.places(file);
            if transfer::finished(file, &places).is_some() {
                present += size;
            } else if places.header.exists() {
                let header = transfer::header(context, file, size);
                let partial = Partial::open(places.clone(), header).map_err(at("open", &places.file))?;
                present += partial.present();
            }
        }
        self.progress.begin(present, total);
        let known: u64 = files.iter().filter_map(|file| file.size).fold(0, u64::saturating_add);
        let missing = known.saturating_sub(present);
        let free = self.destination.free()?;
        if missing > 0 && missing.saturating_add(SPARE) > free {
            return Err(FetchError::NoSpace { dir: self.destination.root().to_owned(), missing, free });
        }
        let sizes = total.map_or_else(|| "an unknown size".to_owned(), human);
        tracing::info!(files = files.len(), total = %sizes, present = %human(present), "fetching");
        Ok(())
    }

    async fn unpack(&self, file: &RemoteFile) -> Result<Vec<Entry>, FetchError> {
        let Some(how) = file.unpack.clone() else { return Ok(Vec::new()) };
        let (archive, into) = (self.destination.archive(&file.path).file, self.destination.unpacked());
        let host = host_of(&file.ask.url);
        let (from, to) = (archive.clone(), into.clone());
        let names = blocking(move || Ok(crate::unpack::unpack(&from, &how, &to, &host)))
            .await
            .map_err(at("unpack", &archive))??;
        let mut entries = Vec::with_capacity(names.len());
        for path in names {
            let place = into.join(&path);
            let size = std::fs::metadata(&place).map_err(at("read", &place))?.len();
            let sha256 = transfer::sums(place.clone(), None).await.map_err(at("read", &place))?.sha256;
            entries.push(Entry { path, size, sha256, identity: None });
        }
        Ok(entries)
    }

    /// Samples the rate, tells those who wait, and logs now and then.
    async fn tell(&self) -> std::convert::Infallible {
        let mut last_log = Instant::now();
        loop {
            self.progress.sample(Instant::now());
            let report = self.progress.report();
            self.destination.publish(&report);
            if report.state == DownloadState::Fetching && last_log.elapsed() >= LOG_EVERY {
                last_log = Instant::now();
                let percent = report.bytes_total.filter(|&t| t > 0).map(|t| report.bytes_done * 100 / t);
                tracing::info!(
                    done = %human(report.bytes_done), percent, rate = %format!("{}/s", human(report.bytes_per_s)),
                    remaining_s = report.remaining_s, file = %report.file, "fetching"
                );
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
