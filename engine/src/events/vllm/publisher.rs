//! The sockets: PUB for what happens, ROUTER for what has happened.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::mpsc;
use zeromq::{Endpoint, PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqError, ZmqMessage};

use super::outlet::Outlet;
use super::{KvEventsConfig, payload};
use crate::block::Change;

/// Ends a replay: −1.
const END: [u8; 8] = [0xff; 8];

/// Why nothing can be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The address is none.
    #[error(
        "kv-events-config: `{name}` is `{endpoint}` and must be tcp://HOST:PORT, with * for all interfaces"
    )]
    Endpoint {
        /// Which.
        name: &'static str,
        /// What was given.
        endpoint: String,
    },
    /// The address cannot be had.
    #[error("kv-events-config: `{name}`, {endpoint}, cannot be used: {message}")]
    Socket {
        /// Which.
        name: &'static str,
        /// What was given.
        endpoint: String,
        /// What the system said.
        message: String,
    },
}

/// The engine's end: gives changes and never waits.
#[derive(Debug)]
pub(crate) struct KvFeed {
    queue: mpsc::Sender<Batch>,
    next: u64,
}

#[derive(Debug)]
struct Batch {
    sequence: u64,
    seconds: f64,
    changes: Vec<Change>,
}

impl KvFeed {
    /// Publishes what has just changed. What the queue has no room for is lost, and its number missing.
    pub(crate) fn publish(&mut self, changes: Vec<Change>) {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let batch = Batch { sequence: self.next, seconds, changes };
        self.next += 1;
        if self.queue.try_send(batch).is_err() {
            tracing::warn!(sequence = self.next - 1, "a batch of block events is lost: too many wait");
        }
    }
}

/// Sockets that nothing is published on yet: bound ones, or one that is connected once it has begun.
pub struct KvPublisher {
    events: PubSocket,
    /// Who is connected to; none for a socket that is bound.
    peer: Option<String>,
    replay: Option<RouterSocket>,
    topic: Bytes,
    kept: usize,
    queue: usize,
}

impl std::fmt::Debug for KvPublisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KvPublisher")
    }
}

/// An address as the sockets take it.
fn address(name: &'static str, endpoint: &str) -> Result<String, PublishError> {
    let address = endpoint.replace('*', "0.0.0.0");
    match address.parse() {
        Ok(Endpoint::Tcp(..)) => Ok(address),
        _ => Err(PublishError::Endpoint { name, endpoint: endpoint.to_owned() }),
    }
}

impl KvPublisher {
    /// Takes the addresses that are bound. Nobody is connected to yet.
    pub async fn bind(config: &KvEventsConfig) -> Result<Self, PublishError> {
        let failed = |name, endpoint: &str, error: &ZmqError| PublishError::Socket {
            name,
            endpoint: endpoint.to_owned(),
            message: error.to_string(),
        };
        let mut events = PubSocket::new();
        let to = address("endpoint", &config.endpoint)?;
        let stays = config.endpoint.contains('*') || config.endpoint.contains("::");
        if stays {
            events.bind(&to).await.map_err(|e| failed("endpoint", &config.endpoint, &e))?;
        }
        let replay = match &config.replay_endpoint {
            None => None,
            Some(endpoint) => {
                let mut replay = RouterSocket::new();
                let to = address("replay_endpoint", endpoint)?;
                replay.bind(&to).await.map_err(|e| failed("replay_endpoint", endpoint, &e))?;
                Some(replay)
            }
        };
        let topic = Bytes::from(config.topic.clone());
        let (kept, queue) = (config.buffer_steps, config.max_queue_size.max(1));
        Ok(Self { events, peer: (!stays).then_some(to), replay, topic, kept, queue })
    }

    /// Starts to publish on a task of its own, which ends with the feed.
    pub(crate) fn start(self) -> KvFeed {
        let (queue, batches) = mpsc::channel(self.queue);
        tokio::spawn(self.run(batches));
        KvFeed { queue, next: 0 }
    }

    async fn run(self, mut batches: mpsc::Receiver<Batch>) {
        let Self { events, peer, mut replay, topic, kept: most, queue: _ } = self;
        let mut outlet = Outlet::new(events, peer);
        let mut kept: VecDeque<(u64, Bytes)> = VecDeque::new();
        loop {
            let request = async {
                match &mut replay {
                    Some(replay) => replay.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                batch = batches.recv() => {
                    let Some(batch) = batch else { return };
                    let packed = Bytes::from(payload::batch(batch.seconds, &batch.changes));
                    let sequence = Bytes::copy_from_slice(&batch.sequence.to_be_bytes());
                    let message = [topic.clone(), sequence, packed.clone()];
                    if let Err(error) = outlet.send(frames(message)).await {
                        tracing::warn!(%error, "block events could not be published");
                    }
                    kept.push_back((batch.sequence, packed));
                    if kept.len() > most {
                        kept.pop_front();
                    }
                }
                () = outlet.attend() => {}
                request = request => {
                    if let (Ok(request), Some(replay)) = (request, &mut replay)
                        && let Err(error) = answer(replay, &topic, &request, &kept).await
                    {
                        tracing::warn!(%error, "a replay of block events broke off");
                    }
                }
            }
        }
    }
}

fn frames<const N: usize>(parts: [Bytes; N]) -> ZmqMessage {
    let mut message = ZmqMessage::from(parts[0].clone());
    parts.into_iter().skip(1).for_each(|part| message.push_back(part));
    message
}

/// Sends the batches from a number on, as they were published, and the end.
async fn answer(
    replay: &mut RouterSocket,
    topic: &Bytes,
    request: &ZmqMessage,
    kept: &VecDeque<(u64, Bytes)>,
) -> Result<(), ZmqError> {
    let (Some(client), Some(from), 3) = (request.get(0), request.get(2), request.len()) else {
        tracing::warn!(frames = request.len(), "a replay was asked for in another form than vLLM's");
        return Ok(());
    };
    let from = from.iter().fold(0u64, |number, byte| (number << 8) | u64::from(*byte));
    for (sequence, packed) in kept.iter().filter(|(sequence, _)| *sequence >= from) {
        let number = Bytes::copy_from_slice(&sequence.to_be_bytes());
        let parts = [client.clone(), Bytes::new(), topic.clone(), number, packed.clone()];
        replay.send(frames(parts)).await?;
    }
    let end = [client.clone(), Bytes::new(), Bytes::new(), Bytes::from_static(&END), Bytes::new()];
    replay.send(frames(end)).await
}
