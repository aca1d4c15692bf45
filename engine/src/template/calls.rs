//! Finds tool calls in what a model says, piece by piece, in the forms that models were trained on.
//!
//! A call begins once its function's name and the beginning of its arguments were read: from then on
//! the arguments are handed out as they come, byte for byte. What only looks like a call is text.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::form::{CLOSE, ToolFormat};
use super::head::{Head, head};
use super::scan::Scanner;

/// A piece of what a model said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolOutput {
    /// Plain text.
    Text(String),
    /// A call of this function begins.
    Begin(String),
    /// More of the arguments of the call that began last.
    Arguments(String),
}

/// Where the parser is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A call of the Llama form may begin without a mark.
    Start,
    Text,
    /// Behind Mistral's mark.
    Mark,
    /// In an object that may be a call.
    Object,
    /// In a call's arguments; `wrapped` when an object of the call is around them.
    Arguments {
        scanner: Scanner,
        wrapped: bool,
    },
    /// Behind the arguments, before the end of the call's object.
    Tail,
    /// Behind a call's object.
    Close,
    /// Behind an object of Mistral's array.
    Comma,
}

/// Finds calls in a stream of text pieces. Text is held back where a call could begin, and white space
/// until it is known not to be the layout of a call.
#[derive(Clone, Debug)]
pub struct ToolParser {
    format: ToolFormat,
    held: String,
    state: State,
    /// What was taken as the layout and mark of the object that is read, in case it is text.
    before: String,
    array: bool,
    called: bool,
}

#[derive(Deserialize)]
struct WholeCall<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

impl ToolParser {
    /// At an answer's beginning.
    pub fn new(format: ToolFormat) -> Self {
        let state = if format == ToolFormat::Llama3 { State::Start } else { State::Text };
        Self { format, held: String::new(), state, before: String::new(), array: false, called: false }
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> Vec<ToolOutput> {
        self.held.push_str(text);
        let mut out = Vec::new();
        while self.step(false, &mut out) {}
        out
    }

    /// What is left when no more text comes. A call that was not closed still counts.
    pub fn flush(&mut self) -> Vec<ToolOutput> {
        let mut out = Vec::new();
        while self.step(true, &mut out) {}
        out
    }

    /// Takes one step; `false` when more text is needed, or none is left.
    fn step(&mut self, last: bool, out: &mut Vec<ToolOutput>) -> bool {
        match self.state {
            State::Start => self.start(last),
            State::Text => self.text(last, out),
            State::Mark => self.mark(last, out),
            State::Object => self.object(last, out),
            State::Arguments { scanner, wrapped } => self.arguments(scanner, wrapped, out),
            State::Tail => self.tail(last),
            State::Close => self.close(last),
            State::Comma => self.comma(last),
        }
    }

    fn start(&mut self, last: bool) -> bool {
        let called = self.called;
        let rest = self.held.trim_start_matches(|c: char| c.is_whitespace() || (called && c == ';'));
        let layout = self.held.len() - rest.len();
        if rest.starts_with('{') {
            self.before = self.held.drain(..layout).collect();
            self.state = State::Object;
        } else if rest.is_empty() && !last {
            return false;
        } else {
            self.state = State::Text;
        }
        true
    }

    fn text(&mut self, last: bool, out: &mut Vec<ToolOutput>) -> bool {
        let opener = self.format.opener();
        if let Some(at) = self.held.find(opener) {
            let text: String = self.held.drain(..at + opener.len()).collect();
            let said = text[..at].trim_end().len();
            say(&text[..said], out);
            text[said..].clone_into(&mut self.before);
            self.state = if self.format == ToolFormat::Mistral { State::Mark } else { State::Object };
            return true;
        }
        let tag = if last { 0 } else { overlap(&self.held, opener) };
        let before = &self.held[..self.held.len() - tag];
        let space = before.len() - before.trim_end().len();
        let layout = if last { self.called && before.trim().is_empty() } else { space > 0 };
        let keep = tag + if layout { space } else { 0 };
        let rest = self.held.split_off(self.held.len() - keep);
        let text = std::mem::replace(&mut self.held, if last { String::new() } else { rest });
        say(&text, out);
        false
    }

    fn mark(&mut self, last: bool, out: &mut Vec<ToolOutput>) -> bool {
        let rest = self.held.trim_start();
        let layout = self.held.len() - rest.len();
        if rest.starts_with('[') {
            self.before.extend(self.held.drain(..=layout));
            (self.array, self.state) = (true, State::Object);
            return true;
        }
        // A name, and its arguments at once.
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        let name = rest.split(|c| !is_name(c)).next().unwrap_or_default().to_owned();
        let behind = &rest[name.len()..];
        let marked = behind.strip_prefix("[ARGS]").unwrap_or(behind);
        if !name.is_empty() && marked.starts_with('{') {
            let arguments = self.held.len() - marked.len();
            self.held.drain(..arguments);
            self.begin(name, out);
            self.state = State::Arguments { scanner: Scanner::default(), wrapped: false };
            return true;
        }
        let could_be = rest.is_empty() || (!name.is_empty() && "[ARGS]".starts_with(behind));
        if could_be && !last {
            return false;
        }
        self.unread(out);
        true
    }

    fn object(&mut self, last: bool, out: &mut Vec<ToolOutput>) -> bool {
        match head(&self.held) {
            Head::Call { name, at } => {
                self.held.drain(..at);
                self.begin(name, out);
                self.state = State::Arguments { scanner: Scanner::default(), wrapped: true };
                return true;
            }
            Head::Unfinished if !last => return false,
            Head::Unfinished | Head::Other => {}
        }
        // No call whose arguments can be handed out as they come: it is read as a whole.
        let Some(end) = self.end_of_object(last) else { return false };
        let call: Option<WholeCall<'_>> = serde_json::from_str(self.held[..end].trim()).ok();
        let Some(WholeCall { name, arguments }) = call else {
            self.unread(out);
            return true;
        };
        let arguments = match arguments.map(RawValue::get) {
            None | Some("null") => "{}".to_owned(),
            // Some models write the arguments as a text that holds JSON.
            Some(raw) => serde_json::from_str::<String>(raw).unwrap_or_else(|_| raw.to_owned()),
        };
        self.held.drain(..end);
        self.begin(name, out);
        out.push(ToolOutput::Arguments(arguments));
        self.state = State::Close;
        true
    }

    /// Where the object that is read as a whole ends.
    fn end_of_object(&self, last: bool) -> Option<usize> {
        let end = match self.format {
            ToolFormat::Hermes => self.held.find(CLOSE),
            _ => match self.held.trim_start().chars().next() {
                Some('{') => Scanner::default().end(&self.held),
                // Not even an object: nothing of it is a call.
                Some(_) => Some(0),
                None => None,
            },
        };
        end.or(last.then_some(self.held.len()))
    }

    fn arguments(&mut self, mut scanner: Scanner, wrapped: bool, out: &mut Vec<ToolOutput>) -> bool {
        let end = scanner.end(&self.held);
        let piece: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
        if !piece.is_empty() {
            out.push(ToolOutput::Arguments(piece));
        }
        self.state = match end {
            None => State::Arguments { scanner, wrapped },
            Some(_) if wrapped => State::Tail,
            Some(_) => State::Text,
        };
        end.is_some()
    }

    fn tail(&mut self, last: bool) -> bool {
        let rest = self.held.trim_start();
        let layout = self.held.len() - rest.len();
        match rest.chars().next() {
            None if !last => return false,
            Some('}') => drop(self.held.drain(..=layout)),
            // More members, which say nothing that a call has.
            Some(',') => match Scanner::inside().end(rest) {
                Some(end) => drop(self.held.drain(..layout + end)),
                None if !last => return false,
                None => self.held.clear(),
            },
            _ => {}
        }
        self.state = State::Close;
        true
    }

    fn close(&mut self, last: bool) -> bool {
        if self.array {
            self.state = State::Comma;
            return true;
        }
        if self.format != ToolFormat::Hermes {
            self.state = State::Start;
            return true;
        }
        let rest = self.held.trim_start();
        if let Some(behind) = rest.strip_prefix(CLOSE) {
            self.held = behind.to_owned();
        } else if CLOSE.starts_with(rest) && !last {
            return false;
        } else if last && CLOSE.starts_with(rest) {
            self.held.clear();
        }
        self.state = State::Text;
        true
    }

    fn comma(&mut self, last: bool) -> bool {
        let rest = self.held.trim_start();
        let layout = self.held.len() - rest.len();
        match rest.chars().next() {
            None if !last => return false,
            Some(',') => {
                self.before = self.held.drain(..=layout).collect();
                self.state = State::Object;
            }
            other => {
                if other == Some(']') {
                    self.held.drain(..=layout);
                }
                (self.array, self.state) = (false, State::Text);
            }
        }
        true
    }

    fn begin(&mut self, name: String, out: &mut Vec<ToolOutput>) {
        self.before.clear();
        self.called = true;
        out.push(ToolOutput::Begin(name));
    }

    /// Makes text of what was taken for a call: the model's words are not thrown away.
    fn unread(&mut self, out: &mut Vec<ToolOutput>) {
        say(&std::mem::take(&mut self.before), out);
        // Past the first character, so that the same words are not read again.
        let first = self.held.chars().next().map_or(0, char::len_utf8);
        let text: String = self.held.drain(..first).collect();
        say(&text, out);
        (self.array, self.state) = (false, State::Text);
    }
}

fn say(text: &str, out: &mut Vec<ToolOutput>) {
    if !text.is_empty() {
        out.push(ToolOutput::Text(text.to_owned()));
    }
}

/// Bytes at the end of `text` that begin `mark`, and are not all of it.
pub(super) fn overlap(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|n| mark.is_char_boundary(*n) && text.ends_with(&mark[..*n])).unwrap_or(0)
}

#[cfg(test)]
#[path = "calls_tests.rs"]
mod tests;
