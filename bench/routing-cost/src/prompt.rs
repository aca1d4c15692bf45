//! Chat requests of a given size: a system prompt that the requests of a group share, then a text that
//! no other request has.
//!
//! A number stands in each request and comes back in its answer, so that an answer that belongs to
//! another request, or to a part of one, does not pass for one.

use bytes::{BufMut, Bytes, BytesMut};

/// The model that all replicas serve.
pub const MODEL: &str = "mock";
/// Stands before and behind a request's number. No other text of a request has it.
pub const MARK: u8 = b'#';
/// The least bytes that a body can have.
pub const LEAST_BYTES: usize = 512;
/// Digits of a number.
const DIGITS: usize = 16;
/// Words of the texts. As in real prompts there is a line now and then, which JSON escapes.
const WORDS: &[&str] =
    &["the ", "scheduler ", "of ", "a ", "router ", "reads ", "prompts, ", "blocks ", "and\\n", "caches "];

/// Makes the bodies of one connection.
#[derive(Debug)]
pub struct Prompts {
    head: Vec<u8>,
    own: Vec<u8>,
    tail: &'static [u8],
    /// The number of the next request.
    next: u64,
    step: u64,
}

impl Prompts {
    /// Bodies of `bytes` bytes, of a group's requests. Half of a body is the group's. Connection `at` of
    /// `of` numbers them apart from the others', beginning with `seed`.
    pub fn new(bytes: usize, stream: bool, group: u64, (at, of): (u64, u64), seed: u64) -> Self {
        let mut head = format!(
            "{{\"model\":\"{MODEL}\",\"stream\":{stream},\"max_tokens\":32,\"messages\":[{{\"role\":\"system\",\"content\":\"Group {group:03}: "
        )
        .into_bytes();
        let between: &[u8] = b"\"},{\"role\":\"user\",\"content\":\"";
        let tail: &[u8] = b"\"}]}";
        let numbers = 2 * (DIGITS + 2);
        let fixed = head.len() + between.len() + tail.len() + numbers;
        let text = bytes.saturating_sub(fixed);
        fill(&mut head, text / 2, group);
        head.extend_from_slice(between);
        let mut own = Vec::new();
        fill(&mut own, text - text / 2, mix(seed ^ at));
        Self { head, own, tail, next: seed.wrapping_add(at), step: of }
    }

    /// The next body, and its number.
    pub fn next_body(&mut self) -> (u64, Bytes) {
        let number = self.next;
        self.next = self.next.wrapping_add(self.step);
        let shown = shown(number);
        let mut body = BytesMut::with_capacity(self.head.len() + self.own.len() + 64);
        // First, so that no two texts have a block in common; and last, so that a body that was cut has
        // none.
        for (text, behind) in [(&self.head, true), (&self.own, true)] {
            body.put_slice(text);
            if behind {
                body.put_slice(&shown);
            }
        }
        body.put_slice(self.tail);
        (number, body.freeze())
    }
}

/// A request's number as it stands in the request, and in the answer.
pub fn shown(number: u64) -> [u8; DIGITS + 2] {
    let mut shown = [MARK; DIGITS + 2];
    for (digit, place) in shown[1..=DIGITS].iter_mut().enumerate() {
        *place = b"0123456789abcdef"[(number >> (60 - 4 * digit)) as usize & 15];
    }
    shown
}

/// The last number in a request's body.
pub fn number_of(body: &[u8]) -> Option<&[u8]> {
    let end = memchr::memrchr(MARK, body)?;
    let start = end.checked_sub(DIGITS + 1)?;
    let number = &body[start..=end];
    (number[0] == MARK && number[1..=DIGITS].iter().all(u8::is_ascii_hexdigit)).then_some(number)
}

fn fill(text: &mut Vec<u8>, bytes: usize, seed: u64) {
    let end = text.len() + bytes;
    let mut state = seed;
    while text.len() < end {
        state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
        text.extend_from_slice(WORDS[(state % WORDS.len() as u64) as usize].as_bytes());
    }
    text.truncate(end);
    // An escape that was cut in two.
    if text.ends_with(b"\\") {
        text.pop();
        text.push(b' ');
    }
}

/// The last step of splitmix64.
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn bodies_are_json_of_the_size_and_tell_their_numbers() {
        for bytes in [LEAST_BYTES, 4096, 65_536] {
            let mut prompts = Prompts::new(bytes, true, 3, (1, 4), 7);
            let (number, body) = prompts.next_body();
            assert_eq!(body.len(), bytes);
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&json["model"], &json["stream"]), (&MODEL.into(), &true.into()));
            assert_eq!((number, number_of(&body)), (8, Some(&shown(8)[..])));
            assert_eq!(number_of(&body[..bytes - 8]), None, "what was cut has none");
        }
    }

    #[test]
    fn a_group_shares_its_beginning_and_no_more() {
        let text = |group, at| {
            let (_, body) = Prompts::new(4096, false, group, (at, 8), 100).next_body();
            String::from_utf8(body.to_vec()).unwrap()
        };
        let shared = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
        assert!(shared(&text(1, 0), &text(1, 1)) > 1900 && shared(&text(1, 0), &text(2, 1)) < 120);
        let numbers = |at| {
            let mut prompts = Prompts::new(4096, false, 1, (at, 3), 9);
            (0..50).map(move |_| prompts.next_body().0).collect::<Vec<_>>()
        };
        let all: BTreeSet<u64> = (0..3).flat_map(numbers).collect();
        assert_eq!(all.len(), 150);
    }
}
