//! What became of the spans of requests.

use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;
use strata_trace::Tracer;
use strata_wire::metrics::engine as names;

/// Spans exported and dropped; nothing where requests are not traced.
#[derive(Debug)]
pub struct TraceMetrics(Arc<OnceLock<Tracer>>);

#[derive(Debug)]
struct Counts(Arc<OnceLock<Tracer>>);

impl TraceMetrics {
    pub(super) fn new(r: &mut Registry) -> Self {
        let tracer = Arc::default();
        r.register_collector(Box::new(Counts(Arc::clone(&tracer))));
        Self(tracer)
    }

    /// Shows this tracer's counts from now on.
    pub fn follow(&self, tracer: &Tracer) {
        self.0.get_or_init(|| tracer.clone());
    }
}

impl Collector for Counts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(tracer) = self.0.get() else { return Ok(()) };
        for (name, help, count) in [
            (names::SPANS_EXPORTED, "Spans that a collector has taken", tracer.exported()),
            (names::SPANS_DROPPED, "Spans that were lost on the way to a collector", tracer.dropped()),
        ] {
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
