//! A prompt's tokens, as the replica that has it counts them: asked of its route `/tokenize`, off the
//! request's path, and laid beside the prompt's byte blocks. Pure.

use serde::Deserialize;
use serde_json::value::RawValue;
use strata_wire::claims::{self, Claim};
use strata_wire::prefix::{self, BlockHash};
use strata_wire::rope::Rope;
use strata_wire::toplevel::TopLevel;

/// What of a chat decides how its template renders it, by vLLM's names.
const CHAT: &[&str] = &[
    "model",
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
];
/// The same of a prompt that is a text.
const COMPLETION: &[&str] = &["model", "prompt", "add_special_tokens"];

/// A prompt that was sent to a replica.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The route.
    pub path: String,
    /// The model that was asked for.
    pub model: String,
    /// The body as the replica got it.
    pub body: Rope,
    /// Its byte blocks.
    pub chain: Vec<BlockHash>,
}

/// A prompt whose tokens are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenised {
    /// The cache scope, which is vLLM's cache salt.
    pub scope: String,
    /// The adapter that it runs with.
    pub adapter: Option<String>,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// For each of its byte blocks the tokens up to its end; 0 where that is not known.
    pub claims: Vec<Claim>,
}

impl Tokenised {
    /// Its byte blocks.
    pub fn chain(&self) -> Vec<BlockHash> {
        self.claims.iter().map(|claim| claim.hash).collect()
    }
}

#[derive(Deserialize)]
struct Turn<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
}

/// The body to ask `/tokenize` with. `None` for a prompt that is not made of texts alone: images would be
/// fetched a second time, and token ids have no text.
pub fn question(sent: &Sent) -> Option<Vec<u8>> {
    let body = sent.body.joined(0..sent.body.len());
    let top = TopLevel::scan(&body).ok()?;
    let value = |key: &str| {
        let member = top.members.iter().find(|member| member.key == key)?;
        body.get(member.value_at.clone())
    };
    let members = if let Some(messages) = value("messages") {
        if !is_text(messages) {
            return None;
        }
        CHAT
    } else {
        value("prompt").filter(|prompt| prompt.starts_with(b"\""))?;
        COMPLETION
    };
    let mut body = br#"{"return_token_strs":true"#.to_vec();
    for key in members {
        if let Some(value) = value(key) {
            body.extend_from_slice(format!(r#","{key}":"#).as_bytes());
            body.extend_from_slice(value);
        }
    }
    body.push(b'}');
    Some(body)
}

fn is_text(messages: &[u8]) -> bool {
    let Ok(turns) = serde_json::from_slice::<Vec<Turn<'_>>>(messages) else { return false };
    turns.iter().filter_map(|turn| turn.content).all(|content| {
        let parts = serde_json::from_str::<Vec<Part<'_>>>(content.get());
        parts.map_or(true, |parts| parts.iter().all(|part| part.text.is_some()))
    })
}

#[derive(Deserialize)]
struct Answer {
    tokens: Vec<u32>,
    #[serde(default)]
    token_strs: Option<Vec<String>>,
}

/// Lays an answer of `/tokenize` beside the prompt. `None` when it does not say which texts the tokens are.
pub fn laid(sent: &Sent, adapter: Option<String>, answer: &[u8]) -> Option<Tokenised> {
    let Answer { tokens, token_strs } = serde_json::from_slice(answer).ok()?;
    let pieces = token_strs.filter(|pieces| pieces.len() == tokens.len())?;
    let body = sent.body.joined(0..sent.body.len());
    let top = TopLevel::scan(&body).ok()?;
    let scope = top.text(&body, "cache_salt").ok()?.unwrap_or_default();
    let (prefix, passages) = prefix::with_passages(&scope, &body)?;
    let (rendered, ends) = joined(&pieces);
    let mut found = claims::claims(&prefix, &passages, &rendered, &ends).into_iter().peekable();
    let claims = prefix.blocks.iter().map(|hash| {
        let of_block = found.next_if(|claim| claim.hash == *hash);
        of_block.unwrap_or(Claim { hash: *hash, tokens: 0 })
    });
    let claims = claims.collect();
    Some(Tokenised { scope, adapter, tokens, claims })
}

/// How a vocabulary writes bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writing {
    /// As GPT-2: a visible character for each byte.
    Bytes,
    /// As SentencePiece: `▁` for a space, `<0x0A>` for a byte.
    Pieces,
    /// As text.
    Plain,
}

/// The text that tokens make, and where in it each ends. The text ends where it is none.
fn joined(pieces: &[String]) -> (String, Vec<usize>) {
    let any = |marks: &[char]| pieces.iter().any(|piece| piece.contains(marks));
    let writing = if any(&['Ġ', 'Ċ']) {
        Writing::Bytes
    } else if any(&['▁']) {
        Writing::Pieces
    } else {
        Writing::Plain
    };
    let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(pieces.len()));
    for piece in pieces {
        write_piece(piece, writing, &mut bytes);
        ends.push(bytes.len());
    }
    let valid = match std::str::from_utf8(&bytes) {
        Ok(text) => text.len(),
        Err(error) => error.valid_up_to(),
    };
    bytes.truncate(valid);
    ends.retain(|end| *end <= valid);
    (String::from_utf8(bytes).unwrap_or_default(), ends)
}

fn write_piece(piece: &str, writing: Writing, out: &mut Vec<u8>) {
    let written: Option<Vec<u8>> = match writing {
        Writing::Bytes => piece.chars().map(byte).collect(),
        Writing::Pieces => match piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')) {
            Some(digits) if digits.len() == 2 => u8::from_str_radix(digits, 16).ok().map(|byte| vec![byte]),
            _ => Some(piece.replace('▁', " ").into_bytes()),
        },
        Writing::Plain => None,
    };
    match written {
        Some(bytes) => out.extend_from_slice(&bytes),
        // Special tokens are written as they are.
        None => out.extend_from_slice(piece.as_bytes()),
    }
}

/// The byte that a character stands for, as GPT-2 writes them: visible ones as they are, the others by their
/// number behind the first 256 characters.
fn byte(written: char) -> Option<u8> {
    match written {
        '!'..='~' | '¡'..='¬' | '®'..='ÿ' => u8::try_from(u32::from(written)).ok(),
        'Ā'..='Ń' => match u32::from(written) - 256 {
            hidden @ 0..=32 => u8::try_from(hidden).ok(),
            hidden @ 33..=66 => u8::try_from(hidden - 33 + 127).ok(),
            _ => Some(173),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn sent(body: &serde_json::Value) -> Sent {
        let text = body.to_string();
        let scope = body["cache_salt"].as_str().unwrap_or_default();
        let chain = prefix::of_body(scope, text.as_bytes()).unwrap().blocks;
        Sent {
            path: "/v1/chat/completions".into(),
            model: "m".into(),
            body: [bytes::Bytes::from(text)].into_iter().collect(),
            chain,
        }
    }

    fn chat(system: &str, user: &str) -> serde_json::Value {
        json!({"model": "m", "temperature": 1, "cache_salt": "s", "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": [{"type": "text", "text": user}]}]})
    }

    #[test]
    fn only_what_decides_the_prompt_is_asked() {
        let asked = question(&sent(&chat("be kind", "hello"))).unwrap();
        let asked: serde_json::Value = serde_json::from_slice(&asked).unwrap();
        assert_eq!(asked["return_token_strs"], json!(true));
        assert_eq!(asked["messages"], chat("be kind", "hello")["messages"]);
        assert_eq!(asked.as_object().unwrap().len(), 3, "{asked}");
        let prompt = question(&sent(&json!({"model": "m", "prompt": "to go on", "n": 2}))).unwrap();
        assert_eq!(prompt, br#"{"return_token_strs":true,"model":"m","prompt":"to go on"}"#);
        let image = json!({"type": "image_url", "image_url": {"url": "http://far"}});
        let with_image = json!({"model": "m", "messages": [{"role": "user", "content": [image]}]});
        assert_eq!(question(&sent(&with_image)), None);
        assert_eq!(question(&sent(&json!({"model": "m", "prompt": [1, 2]}))), None);
    }

    /// As a vLLM with a GPT-2 vocabulary answers.
    #[test]
    fn byte_blocks_end_in_tokens() {
        let system = "é word".repeat(60);
        let sent = sent(&chat(&system, "hello"));
        let mut pieces = vec!["<|im_start|>", "system", "Ċ"];
        pieces.extend(["Ã", "©", "Ġword"].repeat(60));
        pieces.extend(["<|im_end|>", "Ċ", "<|im_start|>", "user", "Ċ", "hello", "<|im_end|>"]);
        let answer = json!({"count": pieces.len(), "tokens": (0..pieces.len()).collect::<Vec<_>>(),
            "token_strs": pieces, "max_model_len": 9});
        let laid = laid(&sent, Some("a".into()), answer.to_string().as_bytes()).unwrap();
        assert_eq!((&*laid.scope, laid.adapter.as_deref(), laid.chain()), ("s", Some("a"), sent.chain));
        // 249 bytes of the text are in the first block: 35 times 7 are 245, and two pieces of one byte.
        assert_eq!(laid.claims[0].tokens, 3 + 35 * 3 + 2);
        assert_eq!(laid.claims.len(), 1);
    }

    #[test]
    fn without_texts_nothing_is_claimed() {
        let sent = sent(&chat(&"x".repeat(600), "hello"));
        let of = |answer: serde_json::Value| laid(&sent, None, answer.to_string().as_bytes());
        assert_eq!(of(json!({"tokens": [1, 2]})), None);
        assert_eq!(of(json!({"tokens": [1, 2], "token_strs": ["x"]})), None);
        assert_eq!(of(json!({"tokens": [-1]})), None);
        let other = of(json!({"tokens": [1, 2], "token_strs": ["y", "z"]})).unwrap();
        assert!(other.claims.len() == 2 && other.claims.iter().all(|claim| claim.tokens == 0));
    }

    #[test]
    fn each_vocabulary_is_read_as_it_is_written() {
        let text = |pieces: &[&str]| {
            let pieces: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
            joined(&pieces).0
        };
        assert_eq!(text(&["<s>", "▁Hello", "▁w", "<0xC3>", "<0xA9>"]), "<s> Hello wé");
        assert_eq!(text(&["<｜begin▁of▁text｜>", "HiĠ", "Ã©Ċ"]), "<｜begin▁of▁text｜>Hi é\n");
        assert_eq!(text(&["a b", "é"]), "a bé");
        assert_eq!(text(&["aĠ", "Ã"]), "a ", "half a character is no text");
    }

    proptest! {
        /// Every byte is written by one character, and read from it.
        #[test]
        fn bytes_are_read_as_gpt_2_writes_them(text in "\\PC{0,40}|[\u{0}-\u{ff}]{0,40}") {
            let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let written: String = text.bytes().map(|b| {
                let hidden = (0..b).filter(|other| !visible(*other)).count() as u32;
                if visible(b) { char::from(b) } else { char::from_u32(256 + hidden).unwrap() }
            }).collect();
            let (read, ends) = joined(&["Ġ".to_owned(), written]);
            prop_assert_eq!(&read[1..], text);
            prop_assert_eq!(ends.last(), Some(&read.len()));
        }

        #[test]
        fn no_answer_makes_it_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..100), pieces in prop::collection::vec("\\PC{0,6}", 0..20)) {
            let sent = sent(&chat(&"x".repeat(600), "hello"));
            let _ = laid(&sent, None, &bytes);
            let answer = json!({"tokens": vec![7; pieces.len()], "token_strs": pieces}).to_string();
            prop_assert!(laid(&sent, None, answer.as_bytes()).is_some());
        }
    }
}
