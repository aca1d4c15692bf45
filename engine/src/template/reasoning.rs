//! Reasoning between `<think>` and `</think>`, told from the answer behind it.

use super::calls::overlap;

/// The text that begins reasoning.
pub const THINK_OPEN: &str = "<think>";
/// The text that ends it.
pub const THINK_CLOSE: &str = "</think>";

/// How a model reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// When it has the tag, or the prompt's end has: Qwen3.
    Qwen3,
    /// Always first, its tag written or not: DeepSeek-R1.
    DeepSeekR1,
}

/// Where an answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningStart {
    /// In the reasoning.
    Inside,
    /// Before reasoning that may come.
    Before,
    /// Behind it: there will be none.
    Behind,
}

impl ReasoningFormat {
    /// The way of a model with this chat template, if it reasons.
    pub fn of_template(source: &str) -> Option<Self> {
        source.contains(THINK_CLOSE).then_some(Self::Qwen3)
    }

    /// Where the answer to this prompt begins.
    pub fn start(self, prompt: &str) -> ReasoningStart {
        let prompt = prompt.trim_end();
        if prompt.ends_with(THINK_CLOSE) {
            ReasoningStart::Behind
        } else if prompt.ends_with(THINK_OPEN) || self == Self::DeepSeekR1 {
            ReasoningStart::Inside
        } else {
            ReasoningStart::Before
        }
    }
}

/// What of a text is what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Reasoning.
    pub reasoning: String,
    /// The answer.
    pub answer: String,
}

/// Tells reasoning from answer in a stream of text pieces. White space beside the tags is neither.
#[derive(Clone, Debug)]
pub struct ReasoningParser {
    at: ReasoningStart,
    held: String,
    /// Whether anything was said since the last tag.
    begun: bool,
    /// Whether any reasoning was.
    thought: bool,
}

impl ReasoningParser {
    /// At the beginning of an answer.
    pub fn new(start: ReasoningStart) -> Self {
        // Behind reasoning that the prompt has closed, all text is the answer's own.
        Self { at: start, held: String::new(), begun: start == ReasoningStart::Behind, thought: false }
    }

    /// Takes more text; `last` when no more comes.
    pub fn push(&mut self, text: &str, last: bool) -> Told {
        self.held.push_str(text);
        let mut told = Told::default();
        if self.at != ReasoningStart::Behind {
            self.open(last);
        }
        if self.at == ReasoningStart::Inside {
            self.reason(last, &mut told);
        }
        if self.at == ReasoningStart::Behind {
            self.answer(&mut told);
        }
        told
    }

    /// Takes the tag that begins reasoning, when it comes first.
    fn open(&mut self, last: bool) {
        if self.begun {
            return;
        }
        let rest = self.held.trim_start();
        if let Some(behind) = rest.strip_prefix(THINK_OPEN) {
            self.held = behind.to_owned();
            self.at = ReasoningStart::Inside;
            self.begun = true;
        } else if self.at == ReasoningStart::Before && (last || !THINK_OPEN.starts_with(rest)) {
            self.at = ReasoningStart::Behind;
            self.begun = true;
        }
    }

    fn reason(&mut self, last: bool, told: &mut Told) {
        if !self.begun && THINK_OPEN.starts_with(self.held.trim_start()) && !last {
            return;
        }
        self.begun = true;
        let (reasoning, closed) = match self.held.find(THINK_CLOSE) {
            Some(at) => {
                let text: String = self.held.drain(..at + THINK_CLOSE.len()).collect();
                (text[..at].trim_end().to_owned(), true)
            }
            None if last => (std::mem::take(&mut self.held).trim_end().to_owned(), false),
            None => {
                let tag = overlap(&self.held, THINK_CLOSE);
                let said = self.held[..self.held.len() - tag].trim_end().len();
                (self.held.drain(..said).collect(), false)
            }
        };
        told.reasoning = if self.thought { reasoning } else { reasoning.trim_start().to_owned() };
        self.thought |= !told.reasoning.is_empty();
        if closed {
            (self.at, self.begun) = (ReasoningStart::Behind, false);
        }
    }

    fn answer(&mut self, told: &mut Told) {
        let text = std::mem::take(&mut self.held);
        told.answer = if self.begun { text } else { text.trim_start().to_owned() };
        self.begun |= !told.answer.is_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(start: ReasoningStart, pieces: &[&str]) -> (String, String) {
        let mut parser = ReasoningParser::new(start);
        let mut all = Told::default();
        for (text, last) in pieces.iter().map(|piece| (*piece, false)).chain([("", true)]) {
            let told = parser.push(text, last);
            all.reasoning.push_str(&told.reasoning);
            all.answer.push_str(&told.answer);
        }
        (all.reasoning, all.answer)
    }

    fn told(reasoning: &str, answer: &str) -> (String, String) {
        (reasoning.into(), answer.into())
    }

    #[test]
    fn reasoning_is_told_from_the_answer() {
        use ReasoningStart::{Before, Behind, Inside};
        assert_eq!(run(Before, &["<think>\nHm, 2.\n</think>\n\nTwo"]), told("Hm, 2.", "Two"));
        assert_eq!(run(Before, &["<thi", "nk>a</th", "ink>b"]), told("a", "b"));
        assert_eq!(run(Before, &["Two <think>"]), told("", "Two <think>"));
        assert_eq!(run(Before, &[" <th"]), told("", " <th"));
        assert_eq!(run(Inside, &["\nHm", "\n</think>Two"]), told("Hm", "Two"));
        assert_eq!(run(Inside, &["<think>Hm</think>Two"]), told("Hm", "Two"), "the tag again");
        assert_eq!(run(Inside, &["a < b </th"]), told("a < b </th", ""), "cut by a limit");
        assert_eq!(run(Behind, &[" Two</think>"]), told("", " Two</think>"));
    }

    #[test]
    fn the_prompt_says_where_an_answer_begins() {
        let qwen = ReasoningFormat::of_template("… '<think>\\n\\n</think>\\n\\n' …").unwrap();
        assert_eq!(qwen, ReasoningFormat::Qwen3);
        assert_eq!(ReasoningFormat::of_template("plain"), None);
        assert_eq!(qwen.start("<|assistant|>"), ReasoningStart::Before);
        assert_eq!(qwen.start("<|assistant|><think>\n"), ReasoningStart::Inside);
        assert_eq!(qwen.start("<|assistant|><think>\n\n</think>\n\n"), ReasoningStart::Behind);
        assert_eq!(ReasoningFormat::DeepSeekR1.start("x"), ReasoningStart::Inside);
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            parts in proptest::collection::vec(proptest::sample::select(
                vec!["<think>", "</think>", "<thi", "nk>", "</", " ", "\n", "a", "Ä<"]), 0..10),
            at in proptest::collection::vec(0usize..60, 0..6),
            start in proptest::sample::select(
                vec![ReasoningStart::Inside, ReasoningStart::Before, ReasoningStart::Behind]),
        ) {
            let whole = parts.concat();
            let mut ends: Vec<usize> = at.into_iter().filter(|at| whole.is_char_boundary(*at)).collect();
            ends.push(whole.len());
            ends.sort_unstable();
            let mut from = 0;
            let pieces: Vec<&str> = ends.iter().map(|end| {
                let piece = &whole[from.min(*end)..*end];
                from = *end;
                piece
            }).collect();
            prop_assert_eq!(run(start, &pieces), run(start, &[&whole]));
        }
    }
}
