//! What a chat answer's text is made of: reasoning, text and calls.

use serde_json::Value;
use strata_hop::Fault;
use strata_wire::chat::FinishReason;

use super::messages::Tools;
use super::structured::{self, Asked};
use crate::grammar::Grammar;
use crate::runtime::{Engine, Structure, Thinking};
use crate::template::{
    CallGrammar, ChatTemplate, Marks, ReasoningFormat, ReasoningParser, ReasoningStart, THINK_CLOSE,
    THINK_OPEN, ToolFormat, ToolOutput, ToolParser,
};

/// How answers to one request are to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speech {
    /// How calls are written, when there are tools.
    tools: Option<ToolFormat>,
    parallel: bool,
    reasoning: Option<ReasoningStart>,
    include_reasoning: bool,
}

impl Speech {
    pub(super) fn of(engine: &Engine, tools: Option<&Tools>, prompt: &str, include_reasoning: bool) -> Self {
        let template = engine.template();
        Self {
            tools: tools.and(template).map(ChatTemplate::tool_format),
            parallel: tools.is_none_or(|tools| tools.parallel),
            reasoning: template
                .and_then(ChatTemplate::reasoning_format)
                .map(|format: ReasoningFormat| format.start(prompt)),
            include_reasoning,
        }
    }

    /// Special tokens that mark parts of an answer, and so must be read.
    pub(super) fn marks(self, engine: &Engine) -> Vec<u32> {
        let special = |text: &str| engine.tokenizer().special_id(text);
        let calls = self.tools.into_iter().flat_map(|format| Marks::of(format, special).ids());
        let thoughts = self.reasoning.iter().flat_map(|_| [THINK_OPEN, THINK_CLOSE]);
        calls.chain(thoughts.filter_map(special)).collect()
    }

    /// What the answer must be: calls where they are required, the form that was asked for, or text and
    /// calls that follow the schemas of strict tools.
    pub(super) async fn structure(
        self,
        engine: &Engine,
        tools: Option<&Tools>,
        form: Option<Asked>,
    ) -> Result<Option<Structure>, Fault> {
        let calls = self.tools.zip(tools).filter(|(_, tools)| !tools.required.is_empty());
        let asked = match (calls, form) {
            (Some(_), Some(form)) => {
                let message = format!(
                    "`{}` and a `tool_choice` that requires a call exclude each other; send one of them",
                    form.member
                );
                return Err(Fault::invalid_param(&form.member, message));
            }
            (Some((format, tools)), None) => {
                let grammar = call_grammar(engine, format, &tools.required, tools.parallel).lark();
                Asked { member: "tools".into(), grammar: Grammar::Lark(grammar) }
            }
            (None, Some(form)) => form,
            (None, None) => match self.tools.zip(tools).filter(|(_, tools)| !tools.bound.is_empty()) {
                Some((format, tools)) => {
                    let grammar =
                        call_grammar(engine, format, &tools.bound, tools.parallel).lark_beside_text();
                    Asked { member: "tools".into(), grammar: Grammar::Lark(grammar) }
                }
                None => return Ok(None),
            },
        };
        let grammar = structured::compile(engine, asked).await?;
        Ok(Some(Structure { grammar, thinking: self.thinking(engine) }))
    }

    /// The reasoning that may stand before an answer with a grammar.
    fn thinking(self, engine: &Engine) -> Option<Thinking> {
        let close = THINK_CLOSE.into();
        match self.reasoning? {
            ReasoningStart::Inside => Some(Thinking { close, open: None }),
            // Where the tag is more than one token, the answer begins at once.
            ReasoningStart::Before => {
                engine.tokenizer().single_id(THINK_OPEN).map(|open| Thinking { close, open: Some(open) })
            }
            ReasoningStart::Behind => None,
        }
    }
}

fn call_grammar<'a>(
    engine: &Engine,
    format: ToolFormat,
    functions: &'a [(String, Value)],
    many: bool,
) -> CallGrammar<'a> {
    let marks = Marks::of(format, |text| engine.tokenizer().special_id(text));
    CallGrammar { format, marks, functions, many }
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Reasoning.
    Reasoning(String),
    /// Plain text.
    Text(String),
    /// A call of this function begins.
    Call(String),
    /// More of its arguments.
    Arguments(String),
}

/// An answer as it grows.
#[derive(Debug)]
pub(super) struct Growing {
    speech: Speech,
    reasoning: Option<ReasoningParser>,
    tools: Option<ToolParser>,
    /// Calls so far.
    pub(super) calls: usize,
}

impl Growing {
    pub(super) fn new(speech: Speech) -> Self {
        Self {
            speech,
            reasoning: speech.reasoning.map(ReasoningParser::new),
            tools: speech.tools.map(ToolParser::new),
            calls: 0,
        }
    }

    /// What more text means, and whether it is the last.
    pub(super) fn push(&mut self, text: &str, last: bool) -> Vec<Said> {
        let mut said = Vec::new();
        let mut answer = text.to_owned();
        if let Some(parser) = &mut self.reasoning {
            let told = parser.push(text, last);
            answer = told.answer;
            if !told.reasoning.is_empty() && self.speech.include_reasoning {
                said.push(Said::Reasoning(told.reasoning));
            }
        }
        let Some(parser) = &mut self.tools else {
            said.extend((!answer.is_empty()).then_some(Said::Text(answer)));
            return said;
        };
        let mut outputs = parser.push(&answer);
        if last {
            outputs.extend(parser.flush());
        }
        for output in outputs {
            match output {
                ToolOutput::Text(text) => said.push(Said::Text(text)),
                ToolOutput::Begin(name) => {
                    self.calls += 1;
                    if self.takes_call() {
                        said.push(Said::Call(name));
                    }
                }
                ToolOutput::Arguments(more) if self.takes_call() => said.push(Said::Arguments(more)),
                ToolOutput::Arguments(_) => {}
            }
        }
        said
    }

    /// Whether the call that began last is one of those that were asked for.
    fn takes_call(&self) -> bool {
        self.speech.parallel || self.calls == 1
    }

    /// Why the answer ended, seen from the client: it ended to call tools.
    pub(super) fn finish(&self, reason: FinishReason) -> FinishReason {
        if reason == FinishReason::Stop && self.calls > 0 { FinishReason::ToolCalls } else { reason }
    }
}
