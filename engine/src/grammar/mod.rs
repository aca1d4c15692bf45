//! Structured output: what an answer may be, compiled to something that says which tokens may come
//! next (by `llguidance`).
//!
//! A [`Grammar`] is what a request asks for. [`Grammars`] compiles it away from every thread that
//! serves others, within bounds, and keeps what was compiled last. A [`Walk`] follows one answer
//! through the grammar; its masks are computed on threads of their own, while the model runs.

mod compile;
mod ebnf;
mod form;
mod tags;
mod vocabulary;
mod walk;

pub(crate) use ebnf::literal as lark_literal;
pub(crate) use form::spaced;

pub use compile::{Compiled, GrammarError, Grammars, MAX_GRAMMAR_BYTES};
pub use form::{Grammar, Space, close, regex_problem};
pub use tags::{Content, Group, Marked, Piece, Spelling, Tag};
pub use walk::{DeadEnd, Next, Walk};
