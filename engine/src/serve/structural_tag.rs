//! vLLM's structural tags: text with bound parts between marks, in the older form, which lists structures
//! and triggers, and in the newer one, a tree of formats. What of it cannot be followed here is refused by
//! the name of its member.

use serde_json::{Map, Value, json};
use strata_hop::Fault;

use super::members::{not_built, wrong};
use super::structured::{Manner, schema};
use crate::grammar::{Content, Group, Marked, Piece, Space, Spelling, Tag, regex_problem};
use crate::tokenizer::Tokenizer;

/// Formats, tags and triggers of one request.
const MAX_PARTS: usize = 1024;
/// The most that a part may be repeated: each time is written out.
const MAX_TIMES: i64 = 256;

/// Whether a part may be text without an end of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Something else follows it that does not say how it begins.
    Within,
    /// What it stands in ends it.
    Last,
}

type Object = Map<String, Value>;

/// Reads a structural tag that stands in this member.
pub(super) fn read(
    member: &str,
    value: &Value,
    tokenizer: &Tokenizer,
    manner: &Manner,
) -> Result<Content, Fault> {
    let parsed;
    let value = match value {
        Value::String(text) => {
            parsed = serde_json::from_str(text)
                .map_err(|e| Fault::invalid_param(member, format!("`{member}` is not JSON: {e}")))?;
            &parsed
        }
        other => other,
    };
    let Some(map) = value.as_object() else { return Err(wrong(member, "an object, or JSON of one", value)) };
    match map.get("type").and_then(Value::as_str) {
        Some("structural_tag") => {}
        _ => {
            return Err(wrong(
                &format!("{member}.type"),
                "`structural_tag`",
                map.get("type").unwrap_or(&Value::Null),
            ));
        }
    }
    let special = (0..tokenizer.vocab_size() as u32)
        .filter(|id| tokenizer.is_special(*id))
        .map(|id| (tokenizer.written(id), id))
        .filter(|(text, _)| !text.is_empty());
    let mut reader = Reader { tokenizer, manner, special: special.collect(), parts: 0 };
    match (map.get("format"), map.contains_key("structures")) {
        (Some(format), _) => {
            known(member, map, &["type", "format"])?;
            reader.format(&format!("{member}.format"), format, Place::Last)
        }
        (None, true) => {
            known(member, map, &["type", "structures", "triggers"])?;
            reader.structures(member, map)
        }
        (None, false) => {
            let message = format!("`{member}` must hold `format`, or `structures` and `triggers`");
            Err(Fault::invalid_param(member, message))
        }
    }
}

struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    manner: &'a Manner,
    special: Vec<(String, u32)>,
    parts: usize,
}

impl Reader<'_> {
    /// The older form.
    fn structures(&mut self, at: &str, map: &Object) -> Result<Content, Fault> {
        let mut tags = Vec::new();
        for (i, structure) in list(&format!("{at}.structures"), map.get("structures"))?.iter().enumerate() {
            let at = format!("{at}.structures[{i}]");
            let map = object(&at, structure)?;
            known(&at, map, &["begin", "schema", "end"])?;
            let given = map.get("schema").unwrap_or(&Value::Null);
            let content = self.json(&format!("{at}.schema"), given, None)?;
            let begin = text(&format!("{at}.begin"), map.get("begin"))?;
            let end = self.spelling(text(&format!("{at}.end"), map.get("end"))?);
            self.count(&at)?;
            tags.push((format!("{at}.begin"), begin.to_owned(), content, vec![end]));
        }
        self.triggered(at, map, tags)
    }

    fn format(&mut self, at: &str, value: &Value, place: Place) -> Result<Content, Fault> {
        self.count(at)?;
        let map = object(at, value)?;
        let kind = text(&format!("{at}.type"), map.get("type"))?;
        if place == Place::Within && matches!(kind, "any_text" | "triggered_tags" | "dispatch") {
            let message = format!(
                "`{at}` is `{kind}`, text without an end of its own: it must be the last part of a tag that has an \
                 `end`, or of the whole"
            );
            return Err(Fault::invalid_param(at, message));
        }
        let members: &[&str] = match kind {
            "const_string" => &["value"],
            "json_schema" => &["json_schema", "style", "any_order", "max_whitespace_cnt", "excludes"],
            "regex" => &["pattern"],
            "grammar" => &["grammar", "syntax"],
            "any_text" => &["excludes", "max_tokens", "max_chars"],
            "token" => &["token"],
            "sequence" | "or" => &["elements"],
            "tag" => &["begin", "content", "end"],
            "triggered_tags" => &["triggers", "tags", "at_least_one", "stop_after_first", "excludes"],
            "tags_with_separator" => &["tags", "separator", "at_least_one", "stop_after_first"],
            "optional" | "plus" | "star" => &["content"],
            "repeat" => &["content", "min", "max"],
            "dispatch" => &["rules", "loop", "excludes"],
            "qwen_xml_parameter"
            | "exclude_token"
            | "any_tokens"
            | "token_triggered_tags"
            | "token_dispatch" => {
                let instead = format!("`{kind}` cannot be enforced here, use another format");
                return Err(not_built(&format!("{at}.type"), &instead));
            }
            other => {
                let shown: String = other.chars().take(40).collect();
                let name = format!("{at}.type");
                return Err(Fault::invalid_param(
                    &name,
                    format!("`{name}` is `{shown}`, which is no format"),
                ));
            }
        };
        known_format(at, map, members)?;
        let member = |name: &str| format!("{at}.{name}");
        match kind {
            "const_string" => Ok(Content::Fixed(self.spelling(text(&member("value"), map.get("value"))?))),
            "json_schema" => self.json_format(at, map),
            "regex" => {
                let pattern = text(&member("pattern"), map.get("pattern"))?;
                if let Some(problem) = regex_problem(pattern) {
                    let name = member("pattern");
                    let message =
                        format!("`{name}` is no regular expression that can be followed: {problem}");
                    return Err(Fault::invalid_param(&name, message));
                }
                Ok(Content::Regex(pattern.to_owned()))
            }
            "grammar" => {
                let grammar = text(&member("grammar"), map.get("grammar"))?;
                let syntax = map.get("syntax").unwrap_or(&Value::Null);
                if !syntax.is_null() && syntax != "ebnf" && syntax != "lark" {
                    return Err(wrong(&member("syntax"), "`ebnf` or `lark`", syntax));
                }
                Content::grammar(grammar).map_err(|problem| {
                    let name = member("grammar");
                    Fault::invalid_param(&name, format!("`{name}` cannot be enforced: {problem}"))
                })
            }
            "any_text" => {
                for name in ["max_tokens", "max_chars"] {
                    if map.get(name).is_some_and(|value| !value.is_null()) {
                        return Err(not_built(&member(name), "remove it"));
                    }
                }
                Ok(Content::Free(texts(&member("excludes"), map.get("excludes"))?))
            }
            "token" => Ok(Content::Fixed(vec![self.token(&member("token"), map.get("token"))?])),
            "sequence" | "or" => self.elements(&member("elements"), map.get("elements"), kind == "or", place),
            "tag" => self.tag(at, map, place),
            "triggered_tags" => {
                let mut tags = Vec::new();
                for (i, tag) in list(&member("tags"), map.get("tags"))?.iter().enumerate() {
                    let at = format!("{at}.tags[{i}]");
                    let map = tag_members(&at, tag)?;
                    let begin = text(&format!("{at}.begin"), map.get("begin"))?.to_owned();
                    let (content, end) = self.inside(&at, map, Place::Within)?;
                    tags.push((format!("{at}.begin"), begin, content, end));
                }
                self.triggered(at, map, tags)
            }
            "tags_with_separator" => self.separated(at, map),
            "dispatch" => self.dispatch(at, map),
            _ => self.repeated(kind, at, map),
        }
    }

    fn elements(
        &mut self,
        at: &str,
        value: Option<&Value>,
        either: bool,
        place: Place,
    ) -> Result<Content, Fault> {
        let elements = list(at, value)?;
        let last = elements.len().saturating_sub(1);
        let mut parts = Vec::new();
        for (i, element) in elements.iter().enumerate() {
            let place = if either || i == last { place } else { Place::Within };
            parts.push(self.format(&format!("{at}[{i}]"), element, place)?);
        }
        Ok(if either { Content::Either(parts) } else { Content::Sequence(parts) })
    }

    fn tag(&mut self, at: &str, map: &Object, place: Place) -> Result<Content, Fault> {
        let begin = self.mark(&format!("{at}.begin"), map.get("begin"))?;
        let (content, end) = self.inside(at, map, place)?;
        Ok(Content::Tag(Box::new(Tag { begin, content, end })))
    }

    /// A tag's content and its ends; none where its end is the empty text.
    fn inside(&mut self, at: &str, map: &Object, place: Place) -> Result<(Content, Vec<Spelling>), Fault> {
        let name = format!("{at}.end");
        let mut ends = match map.get("end") {
            Some(Value::Array(several)) if !several.is_empty() => {
                let ends =
                    several.iter().enumerate().map(|(i, end)| self.mark(&format!("{name}[{i}]"), Some(end)));
                ends.collect::<Result<Vec<_>, _>>()?
            }
            other => vec![self.mark(&name, other)?],
        };
        if ends.iter().any(Vec::is_empty) {
            if ends.len() > 1 {
                let message = format!("`{name}` holds an empty text beside others: leave it out");
                return Err(Fault::invalid_param(&name, message));
            }
            ends.clear();
        }
        let place = if ends.is_empty() { place } else { Place::Last };
        let content =
            self.format(&format!("{at}.content"), map.get("content").unwrap_or(&Value::Null), place)?;
        if ends_free(&content) {
            ends.iter().try_for_each(|end| marks(&name, end))?;
        }
        Ok((content, ends))
    }

    /// Free text in which triggers begin tags: each a member's name, the text that begins it, what is in it
    /// and what ends it.
    fn triggered(
        &mut self,
        at: &str,
        map: &Object,
        tags: Vec<(String, String, Content, Vec<Spelling>)>,
    ) -> Result<Content, Fault> {
        let name = format!("{at}.triggers");
        let mut triggers = Vec::new();
        for (i, trigger) in list(&name, map.get("triggers"))?.iter().enumerate() {
            let name = format!("{name}[{i}]");
            let trigger = text(&name, Some(trigger))?;
            let mark = self.spelling(trigger);
            self.count(&name)?;
            marks(&name, &mark)?;
            triggers.push((trigger.to_owned(), Group { mark, follows: Vec::new() }));
        }
        for (name, begin, content, end) in tags {
            let found = triggers.iter_mut().find(|(trigger, _)| begin.starts_with(trigger.as_str()));
            let Some((trigger, group)) = found else {
                let message =
                    format!("`{name}` begins with none of the triggers, so that nothing leads to it");
                return Err(Fault::invalid_param(&name, message));
            };
            let begin = self.spelling(&begin[trigger.len()..]);
            group.follows.push(Content::Tag(Box::new(Tag { begin, content, end })));
        }
        if let Some((trigger, _)) = triggers.iter().find(|(_, group)| group.follows.is_empty()) {
            let shown: String = trigger.chars().take(40).collect();
            let message = format!("no tag begins with the trigger `{shown}`: remove it, or add one");
            return Err(Fault::invalid_param(&name, message));
        }
        Ok(Content::Marked(Marked {
            groups: triggers.into_iter().map(|(_, group)| group).collect(),
            at_least_one: flag(at, map, "at_least_one")?,
            stop_after_first: flag(at, map, "stop_after_first")?,
            excludes: texts(&format!("{at}.excludes"), map.get("excludes"))?,
        }))
    }

    fn dispatch(&mut self, at: &str, map: &Object) -> Result<Content, Fault> {
        let name = format!("{at}.rules");
        let mut groups = Vec::new();
        for (i, rule) in list(&name, map.get("rules"))?.iter().enumerate() {
            let name = format!("{name}[{i}]");
            let Some([pattern, format]) = rule.as_array().map(Vec::as_slice) else {
                return Err(wrong(&name, "an array of a text and a format", rule));
            };
            let mark = self.spelling(text(&format!("{name}[0]"), Some(pattern))?);
            marks(&format!("{name}[0]"), &mark)?;
            let follows = vec![self.format(&format!("{name}[1]"), format, Place::Within)?];
            groups.push(Group { mark, follows });
        }
        let loops = match map.get("loop") {
            None => true,
            Some(_) => flag(at, map, "loop")?,
        };
        let excludes = texts(&format!("{at}.excludes"), map.get("excludes"))?;
        Ok(Content::Marked(Marked { groups, at_least_one: false, stop_after_first: !loops, excludes }))
    }

    fn separated(&mut self, at: &str, map: &Object) -> Result<Content, Fault> {
        let mut tags = Vec::new();
        for (i, tag) in list(&format!("{at}.tags"), map.get("tags"))?.iter().enumerate() {
            let at = format!("{at}.tags[{i}]");
            tags.push(self.tag(&at, tag_members(&at, tag)?, Place::Within)?);
        }
        let separator = self.spelling(text(&format!("{at}.separator"), map.get("separator"))?);
        let one = Content::Either(tags);
        let least = u32::from(flag(at, map, "at_least_one")?);
        if flag(at, map, "stop_after_first")? {
            return Ok(Content::Repeated(Box::new(one), least, Some(1)));
        }
        let more = Content::Sequence(vec![Content::Fixed(separator), one.clone()]);
        let some = Content::Sequence(vec![one, Content::Repeated(Box::new(more), 0, None)]);
        Ok(Content::Repeated(Box::new(some), least, Some(1)))
    }

    fn repeated(&mut self, kind: &str, at: &str, map: &Object) -> Result<Content, Fault> {
        let times = |name: &str, least: i64| {
            let value = map.get(name).unwrap_or(&Value::Null);
            let wanted = format!("a whole number from {least} to {MAX_TIMES}");
            let number = value.as_i64().filter(|number| (least..=MAX_TIMES).contains(number));
            number.ok_or_else(|| wrong(&format!("{at}.{name}"), &wanted, value))
        };
        let (least, most) = match kind {
            "optional" => (0, Some(1)),
            "plus" => (1, None),
            "star" => (0, None),
            _ => {
                let (least, most) = (times("min", 0)?, times("max", -1)?);
                if most >= 0 && most < least {
                    let name = format!("{at}.max");
                    let message = format!("`{name}` is {most} and must be at least `min`, which is {least}");
                    return Err(Fault::invalid_param(&name, message));
                }
                (least as u32, u32::try_from(most).ok())
            }
        };
        let content =
            self.format(&format!("{at}.content"), map.get("content").unwrap_or(&Value::Null), Place::Within)?;
        Ok(Content::Repeated(Box::new(content), least, most))
    }

    fn json_format(&mut self, at: &str, map: &Object) -> Result<Content, Fault> {
        let style = map.get("style").unwrap_or(&Value::Null);
        if !style.is_null() && style != "json" {
            return Err(not_built(&format!("{at}.style"), "use `json`"));
        }
        if flag(at, map, "any_order")? {
            return Err(not_built(&format!("{at}.any_order"), "remove it"));
        }
        if !texts(&format!("{at}.excludes"), map.get("excludes"))?.is_empty() {
            return Err(not_built(&format!("{at}.excludes"), "remove it"));
        }
        let space = match map.get("max_whitespace_cnt") {
            None | Some(Value::Null) => None,
            Some(value) => match value.as_u64() {
                Some(0) => Some(Space::None),
                Some(most @ 1..=1000) => Some(Space::Pattern(format!("[ \\n\\r\\t]{{1,{most}}}"))),
                _ => {
                    return Err(wrong(
                        &format!("{at}.max_whitespace_cnt"),
                        "a whole number from 0 to 1000",
                        value,
                    ));
                }
            },
        };
        self.json(&format!("{at}.json_schema"), map.get("json_schema").unwrap_or(&Value::Null), space)
    }

    fn json(&mut self, at: &str, value: &Value, space: Option<Space>) -> Result<Content, Fault> {
        let schema = self.manner.schema(schema(at, value)?);
        Ok(Content::Json(schema, space.unwrap_or_else(|| self.manner.space.clone())))
    }

    /// A text, or a token as an object.
    fn mark(&self, at: &str, value: Option<&Value>) -> Result<Spelling, Fault> {
        let Some(Value::Object(map)) = value else { return Ok(self.spelling(text(at, value)?)) };
        known_format(at, map, &["token"])?;
        if map.get("type") != Some(&json!("token")) {
            return Err(wrong(&format!("{at}.type"), "`token`", map.get("type").unwrap_or(&Value::Null)));
        }
        Ok(vec![self.token(&format!("{at}.token"), map.get("token"))?])
    }

    /// A token, by its id or as it is written.
    fn token(&self, at: &str, value: Option<&Value>) -> Result<Piece, Fault> {
        let value = value.unwrap_or(&Value::Null);
        let id = match value {
            Value::String(text) => self.tokenizer.single_id(text),
            number => number.as_u64().and_then(|id| u32::try_from(id).ok()),
        };
        let size = self.tokenizer.vocab_size();
        id.filter(|id| (*id as usize) < size).map(Piece::Token).ok_or_else(|| {
            wrong(at, &format!("a token of this model, by its text or by an id below {size}"), value)
        })
    }

    /// A text, with the special tokens that stand in it: no other tokens spell them.
    fn spelling(&self, text: &str) -> Spelling {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let found =
                self.special.iter().filter_map(|(text, id)| Some((rest.find(text.as_str())?, text, *id)));
            let first = found.min_by_key(|(at, text, _)| (*at, usize::MAX - text.len()));
            let Some((at, token, id)) = first else {
                pieces.push(Piece::Text(rest.to_owned()));
                break;
            };
            if at > 0 {
                pieces.push(Piece::Text(rest[..at].to_owned()));
            }
            pieces.push(Piece::Token(id));
            rest = &rest[at + token.len()..];
        }
        pieces
    }

    fn count(&mut self, at: &str) -> Result<(), Fault> {
        self.parts += 1;
        if self.parts > MAX_PARTS {
            let message = format!("`{at}` is one part too many: a structural tag may have {MAX_PARTS}");
            return Err(Fault::invalid_param(at, message));
        }
        Ok(())
    }
}

/// Whether what is last in it is text that only what follows can end.
fn ends_free(content: &Content) -> bool {
    match content {
        Content::Free(_) | Content::Marked(_) => true,
        Content::Sequence(parts) => parts.last().is_some_and(ends_free),
        Content::Either(parts) => parts.iter().any(ends_free),
        Content::Tag(tag) => tag.end.is_empty() && ends_free(&tag.content),
        _ => false,
    }
}

/// Refuses what cannot be seen coming in free text: nothing, and a token behind a text.
fn marks(at: &str, mark: &Spelling) -> Result<(), Fault> {
    match mark.as_slice() {
        [Piece::Text(_)] | [Piece::Token(_), ..] => Ok(()),
        [] => {
            Err(Fault::invalid_param(at, format!("`{at}` is empty: send a text that free text is ended by")))
        }
        _ => {
            let message = format!(
                "`{at}` has a special token behind other text, and free text can be ended by a text or by a token \
                 that begins one"
            );
            Err(Fault::invalid_param(at, message))
        }
    }
}

fn object<'a>(at: &str, value: &'a Value) -> Result<&'a Object, Fault> {
    value.as_object().ok_or_else(|| wrong(at, "an object", value))
}

fn text<'a>(at: &str, value: Option<&'a Value>) -> Result<&'a str, Fault> {
    let value = value.unwrap_or(&Value::Null);
    value.as_str().ok_or_else(|| wrong(at, "a string", value))
}

fn list<'a>(at: &str, value: Option<&'a Value>) -> Result<&'a [Value], Fault> {
    let value = value.unwrap_or(&Value::Null);
    let some = value.as_array().filter(|items| !items.is_empty());
    some.map(Vec::as_slice).ok_or_else(|| wrong(at, "an array of at least one", value))
}

/// Texts, none of them empty; none where the member is absent.
fn texts(at: &str, value: Option<&Value>) -> Result<Vec<String>, Fault> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let Some(items) = value.as_array() else { return Err(wrong(at, "an array of texts", value)) };
    let text = |(i, item): (usize, &Value)| {
        let text = item.as_str().filter(|text| !text.is_empty());
        text.map(str::to_owned).ok_or_else(|| wrong(&format!("{at}[{i}]"), "a text that is not empty", item))
    };
    items.iter().enumerate().map(text).collect()
}

fn flag(at: &str, map: &Object, name: &str) -> Result<bool, Fault> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(wrong(&format!("{at}.{name}"), "true or false", other)),
    }
}

/// A tag where nothing else may stand, and its type may be left out.
fn tag_members<'a>(at: &str, value: &'a Value) -> Result<&'a Object, Fault> {
    let map = object(at, value)?;
    match map.get("type") {
        None => {}
        Some(Value::String(kind)) if kind == "tag" => {}
        Some(other) => return Err(wrong(&format!("{at}.type"), "`tag`", other)),
    }
    known_format(at, map, &["begin", "content", "end"])?;
    Ok(map)
}

fn known_format(at: &str, map: &Object, members: &[&str]) -> Result<(), Fault> {
    known(at, map, &[&["type"], members].concat())
}

/// Refuses members that would be passed over.
fn known(at: &str, map: &Object, members: &[&str]) -> Result<(), Fault> {
    match map.keys().find(|name| !members.contains(&name.as_str())) {
        None => Ok(()),
        Some(other) => {
            let shown: String = other.chars().take(40).collect();
            let name = format!("{at}.{shown}");
            Err(Fault::invalid_param(
                &name,
                format!("`{name}` is not known; `{at}` has {}", members.join(", ")),
            ))
        }
    }
}
