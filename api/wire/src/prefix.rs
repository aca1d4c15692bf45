//! The canonical prefix of a prompt: cache scope ‖ model ‖ tools ‖ (role, content)…, JSON-decoded, cut
//! into blocks of [`BLOCK_BYTES`] and hashed as a chain. Two requests that share their first `n`
//! blocks here share the beginning of their prompts, whatever the white space, key order or escapes
//! of their bodies. A router needs nothing else of the text, and forgets it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::defaults::BLOCK_BYTES;

/// The hash of one block and of all blocks before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub u64);

/// A prompt's prefix: the chain of its whole blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// One hash for each whole block; the rest of the text is not hashed.
    pub blocks: Vec<BlockHash>,
    /// Bytes of the whole canonical text, the unhashed rest included.
    pub bytes: usize,
    /// Which conversation it is a turn of; `None` when the text says nothing of it.
    pub opening: Option<Opening>,
}

/// How a conversation began. All its turns have the same; other conversations have another, even behind
/// the same system prompt and tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The hash of the canonical text up to the end of the first message that is not the system's. Of a
    /// prompt that is one text, the hash of its first [`BLOCK_BYTES`].
    pub hash: u64,
    /// Whether this request may be the conversation's first: nothing in it has been answered yet.
    pub first: bool,
}

/// Hashes a canonical text as it comes.
#[derive(Debug)]
pub struct PrefixHasher {
    parent: [u8; 32],
    block: Vec<u8>,
    prefix: Prefix,
}

impl PrefixHasher {
    /// A chain for this cache scope and model. The scope is part of the root, so that no two scopes
    /// share a hash; it is not counted in [`Prefix::bytes`].
    pub fn new(scope: &str, model: &str) -> Self {
        let mut root = blake3::Hasher::new();
        for part in [scope, model] {
            root.update(&(part.len() as u64).to_le_bytes());
            root.update(part.as_bytes());
        }
        Self {
            parent: *root.finalize().as_bytes(),
            block: Vec::with_capacity(BLOCK_BYTES),
            prefix: Prefix::default(),
        }
    }

    /// Appends text.
    pub fn push(&mut self, mut text: &[u8]) {
        self.prefix.bytes += text.len();
        while !text.is_empty() {
            let take = (BLOCK_BYTES - self.block.len()).min(text.len());
            self.block.extend_from_slice(&text[..take]);
            text = &text[take..];
            if self.block.len() == BLOCK_BYTES {
                let mut hasher = blake3::Hasher::new();
                hasher.update(&self.parent);
                hasher.update(&self.block);
                self.parent = *hasher.finalize().as_bytes();
                self.prefix.blocks.push(BlockHash(short(&self.parent)));
                self.block.clear();
            }
        }
    }

    /// The chain.
    pub fn finish(self) -> Prefix {
        self.prefix
    }

    /// Notes that the text so far is how the conversation opened.
    fn opened(&mut self) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.parent);
        hasher.update(&self.block);
        let hash = short(hasher.finalize().as_bytes());
        self.prefix.opening.get_or_insert(Opening { hash, first: true });
    }

    /// Notes that something in the text is an answer.
    fn answered(&mut self) {
        if let Some(opening) = &mut self.prefix.opening {
            opening.first = false;
        }
    }
}

fn short(hash: &[u8; 32]) -> u64 {
    let mut short = [0; 8];
    short.copy_from_slice(&hash[..8]);
    u64::from_le_bytes(short)
}

/// Separates a role from its content and a message from the next: bytes that text seldom holds.
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

/// A text of a body, as it stands in the canonical text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage<'a> {
    /// Bytes of the canonical text before it.
    pub at: usize,
    /// The text: a message's content, or a prompt.
    pub text: Cow<'a, str>,
}

/// The canonical prefix of a chat or completion body. `None` when the body is not one; the engine is
/// the one that says what is wrong with it.
pub fn of_body(scope: &str, body: &[u8]) -> Option<Prefix> {
    walk(scope, body, |_| {})
}

/// The same, with the texts that a prompt is made of, in their order. What stands in the body in
/// another form than a text (images, token ids) is no passage.
pub fn with_passages<'a>(scope: &str, body: &'a [u8]) -> Option<(Prefix, Vec<Passage<'a>>)> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chat(scope: &str, system: &str, question: &str) -> Prefix {
        let body = serde_json::json!({"model": "m", "messages": [
            {"role": "system", "content": system}, {"role": "user", "content": question}]});
        of_body(scope, body.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_form_of_the_json_does_not_matter() {
        let text = "é".repeat(400);
        let a = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#);
        let b = format!(
            r#"{{ "messages": [ {{"content": "{}", "role":"user"}} ], "temperature": 1, "model":"m" }}"#,
            "\\u00e9".repeat(400)
        );
        assert_eq!(of_body("s", a.as_bytes()), of_body("s", b.as_bytes()));
        assert_eq!(of_body("s", a.as_bytes()).unwrap().blocks.len(), 3);
    }

    #[test]
    fn scopes_share_nothing() {
        let (a, b) = (chat("a", &"x".repeat(2000), "q"), chat("b", &"x".repeat(2000), "q"));
        assert!(a.blocks.len() > 4 && a.blocks.iter().all(|h| !b.blocks.contains(h)));
    }

    fn opening(messages: &[(&str, &str)]) -> Option<Opening> {
        let turn = |(role, content): &(&str, &str)| serde_json::json!({"role": role, "content": content});
        let messages: Vec<_> = messages.iter().map(turn).collect();
        let body = serde_json::json!({"model": "m", "messages": messages}).to_string();
        of_body("s", body.as_bytes()).unwrap().opening
    }

    #[test]
    fn the_turns_of_a_conversation_have_one_opening() {
        let first = opening(&[("system", "be kind"), ("user", "hello")]).unwrap();
        assert!(first.first);
        let third = [("system", "be kind"), ("user", "hello"), ("assistant", "hi"), ("user", "more")];
        assert_eq!(opening(&third), Some(Opening { first: false, ..first }));
        assert_ne!(opening(&[("system", "be kind"), ("user", "hello!")]).unwrap().hash, first.hash);
        assert_ne!(opening(&[("system", "be cruel"), ("user", "hello")]).unwrap().hash, first.hash);
        assert_eq!(opening(&[("system", "be kind")]), None);
        let answered = opening(&[("assistant", "What can I do?"), ("user", "hello")]).unwrap();
        assert!(!answered.first);
    }

    #[test]
    fn a_prompt_opens_with_its_beginning() {
        let prompt = |text: &str| {
            let body = serde_json::json!({"model": "m", "prompt": text}).to_string();
            of_body("s", body.as_bytes()).unwrap()
        };
        let beginning = "b".repeat(BLOCK_BYTES);
        assert_eq!(prompt(&beginning).opening, prompt(&format!("{beginning}and on")).opening);
        assert_ne!(prompt("short").opening, prompt("shorter").opening);
        assert_eq!(prompt(&"b".repeat(700)).blocks, prompt(&"b".repeat(760)).blocks);
        assert_eq!(of_body("s", br#"{"model":"m","input":"x"}"#).unwrap().opening, None);
    }

    #[test]
    fn passages_say_where_the_texts_stand() {
        let body = r#"{"model":"m","tools":[1],"messages":[{"role":"system","content":"b\u00e9"},
                       {"role":"user","content":[{"type":"text","text":"x"}]},{"role":"user","content":"q"}]}"#;
        let (prefix, passages) = with_passages("s", body.as_bytes()).unwrap();
        assert_eq!(of_body("s", body.as_bytes()), Some(prefix));
        // `[1]` and a separator, `system` and a separator; `bé`, a separator, `user`, ...
        let texts: Vec<_> = passages.iter().map(|p| (p.at, &*p.text)).collect();
        // After each text a separator, `user`, and a separator.
        assert_eq!(texts, [(11, "bé"), (11 + 3 + 6, "x"), (11 + 3 + 6 + 1 + 6, "q")]);
        let (_, passages) = with_passages("s", br#"{"prompt":"to go on"}"#).unwrap();
        assert_eq!(passages, [Passage { at: 0, text: "to go on".into() }]);
        assert_eq!(with_passages("s", br#"{"prompt":[1,2]}"#).unwrap().1, []);
    }

    #[test]
    fn a_text_is_the_same_as_one_part_and_other_parts_are_their_bytes() {
        let of = |content: &str| {
            let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":{content}}}]}}"#);
            with_passages("s", body.as_bytes()).map(|(prefix, passages)| (prefix, passages.len())).unwrap()
        };
        let long = "w".repeat(600);
        let plain = of(&format!("\"{long}\""));
        assert_eq!(of(&format!(r#"[{{"type":"text","text":"{long}"}}]"#)), plain);
        let image = |url: &str| {
            of(&format!(
                r#"[{{"type":"text","text":"{long}"}},{{"type":"image_url","image_url":{{"url":"{url}"}}}},{{"type":"text","text":"{long}"}}]"#
            ))
        };
        let (a, b) = (image("data:a"), image("data:b"));
        assert_eq!((a.1, b.1), (2, 2));
        assert_eq!(a.0.blocks[..2], b.0.blocks[..2]);
        assert!(a.0.blocks[2..].iter().all(|hash| !b.0.blocks.contains(hash)));
        assert_eq!(of("null").1, 0);
    }

    proptest! {
        /// A shared beginning gives shared blocks, and nothing after the first difference is shared.
        #[test]
        fn blocks_are_shared_exactly_up_to_the_first_difference(shared in 0usize..3000, tail_a in "[a-m]{1,600}", tail_b in "[n-z]{1,600}") {
            let system = "s".repeat(shared);
            let (a, b) = (chat("s", &format!("{system}{tail_a}"), "q"), chat("s", &format!("{system}{tail_b}"), "q"));
            let same = a.blocks.iter().zip(&b.blocks).take_while(|(x, y)| x == y).count();
            prop_assert_eq!(same, (shared + "system".len() + 1) / BLOCK_BYTES);
            prop_assert!(a.blocks[same..].iter().all(|h| !b.blocks[same..].contains(h)));
        }
    }
}
