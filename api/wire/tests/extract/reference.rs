//! The canonical prefix and the top level as they were first read: by a full parser and typed bodies, and
//! by recursion. What reads them now must say the same of every body.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;
use strata_wire::defaults::BLOCK_BYTES;
use strata_wire::prefix::{BlockHash, Opening, Passage, Prefix};
use strata_wire::toplevel::{MAX_DEPTH, MAX_MEMBERS, Member, ScanError, TopLevel};
use xxhash_rust::xxh3::xxh3_128_with_secret;

struct PrefixHasher {
    secret: [u8; 192],
    parent: [u8; 16],
    block: Vec<u8>,
    prefix: Prefix,
}

impl PrefixHasher {
    /// A chain for this cache scope and model. The scope is part of the root, so that no two scopes
    /// share a hash; it is not counted in [`Prefix::bytes`].
    fn new(scope: &str, model: &str) -> Self {
        let mut root = blake3::Hasher::new();
        for part in [scope, model] {
            root.update(&(part.len() as u64).to_le_bytes());
            root.update(part.as_bytes());
        }
        let mut root = root.finalize_xof();
        let (mut parent, mut secret) = ([0; 16], [0; 192]);
        root.fill(&mut parent);
        root.fill(&mut secret);
        Self { secret, parent, block: Vec::with_capacity(BLOCK_BYTES), prefix: Prefix::default() }
    }

    /// Appends text.
    fn push(&mut self, mut text: &[u8]) {
        self.prefix.bytes += text.len();
        while !text.is_empty() {
            let take = (BLOCK_BYTES - self.block.len()).min(text.len());
            self.block.extend_from_slice(&text[..take]);
            text = &text[take..];
            if self.block.len() == BLOCK_BYTES {
                self.parent = self.name();
                self.prefix.blocks.push(BlockHash(short(&self.parent)));
                self.block.clear();
            }
        }
    }

    /// The name of the text so far.
    fn name(&self) -> [u8; 16] {
        xxh3_128_with_secret(&[&self.parent, &self.block[..]].concat(), &self.secret).to_le_bytes()
    }

    /// The chain.
    fn finish(self) -> Prefix {
        self.prefix
    }

    /// Notes that the text so far is how the conversation opened.
    fn opened(&mut self) {
        let hash = short(&self.name());
        let blocks = self.prefix.blocks.len();
        self.prefix.opening.get_or_insert(Opening { hash, first: true, blocks });
    }

    /// Notes that something in the text is an answer.
    fn answered(&mut self) {
        if let Some(opening) = &mut self.prefix.opening {
            opening.first = false;
        }
    }
}

fn short(hash: &[u8; 16]) -> u64 {
    let mut short = [0; 8];
    short.copy_from_slice(&hash[..8]);
    u64::from_le_bytes(short)
}

const UNIT: &[u8] = &[0x1f];
const RECORD: &[u8] = &[0x1e];

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    model: Cow<'a, str>,
    #[serde(borrow, default)]
    tools: Option<&'a RawValue>,
    #[serde(borrow, default)]
    messages: Vec<Turn<'a>>,
    #[serde(borrow, default)]
    prompt: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Turn<'a> {
    #[serde(borrow, default)]
    role: Cow<'a, str>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
}

/// A part of a content that is a text: no other kind of part has a member `text`.
#[derive(Deserialize)]
struct TextPart<'a> {
    #[serde(borrow)]
    text: &'a RawValue,
}

/// The canonical prefix, with the texts that a prompt is made of, in their order. What stands in the body in
/// another form than a text (images, token ids) is no passage.
pub(crate) fn with_passages<'a>(scope: &str, body: &'a [u8]) -> Option<(Prefix, Vec<Passage<'a>>)> {
    let mut passages = Vec::new();
    let prefix = walk(scope, body, |passage| passages.push(passage))?;
    Some((prefix, passages))
}

fn walk<'a>(scope: &str, body: &'a [u8], mut passage: impl FnMut(Passage<'a>)) -> Option<Prefix> {
    let body: Body<'_> = serde_json::from_slice(body).ok()?;
    let mut hasher = PrefixHasher::new(scope, &body.model);
    if let Some(tools) = body.tools {
        hasher.push(tools.get().as_bytes());
        hasher.push(RECORD);
    }
    for turn in &body.messages {
        hasher.push(turn.role.as_bytes());
        hasher.push(UNIT);
        if let Some(content) = turn.content {
            push_text(&mut hasher, content, &mut passage);
        }
        if let Some(calls) = turn.tool_calls {
            hasher.push(UNIT);
            hasher.push(calls.get().as_bytes());
        }
        hasher.push(RECORD);
        match &*turn.role {
            "system" | "developer" => {}
            "assistant" | "tool" | "function" => {
                hasher.opened();
                hasher.answered();
            }
            _ => hasher.opened(),
        }
    }
    if let Some(prompt) = body.prompt {
        push_prompt(&mut hasher, prompt, &mut passage);
    }
    Some(hasher.finish())
}

/// A prompt is one text that may go on from an earlier one: only its beginning tells.
fn push_prompt<'a>(hasher: &mut PrefixHasher, raw: &'a RawValue, passage: &mut impl FnMut(Passage<'a>)) {
    let at = hasher.prefix.bytes;
    let decoded = text(raw);
    let whole = decoded.as_deref().unwrap_or(raw.get());
    let (beginning, rest) = whole.as_bytes().split_at(whole.len().min(BLOCK_BYTES));
    hasher.push(beginning);
    hasher.opened();
    hasher.push(rest);
    if let Some(text) = decoded {
        passage(Passage { at, text });
    }
}

/// A content is a text, or parts of which some are texts. A single text part is the same as the text.
fn push_text<'a>(hasher: &mut PrefixHasher, raw: &'a RawValue, passage: &mut impl FnMut(Passage<'a>)) {
    let Ok(parts) = serde_json::from_str::<Vec<&RawValue>>(raw.get()) else {
        return push_value(hasher, raw, text(raw), passage);
    };
    for (i, part) in parts.into_iter().enumerate() {
        if i > 0 {
            hasher.push(UNIT);
        }
        let its = serde_json::from_str::<TextPart<'_>>(part.get()).ok().and_then(|part| text(part.text));
        push_value(hasher, part, its, passage);
    }
}

/// The text that a value is, or else its bytes.
fn push_value<'a>(
    hasher: &mut PrefixHasher,
    raw: &'a RawValue,
    text: Option<Cow<'a, str>>,
    passage: &mut impl FnMut(Passage<'a>),
) {
    let at = hasher.prefix.bytes;
    match text {
        Some(text) => {
            hasher.push(text.as_bytes());
            passage(Passage { at, text });
        }
        None => hasher.push(raw.get().as_bytes()),
    }
}

/// The text that a JSON value is.
fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    // Borrowed where nothing is escaped, which `Cow` alone would not do.
    let borrowed = serde_json::from_str::<&str>(raw.get()).map(Cow::Borrowed);
    borrowed.or_else(|_| serde_json::from_str::<String>(raw.get()).map(Cow::Owned)).ok()
}

/// Reads the top level of `body`.
pub(crate) fn scan(body: &[u8]) -> Result<TopLevel, ScanError> {
    let mut at = skip_space(body, 0);
    if body.get(at) != Some(&b'{') {
        return Err(ScanError::NotAnObject { at });
    }
    let open = at;
    let mut members = Vec::new();
    let mut seen = HashSet::new();
    at = skip_space(body, at + 1);
    if body.get(at) != Some(&b'}') {
        loop {
            let key_end = skip_string(body, at)?;
            let key = unescape(&body[at..key_end])
                .ok_or(ScanError::Syntax { at, what: "a key that is not valid text" })?;
            if !seen.insert(key.clone()) {
                return Err(ScanError::Duplicate { key });
            }
            if members.len() == MAX_MEMBERS {
                return Err(ScanError::TooMany);
            }
            let colon = skip_space(body, key_end);
            if body.get(colon) != Some(&b':') {
                return Err(ScanError::Syntax { at: colon, what: "a missing `:`" });
            }
            let value = skip_space(body, colon + 1);
            let value_end = skip_value(body, value, 1)?;
            members.push(Member { key, key_at: at..key_end, value_at: value..value_end });
            at = skip_space(body, value_end);
            match body.get(at) {
                Some(b',') => at = skip_space(body, at + 1),
                Some(b'}') => break,
                _ => return Err(ScanError::Syntax { at, what: "a missing `,` or `}`" }),
            }
        }
    }
    let close = at;
    let end = skip_space(body, close + 1);
    if end != body.len() {
        return Err(ScanError::Syntax { at: end, what: "text after the object" });
    }
    Ok(TopLevel { members, open, close })
}

fn unescape(raw: &[u8]) -> Option<String> {
    serde_json::from_slice(raw).ok()
}

fn skip_space(body: &[u8], mut at: usize) -> usize {
    while matches!(body.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

fn skip_string(body: &[u8], at: usize) -> Result<usize, ScanError> {
    if body.get(at) != Some(&b'"') {
        return Err(ScanError::Syntax { at, what: "a missing `\"`" });
    }
    let mut i = at + 1;
    loop {
        match body.get(i) {
            None => return Err(ScanError::Syntax { at, what: "a string that does not end" }),
            Some(b'"') => return Ok(i + 1),
            Some(b'\\') => i += 2,
            Some(_) => i += 1,
        }
    }
}

fn skip_value(body: &[u8], at: usize, depth: usize) -> Result<usize, ScanError> {
    if depth > MAX_DEPTH {
        return Err(ScanError::TooDeep { at });
    }
    match body.get(at) {
        None => Err(ScanError::Syntax { at, what: "the end where a value should be" }),
        Some(b'"') => skip_string(body, at),
        Some(b'{') => skip_container(body, at, depth, b'}', true),
        Some(b'[') => skip_container(body, at, depth, b']', false),
        Some(_) => {
            let len = body[at..]
                .iter()
                .take_while(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'+' | b'-' | b'.'))
                .count();
            let scalar = &body[at..at + len];
            if len > 0 && serde_json::from_slice::<serde::de::IgnoredAny>(scalar).is_ok() {
                Ok(at + len)
            } else {
                Err(ScanError::Syntax { at, what: "something that is no JSON value" })
            }
        }
    }
}

fn skip_container(body: &[u8], at: usize, depth: usize, close: u8, keyed: bool) -> Result<usize, ScanError> {
    let mut i = skip_space(body, at + 1);
    if body.get(i) == Some(&close) {
        return Ok(i + 1);
    }
    loop {
        if keyed {
            let key_end = skip_string(body, i)?;
            let colon = skip_space(body, key_end);
            if body.get(colon) != Some(&b':') {
                return Err(ScanError::Syntax { at: colon, what: "a missing `:`" });
            }
            i = skip_space(body, colon + 1);
        }
        i = skip_space(body, skip_value(body, i, depth + 1)?);
        match body.get(i) {
            Some(b',') => i = skip_space(body, i + 1),
            Some(c) if *c == close => return Ok(i + 1),
            _ => return Err(ScanError::Syntax { at: i, what: "a missing `,` or closing bracket" }),
        }
    }
}
