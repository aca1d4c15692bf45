//! Spans of Strata's layers, for an OpenTelemetry collector: the caller's trace context comes in by
//! W3C's `traceparent`, finished spans go out in batches by OTLP over HTTP, as protobuf.
//!
//! Nothing here is in a request's way: a finished span goes into a bounded queue, or is dropped and
//! counted when that is full; one task sends what is queued. A collector that is away costs spans and
//! nothing else.
//!
//! This crate knows no layer, and any layer may use it. A span carries numbers and names; texts of
//! prompts and answers, keys and tenants are not put into attributes.

mod client;
mod config;
mod context;
mod export;
mod protobuf;
mod sampler;
mod span;

pub use config::{ConfigError, TraceConfig};
pub use context::{SpanId, TraceContext, TraceId};
pub use export::{Exporter, Tracer};
pub use sampler::Sampler;
pub use span::{ActiveSpan, Kind, Span, Status, Value};
