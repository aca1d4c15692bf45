//! What happened, from when to when.

use std::time::{Instant, SystemTime};

use crate::context::{SpanId, TraceContext};
use crate::export::Tracer;

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A text: a name or an id.
    Text(String),
    /// A number of things.
    Int(i64),
    /// A measure.
    Float(f64),
    /// Texts.
    Texts(Vec<String>),
}

/// Which end of a call a span is, with OTLP's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Inside of one process.
    Internal = 1,
    /// Answers a remote caller.
    Server = 2,
    /// Calls a remote server.
    Client = 3,
}

/// How it went, with OTLP's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing went wrong.
    Unset = 0,
    /// Whoever recorded the span failed.
    Error = 2,
}

/// A finished span.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The span itself.
    pub context: TraceContext,
    /// The caller's, in another process.
    pub parent: Option<SpanId>,
    /// What it is called.
    pub name: &'static str,
    /// Which end of a call it is.
    pub kind: Kind,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// What is known of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// How it went.
    pub status: Status,
}

/// A span that has begun. Dropped without [`end`](Self::end), it is not recorded.
#[derive(Clone, Debug)]
pub struct ActiveSpan {
    span: Span,
    begun: Instant,
    tracer: Tracer,
}

impl ActiveSpan {
    pub(crate) fn new(
        tracer: Tracer,
        name: &'static str,
        context: TraceContext,
        parent: Option<SpanId>,
    ) -> Self {
        let start = SystemTime::now();
        let span = Span {
            context,
            parent,
            name,
            kind: Kind::Server,
            start,
            end: start,
            attributes: Vec::new(),
            status: Status::Unset,
        };
        Self { span, begun: Instant::now(), tracer }
    }

    /// For what this span calls.
    pub fn context(&self) -> TraceContext {
        self.span.context
    }

    /// Says something of it; never a text that somebody wrote, nor a secret.
    pub fn set(&mut self, name: &'static str, value: Value) {
        self.span.attributes.push((name, value));
    }

    /// Ends it now and hands it to the exporter, which never waits.
    pub fn end(mut self, status: Status) {
        // By the clock that never jumps, so that no span ends before it began.
        self.span.end = self.span.start + self.begun.elapsed();
        self.span.status = status;
        self.tracer.record(self.span);
    }
}
