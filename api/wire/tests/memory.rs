//! What a body takes in memory while it is read and patched: little more than its bytes.
//!
//! One test, because the allocator counts for the whole process.
#![allow(clippy::unwrap_used)]

use peak_alloc::PeakAlloc;
use strata_wire::extract::Extractor;
use strata_wire::patch::{self, Patch};
use strata_wire::prefix::Form;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// What may come on top of a tenth of the body: the parts that are open, keys, and a small body's share.
const SLACK: usize = 256 * 1024;

/// A body of about `size` bytes, which is nowhere in memory: `unit` again and again between two ends.
struct Made {
    name: &'static str,
    head: &'static str,
    unit: &'static str,
    tail: &'static str,
    size: usize,
}

impl Made {
    /// Gives the bytes in chunks of this size, and says how many they were.
    fn each(&self, chunk: usize, mut take: impl FnMut(&[u8])) -> usize {
        let mut bytes = 0;
        let mut give = |text: &[u8]| {
            bytes += text.len();
            text.chunks(chunk).for_each(&mut take);
        };
        give(self.head.as_bytes());
        // A whole number of units at a time, in one buffer.
        let times = (chunk / self.unit.len()).max(1);
        let units = self.unit.repeat(times);
        for _ in 0..self.size / units.len() {
            give(units.as_bytes());
        }
        // The tail takes the comma that the last unit left.
        give(self.tail.as_bytes());
        bytes
    }
}

/// Reads, patches twice as for two tries, and returns the body's size and the most that it took.
fn peak(made: &Made, chunk: usize, form: Option<Form>) -> (usize, usize) {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let mut extractor = Extractor::new(None, form.map(|form| (form, "scope")));
    let bytes = made.each(chunk, |chunk| extractor.push(chunk).unwrap());
    let read = extractor.finish().unwrap();
    let salt = Patch::Set("cache_salt", "\"scope\"".to_owned());
    let (patched, top) = patch::splice(&read.body, &read.top, &[salt, Patch::Remove("priority")]).unwrap();
    let words = Patch::Set("kv_transfer_params", "{}".to_owned());
    let (again, _) = patch::splice(&patched, &top, &[words]).unwrap();
    assert!(again.len() > patched.len() && patched.len() > bytes);
    assert_eq!(form.is_some(), read.prefix.is_some(), "{}", made.name);
    (bytes, HEAP.peak_usage() - before)
}

#[test]
fn a_body_takes_a_tenth_more_than_its_bytes() {
    const MIB: usize = 1024 * 1024;
    let made = |name, (head, unit, tail), size| Made { name, head, unit, tail, size };
    let text = (
        r#"{"model":"m","messages":[{"role":"user","content":""#,
        "words of a prompt, \\\"é\\\" \\n",
        r#""}]}"#,
    );
    let late = (
        r#"{"messages":[{"content":""#,
        "words of a prompt, \\\"é\\\" \\n",
        r#"","role":"user"}],"tools":[],"model":"m"}"#,
    );
    let turns = (r#"{"model":"m","messages":["#, r#"{"role":"user"},"#, r#"{}],"tools":[1]}"#);
    let empty = (r#"{"model":"m","messages":["#, "{},", "{}]}");
    let tokens = (r#"{"model":"m","prompt":["#, "128001,", "1]}");
    let image = (
        r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:"#,
        "iVBORw0KGgo",
        r#""}},{"type":"text","text":"what is it?"}]}]}"#,
    );
    let parts = (
        r#"{"model":"m","messages":[{"role":"user","content":["#,
        r#"{"text":"a"},"#,
        r#"{"text":"b","text":"c"}]}]}"#,
    );
    let input = (r#"{"model":"m","input":["#, r#"{"type":"x","content":"y"},"#, "{}]}");
    let chat = Some(Form::Chat);
    let cases = [
        // 50 MB, and a size at which the list of blocks has just grown.
        (made("text", text, 50_000_000), 16 * 1024, chat),
        (made("text", text, 33_600_000), 16 * 1024, chat),
        (made("late", late, 50_000_000), 64 * 1024, chat),
        (made("no prefix", text, 50_000_000), 64 * 1024, None),
        (made("turns", turns, 8 * MIB), 1000, chat),
        (made("empty turns", empty, 8 * MIB), 1000, chat),
        (made("tokens", tokens, 8 * MIB), 4096, chat),
        (made("image", image, 8 * MIB), 4096, chat),
        (made("parts", parts, 4 * MIB), 4096, chat),
        (made("one byte at a time", text, 2 * MIB), 1, chat),
        (made("input", input, 8 * MIB), 4096, Some(Form::Response)),
    ];
    for (made, chunk, form) in cases {
        let (bytes, peak) = peak(&made, chunk, form);
        println!(
            "{}: {bytes} bytes in chunks of {chunk}, at most {peak} on the heap: {:.3}",
            made.name,
            peak as f64 / bytes as f64
        );
        assert!(peak <= bytes + bytes / 10 + SLACK, "{}: {peak} for {bytes}", made.name);
    }
    // The bodies of the issue's size keep to it without the slack.
    let (bytes, peak) = peak(&made("text", text, 50_000_000), 64 * 1024, chat);
    assert!(peak <= bytes + bytes / 10, "{peak} for {bytes}");
}
