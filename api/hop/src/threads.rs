//! Threads that each serve their own connections.

use std::future::Future;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Threads with a runtime each. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Threads {
    handles: Vec<Handle>,
    next: usize,
    _stop: DropGuard,
}

impl Threads {
    /// Starts so many. Those that cannot be started are missed: without any, the runtime of whoever asks
    /// serves the connections.
    pub(crate) fn start(count: usize) -> Self {
        let stop = CancellationToken::new();
        let mut handles = Vec::new();
        for number in 0..count {
            let stop = stop.clone();
            let started = Builder::new_current_thread().enable_all().build().and_then(|runtime| {
                let handle = runtime.handle().clone();
                let thread = std::thread::Builder::new().name(format!("connections-{number}"));
                thread.spawn(move || runtime.block_on(stop.cancelled()))?;
                Ok(handle)
            });
            match started {
                Ok(handle) => handles.push(handle),
                Err(error) => tracing::warn!(%error, "could not start a thread for connections"),
            }
        }
        Self { handles, next: 0, _stop: stop.drop_guard() }
    }

    /// Serves a connection on the thread whose turn it is.
    pub(crate) fn spawn<F>(&mut self, stream: TcpStream, serve: impl FnOnce(TcpStream) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.handles.is_empty() {
            tokio::spawn(serve(stream));
            return;
        }
        self.next = (self.next + 1) % self.handles.len();
        let moved = stream.into_std();
        self.handles[self.next].spawn(async move {
            // The stream is told of its bytes by the runtime that it belongs to.
            match moved.and_then(TcpStream::from_std) {
                Ok(stream) => serve(stream).await,
                Err(error) => tracing::warn!(%error, "could not take over a connection"),
            }
        });
    }
}
