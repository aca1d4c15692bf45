//! Blocks from one engine to another, so that one can compute a prompt and another answer.
//!
//! Who computed the prompt copies its full blocks out of its cache and keeps them, for a while and up to
//! a limit, for whoever fetches them first; who answers puts them into the memory tier below its own
//! cache, where the request finds them. So neither holds blocks of its cache for the other, and whatever
//! is not fetched (too late, too much, another model, an engine that died) is computed.

mod kept;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use strata_hop::{Body, HopToken, Upstream};

pub use kept::Kept;
pub(crate) use stream::{Decoder, encode};

use crate::block::BlockHash;

/// How long blocks are kept for whoever is to fetch them: vLLM's own limit.
pub const KEPT: Duration = Duration::from_secs(480);
/// Time until the other engine begins to answer, and between two pieces of what it sends.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who may fetch from whom, as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvTransfer {
    /// The name or address by which other engines reach this one.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Bytes of blocks that are kept for others, and at most as many from others.
    pub bytes: u64,
}

/// What a request says of its blocks elsewhere, in the words of vLLM's NixlConnector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransferParams {
    /// Keep what is computed of the prompt for another engine.
    pub do_remote_decode: bool,
    /// Fetch what another engine has computed of the prompt.
    pub do_remote_prefill: bool,
    /// The run of the engine that keeps it.
    pub remote_engine_id: Option<String>,
    /// The request there.
    pub remote_request_id: Option<String>,
    /// The blocks, numbered as the prompt has them.
    pub remote_block_ids: Option<Vec<u32>>,
    /// The engine that keeps them.
    pub remote_host: Option<String>,
    /// Its port.
    pub remote_port: Option<u16>,
}

/// An engine's part in transfers.
#[derive(Debug)]
pub struct Transfer {
    options: KvTransfer,
    fingerprint: [u8; 32],
    block_bytes: usize,
    kept: Arc<Kept>,
    upstream: Upstream,
    token: Option<HopToken>,
}

/// Why blocks could not be fetched; the prompt is computed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(String);

impl Transfer {
    /// A part for blocks of this size, of the model of this fingerprint.
    pub fn new(
        options: KvTransfer,
        fingerprint: [u8; 32],
        block_bytes: usize,
        upstream: Upstream,
        token: Option<HopToken>,
    ) -> Self {
        let kept = Arc::new(Kept::new(options.bytes, KEPT));
        Self { options, fingerprint, block_bytes, kept, upstream, token }
    }

    /// What is kept for others.
    pub fn kept(&self) -> &Arc<Kept> {
        &self.kept
    }

    /// What the engine that answers is to be told; `None` when nothing was kept.
    pub fn words(&self, engine: &str, request: &str) -> Option<TransferParams> {
        let blocks = self.kept.blocks(request)?;
        Some(TransferParams {
            do_remote_decode: false,
            do_remote_prefill: true,
            remote_engine_id: Some(engine.to_owned()),
            remote_request_id: Some(request.to_owned()),
            remote_block_ids: Some((0..blocks as u32).collect()),
            remote_host: Some(self.options.host.clone()),
            remote_port: Some(self.options.port),
        })
    }

    /// The body that holds a request's blocks, which are no longer kept; `None` when there are none.
    pub(crate) fn body(&self, request: &str) -> Option<Body> {
        let blocks = self.kept.take(request)?;
        Some(encode(&self.fingerprint, self.block_bytes, blocks))
    }

    /// Fetches the blocks that a request names, and gives each to `take` as it comes.
    pub(crate) async fn fetch(
        &self,
        params: &TransferParams,
        mut take: impl FnMut(BlockHash, Bytes),
    ) -> Result<usize, FetchError> {
        let (Some(host), Some(port), Some(id)) =
            (&params.remote_host, params.remote_port, &params.remote_request_id)
        else {
            return Err(FetchError("it does not say where".into()));
        };
        let scheme = if self.upstream.is_secured() { "https" } else { "http" };
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let id = percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
        let mut request = http::Request::builder()
            .uri(format!("{scheme}://{host}:{port}/internal/v1/kv/{id}"))
            .body(Body::empty())
            .map_err(|e| FetchError(e.to_string()))?;
        if let Some(token) = &self.token {
            token.attach(request.headers_mut());
        }
        let response = self.upstream.send(request, PATIENCE).await.map_err(|e| FetchError(e.to_string()))?;
        if !response.status().is_success() {
            return Err(FetchError(format!("it answered {}", response.status().as_u16())));
        }
        let most = (self.options.bytes / self.block_bytes.max(1) as u64) as usize;
        let mut decoder = Decoder::new(self.fingerprint, self.block_bytes, most);
        let mut body = response.into_body();
        let mut blocks = 0;
        while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame())
            .await
            .map_err(|_| FetchError(format!("nothing came for {} s", PATIENCE.as_secs())))?
        {
            let frame = frame.map_err(|e| FetchError(format!("it broke off: {e}")))?;
            let Ok(data) = frame.into_data() else { continue };
            decoder.push(&data);
            while let Some((hash, bytes)) = decoder.next().map_err(FetchError)? {
                take(hash, bytes);
                blocks += 1;
            }
        }
        decoder.finish().map_err(FetchError).map(|()| blocks)
    }
}
