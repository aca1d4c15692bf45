//! The forms in which a request says what its answer may be.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::ebnf;

/// What an answer may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// JSON that this schema accepts.
    JsonSchema(Value),
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

impl Grammar {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::JsonSchema(json!({"type": "object"}))
    }

    /// What tells this grammar from all others.
    pub(super) fn key(&self) -> String {
        match self {
            Self::JsonSchema(schema) => format!("json {schema}"),
            Self::Regex(regex) => format!("regex {regex}"),
            Self::Choice(texts) => format!("choice {}", json!(texts)),
            Self::Text(text) => format!("text {text}"),
            Self::Lark(text) => format!("lark {text}"),
        }
    }

    /// The grammar in the compiler's own form.
    pub(super) fn lower(&self) -> Result<TopLevelGrammar, String> {
        match self {
            Self::JsonSchema(schema) => Ok(TopLevelGrammar::from_json_schema(bounded_space(schema.clone()))),
            Self::Regex(regex) => {
                // Who writes `\d` reads ASCII digits, here as in a schema's `pattern`.
                let regex = llguidance::regex_to_lark(regex, "dws");
                Ok(TopLevelGrammar::from_lark(format!("start: /{regex}/")))
            }
            Self::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| ebnf::literal(text)).collect();
                Ok(TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | "))))
            }
            Self::Text(text) if text.contains("::=") => ebnf::to_lark(text).map(TopLevelGrammar::from_lark),
            Self::Text(text) | Self::Lark(text) => Ok(TopLevelGrammar::from_lark(text.clone())),
        }
    }
}

/// The schema with a bound on the white space between JSON's parts: without one a model can write
/// spaces to the end of its answer.
pub(crate) fn bounded_space(mut schema: Value) -> Value {
    // `true` and `{}` are the same schema, and only an object has room for the bound.
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Some(map) = schema.as_object_mut() {
        map.insert("x-guidance".into(), json!({"whitespace_pattern": "[ \\n\\r\\t]{1,20}"}));
    }
    schema
}
