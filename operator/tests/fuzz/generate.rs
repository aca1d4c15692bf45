//! Objects that follow a kind's schema, more or less: most are nearly right, some are nonsense.

use serde_json::{Map, Value, json};
use strata_kinds::schema::Kind;

use super::random::Random;

/// Texts that some field or other takes, and some that none should.
const TEXTS: &[&str] = &[
    "a",
    "m",
    "models",
    "/models/m.gguf",
    "file:///m",
    "file://~/m",
    "hf://a/b",
    "hf://a/b/c.gguf@main",
    "oci://r:5000/a/b:1",
    "oci://r/a@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "s3://bucket/path/",
    "pvc://claim/a",
    "https://h:1/a?b=c",
    "1m",
    "90s",
    "500ms",
    "10d",
    "5%",
    "100%",
    "0%",
    "2Gi",
    "500m",
    "1",
    "0",
    "-1",
    "1.5",
    "99999999999999999999",
    "nvidia.com/gpu",
    "cpu",
    "memory",
    "x/y",
    "*",
    "smollm2-*",
    "Europe/Berlin",
    "EUR",
    "2030-01-31T12:00:00Z",
    "99.9%",
    "Vllm",
    "Custom",
    "Exists",
    "",
    " ",
    "\u{0}",
    "ü/../é",
    "strata.dev/refresh",
    "app.kubernetes.io/name",
    "STRATA_LISTEN",
    "HOME",
    "A",
    "$(A)",
    "\\\"}",
];

/// An object of a kind.
pub(crate) fn object(random: &mut Random, kind: Kind) -> Value {
    let schema = kind.schema();
    let mut object = json!({
        "apiVersion": Kind::api_version(),
        "kind": kind.name(),
        "metadata": {
            "name": if random.one_in(10) { text(random) } else { "a".to_owned() },
            "namespace": *random.pick(&["strata", "models", "", "x"]),
            "uid": "1", "generation": random.below(5), "annotations": { "strata.dev/refresh": text(random) },
        },
        "spec": value(random, &schema["properties"]["spec"], 0),
    });
    if random.one_in(3) {
        object["status"] = value(random, &schema["properties"]["status"], 0);
    }
    object
}

fn text(random: &mut Random) -> String {
    match random.below(20) {
        0 => "x".repeat(random.below(5000)),
        1 => (0..random.below(40))
            .map(|_| char::from_u32(random.below(0x2_0000) as u32).unwrap_or('?'))
            .collect(),
        _ => (*random.pick(TEXTS)).to_owned(),
    }
}

/// A value of a schema; once in a while one of none.
fn value(random: &mut Random, schema: &Value, depth: usize) -> Value {
    if depth > 12 || random.one_in(120) {
        return anything(random, depth);
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array).filter(|list| !list.is_empty()) {
        return if random.one_in(40) { Value::from(text(random)) } else { random.pick(allowed).clone() };
    }
    if schema.get("x-kubernetes-int-or-string").is_some() {
        return if random.one_in(2) { Value::from(random.below(9)) } else { Value::from(text(random)) };
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => members(random, schema, depth),
        Some("array") => {
            let items = schema.get("items").cloned().unwrap_or_default();
            (0..random.below(3)).map(|_| value(random, &items, depth + 1)).collect()
        }
        Some("integer") => integer(random, schema),
        Some("number") => json!(random.below(2000) as f64 / 7.0 - 1.0),
        Some("boolean") => Value::from(random.one_in(2)),
        _ => Value::from(fitting(random, schema)),
    }
}

/// A text, often one that keeps a rule.
fn fitting(random: &mut Random, schema: &Value) -> String {
    if schema.get("format").and_then(Value::as_str) == Some("date-time") {
        return "2026-01-31T12:00:00Z".to_owned();
    }
    let message =
        schema.pointer("/x-kubernetes-validations/0/message").and_then(Value::as_str).unwrap_or_default();
    if random.one_in(12) {
        return text(random);
    }
    let kept: &[&str] = match message {
        m if m.starts_with("must be file://PATH") => &TEXTS[3..13],
        m if m.contains("name of an object") || m.contains("lower-case") => &["a", "models", "ci-key"],
        m if m.contains("such as 500ms") => &["500ms", "90s", "1m", "10d"],
        m if m.contains("such as 1m") => &["90s", "1m", "10d"],
        m if m.contains("number of bytes") => &["2Gi", "1"],
        m if m.contains("decimal") => &["0.25", "10"],
        m if m.contains("three letters") => &["EUR"],
        m if m.contains("IANA") => &["Europe/Berlin", "UTC"],
        m if m.contains("percent") => &["99.9%", "100%"],
        m if m.contains("begin and end") || m.contains("with * for") => &["m", "smollm2", "a"],
        m if m.contains("begin with no digit") => &["A", "B_1", "HOME"],
        _ => &["a", "b", "x"],
    };
    (*random.pick(kept)).to_owned()
}

fn integer(random: &mut Random, schema: &Value) -> Value {
    let bound = |name: &str, or: i64| schema.get(name).and_then(Value::as_f64).map_or(or, |n| n as i64);
    let (least, most) = (bound("minimum", 0), bound("maximum", 1 << 40));
    match random.below(12) {
        0 => Value::from(least),
        1 => Value::from(most),
        2 => Value::from(least.saturating_sub(1)),
        3 => Value::from(random.next() as i64),
        _ => Value::from(least.saturating_add(random.below(5) as i64).min(most)),
    }
}

fn members(random: &mut Random, schema: &Value, depth: usize) -> Value {
    let mut map = Map::new();
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let sparse = if depth == 0 { 4 } else { 3 };
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let wanted =
            if required.contains(&name.as_str()) { !random.one_in(60) } else { random.one_in(sparse) };
        if wanted {
            map.insert(name.clone(), value(random, property, depth + 1));
        }
    }
    if let Some(values) = schema.get("additionalProperties").filter(|s| s.is_object()) {
        for _ in 0..random.below(4) {
            map.insert(text(random), value(random, values, depth + 1));
        }
    }
    if random.one_in(100) {
        map.insert(text(random), anything(random, depth + 1));
    }
    Value::Object(map)
}

/// Any JSON.
fn anything(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth > 6 { 5 } else { 7 }) {
        0 => Value::Null,
        1 => Value::from(random.one_in(2)),
        2 => Value::from(random.next() as i64),
        3 => json!(f64::from_bits(random.next())),
        4 => Value::from(text(random)),
        5 => (0..random.below(4)).map(|_| anything(random, depth + 1)).collect(),
        _ => {
            Value::Object((0..random.below(4)).map(|_| (text(random), anything(random, depth + 1))).collect())
        }
    }
}
