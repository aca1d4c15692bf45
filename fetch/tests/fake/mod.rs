//! A server of files on loopback that can be told to misbehave, and that notes what it was asked.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, StatusCode, header};
use strata_fetch::{Backoff, FetchError, FetchOptions, Fetched};
use tokio_util::sync::CancellationToken;

/// What a request was.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// Path and query.
    pub path: String,
    pub headers: HeaderMap,
    /// How many came for this path before.
    pub nth: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// The range that was asked for: first byte, and last if named.
    pub fn range(&self) -> Option<(u64, Option<u64>)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().unwrap(), last.parse().ok()))
    }
}

/// A file that is served.
#[derive(Clone)]
pub struct Object {
    pub bytes: Bytes,
    pub headers: Vec<(&'static str, String)>,
}

/// What the server does instead of answering well.
pub enum Fault {
    Answer(u16, Vec<(&'static str, String)>, String),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// Nothing comes after so many bytes of the body.
    Stall(usize),
    /// One bit of each body is flipped.
    Flip,
    /// Whole files only, whatever range is asked for.
    NoRanges,
    /// Whole files only, and chunked.
    NoLength,
    /// Each 64 KiB of the body takes so long.
    Slow(Duration),
}

type Script = Box<dyn Fn(&Seen) -> Option<Fault> + Send + Sync>;

pub struct Fake {
    pub url: String,
    pub port: u16,
    state: Arc<Shared>,
    stop: CancellationToken,
}

struct Shared {
    objects: Mutex<BTreeMap<String, Object>>,
    seen: Mutex<Vec<Seen>>,
    sent: Mutex<u64>,
    script: Mutex<Script>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Fake {
    pub async fn start() -> Self {
        let state = Arc::new(Shared {
            objects: Mutex::default(),
            seen: Mutex::default(),
            sent: Mutex::new(0),
            script: Mutex::new(Box::new(|_| None)),
        });
        let stop = CancellationToken::new();
        let router = axum::Router::new().fallback(serve).with_state(state.clone());
        let bound = strata_hop::listen::Bound::bind("127.0.0.1:0").await.unwrap();
        let port = bound.addr().port();
        tokio::spawn(bound.serve(router, stop.clone(), Duration::ZERO));
        Self { url: format!("http://127.0.0.1:{port}"), port, state, stop }
    }

    /// Serves `bytes` at `path` (which may have a query) under a strong tag.
    pub fn put(&self, path: &str, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        let tag = format!("\"{}\"", sha256(&bytes));
        self.put_with(path, bytes, vec![("etag", tag)]);
    }

    pub fn put_with(&self, path: &str, bytes: impl Into<Bytes>, headers: Vec<(&'static str, String)>) {
        let object = Object { bytes: bytes.into(), headers };
        self.state.objects.lock().unwrap().insert(path.to_owned(), object);
    }

    pub fn script(&self, script: impl Fn(&Seen) -> Option<Fault> + Send + Sync + 'static) {
        *self.state.script.lock().unwrap() = Box::new(script);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Bytes of bodies that were handed to connections.
    pub fn sent(&self) -> u64 {
        *self.state.sent.lock().unwrap()
    }

    pub fn forget(&self) {
        self.state.seen.lock().unwrap().clear();
        *self.state.sent.lock().unwrap() = 0;
    }
}

async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path_and_query().unwrap().to_string();
    let seen = {
        let mut all = shared.seen.lock().unwrap();
        let nth = all.iter().filter(|s| s.path == path).count();
        let seen =
            Seen { method: request.method().to_string(), path, headers: request.headers().clone(), nth };
        all.push(seen.clone());
        seen
    };
    let fault = (shared.script.lock().unwrap())(&seen);
    if let Some(Fault::Answer(status, headers, body)) = fault {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(name, value);
        }
        return response.body(Body::from(body)).unwrap();
    }
    let object = {
        let objects = shared.objects.lock().unwrap();
        objects.get(&seen.path).or_else(|| objects.get(seen.path.split('?').next().unwrap())).cloned()
    };
    let Some(object) = object else {
        return Response::builder().status(404).body(Body::empty()).unwrap();
    };
    let mut response = Response::builder();
    for (name, value) in &object.headers {
        response = response.header(*name, value);
    }
    let tag = object.headers.iter().find(|(name, _)| *name == "etag").map(|(_, tag)| tag.as_str());
    if let Some(wanted) = seen.header("if-match")
        && Some(wanted) != tag
    {
        return Response::builder().status(412).body(Body::empty()).unwrap();
    }
    let is_same = seen.header("if-range").is_none_or(|wanted| Some(wanted) == tag);
    let total = object.bytes.len();
    let mut bytes = object.bytes.clone();
    let takes_ranges = !matches!(fault, Some(Fault::NoRanges | Fault::NoLength));
    if let Some((first, last)) = seen.range().filter(|_| takes_ranges && is_same) {
        let first = usize::try_from(first).unwrap();
        if first >= total {
            return response
                .status(416)
                .header(header::CONTENT_RANGE, format!("bytes */{total}"))
                .body(Body::empty())
                .unwrap();
        }
        let last = last.map_or(total - 1, |last| usize::try_from(last).unwrap().min(total - 1));
        bytes = bytes.slice(first..=last);
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {first}-{last}/{total}"));
    }
    if !matches!(fault, Some(Fault::NoLength)) {
        response = response.header(header::CONTENT_LENGTH, bytes.len());
    }
    if seen.method == "HEAD" {
        return response.body(Body::empty()).unwrap();
    }
    if matches!(fault, Some(Fault::Flip)) && !bytes.is_empty() {
        let mut wrong = bytes.to_vec();
        let middle = wrong.len() / 2;
        wrong[middle] ^= 1;
        bytes = wrong.into();
    }
    let (whole, cut, stall, pause) = match fault {
        Some(Fault::Cut(n)) => (n, true, false, None),
        Some(Fault::Stall(n)) => (n, false, true, None),
        Some(Fault::Slow(pause)) => (usize::MAX, false, false, Some(pause)),
        _ => (usize::MAX, false, false, None),
    };
    let bytes = bytes.slice(..bytes.len().min(whole));
    let chunks: Vec<Bytes> = bytes.chunks(64 * 1024).map(|c| bytes.slice_ref(c)).collect();
    let counted = shared.clone();
    let stream = futures::stream::iter(chunks)
        .then(move |chunk| {
            let shared = counted.clone();
            async move {
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
                *shared.sent.lock().unwrap() += chunk.len() as u64;
                Ok::<_, std::io::Error>(chunk)
            }
        })
        .chain(futures::stream::once(async move {
            if stall {
                std::future::pending::<()>().await;
            }
            if cut { Err(std::io::Error::other("cut")) } else { Ok(Bytes::new()) }
        }));
    response.body(Body::from_stream(stream)).unwrap()
}

/// Bytes that differ everywhere.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex(&sha2::Sha256::digest(bytes))
}

pub fn git_sha1(bytes: &[u8]) -> String {
    use sha1::Digest;
    let mut sha1 = sha1::Sha1::new();
    sha1.update(format!("blob {}\0", bytes.len()));
    sha1.update(bytes);
    hex(&sha1.finalize())
}

pub fn md5(bytes: &[u8]) -> String {
    use md5::Digest;
    hex(&md5::Md5::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Options with short waits and small parts.
pub fn options(uri: impl Into<String>, to: &std::path::Path) -> FetchOptions {
    FetchOptions {
        stall_timeout: Duration::from_millis(400),
        part_bytes: 256 * 1024,
        backoff: Backoff { first: Duration::from_millis(2), most: Duration::from_millis(20), attempts: 4 },
        ..FetchOptions::new(uri, to)
    }
}

/// A fetch to its end, which must come within a minute.
pub async fn fetch(options: FetchOptions) -> Result<Fetched, FetchError> {
    tokio::time::timeout(Duration::from_secs(60), strata_fetch::run(options, CancellationToken::new()))
        .await
        .expect("the fetch hangs")
}

/// Everything in the folder of models but finished models: what a failed fetch shows to an engine.
pub fn models(to: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(to).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != ".fetch");
    names.sort();
    names
}
