//! The canonical prefix of a prompt: cache scope ‖ model ‖ tools ‖ (role, content)…, JSON-decoded, cut
//! into blocks of [`BLOCK_BYTES`] and hashed as a chain. Two requests that share their first `n`
//! blocks here share the beginning of their prompts, whatever the white space, key order or escapes
//! of their bodies. A router needs nothing else of the text, and forgets it.
//!
//! A block's name is the XXH3 (128 bits, <https://xxhash.com>) of the name before it and its own text. Its
//! secret comes of the cache scope and the model by BLAKE3, and no client knows its scope, so that nobody
//! can look for two texts of one name. Nothing but a guess at where a prompt is cached hangs on these
//! names: what an engine really shares it names by its own, of tokens.

use std::borrow::Cow;

use xxhash_rust::xxh3::xxh3_128_with_secret;

use crate::defaults::BLOCK_BYTES;
use crate::extract::canonical::{Canonical, Place};
use crate::extract::json_text::{self, STRIDE};
use crate::extract::scan::Scanner;

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
    /// Whole blocks of that text.
    pub blocks: usize,
}

/// Bytes of a block's whole name.
const PARENT: usize = 16;

/// Hashes a canonical text as it comes.
#[derive(Debug)]
pub struct PrefixHasher {
    secret: [u8; 192],
    prefix: Prefix,
    end: Mark,
}

impl Mark {
    /// Bytes before it.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A place in a canonical text, which its hasher can go back to.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    /// What is hashed for the next block: the name of the last, and the text behind it. What is read
    /// together may stand behind the block's end until it is hashed.
    chain: [u8; PARENT + BLOCK_BYTES + STRIDE],
    /// Bytes of that text.
    rest: usize,
    blocks: usize,
    bytes: usize,
    opening: Option<Opening>,
    /// After how many bytes more the conversation is taken to have opened.
    opens_in: Option<usize>,
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
        let mut root = root.finalize_xof();
        let mut hasher = Self::rootless();
        root.fill(&mut hasher.end.chain[..PARENT]);
        root.fill(&mut hasher.secret);
        hasher
    }

    /// A chain whose scope and model are not known yet. Nothing is to be hashed with it.
    pub(crate) fn rootless() -> Self {
        let chain = [0; PARENT + BLOCK_BYTES + STRIDE];
        let end = Mark { chain, rest: 0, blocks: 0, bytes: 0, opening: None, opens_in: None };
        Self { secret: [0; 192], prefix: Prefix::default(), end }
    }

    /// Appends text.
    pub fn push(&mut self, text: &[u8]) {
        match self.end.opens_in {
            Some(left) if left <= text.len() => {
                let (beginning, rest) = text.split_at(left);
                self.append(beginning);
                self.opened();
                self.append(rest);
            }
            Some(left) => {
                self.append(text);
                self.end.opens_in = Some(left - text.len());
            }
            None => self.append(text),
        }
    }

    fn append(&mut self, mut text: &[u8]) {
        self.end.bytes += text.len();
        while !text.is_empty() {
            let from = PARENT + self.end.rest;
            let take = (PARENT + BLOCK_BYTES - from).min(text.len());
            self.end.chain[from..from + take].copy_from_slice(&text[..take]);
            self.end.rest += take;
            text = &text[take..];
            if self.end.rest == BLOCK_BYTES {
                self.whole();
            }
        }
    }

    /// Appends what a JSON string's text says, up to its end, an escape that is more than one letter, or
    /// what is no text. Returns how many bytes of it were read; some are left for [`PrefixHasher::push`]
    /// even where nothing stands in the way.
    pub(crate) fn decode(&mut self, json: &[u8]) -> usize {
        if self.end.opens_in.is_some() {
            return 0;
        }
        let mut at = 0;
        while let Some(window) = json[at..].first_chunk::<{ 2 * STRIDE }>() {
            let (read, more) = self.decode_stride(window);
            at += read;
            if !more {
                break;
            }
        }
        at
    }

    /// Reads the first half of this window; an escape may reach into the other. Returns how many bytes it
    /// read, and whether more can be.
    #[inline]
    fn decode_stride(&mut self, window: &[u8; 2 * STRIDE]) -> (usize, bool) {
        let marks = json_text::marks(window);
        let mut at = 0;
        while at < STRIDE {
            let plain = marks.plain(at);
            let text = if marks.are_ascii(at, plain) { plain } else { utf8(&window[at..at + plain]) };
            // More than the text, for a length that is always the same takes two instructions.
            let from = PARENT + self.end.rest;
            self.end.chain[from..from + STRIDE].copy_from_slice(&window[at..at + STRIDE]);
            self.took(text);
            at += text;
            if text < plain {
                // A character may go on in the other half.
                return (at, at > 0);
            }
            if at >= STRIDE {
                break;
            }
            let escaped = if window[at] == b'\\' { json_text::letter(window[at + 1]) } else { None };
            let Some(byte) = escaped else { return (at, false) };
            self.end.chain[PARENT + self.end.rest] = byte;
            self.took(1);
            at += 2;
        }
        (at, true)
    }

    /// Counts bytes, at most [`STRIDE`], that were written behind the text.
    #[inline]
    fn took(&mut self, bytes: usize) {
        self.end.bytes += bytes;
        self.end.rest += bytes;
        if self.end.rest >= BLOCK_BYTES {
            let over = self.end.rest - BLOCK_BYTES;
            self.whole();
            self.end.chain.copy_within(PARENT + BLOCK_BYTES.., PARENT);
            self.end.rest = over;
        }
    }

    /// The text's first [`BLOCK_BYTES`] are a block.
    fn whole(&mut self) {
        let name = self.name(BLOCK_BYTES);
        self.end.chain[..PARENT].copy_from_slice(&name.to_le_bytes());
        self.end.rest = 0;
        self.end.blocks += 1;
        let blocks = &mut self.prefix.blocks;
        if blocks.len() == blocks.capacity() {
            // By less than the double, which of a long prompt is a tenth of its size while it is copied.
            blocks.reserve_exact(blocks.len() / 4 + 16);
        }
        blocks.push(BlockHash(short(name)));
    }

    /// The name of what has been named and so many bytes behind it.
    fn name(&self, bytes: usize) -> u128 {
        xxh3_128_with_secret(&self.end.chain[..PARENT + bytes], &self.secret)
    }

    /// The chain.
    pub fn finish(mut self) -> Prefix {
        self.prefix.bytes = self.end.bytes;
        self.prefix.opening = self.end.opening;
        self.prefix
    }

    /// Where the text ends so far.
    pub(crate) fn mark(&self) -> Mark {
        self.end.clone()
    }

    /// Forgets what came since.
    pub(crate) fn go_back(&mut self, mark: Mark) {
        self.prefix.blocks.truncate(mark.blocks);
        self.end = mark;
    }

    /// Notes that the text so far is how the conversation opened, if it is not open yet.
    pub(crate) fn opened(&mut self) {
        self.end.opens_in = None;
        if self.end.opening.is_none() {
            let hash = short(self.name(self.end.rest));
            self.end.opening = Some(Opening { hash, first: true, blocks: self.end.blocks });
        }
    }

    /// Notes that it opens with the next [`BLOCK_BYTES`], or what there is of them.
    pub(crate) fn opens(&mut self) {
        self.end.opens_in = Some(BLOCK_BYTES);
    }

    /// The text that was to open it is over.
    pub(crate) fn has_opened(&mut self) {
        if self.end.opens_in.is_some() {
            self.opened();
        }
    }

    /// Notes that something in the text is an answer.
    pub(crate) fn answered(&mut self) {
        if let Some(opening) = &mut self.end.opening {
            opening.first = false;
        }
    }
}

fn short(name: u128) -> u64 {
    name as u64
}

/// How many of these bytes, from the first, are UTF-8.
fn utf8(bytes: &[u8]) -> usize {
    std::str::from_utf8(bytes).map_or_else(|error| error.valid_up_to(), str::len)
}

/// What a body is, which says where its prompt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A chat or a completion: `tools`, `messages`, `prompt`.
    Chat,
    /// A response: `tools`, `instructions`, `previous_response_id`, `input`. Its canonical text is that of
    /// the chat that it stands for: instructions are the system's turn, an input that is a text is the
    /// user's. An item without a role (a call of a tool, or what came of it) enters as it stands. What a
    /// response before it said is not in the body, so that its id stands for it.
    Response,
}

/// A text of a body, as it stands in the canonical text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage<'a> {
    /// Bytes of the canonical text before it.
    pub at: usize,
    /// The text: a message's content, or a prompt.
    pub text: Cow<'a, str>,
}

/// The canonical prefix of a chat or completion body. `None` when the body is not one, or is nested
/// deeper than [`crate::toplevel::MAX_DEPTH`]; the engine is the one that says what is wrong with it.
pub fn of_body(scope: &str, body: &[u8]) -> Option<Prefix> {
    read(Canonical::new(Form::Chat, scope), body).map(|(prefix, _)| prefix)
}

/// The same, with the texts that a prompt is made of, in their order. What stands in the body in
/// another form than a text (images, token ids) is no passage.
pub fn with_passages<'a>(scope: &str, body: &'a [u8]) -> Option<(Prefix, Vec<Passage<'a>>)> {
    let (prefix, places) = read(Canonical::new(Form::Chat, scope).noting_places(), body)?;
    let passage = |place: Place| {
        let raw = &body[place.body];
        let borrowed = serde_json::from_slice::<&str>(raw).map(Cow::Borrowed);
        let text = borrowed.or_else(|_| serde_json::from_slice::<String>(raw).map(Cow::Owned)).ok()?;
        Some(Passage { at: place.at, text })
    };
    Some((prefix, places.into_iter().filter_map(passage).collect()))
}

fn read(mut canonical: Canonical, body: &[u8]) -> Option<(Prefix, Vec<Place>)> {
    let mut scanner = Scanner::new();
    let mut sink = canonical.sink(body, body, 0);
    scanner.push(body, &mut sink).ok()?;
    scanner.finish(&mut sink).ok()?;
    canonical.finish(body)
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
