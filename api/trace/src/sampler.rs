//! Which traces are recorded, by OpenTelemetry's names of samplers.

use crate::context::{TraceContext, TraceId};

/// Decides for a span that is about to begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether the caller's own decision holds, where there is a caller.
    parent_based: bool,
    /// Share of traces, 0 to 1.
    share: f64,
}

impl Default for Sampler {
    /// What the caller says; everything without one.
    fn default() -> Self {
        Self { parent_based: true, share: 1.0 }
    }
}

impl Sampler {
    /// The sampler of this name, as `OTEL_TRACES_SAMPLER` has it, with its argument.
    pub fn named(name: &str, argument: Option<&str>) -> Result<Self, String> {
        let (parent_based, root) = match name.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, name),
        };
        let share =
            match (root, argument) {
                ("always_off", _) => 0.0,
                ("always_on", _) | ("traceidratio", None) => 1.0,
                ("traceidratio", Some(share)) => share
                    .parse()
                    .ok()
                    .filter(|share| (0.0..=1.0).contains(share))
                    .ok_or_else(|| format!("the share `{share}` must be a number from 0 to 1"))?,
                _ => {
                    return Err(
                        "it must be always_on, always_off or traceidratio, each also after `parentbased_`"
                            .to_owned(),
                    );
                }
            };
        Ok(Self { parent_based, share })
    }

    /// Whether a span of this trace is recorded.
    pub fn records(self, trace: TraceId, parent: Option<&TraceContext>) -> bool {
        if let Some(parent) = parent.filter(|_| self.parent_based) {
            return parent.sampled;
        }
        // Every process decides alike for one trace.
        let low = trace.0[8..].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        ((low >> 1) as f64) < self.share * (1u64 << 63) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_decides_where_the_sampler_asks_it() {
        let trace = TraceId([1; 16]);
        let caller = |sampled| TraceContext { trace, span: crate::SpanId([2; 8]), sampled };
        let records = |name, argument, parent: Option<bool>| {
            let parent = parent.map(caller);
            Sampler::named(name, argument).unwrap().records(trace, parent.as_ref())
        };
        assert_eq!(Sampler::default(), Sampler::named("parentbased_always_on", None).unwrap());
        assert!(records("parentbased_always_on", None, None));
        assert!(!records("parentbased_always_on", None, Some(false)));
        assert!(records("parentbased_always_off", None, Some(true)));
        assert!(!records("always_off", None, Some(true)));
        assert!(records("always_on", None, Some(false)));
        insta::assert_snapshot!(Sampler::named("jaeger_remote", None).unwrap_err(), @"it must be always_on, always_off or traceidratio, each also after `parentbased_`");
        insta::assert_snapshot!(Sampler::named("traceidratio", Some("2")).unwrap_err(), @"the share `2` must be a number from 0 to 1");
    }

    #[test]
    fn a_share_is_that_share_of_random_traces() {
        let sampler = Sampler::named("traceidratio", Some("0.25")).unwrap();
        let taken = (0..4000).filter(|_| sampler.records(TraceId::random().unwrap(), None)).count();
        assert!((800..1200).contains(&taken), "{taken}");
    }
}
