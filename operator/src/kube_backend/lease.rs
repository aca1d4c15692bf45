//! Who leads, as far as the Lease says. Pure.
//!
//! Clocks of two machines differ, so that the time written in the Lease is compared with nothing: it is
//! only looked at whether it changes. A leader that did not renew for the Lease's own duration, by the
//! clock of the one who waits, leads no more.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;

/// How long a leader leads without renewing.
pub(super) const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for so long stops, well before somebody else may begin.
pub(super) const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often a leader renews.
pub(super) const RENEW_EVERY: Duration = Duration::from_secs(2);

/// What was seen of the Lease, and when it changed last.
#[derive(Clone, Debug)]
pub(super) struct Sighting {
    lease: Lease,
    since: Instant,
}

fn spec(lease: &Lease) -> LeaseSpec {
    lease.spec.clone().unwrap_or_default()
}

/// Who holds it, if anybody.
pub(super) fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|h| !h.is_empty())
}

impl Sighting {
    /// The first sight of a Lease.
    pub(super) fn new(lease: Lease, now: Instant) -> Self {
        Self { lease, since: now }
    }

    /// Another sight of it.
    pub(super) fn update(&mut self, lease: Lease, now: Instant) {
        let (known, seen) = (spec(&self.lease), spec(&lease));
        if (&known.holder_identity, &known.renew_time) != (&seen.holder_identity, &seen.renew_time) {
            self.since = now;
        }
        self.lease = lease;
    }

    /// When it may be taken: at once if nobody holds it, or the one who asks; else when its holder has
    /// not renewed for its duration.
    pub(super) fn free_at(&self, me: &str) -> Instant {
        match holder(&self.lease) {
            None => self.since,
            Some(holder) if holder == me => self.since,
            Some(_) => {
                let seconds = spec(&self.lease).lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
                self.since + seconds.map_or(DURATION, Duration::from_secs)
            }
        }
    }

    /// The Lease.
    pub(super) fn lease(&self) -> &Lease {
        &self.lease
    }
}

/// The first Lease of a name.
pub(super) fn first(
    namespace: &str,
    name: &str,
    owner: Option<OwnerReference>,
    me: &str,
    now: Timestamp,
) -> Lease {
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    held(&Lease { metadata, spec: None }, me, now)
}

/// The Lease as this holder takes or renews it. Its version stays, so that of two who try one succeeds.
pub(super) fn held(lease: &Lease, me: &str, now: Timestamp) -> Lease {
    let before = spec(lease);
    let mine = holder(lease) == Some(me);
    let transitions = before.lease_transitions.unwrap_or(0);
    let taken_over = before.holder_identity.is_some() && !mine;
    Lease {
        metadata: lease.metadata.clone(),
        spec: Some(LeaseSpec {
            holder_identity: Some(me.to_owned()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            acquire_time: if mine { before.acquire_time } else { Some(MicroTime(now)) },
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(if taken_over { transitions + 1 } else { transitions }),
            ..before
        }),
    }
}

/// The Lease as its holder gives it back: whoever waits takes it at once.
pub(super) fn released(lease: &Lease, now: Timestamp) -> Lease {
    let mut released = lease.clone();
    let spec = released.spec.get_or_insert_default();
    spec.holder_identity = Some(String::new());
    spec.lease_duration_seconds = Some(1);
    spec.renew_time = Some(MicroTime(now));
    released
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_leader_that_renews_keeps_it_whatever_its_clock_says() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        // Its clock stands still in the past, but for the microseconds.
        let mut seen = Sighting::new(first("n", "l", None, "other", at(-1_000_000)), now);
        assert_eq!(seen.free_at("me"), now + DURATION);
        let mut renewed = held(seen.lease(), "other", at(-1_000_000));
        renewed.spec.as_mut().unwrap().renew_time =
            Some(MicroTime(at(-1_000_000) + k8s_openapi::jiff::SignedDuration::from_micros(1)));
        seen.update(renewed.clone(), now + second * 14);
        assert_eq!(seen.free_at("me"), now + second * 29);
        seen.update(renewed, now + second * 20);
        assert_eq!(seen.free_at("me"), now + second * 29, "the same again is no sign of life");
    }

    #[test]
    fn what_was_given_back_is_free_at_once() {
        let now = Instant::now();
        let lease = first("n", "l", None, "other", at(1));
        let mut seen = Sighting::new(lease.clone(), now);
        let later = now + Duration::from_secs(3);
        seen.update(released(&lease, at(2)), later);
        assert_eq!(seen.free_at("me"), later);
        let taken = spec(&held(seen.lease(), "me", at(3)));
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("me"), Some(1)));
        assert_eq!(taken.lease_duration_seconds, Some(15), "that of the one who gave it back is not kept");
    }

    #[test]
    fn renewing_changes_only_the_time() {
        let lease = first("n", "l", None, "me", at(1));
        let renewed = held(&lease, "me", at(5));
        let mut expected = spec(&lease);
        expected.renew_time = Some(MicroTime(at(5)));
        assert_eq!(spec(&renewed), expected);
        assert_eq!(Sighting::new(lease, Instant::now()).free_at("me").elapsed().as_secs(), 0, "our own");
    }
}
