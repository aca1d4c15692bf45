//! What a vLLM publishes of its KV cache, by the same sockets: PUB for what happens, ROUTER for what has
//! happened.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rmpv::Value;
use strata_wire::replicas::KvEvents;
use tokio::task::JoinHandle;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

/// Tokens of a block.
pub(crate) const SIZE: usize = 16;

#[derive(Debug, Default)]
struct Log {
    next: u64,
    run: u64,
    kept: VecDeque<(u64, Bytes)>,
    most: usize,
    replays: usize,
}

pub(crate) struct Publisher {
    log: Arc<Mutex<Log>>,
    events: PubSocket,
    addresses: KvEvents,
    replays: JoinHandle<()>,
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.replays.abort();
    }
}

/// Binds, at an address that may still be held for a moment by a socket closed before.
async fn bind(socket: &mut impl Socket, address: &str) -> String {
    let deadline = tokio::time::Instant::now() + super::PATIENCE;
    loop {
        match socket.bind(address).await {
            Ok(endpoint) => return endpoint.to_string(),
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{address}: {error}"),
        }
        tokio::task::yield_now().await;
    }
}

impl Publisher {
    /// Keeps the last so many batches for a replay.
    pub(crate) async fn start(most: usize) -> Self {
        let addresses = KvEvents {
            publish: "tcp://127.0.0.1:0".to_owned(),
            replay: Some("tcp://127.0.0.1:0".to_owned()),
        };
        Self::run(addresses, Log { most, ..Log::default() }).await
    }

    async fn run(addresses: KvEvents, log: Log) -> Self {
        let (mut events, mut router) = (PubSocket::new(), RouterSocket::new());
        let publish = bind(&mut events, &addresses.publish).await;
        let replay = bind(&mut router, &addresses.replay.unwrap()).await;
        let log = Arc::new(Mutex::new(log));
        let replays = tokio::spawn(answer(router, Arc::clone(&log)));
        Self { log, events, addresses: KvEvents { publish, replay: Some(replay) }, replays }
    }

    /// Where it is reached.
    pub(crate) fn addresses(&self) -> KvEvents {
        self.addresses.clone()
    }

    /// How often it was asked for a replay.
    pub(crate) fn replays(&self) -> usize {
        self.log.lock().unwrap().replays
    }

    /// Ends, and begins anew at the same addresses with nothing to replay.
    pub(crate) async fn restart(self) -> Self {
        let addresses = self.addresses();
        let log = {
            let log = self.log.lock().unwrap();
            Log { run: log.run + 1, most: log.most, replays: log.replays, ..Log::default() }
        };
        drop(self);
        Self::run(addresses, log).await
    }

    /// A batch that nobody gets.
    pub(crate) fn lose(&self, events: Vec<Value>) -> (u64, Bytes) {
        let mut log = self.log.lock().unwrap();
        let mut packed = Vec::new();
        let batch = Value::Array(vec![Value::from(log.run as f64 + 0.5), Value::Array(events), 0.into()]);
        rmpv::encode::write_value(&mut packed, &batch).unwrap();
        log.keep(packed.into())
    }

    /// A batch.
    pub(crate) async fn publish(&mut self, events: Vec<Value>) {
        let (number, packed) = self.lose(events);
        self.send(number, packed).await;
    }

    /// Bytes that are no batch.
    pub(crate) async fn publish_bytes(&mut self, bytes: &'static [u8]) {
        let (number, packed) = self.log.lock().unwrap().keep(Bytes::from_static(bytes));
        self.send(number, packed).await;
    }

    async fn send(&mut self, number: u64, packed: Bytes) {
        let number = Bytes::copy_from_slice(&number.to_be_bytes());
        self.events.send(message([Bytes::from_static(b"kv"), number, packed])).await.unwrap();
    }
}

impl Log {
    fn keep(&mut self, packed: Bytes) -> (u64, Bytes) {
        let number = self.next;
        self.next += 1;
        self.kept.push_back((number, packed.clone()));
        if self.kept.len() > self.most {
            self.kept.pop_front();
        }
        (number, packed)
    }
}

async fn answer(mut router: RouterSocket, log: Arc<Mutex<Log>>) {
    while let Ok(asked) = router.recv().await {
        let (client, from) = (asked.get(0).unwrap().clone(), asked.get(2).unwrap());
        let from = u64::from_be_bytes(from[..].try_into().unwrap());
        let kept = {
            let mut log = log.lock().unwrap();
            log.replays += 1;
            log.kept.clone()
        };
        let batches = kept.into_iter().filter(|(number, _)| *number >= from);
        for (number, packed) in batches.chain([(u64::MAX, Bytes::new())]) {
            let number = Bytes::copy_from_slice(&number.to_be_bytes());
            if router
                .send(message([client.clone(), Bytes::new(), Bytes::new(), number, packed]))
                .await
                .is_err()
            {
                break;
            }
        }
    }
}

fn message<const N: usize>(frames: [Bytes; N]) -> ZmqMessage {
    let mut message = ZmqMessage::from(frames[0].clone());
    frames.into_iter().skip(1).for_each(|frame| message.push_back(frame));
    message
}

fn map(members: Vec<(&str, Value)>) -> Value {
    Value::Map(members.into_iter().map(|(key, value)| (key.into(), value)).collect())
}

/// A block's name: its place in this prompt, which is told from others by its text.
fn name(prompt: &str, block: usize) -> Value {
    Value::Binary([&prompt.as_bytes()[8..16], &(block as u64).to_be_bytes()].concat())
}

/// Blocks of a prompt of which each character is a token, as a vLLM of today tells them.
pub(crate) fn stored(prompt: &str, blocks: std::ops::Range<usize>) -> Value {
    let tokens = prompt.chars().skip(blocks.start * SIZE).take(blocks.len() * SIZE).map(u32::from);
    map(vec![
        ("type", "BlockStored".into()),
        ("block_hashes", Value::Array(blocks.clone().map(|block| name(prompt, block)).collect())),
        ("parent_block_hash", blocks.start.checked_sub(1).map_or(Value::Nil, |before| name(prompt, before))),
        ("token_ids", Value::Array(tokens.map(Value::from).collect())),
        ("block_size", SIZE.into()),
        ("lora_id", Value::Nil),
        ("medium", "GPU".into()),
        ("lora_name", Value::Nil),
        ("extra_keys", Value::Array(blocks.map(|_| Value::Nil).collect())),
        ("group_idx", 0.into()),
        ("kv_cache_spec_kind", "full_attention".into()),
    ])
}

/// They are gone.
pub(crate) fn removed(prompt: &str, blocks: std::ops::Range<usize>) -> Value {
    map(vec![
        ("type", "BlockRemoved".into()),
        ("block_hashes", Value::Array(blocks.map(|block| name(prompt, block)).collect())),
        ("medium", "GPU".into()),
        ("group_idx", 0.into()),
    ])
}

/// All are.
pub(crate) fn cleared() -> Value {
    map(vec![("type", "AllBlocksCleared".into())])
}
