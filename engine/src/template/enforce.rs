//! The grammar of an answer that must call tools.

use std::fmt::Write;

use serde_json::Value;

use super::form::{CLOSE, ToolFormat};
use crate::grammar::{bounded_space, lark_literal};

/// Ids of the marks around calls, where they are special tokens, which no text spells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Of [`ToolFormat::opener`].
    pub open: Option<u32>,
    /// Of the text that ends a call.
    pub close: Option<u32>,
}

impl Marks {
    /// The marks of this form; `special` finds the id of a special token.
    pub fn of(format: ToolFormat, special: impl Fn(&str) -> Option<u32>) -> Self {
        Self { open: special(format.opener()), close: special(CLOSE) }
    }

    /// Those that are special tokens.
    pub fn ids(self) -> impl Iterator<Item = u32> {
        self.open.into_iter().chain(self.close)
    }
}

/// Calls of these functions, at least one, and nothing else.
#[derive(Clone, Debug)]
pub struct CallGrammar<'a> {
    /// How the model writes them.
    pub format: ToolFormat,
    /// Their marks.
    pub marks: Marks,
    /// Names, and schemas of the arguments.
    pub functions: &'a [(String, Value)],
    /// Whether there may be more than one call.
    pub many: bool,
}

impl CallGrammar<'_> {
    /// The grammar as Lark.
    pub fn lark(&self) -> String {
        let mark = |id: Option<u32>, text: &str| match id {
            Some(id) => format!("<[{id}]>"),
            None => lark_literal(text),
        };
        let open = mark(self.marks.open, self.format.opener());
        let (before, after, between) = match self.format {
            ToolFormat::Hermes => {
                (format!("{open} \"\\n\""), format!("\"\\n\" {}", mark(self.marks.close, CLOSE)), "\\n")
            }
            ToolFormat::Llama3 => (String::new(), String::new(), "; "),
            ToolFormat::Mistral => (String::new(), String::new(), ", "),
        };
        let more = if self.many { format!(" (\"{between}\" call)*") } else { String::new() };
        let mut lark = match self.format {
            ToolFormat::Mistral => format!("start: {open} \"[\" call{more} \"]\"\ncall: "),
            _ => format!("start: call{more}\ncall: "),
        };
        let member = if self.format == ToolFormat::Llama3 { "parameters" } else { "arguments" };
        let names: Vec<String> = (0..self.functions.len()).map(|i| format!("call_{i}")).collect();
        lark.push_str(&names.join(" | "));
        for (i, (name, schema)) in self.functions.iter().enumerate() {
            let head = format!("{{\"name\": {}, \"{member}\": ", Value::from(name.as_str()));
            let head = lark_literal(&head);
            let schema = bounded_space(schema.clone());
            let _ = write!(lark, "\ncall_{i}: {before} {head} arguments_{i} \"}}\" {after}");
            let _ = write!(lark, "\narguments_{i}: %json {schema}");
        }
        lark
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_form_has_its_grammar() {
        let functions = [("f".to_owned(), json!({"type": "object"})), ("g\"".to_owned(), json!(true))];
        let lark = |format, open, many| {
            let marks = Marks { open, close: None };
            CallGrammar { format, marks, functions: &functions, many }.lark()
        };
        insta::assert_snapshot!(
            "call_grammars",
            [
                lark(ToolFormat::Hermes, None, true),
                lark(ToolFormat::Llama3, None, true),
                lark(ToolFormat::Mistral, Some(5), false),
            ]
            .join("\n\n")
        );
    }
}
