//! What may cross each boundary, exhaustively. Every layer forwards by these lists and drops the
//! rest, and the boundary test records each hop of a real chain and fails on anything not listed.

use crate::headers as h;
use crate::patch;

/// A boundary that a request crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hop {
    /// Platform to gateway, in enterprise mode.
    PlatformToGateway,
    /// Gateway to scheduler, in enterprise mode.
    GatewayToScheduler,
    /// Platform to scheduler (production mode) or to an engine (development mode): no tenants, so the
    /// caller's key ends here.
    PlatformToUngoverned,
    /// Scheduler to the engine that answers.
    SchedulerToEngine,
    /// Scheduler to an engine that computes the prompt alone.
    SchedulerToPrefill,
}

/// Headers that HTTP itself needs and that name nobody.
const PLAIN: &[&str] =
    &["host", "content-type", "content-length", "transfer-encoding", "accept", h::TRACEPARENT, h::TRACESTATE];

impl Hop {
    /// Headers that may cross beside the plain ones of HTTP itself.
    pub fn added(self) -> &'static [&'static str] {
        match self {
            Self::PlatformToGateway => &[h::AUTHORIZATION, h::REQUEST_ID, h::SESSION_ID, h::HOP_TOKEN],
            Self::GatewayToScheduler => &[
                h::FAIRNESS_ID,
                h::OBJECTIVE,
                h::CACHE_SCOPE,
                h::MINTED_ID,
                h::DEADLINE_MS,
                h::SESSION_ID,
                h::HOP_TOKEN,
            ],
            Self::PlatformToUngoverned => &[h::REQUEST_ID, h::SESSION_ID, h::HOP_TOKEN],
            Self::SchedulerToEngine | Self::SchedulerToPrefill => {
                &[h::MINTED_ID, h::DEADLINE_MS, h::HOP_TOKEN]
            }
        }
    }

    /// Whether a request header may cross.
    pub fn allows(self, name: &str) -> bool {
        PLAIN.contains(&name) || self.added().contains(&name)
    }

    /// Whether the layer copies this header from the request that it received. What it does not copy
    /// and still [allows](Self::allows), it writes itself.
    pub fn copies(self, name: &str) -> bool {
        let plain = ["content-type", "accept", h::TRACEPARENT, h::TRACESTATE].contains(&name);
        plain
            || match self {
                Self::PlatformToGateway => [h::AUTHORIZATION, h::REQUEST_ID, h::SESSION_ID].contains(&name),
                Self::PlatformToUngoverned => [h::REQUEST_ID, h::SESSION_ID].contains(&name),
                Self::SchedulerToEngine | Self::SchedulerToPrefill => name == h::DEADLINE_MS,
                Self::GatewayToScheduler => false,
            }
    }

    /// Patches of the body that the layer before this hop may make.
    pub fn patches(self) -> patch::Allowed {
        match self {
            Self::GatewayToScheduler => patch::GATEWAY,
            Self::SchedulerToEngine => patch::SCHEDULER,
            Self::SchedulerToPrefill => patch::PREFILL,
            Self::PlatformToGateway | Self::PlatformToUngoverned => patch::Allowed { set: &[], remove: &[] },
        }
    }
}

/// Whether a response header goes back to the application. Internal headers never do, except why the
/// replica was picked, and that only where `explain` holds: for an admin, or on loopback.
pub fn returns(name: &str, explain: bool) -> bool {
    if name == h::DECISION || name == h::REPLICA {
        return explain;
    }
    let plain = ["content-type", "content-length", "cache-control", "date", h::RETRY_AFTER, h::REQUEST_ID];
    plain.contains(&name) || name.starts_with("x-ratelimit-")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Hop; 5] = [
        Hop::PlatformToGateway,
        Hop::GatewayToScheduler,
        Hop::PlatformToUngoverned,
        Hop::SchedulerToEngine,
        Hop::SchedulerToPrefill,
    ];

    #[test]
    fn identity_ends_at_the_gateway() {
        for hop in ALL.into_iter().filter(|hop| *hop != Hop::PlatformToGateway) {
            for name in
                [h::AUTHORIZATION, "cookie", "x-api-key", "x-forwarded-for", "baggage", "openai-organization"]
            {
                assert!(!hop.allows(name), "{name} must not cross {hop:?}");
            }
        }
        assert!(!Hop::SchedulerToEngine.allows(h::FAIRNESS_ID));
        assert!(!Hop::SchedulerToEngine.allows(h::SESSION_ID));
        assert!(!Hop::GatewayToScheduler.copies(h::SESSION_ID), "it goes on under another name");
    }

    #[test]
    fn a_prefill_replica_gets_what_one_that_answers_gets() {
        assert_eq!(Hop::SchedulerToPrefill.added(), Hop::SchedulerToEngine.added());
        let (prefill, decode) = (Hop::SchedulerToPrefill.patches(), Hop::SchedulerToEngine.patches());
        assert!(decode.set.iter().all(|member| prefill.set.contains(member)));
        for short in ["max_tokens", "max_completion_tokens", "stream"] {
            assert!(prefill.set.contains(&short) && !decode.set.contains(&short), "{short}");
        }
    }

    #[test]
    fn what_is_copied_is_allowed() {
        for hop in ALL {
            for name in hop.added().iter().chain(PLAIN) {
                assert!(!hop.copies(name) || hop.allows(name));
            }
        }
    }

    #[test]
    fn internal_headers_stay_inside() {
        for name in [h::FAIRNESS_ID, h::CACHE_SCOPE, h::HOP_TOKEN, h::MINTED_ID, "server", "set-cookie"] {
            assert!(!returns(name, true), "{name}");
        }
        assert!(returns(h::DECISION, true) && !returns(h::DECISION, false));
    }
}
