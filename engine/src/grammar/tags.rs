//! Answers that are text with bound parts in it, such as calls between marks (vLLM's structural tags), written
//! as Lark.
//!
//! Free text ends where a mark stands that says what follows: a lexeme that is taken as soon as it is there.
//! From then on the answer is bound, and before it text is free.

use std::fmt::Write;

use serde_json::Value;

use super::ebnf;
use super::form::{Space, lark_regex, spaced};

/// A piece of a fixed text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text; not empty.
    Text(String),
    /// A token, which no text spells.
    Token(u32),
}

/// A fixed text, in which special tokens may stand.
pub type Spelling = Vec<Piece>;

/// What a part of an answer may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// This text.
    Fixed(Spelling),
    /// JSON that this schema accepts.
    Json(Value, Space),
    /// Text that this regular expression matches.
    Regex(String),
    /// Text of this grammar in Lark.
    Grammar(String),
    /// These, one after the other.
    Sequence(Vec<Content>),
    /// One of these.
    Either(Vec<Content>),
    /// A part between marks.
    Tag(Box<Tag>),
    /// This, as often.
    Repeated(Box<Content>, u32, Option<u32>),
    /// Any text without these; only where something says how it ends.
    Free(Vec<String>),
    /// Free text in which marks begin bound parts; as [`Content::Free`], only where something ends it.
    Marked(Marked),
}

/// A bound part between marks.
#[derive(Clone, Debug, PartialEq)]
pub struct Tag {
    /// What begins it.
    pub begin: Spelling,
    /// What is in it.
    pub content: Content,
    /// What ends it: one of these. Without any, its content ends by itself, or with what it stands in.
    pub end: Vec<Spelling>,
}

/// Free text with bound parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Marked {
    /// The marks, and what may follow each.
    pub groups: Vec<Group>,
    /// Whether the text begins with a bound part.
    pub at_least_one: bool,
    /// Whether nothing follows the first of them.
    pub stop_after_first: bool,
    /// What the free text must not hold.
    pub excludes: Vec<String>,
}

/// A mark.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Text alone, or something that begins with a token.
    pub mark: Spelling,
    /// One of these follows it.
    pub follows: Vec<Content>,
}

impl Content {
    /// Text of this grammar, EBNF with `::=` or Lark.
    pub fn grammar(text: &str) -> Result<Self, String> {
        Ok(Self::Grammar(if text.contains("::=") { ebnf::to_lark(text)? } else { text.to_owned() }))
    }

    /// The grammar, as Lark, of an answer that is this.
    pub fn lark(&self) -> String {
        let mut writer = Writer::default();
        let start = writer.last(self, &[]);
        format!("start: {start}\n{}", writer.rules)
    }
}

#[derive(Default)]
struct Writer {
    rules: String,
    count: usize,
}

impl Writer {
    /// Defines a rule or, in capitals, a lexeme; returns its name.
    fn define(&mut self, kind: &str, attributes: &str, body: &str) -> String {
        let name = format!("{kind}_{}", self.count);
        self.count += 1;
        let _ = writeln!(self.rules, "{name}{attributes}: {body}");
        name
    }

    /// A part that ends by itself.
    fn part(&mut self, content: &Content) -> String {
        match content {
            Content::Fixed(spelling) => spelled(spelling),
            Content::Json(schema, space) => {
                let schema = spaced(schema.clone(), space);
                self.define("json", "", &format!("%json {schema}"))
            }
            Content::Regex(regex) => lark_regex(regex),
            Content::Grammar(lark) => self.define("grammar", "", &format!("%lark {{\n{lark}\n}}")),
            Content::Sequence(parts) => {
                let parts: Vec<String> = parts.iter().map(|part| self.part(part)).collect();
                format!("({})", together(&parts))
            }
            Content::Either(parts) => {
                let parts: Vec<String> = parts.iter().map(|part| self.part(part)).collect();
                format!("({})", parts.join(" | "))
            }
            Content::Repeated(content, least, most) => {
                let content = self.part(content);
                match (least, most) {
                    (0, Some(0)) => "\"\"".to_owned(),
                    (_, Some(most)) => format!("({content}){{{least},{most}}}"),
                    (_, None) => format!("({content}){{{least},}}"),
                }
            }
            Content::Tag(tag) => format!("({})", self.tag(tag, &[])),
            // Ends with the answer.
            Content::Free(_) | Content::Marked(_) => self.last(content, &[]),
        }
    }

    fn tag(&mut self, tag: &Tag, ends: &[Spelling]) -> String {
        let own = if tag.end.is_empty() { ends } else { &tag.end };
        let content = self.last(&tag.content, own);
        let tagged = together(&[spelled(&tag.begin), content]);
        // Its own end is not that of what it stands in.
        if tag.end.is_empty() { tagged } else { together(&[tagged, any_of(ends)]) }
    }

    /// A part, and then one of these ends; without any, the end of the answer.
    fn last(&mut self, content: &Content, ends: &[Spelling]) -> String {
        match content {
            Content::Free(excludes) => self.free(excludes, ends),
            Content::Marked(marked) => self.marked(marked, ends),
            Content::Sequence(parts) => {
                let Some((last, before)) = parts.split_last() else { return any_of(ends) };
                let mut parts: Vec<String> = before.iter().map(|part| self.part(part)).collect();
                parts.push(self.last(last, ends));
                format!("({})", together(&parts))
            }
            Content::Either(parts) => {
                let parts: Vec<String> = parts.iter().map(|part| self.last(part, ends)).collect();
                format!("({})", parts.join(" | "))
            }
            Content::Tag(tag) => format!("({})", self.tag(tag, ends)),
            other => together(&[self.part(other), any_of(ends)]),
        }
    }

    /// Text up to one of these ends.
    fn free(&mut self, excludes: &[String], ends: &[Spelling]) -> String {
        if ends.is_empty() {
            return format!("{}?", self.text(excludes));
        }
        let ends: Vec<String> = ends.iter().map(|end| self.up_to(excludes, end)).collect();
        format!("({})", ends.join(" | "))
    }

    /// Text up to and with a mark.
    fn up_to(&mut self, excludes: &[String], mark: &Spelling) -> String {
        match mark.as_slice() {
            [Piece::Text(text), rest @ ..] => {
                let lexeme = format!("({}) {}", any_text("*", excludes), ebnf::literal(text));
                let lead = self.define("upto", "[lazy]", &lexeme);
                together(&[lead, spelled(rest)])
            }
            token => {
                let text = self.text(excludes);
                format!("({text}? {})", spelled(token))
            }
        }
    }

    /// Text, at least a character.
    fn text(&mut self, excludes: &[String]) -> String {
        self.define("TEXT", "", &any_text("+", excludes))
    }

    fn marked(&mut self, marked: &Marked, ends: &[Spelling]) -> String {
        let Marked { groups, at_least_one, stop_after_first, excludes } = marked;
        let (mut bound, mut first) = (Vec::new(), Vec::new());
        for Group { mark, follows } in groups {
            let follows: Vec<String> = follows.iter().map(|content| self.part(content)).collect();
            let follows = self.define("marked", "", &follows.join(" | "));
            bound.push(format!("{} {follows}", self.up_to(excludes, mark)));
            first.push(format!("{} {follows}", spelled(mark)));
        }
        let first = format!("({})", first.join(" | "));
        if *at_least_one && *stop_after_first {
            return together(&[first, any_of(ends)]);
        }
        let bound = self.define("bound", "", &bound.join(" | "));
        let rest = self.free(excludes, ends);
        match (at_least_one, stop_after_first) {
            (true, _) => format!("({first} {bound}* {rest})"),
            (false, true) => format!("({} | {rest})", together(&[bound, any_of(ends)])),
            (false, false) => format!("({bound}* {rest})"),
        }
    }
}

/// The lexeme of text that holds none of these, as long as `times` says.
fn any_text(times: &str, excludes: &[String]) -> String {
    let any = format!("/(?s:.{times})/");
    if excludes.is_empty() {
        return any;
    }
    let excluded: Vec<String> = excludes.iter().map(|text| ebnf::literal(text)).collect();
    format!("{any} & ~(/(?s:.*)/ ({}) /(?s:.*)/)", excluded.join(" | "))
}

fn spelled(pieces: &[Piece]) -> String {
    let piece = |piece: &Piece| match piece {
        Piece::Text(text) => ebnf::literal(text),
        Piece::Token(id) => format!("<[{id}]>"),
    };
    if pieces.is_empty() {
        return "\"\"".to_owned();
    }
    pieces.iter().map(piece).collect::<Vec<_>>().join(" ")
}

fn any_of(ends: &[Spelling]) -> String {
    match ends {
        [] => "\"\"".to_owned(),
        [end] => spelled(end),
        ends => format!("({})", ends.iter().map(|end| spelled(end)).collect::<Vec<_>>().join(" | ")),
    }
}

/// Parts one after the other, without those that are nothing.
fn together(parts: &[String]) -> String {
    let some: Vec<&str> = parts.iter().map(String::as_str).filter(|part| *part != "\"\"").collect();
    if some.is_empty() { "\"\"".to_owned() } else { some.join(" ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(text: &str) -> Spelling {
        vec![Piece::Text(text.into())]
    }

    fn call(name: &str) -> Content {
        let content = Content::Json(json!({"type": "object"}), Space::None);
        Content::Tag(Box::new(Tag { begin: text(&format!("{name}>")), content, end: vec![text("</f>")] }))
    }

    #[test]
    fn each_content_has_its_grammar() {
        let group = Group { mark: text("<f="), follows: vec![call("a"), call("b")] };
        let marked = |at_least_one, stop_after_first, excludes: &[&str]| {
            let excludes = excludes.iter().map(|&text| text.to_owned()).collect();
            Content::Marked(Marked { groups: vec![group.clone()], at_least_one, stop_after_first, excludes })
        };
        let token = Group {
            mark: vec![Piece::Token(7), Piece::Text("x".into())],
            follows: vec![Content::Regex("[0-9]/".into())],
        };
        let by_token =
            Marked { groups: vec![token], at_least_one: false, stop_after_first: false, excludes: vec![] };
        let thought = Tag {
            begin: text("<think>"),
            content: Content::Free(vec![]),
            end: vec![text("</think>"), vec![Piece::Token(9)]],
        };
        let all = [
            marked(false, false, &[]),
            marked(true, false, &["no"]),
            marked(false, true, &[]),
            marked(true, true, &[]),
            Content::Marked(by_token),
            Content::Sequence(vec![
                Content::Tag(Box::new(thought)),
                Content::Repeated(Box::new(Content::Fixed(text("!"))), 0, Some(2)),
                Content::Either(vec![
                    Content::grammar("root ::= \"x\"").unwrap(),
                    Content::Free(vec!["a".into(), "b".into()]),
                ]),
            ]),
            Content::Fixed(vec![]),
        ];
        let larks: Vec<String> = all.iter().map(Content::lark).collect();
        insta::assert_snapshot!("tags", larks.join("\n"));
    }
}
