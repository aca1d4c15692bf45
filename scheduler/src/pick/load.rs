//! How loaded a replica is now: what its metrics said, corrected by what this scheduler has sent it
//! and got back since, because metrics are always late.

/// Waiting sequences at which a replica gets no more: its queue is then long enough to never run dry
/// between two looks at its metrics, and what waits here can still go elsewhere.
pub const SATURATED_WAITING: f64 = 8.0;
/// Sequences assumed to fit into a replica that does not say: vLLM's usual default.
pub const ASSUMED_MAX_SEQUENCES: f64 = 256.0;

/// Sequences that must run before what they hold tells how many the KV cache has room for.
const LEAST_TO_JUDGE: f64 = 4.0;

/// What this scheduler has under way at one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Own {
    /// Requests sent that have not ended.
    pub in_flight: u64,
    /// Of these, the ones whose response has not begun.
    pub pending: u64,
    /// Prompt tokens of the pending ones that the replica's cache probably lacks.
    pub pending_tokens: f64,
}

/// The time between two tokens of one sequence at a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum InterToken {
    /// The replica has no such metric.
    #[default]
    Missing,
    /// It has the metric, and has generated nothing lately.
    Idle,
    /// Seconds, averaged over the last moments.
    Seconds(f64),
}

/// What a replica's metrics said. `None` is a metric that is missing or too old.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Sequences in the running batch.
    pub running: Option<f64>,
    /// Sequences that wait to be scheduled.
    pub waiting: Option<f64>,
    /// Prompt tokens that wait to be processed.
    pub waiting_tokens: Option<f64>,
    /// Sequences that the running batch holds at most.
    pub max_sequences: Option<f64>,
    /// Share of its KV blocks that sequences hold.
    pub kv_usage: Option<f64>,
    /// Prompt tokens processed a second.
    pub prefill_rate: Option<f64>,
    /// Time between two tokens.
    pub inter_token: InterToken,
    /// What this scheduler had under way when the metrics were asked for.
    pub own: Own,
}

/// A replica's load as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Requests of this scheduler that have not ended there.
    pub in_flight: u64,
    /// Sequences running.
    pub running: Option<f64>,
    /// Sequences waiting.
    pub waiting: Option<f64>,
    /// Prompt tokens waiting; at least this many even when the metric is missing, for
    /// [`Load::waiting_tokens_known`] tells.
    pub waiting_tokens: f64,
    /// Whether [`Load::waiting_tokens`] is the whole truth, or only what this scheduler knows itself.
    pub waiting_tokens_known: bool,
    /// Sequences that run at most.
    pub max_sequences: Option<f64>,
    /// Prompt tokens processed a second.
    pub prefill_rate: Option<f64>,
    /// Time between two tokens.
    pub inter_token: InterToken,
    /// Requests of this scheduler that it may have at once, while it is new.
    pub limit: Option<f64>,
    /// How many of the running sequences are to be left out because this scheduler's requests among them have
    /// short answers ahead, each by a part.
    pub brief: f64,
}

impl Gauges {
    /// Sequences that find room beside each other: as many as it runs at most, or as its KV cache holds of
    /// those that run now.
    fn slots(&self) -> f64 {
        let most = self.max_sequences.unwrap_or(ASSUMED_MAX_SEQUENCES);
        match (self.running, self.kv_usage) {
            (Some(running), Some(usage)) if running >= LEAST_TO_JUDGE && usage > 0.0 => {
                most.min((running / usage).max(1.0))
            }
            _ => most,
        }
    }
}

impl Load {
    /// Corrects metrics by what happened since they were asked for. `None` when there are none, or
    /// they are too old to be believed: then only what this scheduler knows itself counts, so a
    /// replica whose metrics stop is neither busy for ever nor free for ever.
    pub fn estimate(gauges: Option<&Gauges>, now: Own) -> Self {
        let Some(gauges) = gauges else {
            return Self { in_flight: now.in_flight, waiting_tokens: now.pending_tokens, ..Self::default() };
        };
        let sent = now.in_flight as f64 - gauges.own.in_flight as f64;
        let still = now.pending as f64 - gauges.own.pending as f64;
        let slots = gauges.slots();
        let (running, waiting) = match (gauges.running, gauges.waiting) {
            (Some(running), Some(waiting)) => {
                let all = (running + waiting + sent).max(now.in_flight as f64);
                // Where nothing waited, what was sent since finds a free slot while there is one.
                let waiting = if waiting > 0.0 { waiting + still } else { all - slots };
                let waiting = waiting.clamp(0.0, all);
                (Some(all - waiting), Some(waiting))
            }
            (Some(running), None) => (Some((running + sent).max(0.0)), None),
            (None, waiting) => (None, waiting.map(|w| if w > 0.0 { (w + still).max(0.0) } else { 0.0 })),
        };
        let tokens_since = now.pending_tokens - gauges.own.pending_tokens;
        Self {
            in_flight: now.in_flight,
            running,
            waiting,
            waiting_tokens: gauges
                .waiting_tokens
                .map_or(now.pending_tokens, |tokens| (tokens + tokens_since).max(0.0)),
            waiting_tokens_known: gauges.waiting_tokens.is_some(),
            max_sequences: gauges.max_sequences,
            prefill_rate: gauges.prefill_rate.filter(|rate| *rate > 0.0),
            inter_token: gauges.inter_token,
            limit: None,
            brief: 0.0,
        }
    }

    /// Sequences that it has, running or not, as far as is known.
    pub fn sequences(&self) -> f64 {
        let said = self.running.zip(self.waiting).map_or(0.0, |(running, waiting)| running + waiting);
        said.max(self.in_flight as f64)
    }

    /// Requests that it runs and that wait there at most.
    pub fn slots(&self) -> f64 {
        self.max_sequences.unwrap_or(ASSUMED_MAX_SEQUENCES) + SATURATED_WAITING
    }

    /// How full the replica is: 1 and more means that a further request would only wait there.
    pub fn saturation(&self) -> f64 {
        let own = self.in_flight as f64 / self.limit.map_or(self.slots(), |limit| limit.min(self.slots()));
        own.max(self.waiting.unwrap_or(0.0) / SATURATED_WAITING)
    }

    /// Whether the replica gets no more for now.
    pub fn is_saturated(&self) -> bool {
        self.saturation() >= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauges(running: f64, waiting: f64, own: Own) -> Gauges {
        Gauges {
            running: Some(running),
            waiting: Some(waiting),
            waiting_tokens: Some(waiting * 100.0),
            max_sequences: Some(16.0),
            kv_usage: None,
            prefill_rate: Some(1000.0),
            inter_token: InterToken::Idle,
            own,
        }
    }

    fn own(in_flight: u64, pending: u64) -> Own {
        Own { in_flight, pending, pending_tokens: pending as f64 * 100.0 }
    }

    #[test]
    fn what_was_sent_since_the_metrics_counts() {
        let idle = gauges(0.0, 0.0, Own::default());
        let load = Load::estimate(Some(&idle), own(10, 10));
        assert_eq!((load.running, load.waiting), (Some(10.0), Some(0.0)));
        assert!((load.waiting_tokens - 1000.0).abs() < 1e-9);
        assert!(!load.is_saturated());
        let load = Load::estimate(Some(&idle), own(24, 24));
        assert_eq!((load.running, load.waiting), (Some(16.0), Some(8.0)));
        assert!(load.is_saturated(), "a burst between two looks at the metrics is bounded");
    }

    #[test]
    fn a_cache_that_is_full_has_no_room_for_a_burst() {
        let half = Gauges { kv_usage: Some(0.8), max_sequences: Some(256.0), ..gauges(8.0, 0.0, own(8, 0)) };
        let load = Load::estimate(Some(&half), own(10, 2));
        assert_eq!((load.running, load.waiting), (Some(10.0), Some(0.0)));
        let load = Load::estimate(Some(&half), own(18, 10));
        assert_eq!((load.running, load.waiting), (Some(10.0), Some(8.0)));
        assert!(load.is_saturated());
        let few = Gauges { running: Some(1.0), ..half };
        assert_eq!(Load::estimate(Some(&few), own(18, 10)).waiting, Some(0.0), "one tells little");
    }

    #[test]
    fn what_ended_since_the_metrics_counts() {
        let busy = gauges(16.0, 12.0, own(28, 12));
        assert!(Load::estimate(Some(&busy), own(28, 12)).is_saturated());
        let later = Load::estimate(Some(&busy), own(20, 4));
        assert_eq!((later.running, later.waiting), (Some(16.0), Some(4.0)));
        assert!(!later.is_saturated());
    }

    #[test]
    fn other_schedulers_requests_count() {
        let shared = gauges(16.0, 9.0, own(2, 0));
        assert!(Load::estimate(Some(&shared), own(2, 0)).is_saturated());
    }

    #[test]
    fn without_metrics_only_our_own_requests_fill_a_replica() {
        assert!(!Load::estimate(None, own(1, 1)).is_saturated());
        assert!(Load::estimate(None, own(264, 0)).is_saturated());
        let unknown = Load::estimate(Some(&Gauges::default()), own(1, 1));
        assert_eq!((unknown.running, unknown.waiting), (None, None));
        assert!(!unknown.waiting_tokens_known && !unknown.is_saturated());
    }
}
