//! YAML that remembers its lines: values as JSON, and for every field the line where it stands.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_yaml::Spanned;

/// A value and the line where it begins, counted from 1.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    line: u32,
    shape: Shape,
}

#[derive(Clone, Debug)]
enum Shape {
    Plain(Value),
    List(Vec<Node>),
    /// Keys with their own lines, in order.
    Map(Vec<(String, u32, Node)>),
}

/// Text that is not YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub line: Option<u32>,
    pub message: String,
}

/// One document of a file, by the line before its first.
pub(crate) struct Document<'a> {
    lines_before: u32,
    text: std::borrow::Cow<'a, str>,
}

/// Splits a file into its documents. A line that begins with `---` is a border wherever it stands,
/// so that one broken document leaves the others whole.
pub(crate) fn documents(text: &str) -> Vec<Document<'_>> {
    let mut starts = vec![0];
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let border = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if border && offset > 0 {
            starts.push(offset);
        }
        offset += line.len();
    }
    starts.push(text.len());
    starts
        .windows(2)
        .filter_map(|window| {
            let part = &text[window[0]..window[1]];
            let says_something = part.lines().any(|l| {
                !l.trim().is_empty() && !l.starts_with('#') && !l.starts_with('%') && l.trim() != "---"
            });
            let lines_before = text[..window[0]].matches('\n').count() as u32;
            says_something.then(|| Document { lines_before, text: part.into() })
        })
        .collect()
}

impl Document<'_> {
    /// Parses the document. `None` when it holds nothing but comments.
    pub(crate) fn parse(&self) -> Result<Option<Node>, SyntaxError> {
        let options = serde_yaml::options! {
            strict_booleans: true,
            with_snippet: false,
        };
        match serde_yaml::from_str_with_options::<Spanned<Raw>>(&self.text, options) {
            Ok(raw) => {
                let node = raw.value.located(raw.referenced.line() as u32, self.lines_before);
                Ok((!matches!(node.shape, Shape::Plain(Value::Null))).then_some(node))
            }
            Err(error) => Err(SyntaxError {
                line: error.location().map(|l| l.line() as u32 + self.lines_before).filter(|l| *l > 0),
                message: plain(&error),
            }),
        }
    }

    /// The line where the document begins.
    pub(crate) fn line(&self) -> u32 {
        self.lines_before + 1
    }
}

/// Parses a JSON file. Its fields have no lines of their own.
pub(crate) fn json(text: &str) -> Result<Node, SyntaxError> {
    serde_json::from_str::<Value>(text)
        .map(|value| Node { line: 1, shape: Shape::Plain(value) })
        .map_err(|e| SyntaxError { line: Some(e.line() as u32).filter(|l| *l > 0), message: e.to_string() })
}

/// The error's first line, without the place, which is told apart.
fn plain(error: &serde_yaml::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text.lines().next().unwrap_or("not YAML").trim();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    match (line.starts_with("line "), line.find(": ")) {
        (true, Some(colon)) => line[colon + 2..].to_owned(),
        _ => line.rfind(" at line ").map_or(line, |at| &line[..at]).to_owned(),
    }
}

impl Node {
    /// The value as JSON.
    pub(crate) fn value(&self) -> Value {
        match &self.shape {
            Shape::Plain(value) => value.clone(),
            Shape::List(list) => list.iter().map(Self::value).collect(),
            Shape::Map(map) => {
                Value::Object(map.iter().map(|(k, _, v)| (k.clone(), v.value())).collect::<Map<_, _>>())
            }
        }
    }

    /// The entries of a list under this key, if there is one.
    pub(crate) fn list(&self, key: &str) -> Option<Vec<Self>> {
        match &self.shape {
            Shape::Map(map) => map.iter().find(|(k, _, _)| k == key).and_then(|(_, _, v)| match &v.shape {
                Shape::List(list) => Some(list.clone()),
                Shape::Plain(Value::Array(list)) => Some(
                    list.iter().map(|v| Self { line: self.line, shape: Shape::Plain(v.clone()) }).collect(),
                ),
                _ => None,
            }),
            Shape::Plain(value) => value.get(key).and_then(Value::as_array).map(|list| {
                list.iter().map(|v| Self { line: self.line, shape: Shape::Plain(v.clone()) }).collect()
            }),
            Shape::List(_) => None,
        }
    }

    /// The line of the field at a path such as `spec.limits[0].window`, or of the nearest field
    /// around it.
    pub(crate) fn line_of(&self, path: &str) -> u32 {
        if path.is_empty() {
            return self.line;
        }
        match &self.shape {
            Shape::Plain(_) => self.line,
            Shape::List(list) => {
                let Some((index, rest)) = path.strip_prefix('[').and_then(|p| p.split_once(']')) else {
                    return self.line;
                };
                let item = index.parse::<usize>().ok().and_then(|i| list.get(i));
                item.map_or(self.line, |item| item.line_of(rest.strip_prefix('.').unwrap_or(rest)))
            }
            Shape::Map(map) => {
                // Keys may contain dots themselves: the longest that fits is the field.
                let found = map
                    .iter()
                    .filter_map(|entry| {
                        let rest = path.strip_prefix(entry.0.as_str())?;
                        (rest.is_empty() || rest.starts_with(['.', '['])).then_some((entry, rest))
                    })
                    .max_by_key(|(entry, _)| entry.0.len());
                match found {
                    Some(((_, line, _), "")) => *line,
                    Some(((_, line, value), rest)) => {
                        value.line_of(rest.strip_prefix('.').unwrap_or(rest)).max(*line)
                    }
                    None => self.line,
                }
            }
        }
    }
}

/// What the parser gives, before lines are put in place.
enum Raw {
    Plain(Value),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl Raw {
    fn located(self, line: u32, lines_before: u32) -> Node {
        let at = |line: u64| line as u32;
        let shape = match self {
            Self::Plain(value) => Shape::Plain(value),
            Self::List(list) => Shape::List(
                list.into_iter().map(|v| v.value.located(at(v.referenced.line()), lines_before)).collect(),
            ),
            Self::Map(map) => Shape::Map(
                map.into_iter()
                    .map(|(key, value)| {
                        let line = at(key.referenced.line()) + lines_before;
                        (key.value, line, value.value.located(at(value.referenced.line()), lines_before))
                    })
                    .collect(),
            ),
        };
        Node { line: line + lines_before, shape }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Plain(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Plain(Value::Null))
    }

    fn visit_bool<E>(self, v: bool) -> Result<Raw, E> {
        Ok(Raw::Plain(v.into()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Raw, E> {
        Ok(Raw::Plain(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Raw, E> {
        Ok(Raw::Plain(v.into()))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Raw, E> {
        serde_json::Number::from_f64(v)
            .map(|n| Raw::Plain(n.into()))
            .ok_or_else(|| E::custom("infinite numbers and NaN have no meaning here"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Raw, E> {
        Ok(Raw::Plain(v.into()))
    }

    fn visit_string<E>(self, v: String) -> Result<Raw, E> {
        Ok(Raw::Plain(v.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = access.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Result<Option<Node>, SyntaxError>> {
        documents(text).iter().map(Document::parse).collect()
    }

    #[test]
    fn fields_know_their_lines_across_documents() {
        let text = "# comment\na: 1\n---\nb:\n  c.d: [1,\n    2]\n  e:\n    - f: x\n    - f: y\n";
        let parsed = parse(text);
        let second = parsed[1].clone().unwrap().unwrap();
        assert_eq!(second.value().to_string(), r#"{"b":{"c.d":[1,2],"e":[{"f":"x"},{"f":"y"}]}}"#);
        for (path, line) in [
            ("b", 4),
            ("b.c.d", 5),
            ("b.c.d[1]", 6),
            ("b.e[1].f", 9),
            ("b.missing", 5),
            ("b.e[7]", 8),
            ("z", 4),
        ] {
            assert_eq!(second.line_of(path), line, "{path}");
        }
    }

    #[test]
    fn a_broken_document_leaves_the_others_whole() {
        let parsed = parse("a: 1\n---\nb: [1\n---\nc: 3\n");
        assert!(parsed[0].is_ok() && parsed[2].is_ok());
        let error = parsed[1].clone().unwrap_err();
        assert!(error.line.is_some_and(|l| (2..=4).contains(&l)), "{error:?}");
    }

    #[test]
    fn documents_of_comments_are_skipped() {
        assert_eq!(parse("# only\n---\n# comments\n---\n").len(), 0);
        assert_eq!(parse("").len(), 0);
        assert_eq!(parse("%YAML 1.2\n---\na: 1\n").len(), 1);
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let deep = "[".repeat(100_000);
        assert!(parse(&deep)[0].is_err());
        let deep = format!("{}1{}", "{a: ".repeat(5_000), "}".repeat(5_000));
        assert!(parse(&deep)[0].is_err());
    }

    #[test]
    fn words_that_other_parsers_take_for_booleans_are_words() {
        let node = parse("a: yes\nb: on\nc: true\n")[0].clone().unwrap().unwrap();
        assert_eq!(node.value().to_string(), r#"{"a":"yes","b":"on","c":true}"#);
    }

    #[test]
    fn repeated_keys_are_an_error() {
        let error = parse("a: 1\na: 2\n")[0].clone().unwrap_err();
        assert_eq!(error.line, Some(2), "{error:?}");
    }
}
