//! A call that is forwarded. It runs in a task of its own, so that however it ends, what it used is
//! written and what was reserved is settled.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::body::Incoming;
use strata_hop::{Body, Fault, SendError, forward};
use strata_wire::toplevel::TopLevel;
use strata_wire::{ErrorBody, ErrorKind, Usage, defaults, headers, sse};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use crate::ask::Endpoint;
use crate::events::{Metered, Seen};
use crate::gateway::Inner;
use crate::ledger::{AuditRow, Entry, OpenRow, UsageRow};
use crate::metrics::{CallLabels, TokenLabels};
use crate::place::Place;
use crate::quota::{Amounts, Subject};

/// How long the layer below may go on after the client has left, to tell what was used.
const LINGER: Duration = Duration::from_secs(1);
/// Largest answer that is not streamed.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Largest error body.
const MAX_ERROR: usize = 1024 * 1024;
/// The status in the ledger of a client that left.
const CLIENT_LEFT: u16 = 499;
const LAYER: &str = "the inference scheduler";

type Head = oneshot::Sender<Result<Response<Body>, Fault>>;

/// A call that was admitted.
pub(crate) struct Call {
    pub(crate) id: Uuid,
    pub(crate) at: i64,
    pub(crate) started: Instant,
    pub(crate) endpoint: Endpoint,
    pub(crate) subject: Subject,
    pub(crate) reserved: Amounts,
    pub(crate) wants_usage: bool,
    pub(crate) wants_continuous: bool,
    pub(crate) explain: bool,
    pub(crate) limits: Vec<(HeaderName, HeaderValue)>,
    pub(crate) place: Arc<Place>,
    pub(crate) inner: Arc<Inner>,
}

/// What goes on, but for the address and the time that is left.
pub(crate) struct Outgoing {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What a call used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Used {
    requests: u64,
    usage: Usage,
    estimated: bool,
    ttft: Option<Duration>,
}

impl Used {
    /// Nothing, and the request does not count either: the failure was not the caller's.
    const NOTHING: Self = Self {
        requests: 0,
        usage: Usage { prompt_tokens: 0, completion_tokens: 0, total_tokens: 0, prompt_tokens_details: None },
        estimated: false,
        ttft: None,
    };

    fn told(usage: Usage) -> Self {
        Self { requests: 1, usage, ..Self::NOTHING }
    }

    fn estimated(prompt: u64, completion: u64) -> Self {
        Self { requests: 1, usage: Usage::new(prompt, 0, completion), estimated: true, ttft: None }
    }
}

/// How a stream ended.
enum End {
    /// As it should; the event that ends it is still to be sent.
    Done(Option<Bytes>),
    /// The client went away.
    Left,
    /// The layer below broke off.
    Broken(String),
    /// It took too long.
    TimedOut,
}

impl Call {
    /// Forwards the call and sees it through.
    pub(crate) async fn run(self, outgoing: Outgoing, audit: AuditRow, mut head: Head) {
        self.inner.metrics.in_flight.inc();
        let begun = self.inner.writer.write(Entry::Begin(Box::new(self.open_row()), audit)).await;
        if let Err(error) = begun {
            tracing::error!(%error, "refused a request that the ledger could not take");
            self.inner.metrics.ledger_failures.inc();
            self.inner.metrics.in_flight.dec();
            self.inner.accounts.release(self.id.as_u128());
            let fault =
                Fault::new(ErrorKind::Overloaded, "usage cannot be recorded just now; try again shortly");
            let _ = head.send(Err(fault.retry_after(LINGER)));
            return;
        }
        let sent = {
            let sending =
                self.place.pool.send(&self.place.upstream, defaults::FIRST_BYTE_ABOVE_TIMEOUT, |base| {
                    self.request(base, &outgoing)
                });
            let mut sending = std::pin::pin!(sending);
            tokio::select! {
                sent = &mut sending => Some(sent),
                () = head.closed() => tokio::time::timeout(LINGER, sending).await.ok(),
            }
        };
        match sent {
            None => self.finish(CLIENT_LEFT, self.unseen()).await,
            Some(Err(error)) => self.fail(&error, head).await,
            // Counted as in flight there until the last byte.
            Some(Ok((response, _in_flight))) => self.pass(response, head).await,
        }
    }

    fn request(&self, base: &str, outgoing: &Outgoing) -> Result<http::Request<Body>, http::Error> {
        let mut request = http::Request::post(format!("{base}{}", self.endpoint.path()))
            .body(Body::from(outgoing.body.clone()))?;
        *request.headers_mut() = outgoing.headers.clone();
        let left = defaults::STREAM_TIMEOUT.saturating_sub(self.started.elapsed());
        let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        request.headers_mut().insert(HeaderName::from_static(headers::DEADLINE_MS), HeaderValue::from(left));
        Ok(request)
    }

    /// The worst case, for an end that nobody saw.
    fn unseen(&self) -> Used {
        Used::estimated(self.reserved.input, self.reserved.output)
    }

    async fn fail(self, error: &SendError, head: Head) {
        tracing::warn!(%error, request_id = %self.id, "the upstream gave no answer");
        let fault = error.fault(LAYER);
        // A request that timed out may have been worked on all the while.
        let used = if matches!(error, SendError::Timeout { .. }) { self.unseen() } else { Used::NOTHING };
        self.finish(fault.kind.status(), used).await;
        let _ = head.send(Err(fault));
    }

    async fn pass(self, response: Response<Incoming>, head: Head) {
        let (parts, body) = response.into_parts();
        let mut headers = forward::response_headers(&parts.headers, self.explain);
        let theirs: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with("x-ratelimit-")).cloned().collect();
        for name in theirs {
            headers.remove(name);
        }
        headers.extend(self.limits.iter().cloned());
        let streamed = parts
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .is_some_and(|v| v.trim_start().to_ascii_lowercase().starts_with("text/event-stream"));
        if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&parts.status) {
            // About this gateway, not about the client's key: passed on it would mislead.
            tracing::error!(status = %parts.status, "the upstream takes this gateway for somebody else; give both the same hop token, or certificates of one authority");
            self.finish(502, Used::NOTHING).await;
            let _ = head.send(Err(Fault::new(
                ErrorKind::BadGateway,
                format!("{LAYER} does not accept this gateway; tell whoever runs it"),
            )));
        } else if !parts.status.is_success() {
            self.pass_error(parts.status, headers, body, head).await;
        } else if streamed {
            let (send, receive) = mpsc::channel::<io::Result<Bytes>>(1);
            let pieces = futures::stream::unfold(receive, |mut receive| async move {
                receive.recv().await.map(|piece| (piece, receive))
            });
            // If the client has gone, the response is dropped here, and the pump sees it.
            let _ = head.send(Ok(respond(parts.status, headers, Body::from_stream(pieces))));
            self.pump(body, send).await;
        } else {
            self.pass_whole(parts.status, headers, body, head).await;
        }
    }

    async fn pass_error(self, status: StatusCode, headers: HeaderMap, body: Incoming, head: Head) {
        // What the caller got wrong counts as a request, so that failing on purpose has its limit too.
        let theirs = status.is_client_error()
            && ![StatusCode::NOT_FOUND, StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS]
                .contains(&status);
        let used = if theirs { Used::told(Usage::new(0, 0, 0)) } else { Used::NOTHING };
        let collected = forward::collect(body, defaults::IDLE_TIMEOUT, MAX_ERROR).await;
        self.finish(status.as_u16(), used).await;
        let _ = head.send(match collected {
            Ok(body) => Ok(respond(status, headers, Body::from(body))),
            Err(_) => {
                Err(Fault::new(ErrorKind::BadGateway, format!("{LAYER} broke off its answer; try again")))
            }
        });
    }

    async fn pass_whole(self, status: StatusCode, headers: HeaderMap, body: Incoming, mut head: Head) {
        let collected = {
            let mut collecting = std::pin::pin!(forward::collect(body, defaults::IDLE_TIMEOUT, MAX_ANSWER));
            tokio::select! {
                collected = &mut collecting => Some(collected),
                () = head.closed() => tokio::time::timeout(LINGER, collecting).await.ok(),
            }
        };
        match collected {
            None => self.finish(CLIENT_LEFT, self.unseen()).await,
            Some(Err(error)) => {
                tracing::warn!(%error, request_id = %self.id, "the upstream broke off its answer");
                self.finish(502, self.unseen()).await;
                let _ = head.send(Err(Fault::new(
                    ErrorKind::BadGateway,
                    format!("{LAYER} broke off its answer; try again"),
                )));
            }
            Some(Ok(body)) => {
                let told = TopLevel::scan(&body)
                    .ok()
                    .and_then(|top| serde_json::from_slice::<Usage>(top.raw(&body, "usage")?).ok());
                self.finish(status.as_u16(), told.map_or_else(|| self.unseen(), Used::told)).await;
                let _ = head.send(Ok(respond(status, headers, Body::from(body))));
            }
        }
    }

    async fn pump(self, body: Incoming, client: mpsc::Sender<io::Result<Bytes>>) {
        let mut metered = Metered::new(self.wants_usage, self.wants_continuous);
        let mut ttft = None;
        let end = self.pump_events(body, &client, &mut metered, &mut ttft).await;
        let (status, last) = match end {
            // The client has been told by the layer that failed; the ledger is told here.
            End::Done(last) => (if metered.seen.failed { 502 } else { 200 }, last),
            End::Left => (CLIENT_LEFT, None),
            End::Broken(error) => {
                tracing::warn!(error, request_id = %self.id, "the upstream broke off a stream");
                let kind = ErrorKind::BadGateway;
                (502, Some(error_event(kind, format!("{LAYER} broke off in mid-stream; try again"))))
            }
            End::TimedOut => {
                let limit = defaults::STREAM_TIMEOUT.as_secs();
                (504, Some(error_event(ErrorKind::Timeout, format!("the stream took longer than {limit} s"))))
            }
        };
        let used = Used { ttft, ..self.streamed(&metered.seen, status) };
        self.finish(status, used).await;
        if let Some(last) = last {
            let _ = tokio::time::timeout(defaults::IDLE_TIMEOUT, client.send(Ok(last))).await;
        }
    }

    /// What a stream used: what the engine said last, and the chunks that came after that.
    fn streamed(&self, seen: &Seen, status: u16) -> Used {
        match seen.usage {
            Some(mut usage) => {
                usage.completion_tokens += seen.chunks_since;
                Used { estimated: seen.chunks_since > 0, ..Used::told(usage) }
            }
            None if seen.chunks == 0 && status == 502 => Used::NOTHING,
            None => Used::estimated(self.reserved.input, seen.chunks),
        }
    }

    async fn pump_events(
        &self,
        body: Incoming,
        client: &mpsc::Sender<io::Result<Bytes>>,
        metered: &mut Metered,
        ttft: &mut Option<Duration>,
    ) -> End {
        let mut chunks = std::pin::pin!(forward::chunks(body, defaults::IDLE_TIMEOUT));
        let overall = self.started + defaults::STREAM_TIMEOUT;
        let mut left_until: Option<Instant> = None;
        loop {
            let next = tokio::select! {
                biased;
                () = client.closed(), if left_until.is_none() => {
                    if metered.seen.usage.is_some() {
                        return End::Left;
                    }
                    left_until = Some(Instant::now() + LINGER);
                    continue;
                }
                () = tokio::time::sleep_until(left_until.unwrap_or(overall)) => {
                    return if left_until.is_some() { End::Left } else { End::TimedOut };
                }
                next = chunks.next() => next,
            };
            let step = match next {
                None => {
                    let step = metered.finish();
                    if !step.pass.is_empty() {
                        let _ = tokio::time::timeout_at(overall, client.send(Ok(step.pass))).await;
                    }
                    return End::Done(step.end);
                }
                Some(Err(error)) => return End::Broken(error.to_string()),
                Some(Ok(bytes)) => match metered.push(&bytes) {
                    Ok(step) => step,
                    Err(error) => return End::Broken(error.to_string()),
                },
            };
            ttft.get_or_insert_with(|| self.started.elapsed());
            if left_until.is_some() && metered.seen.usage.is_some() {
                return End::Left;
            }
            if !step.pass.is_empty()
                && left_until.is_none()
                && tokio::time::timeout_at(overall, client.send(Ok(step.pass))).await.is_err()
            {
                return End::TimedOut;
            }
            if let Some(end) = step.end {
                // The connection can be used again once its end was read.
                let _ = tokio::time::timeout(LINGER, chunks.next()).await;
                return End::Done(Some(end));
            }
        }
    }

    fn open_row(&self) -> OpenRow {
        OpenRow {
            request_id: self.id.to_string(),
            at: self.at,
            tenant: self.subject.tenant.to_string(),
            key_id: self.subject.key.to_string(),
            user_hash: self.subject.user.as_ref().map(ToString::to_string),
            model: self.subject.model.to_string(),
            endpoint: self.endpoint.name().to_owned(),
            input: self.reserved.input,
            output: self.reserved.output,
        }
    }

    /// Writes what was used, then settles it: in this order, so that a change of the policies can tell
    /// from the ledger alone what is settled.
    async fn finish(&self, status: u16, used: Used) {
        let Used { requests, usage, estimated, ttft } = used;
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let row = UsageRow {
            requests,
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens(),
            completion_tokens: usage.completion_tokens,
            estimated,
            status,
            ttft_ms: ttft.map(millis),
            duration_ms: millis(self.started.elapsed()),
            ..self.open_row().as_estimated()
        };
        let metrics = &self.inner.metrics;
        if let Err(error) = self.inner.writer.write(Entry::Finish(Box::new(row))).await {
            metrics.ledger_failures.inc();
            tracing::error!(%error, request_id = %self.id, "could not write usage; the next start settles it as reserved");
        }
        let amounts = Amounts { requests, input: usage.prompt_tokens, output: usage.completion_tokens };
        if self.inner.accounts.settle(self.id.as_u128(), amounts) {
            metrics.over_reserved.inc();
            tracing::warn!(
                request_id = %self.id,
                reserved_input = self.reserved.input,
                reserved_output = self.reserved.output,
                used_input = amounts.input,
                used_output = amounts.output,
                "a call used more than was reserved for it"
            );
        }
        metrics.in_flight.dec();
        metrics.estimated.inc_by(u64::from(estimated));
        let model = self.subject.model.to_string();
        for (kind, tokens) in [
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens()),
            ("completion", usage.completion_tokens),
        ] {
            metrics.tokens.get_or_create(&TokenLabels { model: model.clone(), kind }).inc_by(tokens);
        }
        metrics.calls.get_or_create(&CallLabels { endpoint: self.endpoint.name(), model, status }).inc();
    }
}

fn respond(status: StatusCode, headers: HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// An error in the middle of a stream, as OpenAI's SDKs understand it.
fn error_event(kind: ErrorKind, message: String) -> Bytes {
    let body = ErrorBody::new(kind, message).to_bytes();
    sse::data(&String::from_utf8_lossy(&body))
}
