//! Every default of Strata in one place. Layers read them from here and never restate them.

use std::time::Duration;

/// Largest request body a layer accepts.
pub const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;
/// Largest header section a listener accepts.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Time to establish a connection to the next layer.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time that a TLS handshake may take, on either side.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time until the first byte of an upstream response.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(120);
/// The same for a layer above the scheduler, which may first wait for a model to wake.
pub const FIRST_BYTE_ABOVE_TIMEOUT: Duration =
    Duration::from_secs(WAKE_TIMEOUT.as_secs() + FIRST_BYTE_TIMEOUT.as_secs());
/// Longest silence between two chunks of a stream.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest life of one streamed response.
pub const STREAM_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Time a client may take to send its request's header section.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Time a client may take to send its request's body.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Time between un-routing a replica and telling it to stop.
pub const PRE_STOP: Duration = Duration::from_secs(15);
/// Time after SIGTERM in which a scheduler on a cluster says that it is not ready and still takes
/// requests.
pub const LEAVE_AFTER: Duration = Duration::from_secs(2);
/// Time a process may take to finish its streams after SIGTERM, in examples and on a host.
pub const DRAIN_GRACE: Duration = Duration::from_secs(60);
/// Longest time the gateway holds a request back until a rate window has room.
pub const WINDOW_WAIT: Duration = Duration::from_secs(10);
/// Requests the scheduler holds back for each replica.
pub const QUEUE_PER_REPLICA: usize = 256;
/// Longest time the scheduler holds a request back for capacity.
pub const QUEUE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time the scheduler holds a request of a priority below zero back for capacity.
pub const SHED_AFTER: Duration = Duration::from_secs(1);
/// Time over which the scheduler gives a replica that is new its full share of requests.
pub const SLOW_START: Duration = Duration::from_secs(10);
/// Longest time the scheduler holds a request back for a model that is asleep or starts.
pub const WAKE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// How often the scheduler reads a replica's metrics.
pub const SCRAPE_INTERVAL: Duration = Duration::from_millis(200);
/// Tokens in one block of the KV cache.
pub const BLOCK_TOKENS: usize = 16;
/// Bytes in one block of the canonical prefix.
pub const BLOCK_BYTES: usize = 256;
/// Bytes of a prompt that a replica must lack for a prefill replica to compute it: below, the way there
/// costs more than it saves.
pub const PREFILL_BYTES: usize = 2048;
/// Longest time until finished usage is on disk.
pub const USAGE_FLUSH: Duration = Duration::from_millis(100);
/// Longest time the platform caches who a key belongs to.
pub const WHOAMI_TTL: Duration = Duration::from_secs(1);
/// Share of requests that the scheduler may send a second time.
pub const RETRY_BUDGET: f64 = 0.1;
/// Output tokens that the gateway writes into a request that names no limit.
pub const MAX_OUTPUT_TOKENS: u64 = 1024;
/// Tokens that one engine step processes at most.
pub const STEP_TOKENS: usize = 512;
/// Sequences that one engine step processes at most.
pub const MAX_SEQUENCES: usize = 64;
/// How long nobody asks for a model until it sleeps, where it may.
pub const SLEEP_AFTER: Duration = Duration::from_secs(15 * 60);
/// Where `strata up` listens.
pub const UP_LISTEN: &str = "127.0.0.1:8080";
