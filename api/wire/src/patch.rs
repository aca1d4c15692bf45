//! The closed list of changes that a layer may make to a body. Everything outside a patched member
//! stays identical to the byte, and a test compares what crosses each hop with [`GATEWAY`],
//! [`SCHEDULER`] and [`PREFILL`].

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::rope::Rope;
use crate::toplevel::{Member, ScanError, TopLevel};

/// Members that a layer may set or remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Members it may set. `a.b` is the member `b` of the object `a`.
    pub set: &'static [&'static str],
    /// Members it may remove.
    pub remove: &'static [&'static str],
}

/// What the gateway may change: it forces usage, resolves the model, bounds the output and removes
/// identity.
pub const GATEWAY: Allowed = Allowed {
    set: &["stream_options.include_usage", "stream_options.continuous_usage_stats", "model", "max_tokens"],
    remove: &["user", "safety_identifier", "metadata", "cache_salt", "kv_transfer_params", "priority"],
};

/// What the scheduler may change.
pub const SCHEDULER: Allowed = Allowed {
    set: &["cache_salt", "kv_transfer_params", "priority"],
    remove: &["cache_salt", "kv_transfer_params", "priority"],
};

/// What the scheduler may change in the copy of a request that a prefill replica gets, whose answer no
/// client sees: beside the above what makes it end with the prompt.
pub const PREFILL: Allowed = Allowed {
    set: &["cache_salt", "kv_transfer_params", "priority", "max_tokens", "max_completion_tokens", "stream"],
    remove: &["cache_salt", "kv_transfer_params", "priority", "min_tokens", "stream_options"],
};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Patch {
    /// Sets a top-level member to this JSON text, in place or as the last member.
    Set(&'static str, String),
    /// Sets a member of a top-level object, making the object when it is absent or null.
    SetIn(&'static str, &'static str, String),
    /// Removes a top-level member, if it is there.
    Remove(&'static str),
}

impl Patch {
    /// Whether `allowed` lists this change.
    pub fn is_allowed(&self, allowed: &Allowed) -> bool {
        match self {
            Self::Set(key, _) => allowed.set.contains(key),
            Self::SetIn(outer, inner, _) => {
                allowed.set.iter().any(|s| s.split_once('.') == Some((outer, inner)))
            }
            Self::Remove(key) => allowed.remove.contains(key),
        }
    }
}

/// Applies the patches to a body whose top level was scanned before.
pub fn apply(body: &Bytes, top: &TopLevel, patches: &[Patch]) -> Result<Bytes, ScanError> {
    if changes_nothing(top, patches) {
        return Ok(body.clone());
    }
    let (patched, _) = splice(&Rope::from(body.clone()), top, patches)?;
    let mut whole = BytesMut::with_capacity(patched.len());
    patched.parts().for_each(|part| whole.extend_from_slice(part));
    Ok(whole.freeze())
}

fn changes_nothing(top: &TopLevel, patches: &[Patch]) -> bool {
    patches.iter().all(|p| matches!(p, Patch::Remove(key) if top.get(key).is_none()))
}

/// The same of a body in parts, which are shared and not copied. Returns the new body's top level as well.
pub fn splice(body: &Rope, top: &TopLevel, patches: &[Patch]) -> Result<(Rope, TopLevel), ScanError> {
    if changes_nothing(top, patches) {
        return Ok((body.clone(), top.clone()));
    }
    let mut replaced: Vec<Option<Bytes>> = vec![None; top.members.len()];
    let mut removed = vec![false; top.members.len()];
    let mut added: Vec<(&str, Bytes)> = Vec::new();
    let place = |key: &str| top.members.iter().position(|m| m.key == key);
    for patch in patches {
        match patch {
            Patch::Remove(key) => {
                if let Some(i) = place(key) {
                    removed[i] = true;
                }
            }
            Patch::Set(key, json) => match place(key) {
                Some(i) => {
                    replaced[i] = Some(Bytes::copy_from_slice(json.as_bytes()));
                    removed[i] = false;
                }
                None => put(&mut added, key, Bytes::copy_from_slice(json.as_bytes())),
            },
            Patch::SetIn(outer, inner, json) => {
                let before = match place(outer) {
                    Some(i) => replaced[i].clone().unwrap_or_else(|| {
                        Bytes::from(body.joined(top.members[i].value_at.clone()).into_owned())
                    }),
                    None => added
                        .iter()
                        .find(|(k, _)| k == outer)
                        .map_or_else(|| Bytes::from_static(b"{}"), |(_, v)| v.clone()),
                };
                let before = if &before[..] == b"null" { Bytes::from_static(b"{}") } else { before };
                let inner_top = TopLevel::scan(&before)?;
                let after = apply(&before, &inner_top, &[Patch::Set(inner, json.clone())])?;
                match place(outer) {
                    Some(i) => replaced[i] = Some(after),
                    None => put(&mut added, outer, after),
                }
            }
        }
    }
    Ok(assemble(body, top, &replaced, &removed, &added))
}

fn put<'a>(added: &mut Vec<(&'a str, Bytes)>, key: &'a str, value: Bytes) {
    match added.iter_mut().find(|(k, _)| *k == key) {
        Some(slot) => slot.1 = value,
        None => added.push((key, value)),
    }
}

/// A body as it is put together.
struct Joined<'a> {
    from: &'a Rope,
    parts: Vec<Bytes>,
    len: usize,
}

impl Joined<'_> {
    /// Appends bytes, and says where they lie.
    fn push(&mut self, bytes: Bytes) -> Range<usize> {
        let at = self.len;
        self.len += bytes.len();
        self.parts.push(bytes);
        at..self.len
    }

    /// Appends a range of the old body.
    fn keep(&mut self, range: Range<usize>) -> Range<usize> {
        let at = self.len;
        self.len += range.len();
        self.parts.extend(self.from.share(range));
        at..self.len
    }
}

fn assemble(
    body: &Rope,
    top: &TopLevel,
    replaced: &[Option<Bytes>],
    removed: &[bool],
    added: &[(&str, Bytes)],
) -> (Rope, TopLevel) {
    let members = &top.members;
    let kept: Vec<usize> = (0..members.len()).filter(|i| !removed[*i]).collect();
    let mut out = Joined { from: body, parts: Vec::new(), len: 0 };
    let mut now = Vec::with_capacity(kept.len() + added.len());
    out.keep(0..members.first().map_or(top.open + 1, |m| m.key_at.start));
    for (place, &i) in kept.iter().enumerate() {
        let m = &members[i];
        let key_at = out.keep(m.key_at.clone());
        out.keep(m.key_at.end..m.value_at.start);
        let value_at = match &replaced[i] {
            Some(value) => out.push(value.clone()),
            None => out.keep(m.value_at.clone()),
        };
        now.push(Member { key: m.key.clone(), key_at, value_at });
        if place + 1 < kept.len() {
            out.keep(m.value_at.end..members[i + 1].key_at.start);
        }
    }
    for (key, value) in added {
        if !now.is_empty() {
            out.push(Bytes::from_static(b","));
        }
        let key_at = out.push(Bytes::from(format!("\"{key}\"")));
        out.push(Bytes::from_static(b":"));
        let value_at = out.push(value.clone());
        now.push(Member { key: (*key).to_owned(), key_at, value_at });
    }
    let end = members.last().map_or(top.close, |m| m.value_at.end);
    let close = out.len + top.close - end;
    out.keep(end..body.len());
    (out.parts.into_iter().collect(), TopLevel { members: now, open: top.open, close })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn run(body: &str, patches: &[Patch]) -> String {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let top = TopLevel::scan(&body).unwrap();
        String::from_utf8(apply(&body, &top, patches).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn changes_only_what_it_names() {
        let usage = Patch::SetIn("stream_options", "include_usage", "true".into());
        assert_eq!(run("{}", std::slice::from_ref(&usage)), r#"{"stream_options":{"include_usage":true}}"#);
        assert_eq!(
            run(r#"{ "a" : 1 , "stream_options" : {"x":2} }"#, std::slice::from_ref(&usage)),
            r#"{ "a" : 1 , "stream_options" : {"x":2,"include_usage":true} }"#
        );
        assert_eq!(
            run(r#"{"stream_options":null,"b":[ 1 ]}"#, &[usage]),
            r#"{"stream_options":{"include_usage":true},"b":[ 1 ]}"#
        );
        assert_eq!(run(r#"{ "user":"u" }"#, &[Patch::Remove("user")]), "{  }");
        assert_eq!(run(r#"{"user":"u", "a":1}"#, &[Patch::Remove("user")]), r#"{"a":1}"#);
        assert_eq!(run(r#"{"a":1, "user":"u"}"#, &[Patch::Remove("user")]), r#"{"a":1}"#);
        assert_eq!(
            run(r#"{"user":1}"#, &[Patch::Remove("user"), Patch::Set("max_tokens", "5".into())]),
            r#"{"max_tokens":5}"#
        );
    }

    proptest! {
        /// Whatever the members and their order: the result parses, the patched members are as
        /// asked, and every other member has the same bytes in the same order.
        #[test]
        fn leaves_the_rest_alone(keys in proptest::sample::subsequence(vec!["model", "user", "messages", "metadata", "n", "stream_options", "zz"], 0..=7).prop_shuffle(), spaces in 0usize..3) {
            let pad = " ".repeat(spaces);
            let text = format!("{{{}}}", keys.iter().map(|k| {
                let v = if *k == "stream_options" { "{\"q\":1}".to_owned() } else { format!("[\"{k}\", 1.50]") };
                format!("{pad}\"{k}\"{pad}:{v}{pad}")
            }).collect::<Vec<_>>().join(","));
            let patches = &[Patch::Remove("user"), Patch::Remove("metadata"), Patch::Set("model", "\"m\"".into()), Patch::SetIn("stream_options", "include_usage", "true".into())];
            let out = run(&text, patches);
            let mut spool = crate::rope::Spool::new(None);
            spool.push(text.as_bytes());
            let top = TopLevel::scan(text.as_bytes()).unwrap();
            let (rope, told) = splice(&spool.finish(), &top, patches).unwrap();
            prop_assert_eq!(&rope.parts().flatten().copied().collect::<Vec<_>>(), out.as_bytes());
            prop_assert_eq!(told, TopLevel::scan(out.as_bytes()).unwrap());
            let parsed: Value = serde_json::from_str(&out).unwrap();
            prop_assert_eq!(&parsed["model"], &json!("m"));
            prop_assert_eq!(&parsed["stream_options"]["include_usage"], &json!(true));
            prop_assert!(parsed.get("user").is_none() && parsed.get("metadata").is_none());
            let top = TopLevel::scan(out.as_bytes()).unwrap();
            let kept: Vec<&str> = keys.iter().copied().filter(|k| !["user", "metadata", "model", "stream_options"].contains(k)).collect();
            let after: Vec<&str> = top.members.iter().map(|m| m.key.as_str()).filter(|k| !["model", "stream_options"].contains(k)).collect();
            prop_assert_eq!(&kept, &after);
            for k in kept {
                let want = format!("[\"{k}\", 1.50]");
                prop_assert_eq!(top.raw(out.as_bytes(), k).unwrap(), want.as_bytes());
            }
        }
    }
}
