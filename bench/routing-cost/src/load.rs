//! A closed loop of connections that stay open: each sends a request when it has the answer to the one
//! before, checks the answer, and measures.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpStream;

use crate::percentile::percentile;
use crate::prompt::{LEAST_BYTES, Prompts, shown};
use crate::replicas::CHUNKS;

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where to. Connections are spread over these.
    pub to: Vec<SocketAddr>,
    /// Connections.
    pub connections: usize,
    /// Bytes of a body.
    pub bytes: usize,
    /// Whether answers are streamed.
    pub stream: bool,
    /// Groups of requests that share the first half of their bodies.
    pub groups: usize,
    /// Time that nothing counts, and time that all counts.
    pub warm_up: Duration,
    /// The time that counts.
    pub measured: Duration,
    /// An answer that takes longer is an error.
    pub timeout: Duration,
    /// Threads that send.
    pub threads: usize,
    /// Where the requests' numbers begin: another one makes other prompts.
    pub seed: u64,
}

/// What came of it. Times are in microseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Requests answered well in the time that counts.
    pub requests: u64,
    /// That time, in seconds.
    pub seconds: f64,
    /// Requests a second.
    pub rps: f64,
    /// From sending a request to the end of its answer.
    pub latency: Spread,
    /// From sending a request to the first byte of its answer's body.
    pub first_byte: Spread,
    /// Between two chunks of a streamed answer.
    pub gap: Spread,
    /// Chunks that came together with the one before though the replica sent them apart.
    pub merged: u64,
    /// Requests that failed at any time, the warm-up included.
    pub errors: u64,
    /// What went wrong first.
    pub first_error: Option<String>,
}

/// Percentiles of a time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Spread {
    /// The median.
    pub p50: u32,
    /// 90 of 100 took less.
    pub p90: u32,
    /// 99 of 100 took less.
    pub p99: u32,
    /// The longest.
    pub max: u32,
}

impl Spread {
    fn of(values: &mut [u32]) -> Self {
        let [p50, p90, p99, max] =
            [50.0, 90.0, 99.0, 100.0].map(|percent| percentile(values, percent).unwrap_or(0));
        Self { p50, p90, p99, max }
    }
}

/// What one thread has measured.
#[derive(Debug, Default)]
struct Measured {
    latency: Vec<u32>,
    first_byte: Vec<u32>,
    gap: Vec<u32>,
    merged: u64,
    errors: u64,
    first_error: Option<String>,
}

/// When things happen.
#[derive(Debug)]
struct Clock {
    counts_from: Instant,
    ends: Instant,
    /// Set when a thread saw an error: the run is void, and need not go on.
    is_void: AtomicBool,
}

/// Runs it. `begins` is called when what follows counts, `ends` when nothing does any more.
pub fn run(load: &Load, begins: impl FnOnce(), ends: impl FnOnce()) -> anyhow::Result<Summary> {
    anyhow::ensure!(!load.to.is_empty(), "there is no address to send to");
    anyhow::ensure!(load.bytes >= LEAST_BYTES, "a body has {LEAST_BYTES} bytes at least");
    anyhow::ensure!(
        load.connections > 0 && load.threads > 0 && load.groups > 0,
        "there must be a connection, a thread and a group"
    );
    let counts_from = Instant::now() + load.warm_up;
    let clock = Clock { counts_from, ends: counts_from + load.measured, is_void: AtomicBool::new(false) };
    let clock = &clock;
    let threads: anyhow::Result<Vec<Measured>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..load.threads).map(|thread| scope.spawn(move || connections(load, thread, clock))).collect();
        std::thread::sleep(clock.counts_from.saturating_duration_since(Instant::now()));
        begins();
        std::thread::sleep(clock.ends.saturating_duration_since(Instant::now()));
        ends();
        let joined = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().map_err(|_| anyhow::anyhow!("a thread of the load panicked"))?
        };
        threads.into_iter().map(joined).collect()
    });
    Ok(summary(load, threads?))
}

fn summary(load: &Load, threads: Vec<Measured>) -> Summary {
    let mut all = Measured::default();
    for mut thread in threads {
        all.latency.append(&mut thread.latency);
        all.first_byte.append(&mut thread.first_byte);
        all.gap.append(&mut thread.gap);
        all.merged += thread.merged;
        all.errors += thread.errors;
        all.first_error = all.first_error.or(thread.first_error);
    }
    let (requests, seconds) = (all.latency.len() as u64, load.measured.as_secs_f64());
    Summary {
        requests,
        seconds,
        rps: requests as f64 / seconds,
        latency: Spread::of(&mut all.latency),
        first_byte: Spread::of(&mut all.first_byte),
        gap: Spread::of(&mut all.gap),
        merged: all.merged,
        errors: all.errors,
        first_error: all.first_error,
    }
}

/// One thread's share of the connections.
fn connections(load: &Load, thread: usize, clock: &Clock) -> anyhow::Result<Measured> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let all = Arc::new(std::sync::Mutex::new(Measured::default()));
        let mut connections = Vec::new();
        for at in (thread..load.connections).step_by(load.threads) {
            let (load, all) = (load.clone(), Arc::clone(&all));
            let (counts_from, ends) = (clock.counts_from, clock.ends);
            connections.push(tokio::task::spawn_local(async move {
                one_after_another(&load, at, (counts_from, ends), &all).await
            }));
        }
        for connection in connections {
            if let Err(error) = connection.await.context("a connection's task ended early")? {
                clock.is_void.store(true, Ordering::Relaxed);
                let mut all = all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                all.errors += 1;
                all.first_error.get_or_insert(format!("{error:#}"));
            }
        }
        let mut all = all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(std::mem::take(&mut *all))
    })
}

/// One connection: its requests until the end. An error ends it.
async fn one_after_another(
    load: &Load,
    at: usize,
    (counts_from, ends): (Instant, Instant),
    all: &std::sync::Mutex<Measured>,
) -> anyhow::Result<()> {
    let to = load.to[at % load.to.len()];
    let group = (at % load.groups) as u64;
    let mut prompts =
        Prompts::new(load.bytes, load.stream, group, (at as u64, load.connections as u64), load.seed);
    let mut connection = connect(to).await?;
    while Instant::now() < ends {
        let (number, body) = prompts.next_body();
        let request = Request::builder()
            .method(Method::POST)
            .uri("/v1/chat/completions")
            .header(header::HOST, to.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let sent = Instant::now();
        let asked = ask(&mut connection, request, number, load.stream);
        let told = tokio::time::timeout(load.timeout, asked).await.context("no whole answer in time")??;
        let ended = Instant::now();
        if sent >= counts_from && ended <= ends {
            let mut all = all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let micros = |at: Instant| at.duration_since(sent).as_micros() as u32;
            all.latency.push(micros(ended));
            all.first_byte.push(micros(told.chunks[0]));
            if load.stream {
                let gaps = told.chunks.windows(2).map(|two| two[1].duration_since(two[0]).as_micros() as u32);
                all.gap.extend(gaps);
                all.merged += CHUNKS.saturating_sub(told.chunks.len()) as u64;
            }
        }
    }
    Ok(())
}

async fn connect(to: SocketAddr) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("cannot connect to {to}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}

/// When the parts of an answer came.
struct Told {
    chunks: Vec<Instant>,
}

async fn ask(
    connection: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
    number: u64,
    streams: bool,
) -> anyhow::Result<Told> {
    connection.ready().await.context("the connection was closed")?;
    let mut response = connection.send_request(request).await.context("no answer")?;
    let status = response.status();
    let mut chunks = Vec::with_capacity(if streams { CHUNKS } else { 1 });
    let mut text = Vec::new();
    while let Some(frame) = response.frame().await {
        if let Ok(data) = frame.context("the answer broke off")?.into_data() {
            chunks.push(Instant::now());
            text.extend_from_slice(&data);
        }
    }
    anyhow::ensure!(
        status == StatusCode::OK && !chunks.is_empty(),
        "status {status}: {}",
        String::from_utf8_lossy(&text[..text.len().min(300)])
    );
    check(&text, number, streams).with_context(|| {
        format!("a wrong answer: {}", String::from_utf8_lossy(&text[..text.len().min(300)]))
    })?;
    Ok(Told { chunks })
}

/// Whether the text is the answer to the request of this number, whole and in order.
fn check(text: &[u8], number: u64, streams: bool) -> anyhow::Result<()> {
    let shown = shown(number);
    let numbers: Vec<usize> = memchr::memmem::find_iter(text, &shown).collect();
    if !streams {
        anyhow::ensure!(numbers.len() == 1, "it bears the request's number {} times", numbers.len());
        return Ok(());
    }
    anyhow::ensure!(numbers.len() == CHUNKS - 1, "it has {} of {} chunks", numbers.len(), CHUNKS - 1);
    for (at, place) in numbers.into_iter().enumerate() {
        let told = text.get(place + shown.len()..place + shown.len() + 2);
        anyhow::ensure!(told == Some(format!("{at:02}").as_bytes()), "chunk {at} is out of order");
    }
    anyhow::ensure!(text.ends_with(b"data: [DONE]\n\n"), "it does not end as a stream does");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_others_and_broken_ones_do_not_pass() {
        let one =
            |number: u64, at: usize| format!("data: {}{at:02} \n\n", String::from_utf8_lossy(&shown(number)));
        let stream = |numbers: &[usize]| {
            let mut text: String = numbers.iter().map(|at| one(5, *at)).collect();
            text += "data: [DONE]\n\n";
            text.into_bytes()
        };
        let right: Vec<usize> = (0..CHUNKS - 1).collect();
        assert!(check(&stream(&right), 5, true).is_ok());
        assert!(check(&stream(&right), 6, true).is_err(), "another's");
        assert!(check(&stream(&right[1..]), 5, true).is_err(), "one is missing");
        let mut swapped = right.clone();
        swapped.swap(3, 4);
        assert!(check(&stream(&swapped), 5, true).is_err(), "two are swapped");
        let cut = stream(&right);
        assert!(check(&cut[..cut.len() - 3], 5, true).is_err(), "its end is missing");
        assert!(check(&shown(7), 7, false).is_ok() && check(&shown(7), 8, false).is_err());
    }
}
