//! Connections to the next layer on which the request itself reads and writes.
//!
//! A client that gives each connection a task of its own wakes that task for each request, and is woken by
//! it for the answer's head and for each of its chunks, often on another thread. Here whoever waits for an
//! answer moves its bytes, too. Between two requests a connection lies idle and nobody looks at it but a
//! sweep now and then.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header, uri};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tower::Service;

use crate::Body;
use crate::tls::{Connector, Stream};

/// A connection that was idle for as long is closed.
pub(crate) const MOST_IDLE: Duration = Duration::from_secs(30);
/// Between two looks for those, and for those that the other end has closed.
const SWEEP: Duration = Duration::from_secs(5);
/// Idle connections are kept in so many places, each for its own threads: a connection stays with the
/// thread that made it, where threads have a runtime each.
const SHELVES: usize = 64;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum LineError {
    /// There is no connection.
    Connect(BoxError),
    /// It broke.
    Broken(hyper::Error),
}

/// A connection, and the end by which requests enter it.
struct Line {
    sender: SendRequest<Body>,
    connection: Connection<TokioIo<Stream>, Body>,
    idle_since: Instant,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("idle_since", &self.idle_since).finish_non_exhaustive()
    }
}

impl Line {
    /// Whether the connection lies ready for another request. Moves it on as far as it goes.
    fn is_ready(&mut self) -> bool {
        // Nobody comes back to it, so it may not be put off, as tokio does with who has done much.
        let moved = std::pin::pin!(tokio::task::unconstrained(&mut self.connection));
        moved.poll(&mut Context::from_waker(Waker::noop())).is_pending() && self.sender.is_ready()
    }
}

/// By the authority that they lead to.
type Shelf = HashMap<Box<str>, VecDeque<Box<Line>>>;

/// Idle connections.
#[derive(Debug, Clone)]
pub(crate) struct Lines(Arc<Shelves>);

struct Shelves {
    connector: Connector,
    of_threads: [Mutex<Shelf>; SHELVES],
    is_swept: AtomicBool,
}

impl std::fmt::Debug for Shelves {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelves").finish_non_exhaustive()
    }
}

impl Shelves {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SHELVES;
        }
        let shelf = MINE.with(|mine| *mine);
        self.of_threads[shelf].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes what nobody wants any more. Returns whether anything is left.
    fn sweep(&self) -> bool {
        let now = Instant::now();
        let mut left = false;
        for shelf in &self.of_threads {
            let mut shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
            shelf.retain(|_, lines| {
                lines.retain_mut(|line| now.duration_since(line.idle_since) < MOST_IDLE && line.is_ready());
                !lines.is_empty()
            });
            left |= !shelf.is_empty();
        }
        left
    }
}

impl Lines {
    pub(crate) fn new(connector: Connector) -> Self {
        let of_threads = std::array::from_fn(|_| Mutex::default());
        Self(Arc::new(Shelves { connector, of_threads, is_swept: AtomicBool::new(false) }))
    }

    /// The connection that was used last, if it is still open.
    fn take(&self, to: &str) -> Option<Box<Line>> {
        loop {
            let mut line = self.0.shelf().get_mut(to)?.pop_back()?;
            if line.is_ready() {
                return Some(line);
            }
        }
    }

    fn put(&self, to: &str, mut line: Box<Line>) {
        line.idle_since = Instant::now();
        let mut shelf = self.0.shelf();
        if let Some(lines) = shelf.get_mut(to) {
            lines.push_back(line);
        } else {
            shelf.insert(to.into(), VecDeque::from([line]));
        }
        drop(shelf);
        if !self.0.is_swept.load(Ordering::Relaxed) && !self.0.is_swept.swap(true, Ordering::AcqRel) {
            let shelves = Arc::downgrade(&self.0);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(SWEEP).await;
                    let Some(shelves) = shelves.upgrade() else { return };
                    if !shelves.sweep() {
                        shelves.is_swept.store(false, Ordering::Release);
                        return;
                    }
                }
            });
        }
    }

    async fn connect(&self, to: Uri) -> Result<Box<Line>, LineError> {
        let mut connector = self.0.connector.clone();
        poll_fn(|context| connector.poll_ready(context)).await.map_err(LineError::Connect)?;
        let stream = connector.call(to).await.map_err(LineError::Connect)?;
        let (sender, connection) = http1::handshake(stream).await.map_err(LineError::Broken)?;
        Ok(Box::new(Line { sender, connection, idle_since: Instant::now() }))
    }

    /// Sends a request whose URI is absolute, and waits for the head of its answer.
    pub(crate) async fn send(&self, mut request: Request<Body>) -> Result<Response<Answer>, LineError> {
        let whole = std::mem::take(request.uri_mut());
        let authority = whole.authority().cloned();
        let Some(authority) = authority else {
            return Err(LineError::Connect("the request's URL names no host".into()));
        };
        let path = whole.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
        if !request.headers().contains_key(header::HOST) {
            let host = HeaderValue::from_str(authority.as_str());
            request
                .headers_mut()
                .insert(header::HOST, host.map_err(|error| LineError::Connect(error.into()))?);
        }
        loop {
            let (mut line, is_used) = match self.take(authority.as_str()) {
                Some(line) => (line, true),
                None => (self.connect(whole.clone()).await?, false),
            };
            // What it waits for comes of moving the connection alone, which is always moved first: it wakes
            // nobody. Nor may it be put off, as tokio does with who has done much.
            let sending = tokio::task::unconstrained(line.sender.try_send_request(request));
            let mut sending = std::pin::pin!(sending);
            let mut is_open = true;
            let sent = poll_fn(|context| {
                if is_open {
                    is_open = Pin::new(&mut line.connection).poll(context).is_pending();
                }
                sending.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            });
            match sent.await {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    let home = Some((self.clone(), authority));
                    let mut answer = Answer { body, line: is_open.then_some(line), home };
                    if answer.is_end_stream() {
                        answer.give_back();
                    }
                    return Ok(Response::from_parts(head, answer));
                }
                // The other end had closed it meanwhile, and nothing of the request has left.
                Err(mut error) => match error.take_message().filter(|_| is_used) {
                    Some(unsent) => request = unsent,
                    None => return Err(LineError::Broken(error.into_error())),
                },
            }
        }
    }
}

/// The body of an answer. Reading it moves its connection; a connection whose answer was read to its end
/// is used again, another is closed.
#[derive(Debug)]
pub struct Answer {
    body: Incoming,
    /// `None` where somebody else moves it, or nobody any more.
    line: Option<Box<Line>>,
    home: Option<(Lines, uri::Authority)>,
}

impl From<Incoming> for Answer {
    fn from(body: Incoming) -> Self {
        Self { body, line: None, home: None }
    }
}

impl Answer {
    fn give_back(&mut self) {
        if let Some(mut line) = self.line.take()
            && let Some((lines, to)) = self.home.take()
            && line.is_ready()
        {
            lines.put(to.as_str(), line);
        }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // The connection may be another request's by now: it says no more that this was all.
        if self.body.is_end_stream() {
            self.give_back();
            return Poll::Ready(None);
        }
        // Asking for a frame lets the connection read it.
        let mut polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_pending()
            && let Some(line) = &mut self.line
        {
            if Pin::new(&mut line.connection).poll(context).is_ready() {
                self.line = None;
            }
            polled = Pin::new(&mut self.body).poll_frame(context);
        }
        match &polled {
            Poll::Ready(Some(Ok(_))) if !self.body.is_end_stream() => {}
            Poll::Ready(Some(Err(_))) => self.line = None,
            Poll::Ready(_) => self.give_back(),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
