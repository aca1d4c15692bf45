//! The grammars of answers that must call tools, or may.

use std::fmt::Write;

use serde_json::Value;

use super::form::{CLOSE, ToolFormat};
use crate::grammar::{Space, lark_literal, spaced};

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

/// Calls of these functions, and how the model writes them.
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
    /// The grammar, as Lark, of an answer that is calls, at least one, and nothing else.
    pub fn lark(&self) -> String {
        let open = mark(self.marks.open, self.format.opener());
        let more = self.more("call");
        let mut lark = match self.format {
            ToolFormat::Mistral => format!("start: {open} \"[\" call{more} \"]\"\n"),
            _ => format!("start: call{more}\n"),
        };
        let before =
            if self.format == ToolFormat::Hermes { format!("{open} \"\\n\"") } else { String::new() };
        self.write_calls(&mut lark, &before, "{\"name\": \"");
        lark
    }

    /// The grammar, as Lark, of an answer that may be text, calls, or text and then calls. What opens a
    /// call is a lexeme that is taken as soon as it is there: from then on the answer is bound, and before
    /// it text is free.
    pub fn lark_beside_text(&self) -> String {
        let lead = match self.marks.open {
            Some(id) => format!("lead: text? <[{id}]>"),
            None => format!("lead[lazy]: /(?s:.*)/ {}", lark_literal(self.format.opener())),
        };
        let (start, before, head) = match self.format {
            ToolFormat::Hermes if self.many => ("(lead call)* text?".to_owned(), "\"\\n\"", "{\"name\": \""),
            ToolFormat::Hermes => ("(lead call)? text?".to_owned(), "\"\\n\"", "{\"name\": \""),
            ToolFormat::Mistral => {
                (format!("(lead \"[\" call{} \"]\")? text?", self.more("call")), "", "{\"name\": \"")
            }
            // A call may be the answer's beginning, without a mark.
            ToolFormat::Llama3 => {
                let calls = format!("bare call{}", self.more("bare call"));
                (format!("{calls} | lead {calls} | text?"), "", "")
            }
        };
        let mut lark = format!("start: {start}\n{lead}\ntext: /(?s:.+)/\n");
        if self.format == ToolFormat::Llama3 {
            lark.push_str(BARE);
        }
        self.write_calls(&mut lark, before, head);
        lark
    }

    /// What may follow a call.
    fn more(&self, call: &str) -> String {
        let between = match self.format {
            ToolFormat::Hermes => "\\n",
            ToolFormat::Llama3 => "; ",
            ToolFormat::Mistral => ", ",
        };
        if self.many { format!(" (\"{between}\" {call})*") } else { String::new() }
    }

    /// The rules of a call, which has `before` before it and `head` before its function's name.
    fn write_calls(&self, lark: &mut String, before: &str, head: &str) {
        let after = match self.format {
            ToolFormat::Hermes => format!("\"\\n\" {}", mark(self.marks.close, CLOSE)),
            _ => String::new(),
        };
        let member = if self.format == ToolFormat::Llama3 { "parameters" } else { "arguments" };
        let names: Vec<String> = (0..self.functions.len()).map(|i| format!("call_{i}")).collect();
        let _ = write!(lark, "call: {}", names.join(" | "));
        for (i, (name, schema)) in self.functions.iter().enumerate() {
            // Behind the quotation mark that `head` ends with.
            let name = Value::from(name.as_str()).to_string().split_off(1);
            let head = lark_literal(&format!("{head}{name}, \"{member}\": "));
            let schema = spaced(schema.clone(), &Space::default());
            let _ = write!(lark, "\ncall_{i}: {before} {head} arguments_{i} \"}}\" {after}");
            let _ = write!(lark, "\narguments_{i}: %json {schema}");
        }
    }
}

/// How a call of the Llama form begins, up to its function's name, as models lay it out.
const BARE: &str = "bare[lazy]: /\\s*\\{\\s*(\"type\"\\s*:\\s*\"function\"\\s*,\\s*)?\"name\"\\s*:\\s*\"/\n";

fn mark(id: Option<u32>, text: &str) -> String {
    match id {
        Some(id) => format!("<[{id}]>"),
        None => lark_literal(text),
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
        let beside = |format, open, many| {
            let marks = Marks { open, close: None };
            CallGrammar { format, marks, functions: &functions[1..], many }.lark_beside_text()
        };
        insta::assert_snapshot!(
            "call_grammars_beside_text",
            [
                beside(ToolFormat::Hermes, None, true),
                beside(ToolFormat::Llama3, Some(7), true),
                beside(ToolFormat::Mistral, None, false),
            ]
            .join("\n\n")
        );
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
