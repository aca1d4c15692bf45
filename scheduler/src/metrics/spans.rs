//! What became of the spans of requests.

use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use strata_trace::Tracer;

/// Spans exported and dropped; nothing where requests are not traced.
#[derive(Clone, Debug, Default)]
pub(super) struct Spans(Arc<OnceLock<Tracer>>);

impl Spans {
    pub(super) fn follow(&self, tracer: &Tracer) {
        self.0.get_or_init(|| tracer.clone());
    }
}

impl Collector for Spans {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(tracer) = self.0.get() else { return Ok(()) };
        let exported = ("exported", "Spans that a collector has taken", tracer.exported());
        let dropped = ("dropped", "Spans that were lost on the way to a collector", tracer.dropped());
        for (end, help, count) in [exported, dropped] {
            let (name, counter) = (format!("strata_scheduler_trace_spans_{end}"), ConstCounter::new(count));
            counter.encode(encoder.encode_descriptor(&name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
