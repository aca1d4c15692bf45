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
    /// The caller's, in another process, or the one that it is a part of.
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

    /// A part of this span that begins now; `None` where the system gives no random numbers.
    pub fn child(&self, name: &'static str, kind: Kind) -> Option<Self> {
        let context = TraceContext { span: SpanId::random()?, ..self.span.context };
        let mut child = Self::new(self.tracer.clone(), name, context, Some(self.span.context.span));
        child.span.kind = kind;
        Some(child)
    }

    /// The same span, begun at an earlier time.
    #[must_use]
    pub fn since(mut self, begun: Instant) -> Self {
        let earlier = self.begun.saturating_duration_since(begun);
        self.span.start = self.span.start.checked_sub(earlier).unwrap_or(self.span.start);
        self.begun = begun.min(self.begun);
        self
    }

    /// For what this span calls.
    pub fn context(&self) -> TraceContext {
        self.span.context
    }

    /// Whether it answers a caller that has a span of its own, or is a part of another.
    pub fn has_parent(&self) -> bool {
        self.span.parent.is_some()
    }

    /// Says something of it; never a text that somebody wrote, nor a secret.
    pub fn set(&mut self, name: &'static str, value: Value) {
        self.span.attributes.push((name, value));
    }

    /// Ends it now and hands it to the exporter, which never waits.
    pub fn end(self, status: Status) {
        self.end_at(Instant::now(), status);
    }

    /// The same of one that has ended at an earlier time.
    pub fn end_at(mut self, ended: Instant, status: Status) {
        // By the clock that never jumps, so that no span ends before it began.
        self.span.end = self.span.start + ended.saturating_duration_since(self.begun);
        self.span.status = status;
        self.tracer.record(self.span);
    }
}
