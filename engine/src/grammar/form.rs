//! The forms in which a request says what its answer may be.

use llguidance::api::TopLevelGrammar;
use llguidance::derivre::RegexBuilder;
use serde_json::{Map, Value, json};

use super::ebnf;

/// What an answer may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// JSON that this schema accepts.
    JsonSchema(Value, Space),
    /// Text that this regular expression matches as a whole, in the syntax of Rust's `regex`; `\d`, `\w`
    /// and `\s` are of ASCII alone.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of this context-free grammar: EBNF with `::=` whose rule `root` is the whole, or Lark
    /// whose rule `start` is.
    Text(String),
    /// Text of this grammar in Lark.
    Lark(String),
}

/// The white space that may stand between JSON's parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Space {
    /// A little of any: without a bound a model can write spaces to the end of its answer.
    #[default]
    Bounded,
    /// None.
    None,
    /// What this regular expression matches.
    Pattern(String),
}

impl Grammar {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::JsonSchema(json!({"type": "object"}), Space::default())
    }

    /// What tells this grammar from all others.
    pub(super) fn key(&self) -> String {
        match self {
            Self::JsonSchema(schema, space) => format!("json {}", spaced(schema.clone(), space)),
            Self::Regex(regex) => format!("regex {regex}"),
            Self::Choice(texts) => format!("choice {}", json!(texts)),
            Self::Text(text) => format!("text {text}"),
            Self::Lark(text) => format!("lark {text}"),
        }
    }

    /// The grammar in the compiler's own form.
    pub(super) fn lower(&self) -> Result<TopLevelGrammar, String> {
        match self {
            Self::JsonSchema(schema, space) => {
                Ok(TopLevelGrammar::from_json_schema(spaced(schema.clone(), space)))
            }
            Self::Regex(regex) => Ok(TopLevelGrammar::from_lark(format!("start: {}", lark_regex(regex)))),
            Self::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| ebnf::literal(text)).collect();
                Ok(TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | "))))
            }
            Self::Text(text) if text.contains("::=") => ebnf::to_lark(text).map(TopLevelGrammar::from_lark),
            Self::Text(text) | Self::Lark(text) => Ok(TopLevelGrammar::from_lark(text.clone())),
        }
    }
}

/// A regular expression as Lark has it. Who writes `\d` reads ASCII digits, here as in a schema's `pattern`.
pub(super) fn lark_regex(regex: &str) -> String {
    format!("/{}/", llguidance::regex_to_lark(regex, "dws"))
}

/// Why this is no regular expression that can be followed.
pub fn regex_problem(regex: &str) -> Option<String> {
    RegexBuilder::new().mk_regex(regex).err().map(|error| super::compile::brief(&error.to_string()))
}

/// The schema with what may stand between JSON's parts.
pub(crate) fn spaced(mut schema: Value, space: &Space) -> Value {
    // `true` and `{}` are the same schema, and only an object has room for more.
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Some(map) = schema.as_object_mut() {
        let told = match space {
            Space::Bounded => json!({"whitespace_pattern": "[ \\n\\r\\t]{1,20}"}),
            Space::None => json!({"whitespace_flexible": false}),
            Space::Pattern(pattern) => json!({"whitespace_pattern": pattern}),
        };
        map.insert("x-guidance".into(), told);
    }
    schema
}

/// Members of a schema that hold schemas by name.
const BY_NAME: [&str; 6] =
    ["$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"];
/// Members that hold a schema, or a list of them.
const OWN: [&str; 16] = [
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "oneOf",
    "prefixItems",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Has the schema's objects hold no properties but those that it names, unless it says itself what others
/// may be.
pub fn close(schema: &mut Value) {
    match schema {
        Value::Array(all) => all.iter_mut().for_each(close),
        Value::Object(map) => {
            let names = ["properties", "patternProperties"]
                .iter()
                .any(|name| map.get(*name).is_some_and(Value::is_object));
            for (name, inner) in map.iter_mut() {
                if OWN.contains(&name.as_str()) {
                    close(inner);
                } else if BY_NAME.contains(&name.as_str()) {
                    inner.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(close);
                }
            }
            if names {
                map.entry("additionalProperties").or_insert(Value::Bool(false));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_schema_has_no_other_properties_anywhere() {
        let mut schema = json!({
            "properties": {"properties": {"items": {"properties": {"a": true}}}, "open": {"properties": {}, "additionalProperties": true}},
            "$defs": {"d": {"anyOf": [{"patternProperties": {"x": {}}}, {"type": "object"}]}},
            "enum": [{"properties": {"b": 1}}],
        });
        close(&mut schema);
        let closed = json!({
            "properties": {
                "properties": {"items": {"properties": {"a": true}, "additionalProperties": false}},
                "open": {"properties": {}, "additionalProperties": true},
            },
            "$defs": {"d": {"anyOf": [{"patternProperties": {"x": {}}, "additionalProperties": false}, {"type": "object"}]}},
            "enum": [{"properties": {"b": 1}}],
            "additionalProperties": false,
        });
        assert_eq!(schema, closed);
    }
}
