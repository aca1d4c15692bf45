//! What a request asks for, read from its body's top level alone, and the body that goes on.
//!
//! Pure. No text of the request is decoded but the model's name and the user's id.

use bytes::Bytes;
use strata_hop::Fault;
use strata_wire::defaults::MAX_OUTPUT_TOKENS;
use strata_wire::patch::{self, Patch};
use strata_wire::toplevel::TopLevel;
use strata_wire::{ErrorBody, ErrorKind};

use crate::quota::Amounts;

/// Tokens that a completion generates when its request names no limit, as the API defines it.
const COMPLETION_TOKENS: u64 = 16;
/// What a chat template is taken to add when the engine does not say.
const TEMPLATE_OVERHEAD: u64 = 256;

/// The inference endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
}

impl Endpoint {
    /// Its name in the ledger and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat.completions",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
        }
    }

    /// Its path.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }
}

/// What an engine says of a model, as far as bounds need it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelFacts {
    /// Tokens that the chat template can add.
    pub template_overhead: Option<u64>,
    /// Tokens of prompt and output that the model can hold.
    pub max_model_len: Option<u64>,
}

/// A request, read.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The model asked for.
    pub model: String,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether the client asked for the usage at the end of the stream.
    pub wants_usage: bool,
    /// Whether the client asked for the usage so far in every chunk.
    pub wants_continuous: bool,
    /// Who the tenant says is asking.
    pub user: Option<String>,
    body: Bytes,
    top: TopLevel,
}

impl Ask {
    /// Reads a body.
    pub fn read(endpoint: Endpoint, body: Bytes) -> Result<Self, Fault> {
        let top = TopLevel::scan(&body).map_err(|e| bad(e.to_body()))?;
        let model = top.text(&body, "model").map_err(bad)?;
        let model = model.filter(|m| !m.is_empty()).ok_or_else(|| {
            Fault::invalid_param(
                "model",
                "you must name a model: set `model` to one that `GET /v1/models` lists",
            )
        })?;
        let stream =
            endpoint != Endpoint::Embeddings && top.boolean(&body, "stream").map_err(bad)?.unwrap_or(false);
        let (mut wants_usage, mut wants_continuous) = (false, false);
        if stream && let Some(raw) = top.raw(&body, "stream_options").filter(|raw| *raw != b"null") {
            let wrong = || Fault::invalid_param("stream_options", "`stream_options` must be an object");
            let options = TopLevel::scan(raw).map_err(|_| wrong())?;
            wants_usage = options.boolean(raw, "include_usage").map_err(bad)?.unwrap_or(false);
            wants_continuous =
                wants_usage && options.boolean(raw, "continuous_usage_stats").map_err(bad)?.unwrap_or(false);
        }
        let user = match top.text(&body, "user").map_err(bad)? {
            Some(user) => Some(user),
            None => top.text(&body, "safety_identifier").map_err(bad)?,
        };
        Ok(Self { endpoint, model, stream, wants_usage, wants_continuous, user, body, top })
    }

    fn number(&self, key: &str) -> Result<Option<u64>, Fault> {
        self.top.whole_number(&self.body, key).map_err(bad)
    }

    /// Output tokens of one answer at most, as the request says; `None` when it names no limit.
    fn named_limit(&self) -> Result<Option<u64>, Fault> {
        let limits = [self.number("max_tokens")?, self.number("max_completion_tokens")?];
        Ok(limits.into_iter().flatten().max())
    }

    /// Output tokens written into a request that names no limit.
    fn default_limit(&self, facts: &ModelFacts) -> u64 {
        match self.endpoint {
            Endpoint::Chat => {
                facts.max_model_len.map_or(MAX_OUTPUT_TOKENS, |len| MAX_OUTPUT_TOKENS.min((len / 2).max(1)))
            }
            Endpoint::Completions => COMPLETION_TOKENS,
            Endpoint::Embeddings => 0,
        }
    }

    /// An upper bound of what the request can use: bytes for text, the count for token ids, and the
    /// largest limit on the output times the answers.
    pub fn bound(&self, facts: &ModelFacts) -> Result<Amounts, Fault> {
        let prompts = match self.endpoint {
            Endpoint::Chat => None,
            Endpoint::Completions => self.top.raw(&self.body, "prompt").map(prompts),
            Endpoint::Embeddings => self.top.raw(&self.body, "input").map(prompts),
        };
        let overhead = facts.template_overhead.unwrap_or(TEMPLATE_OVERHEAD);
        let count = prompts.map_or(1, |p| p.count.max(1));
        let input = if let Some(tokens) = prompts.and_then(|p| p.tokens) {
            tokens
        } else {
            // A byte that is no UTF-8 may be read as U+FFFD, which is three.
            let widening = if std::str::from_utf8(&self.body).is_ok() { 1 } else { 3 };
            (self.body.len() as u64).saturating_mul(widening).saturating_add(overhead.saturating_mul(count))
        };
        let each = match self.endpoint {
            Endpoint::Embeddings => 0,
            _ => self
                .named_limit()?
                .unwrap_or_else(|| self.default_limit(facts))
                .max(self.number("min_tokens")?.unwrap_or(0)),
        };
        let answers = self.number("n")?.unwrap_or(1).max(self.number("best_of")?.unwrap_or(1)).max(1);
        let output = each.saturating_mul(answers).saturating_mul(count);
        Ok(Amounts { requests: 1, input, output })
    }

    /// The changes that the gateway makes to the body.
    pub fn patches(&self, facts: &ModelFacts) -> Result<Vec<Patch>, Fault> {
        let mut patches: Vec<Patch> = patch::GATEWAY.remove.iter().map(|key| Patch::Remove(key)).collect();
        if self.stream {
            for option in ["include_usage", "continuous_usage_stats"] {
                patches.push(Patch::SetIn("stream_options", option, "true".to_owned()));
            }
        }
        if self.endpoint != Endpoint::Embeddings && self.named_limit()?.is_none() {
            patches.push(Patch::Set("max_tokens", self.default_limit(facts).to_string()));
        }
        Ok(patches)
    }

    /// The body that goes on.
    pub fn forwarded(&self, facts: &ModelFacts) -> Result<Bytes, Fault> {
        let patches = self.patches(facts)?;
        debug_assert!(patches.iter().all(|p| p.is_allowed(&patch::GATEWAY)));
        patch::apply(&self.body, &self.top, &patches).map_err(|e| bad(e.to_body()))
    }
}

fn bad(body: ErrorBody) -> Fault {
    Fault::from_body(ErrorKind::InvalidRequest, body)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prompts {
    /// How many prompts.
    count: u64,
    /// How many token ids in all, where all prompts are token ids.
    tokens: Option<u64>,
}

/// The shape of a prompt: a text, texts, token ids, or lists of them. `raw` is valid JSON; what fits no
/// shape counts as one text.
fn prompts(raw: &[u8]) -> Prompts {
    if raw.first() != Some(&b'[') {
        return Prompts { count: 1, tokens: None };
    }
    let (mut depth, mut in_string, mut escaped) = (0u32, false, false);
    let (mut items, mut lists, mut numbers, mut others) = (0u64, 0u64, 0u64, false);
    let mut in_number = false;
    for byte in raw {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        let was_in_number = in_number;
        in_number = byte.is_ascii_digit();
        match byte {
            b'[' => {
                depth += 1;
                lists += u64::from(depth == 2);
                others |= depth > 2;
            }
            b']' => depth -= 1,
            b'"' => {
                in_string = true;
                others = true;
                items += u64::from(depth == 1);
            }
            b'0'..=b'9' if !was_in_number => numbers += 1,
            b'0'..=b'9' | b',' | b' ' | b'\t' | b'\n' | b'\r' => {}
            _ => others = true,
        }
    }
    match (others, lists) {
        (true, _) => Prompts { count: items + lists, tokens: None },
        (false, 0) => Prompts { count: 1, tokens: Some(numbers) },
        (false, lists) => Prompts { count: lists, tokens: Some(numbers) },
    }
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
