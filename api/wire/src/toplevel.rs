//! Reads the top-level members of a JSON object without building it: where each key and value lies,
//! byte for byte. The gateway and the scheduler decide by a few members and must pass the rest on
//! unchanged, so nothing below the top level is decoded, not even as UTF-8.
//!
//! Two readers that disagree about a body are a way past a policy. So duplicate keys are refused, and
//! keys are unescaped before they are compared (`"mod\u0065l"` is `model`).

use std::ops::Range;

use crate::error::{ErrorBody, ErrorKind};
use crate::extract::members::Members;
use crate::extract::scan::Scanner;

/// Deepest nesting accepted.
pub const MAX_DEPTH: usize = 128;
/// Most top-level members accepted.
pub const MAX_MEMBERS: usize = 256;
/// Longest key of a top-level member, as it stands in the text.
pub const MAX_KEY_BYTES: usize = 1024;
/// Longest name of a model, decoded.
pub const MAX_MODEL_BYTES: usize = 4096;

/// One top-level member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its key, unescaped.
    pub key: String,
    /// Where the key lies, quotes included.
    pub key_at: Range<usize>,
    /// Where the value lies.
    pub value_at: Range<usize>,
}

/// The top level of one JSON object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopLevel {
    /// Its members in the order of the text.
    pub members: Vec<Member>,
    /// Where the opening brace stands.
    pub open: usize,
    /// Where the closing brace stands.
    pub close: usize,
}

/// Why a body cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// The body does not start with an object.
    #[error("the body must be a JSON object, and it starts with something else at byte {at}")]
    NotAnObject {
        /// Where.
        at: usize,
    },
    /// The text breaks off or breaks JSON's grammar.
    #[error("the body is not valid JSON: {what} at byte {at}")]
    Syntax {
        /// Where.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// A key stands twice.
    #[error("the body has the member `{key}` twice; send it once")]
    Duplicate {
        /// The key.
        key: String,
    },
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("the body is nested deeper than {MAX_DEPTH} levels at byte {at}")]
    TooDeep {
        /// Where.
        at: usize,
    },
    /// More members than [`MAX_MEMBERS`].
    #[error("the body has more than {MAX_MEMBERS} top-level members")]
    TooMany,
    /// A key longer than [`MAX_KEY_BYTES`].
    #[error(
        "the body has a top-level key of more than {MAX_KEY_BYTES} bytes at byte {at}; no member of the API has one"
    )]
    KeyTooLong {
        /// Where.
        at: usize,
    },
}

impl ScanError {
    /// The refusal that the client gets.
    pub fn to_body(&self) -> ErrorBody {
        let body = ErrorBody::new(ErrorKind::InvalidRequest, self.to_string());
        match self {
            Self::Duplicate { key } => body.with_param(key.clone()),
            _ => body,
        }
    }
}

impl TopLevel {
    /// Reads the top level of `body`.
    pub fn scan(body: &[u8]) -> Result<Self, ScanError> {
        let (mut scanner, mut members) = (Scanner::new(), Members::new());
        scanner.push(body, &mut members)?;
        scanner.finish(&mut members)?;
        Ok(members.finish())
    }

    /// The member of this key.
    pub fn get(&self, key: &str) -> Option<&Member> {
        self.members.iter().find(|m| m.key == key)
    }

    /// The raw value of this key.
    pub fn raw<'b>(&self, body: &'b [u8], key: &str) -> Option<&'b [u8]> {
        self.get(key).map(|m| &body[m.value_at.clone()])
    }

    /// The value of this key as text. `None` when absent; an error when it is not a string.
    pub fn text(&self, body: &[u8], key: &str) -> Result<Option<String>, ErrorBody> {
        as_text(key, self.raw(body, key))
    }

    /// The value of this key as a whole number that is not negative. `None` when absent or null.
    pub fn whole_number(&self, body: &[u8], key: &str) -> Result<Option<u64>, ErrorBody> {
        match self.raw(body, key) {
            None | Some(b"null") => Ok(None),
            Some(raw) => serde_json::from_slice::<u64>(raw)
                .map(Some)
                .map_err(|_| wrong_type(key, "a whole number, zero or more")),
        }
    }

    /// The value of this key as true or false. `None` when absent or null.
    pub fn boolean(&self, body: &[u8], key: &str) -> Result<Option<bool>, ErrorBody> {
        match self.raw(body, key) {
            None | Some(b"null") => Ok(None),
            Some(b"true") => Ok(Some(true)),
            Some(b"false") => Ok(Some(false)),
            Some(_) => Err(wrong_type(key, "true or false")),
        }
    }
}

/// A raw value as text. `None` when absent or null.
pub(crate) fn as_text(key: &str, raw: Option<&[u8]>) -> Result<Option<String>, ErrorBody> {
    match raw {
        None | Some(b"null") => Ok(None),
        Some(raw) => match unescape(raw) {
            Some(text) if raw.first() == Some(&b'"') => Ok(Some(text)),
            _ => Err(wrong_type(key, "a string")),
        },
    }
}

fn wrong_type(key: &str, wanted: &str) -> ErrorBody {
    ErrorBody::new(ErrorKind::InvalidRequest, format!("`{key}` must be {wanted}")).with_param(key)
}

/// The text that a JSON string stands for.
pub(crate) fn unescape(raw: &[u8]) -> Option<String> {
    serde_json::from_slice(raw).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn finds_members_wherever_they_stand() {
        let body = br#" { "messages" : [{"model":"inner"}], "mod\u0065l":"m\"x" ,"n":2} "#;
        let top = TopLevel::scan(body).unwrap();
        assert_eq!(top.text(body, "model").unwrap().as_deref(), Some("m\"x"));
        assert_eq!(top.whole_number(body, "n").unwrap(), Some(2));
        assert_eq!(top.raw(body, "messages"), Some(&br#"[{"model":"inner"}]"#[..]));
    }

    #[test]
    fn refuses_what_two_readers_could_read_differently() {
        let dup = TopLevel::scan(br#"{"model":"a","mod\u0065l":"b"}"#);
        assert_eq!(dup, Err(ScanError::Duplicate { key: "model".into() }));
        for bad in [
            &b"[]"[..],
            b"",
            b"{",
            b"{\"a\":}",
            b"{\"a\":[}]}",
            b"{\"a\":1}x",
            b"{\"a\":tru}",
            b"{\"a\":01}",
            b"{\"a\":1,}",
            b"{\"a\" 1}",
            b"{\"a\":\"x",
        ] {
            assert!(TopLevel::scan(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
        assert!(matches!(TopLevel::scan(deep.as_bytes()), Err(ScanError::TooDeep { .. })));
    }

    #[test]
    fn keys_have_a_longest() {
        let keyed = |len: usize| TopLevel::scan(format!("{{\"a\":1, \"{}\":1}}", "k".repeat(len)).as_bytes());
        assert!(keyed(MAX_KEY_BYTES - 1).is_ok());
        let refused = keyed(MAX_KEY_BYTES).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the body has a top-level key of more than 1024 bytes at byte 8; no member of the API has one"
        );
    }

    #[test]
    fn text_below_the_top_need_not_be_utf8() {
        let top = TopLevel::scan(b"{\"messages\":[\"\xff\xfe\"],\"model\":\"m\"}").unwrap();
        assert_eq!(top.members.len(), 2);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// The scanner sees the same members and values as a full parser.
        #[test]
        fn agrees_with_a_full_parser(m in proptest::collection::btree_map(any::<String>(), json(), 0..6), pretty: bool) {
            let value = Value::Object(m.into_iter().collect());
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let top = TopLevel::scan(text.as_bytes()).unwrap();
            let parsed: Value = serde_json::from_str(&text).unwrap();
            let object = parsed.as_object().unwrap();
            prop_assert_eq!(top.members.len(), object.len());
            for m in &top.members {
                let got: Value = serde_json::from_str(&text[m.value_at.clone()]).unwrap();
                prop_assert_eq!(&got, &object[&m.key]);
            }
        }

        /// No bytes make it panic.
        #[test]
        fn never_panics(bytes in proptest::collection::vec(prop_oneof![Just(b'{'), Just(b'"'), Just(b'\\'), Just(b':'), Just(b','), Just(b'}'), Just(b'['), any::<u8>()], 0..64)) {
            let _ = TopLevel::scan(&bytes);
        }
    }
}
