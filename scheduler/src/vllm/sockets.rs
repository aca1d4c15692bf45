//! The two sockets of a vLLM, from the other end: what happens, and what has happened.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use zeromq::{DealerSocket, Socket, SocketEvent, SocketRecv, SocketSend, SubSocket, ZmqError, ZmqMessage};

use super::order::Mark;

/// Longest time until a connection is there, and until the next message of a replay is.
const PATIENCE: Duration = Duration::from_secs(5);
/// The number that ends a replay: −1.
const END: u64 = u64::MAX;

/// Why a socket is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The other end cannot be reached, or has gone.
    #[error("{0}")]
    Socket(#[from] ZmqError),
    /// It hung up.
    #[error("it hung up")]
    HungUp,
    /// It says nothing.
    #[error("{0} took longer than {seconds} s", seconds = PATIENCE.as_secs())]
    Silent(&'static str),
    /// What it says has another form.
    #[error("a message has {0} frames, and is no batch with its number")]
    Form(usize),
}

/// A batch that is not unpacked.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Which.
    pub mark: Mark,
    /// What it holds.
    pub bytes: Bytes,
}

/// The number and the batch are a message's last frames: what stands before them differs by version.
fn packed(message: &ZmqMessage) -> Result<Packed, Broken> {
    let frames = message.len();
    let number = frames.checked_sub(2).and_then(|at| message.get(at));
    let number = number.and_then(|number| <[u8; 8]>::try_from(&number[..]).ok()).map(u64::from_be_bytes);
    let (Some(number), Some(bytes)) = (number, message.get(frames.saturating_sub(1))) else {
        return Err(Broken::Form(frames));
    };
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    Ok(Packed { mark: Mark { number, print: hasher.finish() }, bytes: bytes.clone() })
}

async fn in_time<T>(
    what: &'static str,
    wait: impl Future<Output = Result<T, ZmqError>>,
) -> Result<T, Broken> {
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    Ok(waited.map_err(|_| Broken::Silent(what))??)
}

/// What happens.
pub struct Live {
    socket: SubSocket,
    seen: mpsc::Receiver<SocketEvent>,
}

impl Live {
    /// Connects and asks for all topics.
    pub async fn connect(endpoint: &str) -> Result<Self, Broken> {
        let mut socket = SubSocket::new();
        // Told before there is a connection, it is told again with each.
        in_time("subscribing", socket.subscribe("")).await?;
        let seen = socket.monitor();
        in_time("connecting", socket.connect(endpoint)).await?;
        Ok(Self { socket, seen })
    }

    /// The next batch. The socket would connect again by itself, and nobody would know what was missed
    /// meanwhile: a connection that breaks ends it.
    pub async fn next(&mut self) -> Result<Packed, Broken> {
        loop {
            tokio::select! {
                message = self.socket.recv() => return packed(&message?),
                event = self.seen.next() => {
                    if !matches!(event, Some(SocketEvent::Connected(..))) {
                        return Err(Broken::HungUp);
                    }
                }
            }
        }
    }
}

/// What has happened.
pub struct Replay(DealerSocket);

impl Replay {
    /// Asks for the batches from this number on.
    pub async fn ask(endpoint: &str, from: u64) -> Result<Self, Broken> {
        let mut socket = DealerSocket::new();
        in_time("connecting for a replay", socket.connect(endpoint)).await?;
        let mut question = ZmqMessage::from(Bytes::new());
        question.push_back(Bytes::copy_from_slice(&from.to_be_bytes()));
        in_time("asking for a replay", socket.send(question)).await?;
        Ok(Self(socket))
    }

    /// The next of them; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Packed>, Broken> {
        let packed = packed(&in_time("a replay", self.0.recv()).await?)?;
        Ok((packed.mark.number != END).then_some(packed))
    }
}
