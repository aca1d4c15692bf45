//! Reads Prometheus' text format, as engines really write it: with labels, exemplars, timestamps,
//! `NaN`, and now and then a line that is none.

/// One sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample<'a> {
    /// The metric's name, with its `_total`, `_sum`, `_count` or `_bucket`.
    pub name: &'a str,
    /// The text between the braces, as it stands.
    labels: &'a str,
    /// The value; never NaN, for samples without a number are left out.
    pub value: f64,
}

impl<'a> Sample<'a> {
    /// The value of a label, unescaped where it has escapes.
    pub fn label(&self, name: &str) -> Option<std::borrow::Cow<'a, str>> {
        let mut rest = self.labels;
        loop {
            let (key, after) = rest.split_once('=')?;
            let quoted = after.trim_start().strip_prefix('"')?;
            let end = closing_quote(quoted)?;
            if key.trim().trim_start_matches(',').trim() == name {
                return Some(unescape(&quoted[..end]));
            }
            rest = quoted[end + 1..].trim_start().trim_start_matches(',');
        }
    }
}

/// The samples of a text. Comments and lines that are no sample are skipped.
pub fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter_map(sample)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let name_end = line.find(|c: char| c == '{' || c.is_ascii_whitespace())?;
    let (name, rest) = line.split_at(name_end);
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if name.is_empty() || !name.chars().all(valid) {
        return None;
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        None => ("", rest),
        Some(inner) => {
            let end = closing_brace(inner)?;
            (&inner[..end], &inner[end + 1..])
        }
    };
    let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    (!value.is_nan()).then_some(Sample { name, labels, value })
}

/// Where the quote is that ends a label's value.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|b| {
        let ends = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        ends
    })
}

/// Where the brace is that ends the labels: not one inside a value.
fn closing_brace(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.bytes().position(|b| {
        let ends = b == b'}' && !quoted;
        if b == b'"' && !escaped {
            quoted = !quoted;
        }
        escaped = b == b'\\' && !escaped;
        ends
    })
}

fn unescape(raw: &str) -> std::borrow::Cow<'_, str> {
    if !raw.contains('\\') {
        return raw.into();
    }
    let mut text = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => text.push('\n'),
            ('\\', Some(other)) => text.push(other),
            (c, _) => text.push(c),
        }
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(line: &str) -> Option<(&str, f64)> {
        samples(line).next().map(|s| (s.name, s.value))
    }

    #[test]
    fn reads_what_engines_write() {
        assert_eq!(one("up 1"), Some(("up", 1.0)));
        assert_eq!(one("  vllm:x_total{a=\"b\"} 1.5e3 1700000000"), Some(("vllm:x_total", 1500.0)));
        assert_eq!(one("x{a=\"}\"} 2 # {trace=\"1\"} 0.5"), Some(("x", 2.0)));
        assert_eq!(one("x_bucket{le=\"+Inf\"} +Inf"), Some(("x_bucket", f64::INFINITY)));
        assert_eq!(one("x{} 3"), Some(("x", 3.0)));
        let info =
            samples(r#"c{block_size="16",path="a\"b\\c\nd,}=", num_gpu_blocks="None"} 1.0"#).next().unwrap();
        assert_eq!(info.label("block_size").as_deref(), Some("16"));
        assert_eq!(info.label("path").as_deref(), Some("a\"b\\c\nd,}="));
        assert_eq!(info.label("num_gpu_blocks").as_deref(), Some("None"));
        assert_eq!(info.label("size"), None);
    }

    #[test]
    fn skips_what_is_no_sample() {
        for line in
            ["", "# HELP x y", "x", "x NaN", "x{a=\"b\" 1", "x{a=\"b\"}", "<html>", "x y", "{} 1", "é 1"]
        {
            assert_eq!(one(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_input_breaks_it(text in "(?s).{0,300}", line in "[a-z{}=\"\\\\, 0-9#.\n]{0,200}") {
            for sample in samples(&text).chain(samples(&line)) {
                prop_assert!(!sample.value.is_nan());
                let _ = sample.label("a");
            }
        }

        #[test]
        fn labels_survive(value in "[ -~]{0,20}", number in -1e9..1e9f64) {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            let line = format!("m{{x=\"1\",k=\"{escaped}\"}} {number}");
            let sample = samples(&line).next().unwrap();
            let label = sample.label("k").unwrap();
            prop_assert_eq!(label.as_ref(), value.as_str());
            prop_assert!((sample.value - number).abs() <= 1e-6);
        }
    }
}
