//! What a request says of its prompt: which byte blocks of the canonical text its tokens cover
//! ([`strata_wire::claims`]).

use strata_wire::claims;
use strata_wire::prefix;

pub use strata_wire::claims::Claim;

use crate::tokenizer::Tokenizer;

/// The claims of a request's body, whose prompt was rendered as `rendered` and read as `tokens`. Blocks
/// that hold no token are left out.
pub fn claims(scope: &str, body: &[u8], rendered: &str, tokens: &[u32], tokenizer: &Tokenizer) -> Vec<Claim> {
    let Some((prefix, passages)) = prefix::with_passages(scope, body) else { return Vec::new() };
    let ends = token_ends(rendered, tokens, tokenizer);
    claims::claims(&prefix, &passages, rendered, &ends)
}

/// Where each token ends in the text, as long as their bytes are the text's own; a tokenizer that
/// changes the text ends the list.
fn token_ends(text: &str, tokens: &[u32], tokenizer: &Tokenizer) -> Vec<usize> {
    let (mut ends, mut at) = (Vec::with_capacity(tokens.len()), 0);
    for &token in tokens {
        let bytes = tokenizer.bytes(token);
        let rest = &text.as_bytes()[at..];
        at += match bytes {
            [_, ..] if rest.starts_with(bytes) => bytes.len(),
            // What the tokenizer puts before a text.
            _ if at == 0 && tokenizer.is_special(token) => 0,
            [b' ', own @ ..] if at == 0 && rest.starts_with(own) => own.len(),
            _ => break,
        };
        ends.push(at);
    }
    ends
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::model::load::{GgufTokenizer, SpecialTokens, TokenizerSource};

    /// A token for each byte, written as GPT-2 writes them, and one for `<s>`.
    fn bytes_tokenizer() -> Tokenizer {
        let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let hidden = |b: u8| (0..b).filter(|o| !visible(*o)).count() as u32;
        let written =
            |b: u8| if visible(b) { char::from(b) } else { char::from_u32(256 + hidden(b)).unwrap() };
        let mut tokens: Vec<String> = (0..=255u8).map(|b| written(b).to_string()).collect();
        tokens.push("<s>".into());
        let mut token_types = vec![1; 256];
        token_types.push(3);
        let (model, pre) = ("gpt2".into(), "gpt-2".into());
        let source = GgufTokenizer { model, pre, tokens, token_types, ..GgufTokenizer::default() };
        let special = SpecialTokens { bos: Some(256), eos: vec![], add_bos: true, add_eos: false };
        Tokenizer::build(&TokenizerSource::Gguf(source), &special).unwrap()
    }

    fn render(messages: &[(&str, &str)]) -> String {
        let turn = |(role, text): &(&str, &str)| ["<|", role, "|>", text.trim(), "<|end|>"].concat();
        messages.iter().map(turn).collect()
    }

    fn body(messages: &[(&str, &str)]) -> String {
        let turn = |(role, content): &(&str, &str)| json!({"role": role, "content": content});
        json!({"model": "m", "messages": messages.iter().map(turn).collect::<Vec<_>>()}).to_string()
    }

    fn of(messages: &[(&str, &str)]) -> Vec<Claim> {
        let tokenizer = bytes_tokenizer();
        let rendered = render(messages);
        let tokens = tokenizer.encode(&rendered, false).unwrap();
        claims("s", body(messages).as_bytes(), &rendered, &tokens, &tokenizer)
    }

    #[test]
    fn a_block_counts_the_tokens_inside_its_text() {
        let system = "a".repeat(600);
        // Canonical: `system`, a separator, the text; rendered: `<|system|>`, the text.
        let found: Vec<u32> =
            of(&[("system", &system), ("user", "hello")]).iter().map(|c| c.tokens).collect();
        assert_eq!(found, [256 - 7 + 10, 512 - 7 + 10]);
        let spaced = format!("  {system}");
        let found: Vec<u32> = of(&[("system", &spaced)]).iter().map(|c| c.tokens).collect();
        assert_eq!(found, [256 - 9 + 10, 512 - 9 + 10]);
    }

    #[test]
    fn a_beginning_that_the_tokenizer_adds_is_inside() {
        let tokenizer = bytes_tokenizer();
        let text = "b".repeat(300);
        let tokens = tokenizer.encode(&text, true).unwrap();
        assert_eq!(tokens.len(), 301);
        let body = json!({"model": "m", "prompt": text}).to_string();
        let found = claims("s", body.as_bytes(), &text, &tokens, &tokenizer);
        assert_eq!(found.iter().map(|c| c.tokens).collect::<Vec<_>>(), [257]);
        let other = claims("s", body.as_bytes(), &text, &[300, 301, 302], &tokenizer);
        assert_eq!(other, [], "tokens that are not of this text claim nothing");
    }

    proptest! {
        /// Of two conversations that share a beginning, a shared byte block claims only shared tokens.
        #[test]
        fn shared_blocks_claim_shared_tokens(
            shared in proptest::collection::vec("[ab<>|sy]{0,300}", 1..4),
            a in "[a-c ]{0,300}", b in "[a-c ]{0,300}",
        ) {
            let with = |tail: &str| {
                let mut messages: Vec<(String, String)> =
                    shared.iter().map(|text| ("user".to_owned(), text.clone())).collect();
                messages.push(("user".into(), tail.to_owned()));
                messages
            };
            let (a, b) = (with(&a), with(&b));
            let pairs = |m: &[(String, String)]| -> Vec<(String, String)> { m.to_vec() };
            let (pa, pb) = (pairs(&a), pairs(&b));
            let view = |m: &'_ [(String, String)]| -> Vec<(&'static str, String)> {
                m.iter().map(|(_, text)| ("user", text.clone())).collect()
            };
            let (va, vb) = (view(&pa), view(&pb));
            let ra: Vec<(&str, &str)> = va.iter().map(|(r, t)| (*r, t.as_str())).collect();
            let rb: Vec<(&str, &str)> = vb.iter().map(|(r, t)| (*r, t.as_str())).collect();
            let (ta, tb) = (render(&ra), render(&rb));
            let same = ta.bytes().zip(tb.bytes()).take_while(|(x, y)| x == y).count() as u32;
            let (ca, cb) = (of(&ra), of(&rb));
            for claim in &ca {
                if cb.iter().any(|other| other.hash == claim.hash) {
                    prop_assert!(claim.tokens <= same, "{} of {same}", claim.tokens);
                }
            }
            prop_assert!(ca.windows(2).all(|w| w[0].tokens <= w[1].tokens));
        }
    }
}
