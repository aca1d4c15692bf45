//! Where block events go out: a socket that is bound, or one that goes to a peer, which may come late, go
//! away and come back. Without its peer it is tried on, and what is sent meanwhile is dropped, as a PUB
//! socket without subscribers does.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures::channel::mpsc;
use futures::{FutureExt, StreamExt};
use zeromq::{PubSocket, Socket, SocketEvent, SocketSend, ZmqError, ZmqMessage};

/// How long one attempt to reach a peer may take, and the wait before the next.
const ATTEMPT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(500);

type Reached = (PubSocket, mpsc::Receiver<SocketEvent>);

pub(super) struct Outlet {
    peer: Option<String>,
    state: State,
}

enum State {
    Bound(PubSocket),
    /// With what tells that the peer has gone.
    Connected(Reached),
    Connecting(Pin<Box<dyn Future<Output = Reached> + Send>>),
}

impl Outlet {
    /// Goes to this peer, if the socket is not bound.
    pub(super) fn new(socket: PubSocket, peer: Option<String>) -> Self {
        let state = match peer.clone() {
            None => State::Bound(socket),
            Some(peer) => State::Connecting(reach(socket, peer).boxed()),
        };
        Self { peer, state }
    }

    pub(super) async fn send(&mut self, message: ZmqMessage) -> Result<(), ZmqError> {
        match &mut self.state {
            State::Bound(socket) | State::Connected((socket, _)) => socket.send(message).await,
            State::Connecting(_) => Ok(()),
        }
    }

    /// Reaches the peer, and notes when it has gone. Returns when either has happened, loses nothing when it
    /// is dropped before, and never returns for a socket that is bound.
    pub(super) async fn attend(&mut self) {
        match &mut self.state {
            State::Bound(_) => std::future::pending().await,
            State::Connecting(reaching) => self.state = State::Connected(reaching.await),
            State::Connected((_, events)) => {
                while !matches!(events.next().await, Some(SocketEvent::Disconnected(_)) | None) {}
                tracing::warn!(
                    peer = self.peer,
                    "who took the block events has gone; it is tried until it is back"
                );
                let peer = self.peer.clone().unwrap_or_default();
                self.state = State::Connecting(reach(PubSocket::new(), peer).boxed());
            }
        }
    }
}

/// Connects, however long it takes. Says once that it takes long.
async fn reach(mut socket: PubSocket, peer: String) -> Reached {
    let mut told = false;
    loop {
        let events = socket.monitor();
        let attempt = tokio::time::timeout(ATTEMPT, socket.connect(&peer)).await;
        let problem = match attempt {
            Ok(Ok(())) => {
                tracing::info!(peer, "block events go to their peer");
                return (socket, events);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "nobody answers".to_owned(),
        };
        if !told {
            tracing::warn!(peer, problem, "block events reach nobody; their peer is tried until it is there");
            told = true;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
