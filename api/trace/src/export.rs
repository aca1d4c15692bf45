//! From finished spans to a collector: a bounded queue, and one task that empties it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::Collector;
use crate::config::{ConfigError, TraceConfig};
use crate::context::{SpanId, TraceContext, TraceId};
use crate::protobuf;
use crate::sampler::Sampler;
use crate::span::{ActiveSpan, Span};

/// Pauses before a batch is sent again: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long one batch is tried. Meanwhile the queue fills, and then spans are dropped.
const PATIENCE: Duration = Duration::from_secs(120);

/// Begins spans. Cloning shares the queue.
#[derive(Clone, Debug)]
pub struct Tracer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sampler: Sampler,
    queue: mpsc::Sender<Span>,
    exported: AtomicU64,
    dropped: AtomicU64,
}

impl Tracer {
    /// A span that answers a caller with this `traceparent`; `None` when it is not to be recorded.
    pub fn answer(&self, name: &'static str, traceparent: Option<&str>) -> Option<ActiveSpan> {
        let parent = traceparent.and_then(TraceContext::parse);
        let trace = match &parent {
            Some(parent) => parent.trace,
            None => TraceId::random()?,
        };
        if !self.0.sampler.records(trace, parent.as_ref()) {
            return None;
        }
        let context = TraceContext { trace, span: SpanId::random()?, sampled: true };
        Some(ActiveSpan::new(self.clone(), name, context, parent.map(|parent| parent.span)))
    }

    /// What those who are called are told of a trace that is not recorded here, so that they record no part of
    /// it by themselves; `None` where the caller's own `traceparent` says so already.
    pub fn decline(&self, traceparent: Option<&str>) -> Option<TraceContext> {
        match traceparent.and_then(TraceContext::parse) {
            Some(parent) => parent.sampled.then_some(TraceContext { sampled: false, ..parent }),
            None => Some(TraceContext { trace: TraceId::random()?, span: SpanId::random()?, sampled: false }),
        }
    }

    /// Queues a finished span, or drops it where too many wait. Never waits.
    pub(crate) fn record(&self, span: Span) {
        if self.0.queue.try_send(span).is_err() {
            self.lose(1);
        }
    }

    fn lose(&self, spans: u64) {
        self.0.dropped.fetch_add(spans, Ordering::Relaxed);
    }

    /// Spans that a collector has taken.
    pub fn exported(&self) -> u64 {
        self.0.exported.load(Ordering::Relaxed)
    }

    /// Spans that were lost: too many waited, or the collector did not take them.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

/// The task that sends what tracers record.
#[derive(Debug)]
pub struct Exporter {
    tracer: Tracer,
    closing: CancellationToken,
    task: JoinHandle<()>,
}

impl Exporter {
    /// Starts on the current Tokio runtime.
    ///
    /// # Errors
    /// When the certificate authorities cannot be read. A collector that is away is none.
    pub fn start(config: TraceConfig) -> Result<Self, ConfigError> {
        let config = Arc::new(config);
        let collector = Collector::new(config.clone())?;
        let (queue, spans) = mpsc::channel(config.queue);
        let (exported, dropped) = (AtomicU64::new(0), AtomicU64::new(0));
        let tracer = Tracer(Arc::new(Shared { sampler: config.sampler, queue, exported, dropped }));
        let closing = CancellationToken::new();
        let sending =
            Sending { collector, config, tracer: tracer.clone(), closing: closing.clone(), away: false };
        let task = tokio::spawn(sending.run(spans));
        Ok(Self { tracer, closing, task })
    }

    /// What begins spans.
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Sends what is queued, at most `limit` long, and ends. Spans that end later are dropped.
    pub async fn close(self, limit: Duration) {
        self.closing.cancel();
        let abort = self.task.abort_handle();
        if tokio::time::timeout(limit, self.task).await.is_err() {
            abort.abort();
            tracing::warn!("the collector of traces is too slow: the last spans are lost");
        }
        let (exported, dropped) = (self.tracer.exported(), self.tracer.dropped());
        tracing::info!(exported, dropped, "no more spans are exported");
    }
}

struct Sending {
    collector: Collector,
    config: Arc<TraceConfig>,
    tracer: Tracer,
    closing: CancellationToken,
    /// Whether the last call failed, which has been said.
    away: bool,
}

impl Sending {
    async fn run(mut self, mut spans: mpsc::Receiver<Span>) {
        let mut batch = Vec::new();
        loop {
            let closing = self.gather(&mut spans, &mut batch).await;
            if closing {
                spans.close();
                while let Ok(span) = spans.try_recv() {
                    batch.push(span);
                }
            }
            for part in batch.chunks(self.config.batch) {
                self.deliver(part).await;
            }
            batch.clear();
            if closing {
                return;
            }
        }
    }

    /// Waits for spans until they are a batch, or the first has waited long enough. Returns whether no
    /// more are to come.
    async fn gather(&self, spans: &mut mpsc::Receiver<Span>, batch: &mut Vec<Span>) -> bool {
        let mut due: Option<Instant> = None;
        while batch.len() < self.config.batch {
            let until_due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.closing.cancelled() => return true,
                () = until_due => break,
                span = spans.recv() => match span {
                    Some(span) => batch.push(span),
                    None => return true,
                },
            }
            due = due.or_else(|| Some(Instant::now() + self.config.delay));
        }
        false
    }

    /// Sends spans until they are taken, or it is no use.
    async fn deliver(&mut self, spans: &[Span]) {
        let body = Bytes::from(protobuf::request(&self.config.resource, spans));
        let (count, begun) = (spans.len() as u64, Instant::now());
        let mut pause = FIRST_PAUSE;
        loop {
            let refusal = match self.collector.send(body.clone()).await {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    self.tracer.lose(rejected);
                    self.tracer.0.exported.fetch_add(count - rejected, Ordering::Relaxed);
                    if std::mem::take(&mut self.away) {
                        let (to, dropped) = (self.config.shown(), self.tracer.dropped());
                        tracing::info!(to, dropped, "the collector takes spans again");
                    }
                    return;
                }
                Err(refusal) => refusal,
            };
            if !std::mem::replace(&mut self.away, true) {
                let (to, problem) = (self.config.shown(), &refusal.message);
                tracing::warn!(
                    to,
                    problem,
                    "spans cannot be exported; requests go on, and this is said once"
                );
            }
            let Some(least) = refusal.again.filter(|_| begun.elapsed() < PATIENCE) else { break };
            if self.closing.is_cancelled() {
                break;
            }
            // Ending sooner than the pause does, so that the last try is not missed.
            let _ = tokio::time::timeout(pause.max(least.min(LONGEST_PAUSE)), self.closing.cancelled()).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.tracer.lose(count);
    }
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
