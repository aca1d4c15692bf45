//! What reading a body costs: by the streaming reader, and by the first readers (a scan of the top level,
//! a full parse, a copy with the patches). In turns, so that both meet the same machine.
//!
//! `cargo run --release -p strata-wire --example read_cost` prints microseconds and MB/s; with the
//! arguments `old`, `new` or `ahead`, an order, a size and a count it reads so often and prints nothing, for
//! `valgrind --tool=callgrind`.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use strata_wire::extract::Extractor;
use strata_wire::patch::{self, Patch};
use strata_wire::prefix::Form;

#[path = "../tests/extract/reference.rs"]
mod reference;

/// As much as one read of a connection brings.
const CHUNK: usize = 64 * 1024;

/// A chat of about this many bytes, in the order of members that some clients send.
fn body(order: &str, size: usize) -> Vec<u8> {
    let line = "The quick brown fox jumps over the lazy dog, says \\\"é\\\" and goes on.\\n";
    let messages = format!(
        r#""messages":[{{"role":"system","content":"{}"}},{{"role":"user","content":"{}"}}]"#,
        line.repeat(size / 2 / line.len()),
        line.repeat(size / 2 / line.len())
    );
    let tools = r#""tools":[{"type":"function","function":{"name":"f","parameters":{}}}]"#;
    let model = r#""model":"m","stream":true"#;
    let members = match order {
        "model-first" => [model, &messages].join(","),
        "messages-first" => [&messages, model].join(","),
        "tools-last" => [model, &messages, tools].join(","),
        _ => panic!("no such order: {order}"),
    };
    format!("{{{members}}}").into_bytes()
}

fn patches() -> [Patch; 2] {
    [Patch::Remove("priority"), Patch::Set("cache_salt", "\"scope\"".to_owned())]
}

fn old(body: &[u8]) -> usize {
    let mut whole = BytesMut::new();
    body.chunks(CHUNK).for_each(|chunk| whole.extend_from_slice(chunk));
    let whole: Bytes = whole.freeze();
    let top = reference::scan(&whole).unwrap();
    let (prefix, _) = reference::with_passages("scope", &whole).unwrap();
    let patched = patch::apply(&whole, &top, &patches()).unwrap();
    patched.len() + prefix.blocks.len()
}

fn new(body: &[u8]) -> usize {
    streamed(body, false)
}

fn ahead(body: &[u8]) -> usize {
    streamed(body, true)
}

fn streamed(body: &[u8], ahead: bool) -> usize {
    let mut extractor = Extractor::new(Some(body.len()), Some((Form::Chat, "scope"))).ahead(ahead);
    body.chunks(CHUNK).for_each(|chunk| extractor.push(chunk).unwrap());
    let read = extractor.finish().unwrap();
    let (patched, _) = patch::splice(&read.body, &read.top, &patches()).unwrap();
    patched.len() + read.prefix.unwrap().blocks.len()
}

/// What any reader pays: the blocks hashed one after the other, and nothing read.
fn hash_alone(body: &[u8]) -> usize {
    let mut hasher = strata_wire::prefix::PrefixHasher::new("scope", "m");
    hasher.push(body);
    hasher.finish().blocks.len()
}

fn copy_alone(body: &[u8]) -> usize {
    let mut whole = Vec::with_capacity(body.len());
    body.chunks(CHUNK).for_each(|chunk| whole.extend_from_slice(black_box(chunk)));
    black_box(&mut whole).len()
}

fn time(read: fn(&[u8]) -> usize, body: &[u8]) -> Duration {
    let began = Instant::now();
    black_box(read(black_box(body)));
    began.elapsed()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [which, order, size, count] = &arguments[..] {
        let body = body(order, size.parse().unwrap());
        let read = match &**which {
            "old" => old,
            "new" => new,
            "ahead" => ahead,
            "hash" => hash_alone,
            _ => copy_alone,
        };
        for _ in 0..count.parse().unwrap() {
            black_box(read(black_box(&body)));
        }
        return;
    }
    let names = ["old", "new", "new, ahead", "hash alone", "copy alone"];
    println!("{:>15} {:>9} {}", "order", "bytes", names.map(|name| format!("{name:>25}")).concat());
    for order in ["model-first", "messages-first", "tools-last"] {
        for size in [4 << 10, 64 << 10, 1 << 20] {
            let body = body(order, size);
            let readers: [fn(&[u8]) -> usize; 5] = [old, new, ahead, hash_alone, copy_alone];
            let mut took = [const { Vec::new() }; 5];
            for _ in 0..(64 << 20) / body.len() {
                for (took, read) in took.iter_mut().zip(readers) {
                    took.push(time(read, &body));
                }
            }
            let shown = took.map(|took| {
                // The least: whatever else the machine does makes them longer.
                let least = took.into_iter().min().unwrap_or_default().as_secs_f64();
                format!("{:>10.1} us {:>6.0} MB/s", least * 1e6, body.len() as f64 / least / 1e6)
            });
            println!("{order:>15} {:>9} {}", body.len(), shown.concat());
        }
    }
}
