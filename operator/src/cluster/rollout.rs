//! Which revision runs on which track, with how many replicas, and how one takes the place of the other.
//!
//! The Deployments carry rollouts out: a pod of the new revision is ready before one of the old stops.
//! Here is what they cannot know: canaries, and that no device is to be had for one pod more.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use strata_kinds::model_deployment::Rollout;

use super::live::{Live, is_zero};

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want<'a> {
    /// The revision that the spec asks for.
    pub current: &'a str,
    /// Replicas; `None` where an autoscaler chooses.
    pub replicas: Option<i32>,
    /// How a change reaches the replicas.
    pub rollout: Option<&'a Rollout>,
}

/// What there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Have<'a> {
    /// The Deployment that serves.
    pub stable: Option<&'a Live>,
    /// The Deployment that tries the new revision.
    pub canary: Option<&'a Live>,
    /// Whether the stable track's old template can still be applied.
    pub stable_recorded: bool,
    /// The revision that the stable track has turned over to: all of its pods are of it, as many as
    /// wanted, and ready.
    pub serving: Option<&'a str>,
    /// Whether a pod of the stable track's revision waits for a device that its old pods hold.
    pub scarce: bool,
}

/// What to run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tracks {
    /// The stable track's revision.
    pub stable: String,
    /// The canary's.
    pub canary: Option<CanaryTrack>,
    /// Replicas above the wanted number.
    pub surge: IntOrString,
    /// Replicas below it.
    pub unavailable: IntOrString,
    /// What a lack of devices means for the rollout.
    pub scarcity: Option<Scarcity>,
}

/// The track that tries a revision.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CanaryTrack {
    /// Its revision.
    pub revision: String,
    /// Its replicas.
    pub replicas: i32,
    /// Whether the user asks for it still; else it serves on until the stable track has its revision.
    pub asked: bool,
}

/// What is done about a device that old pods hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scarcity {
    /// An old replica stops before a new one starts, one at a time.
    OneAtATime,
    /// The user's `maxUnavailable: 0` forbids that.
    Forbidden,
}

/// Decides from what there is alone, so that it can be asked again at any time.
pub(super) fn tracks(want: Want<'_>, have: Have<'_>) -> Tracks {
    let weight = want.rollout.and_then(|r| r.canary.as_ref()).map(|c| c.weight).filter(|w| *w < 100);
    let (stable, canary) = match (weight, have.stable) {
        (Some(weight), Some(live)) if live.revision != want.current && have.stable_recorded => {
            let replicas = share(want.replicas.unwrap_or(live.replicas), weight);
            let canary = CanaryTrack { revision: want.current.to_owned(), replicas, asked: true };
            (live.revision.clone(), (replicas > 0).then_some(canary))
        }
        // Promoted: the canary serves until the stable track does, but gives its devices back first.
        _ => {
            let rest = have.canary.filter(|c| {
                let rolling = have.stable.is_some() && have.serving != Some(want.current);
                c.revision == want.current && c.replicas > 0 && rolling && !have.scarce
            });
            let canary = rest.map(|c| CanaryTrack {
                revision: c.revision.clone(),
                replicas: c.replicas,
                asked: false,
            });
            (want.current.to_owned(), canary)
        }
    };
    let asked_surge = want.rollout.and_then(|r| r.max_surge.clone());
    let asked_unavailable = want.rollout.and_then(|r| r.max_unavailable.clone());
    let surge = asked_surge.unwrap_or(IntOrString::Int(1));
    let least = IntOrString::Int(i32::from(is_zero(&surge)));
    let mut made = Tracks {
        stable,
        canary,
        unavailable: asked_unavailable.clone().unwrap_or(least),
        surge,
        scarcity: None,
    };
    if is_zero(&made.surge) {
        return made;
    }
    let rolling = have.stable.is_some() && have.serving != Some(&made.stable);
    let went_without = have.stable.is_some_and(|live| live.without_surge);
    let gives_back = have.canary.is_some_and(|c| c.replicas > 0) && made.canary.is_none();
    if rolling && (went_without || (have.scarce && !gives_back)) {
        if asked_unavailable.as_ref().is_some_and(is_zero) {
            made.scarcity = Some(Scarcity::Forbidden);
        } else {
            made.surge = IntOrString::Int(0);
            made.unavailable = asked_unavailable.unwrap_or(IntOrString::Int(1));
            made.scarcity = Some(Scarcity::OneAtATime);
        }
    }
    made
}

/// The canary's replicas: its share, rounded up, at least one, none for a model without replicas.
fn share(replicas: i32, weight: i32) -> i32 {
    let of = i64::from(replicas.max(0)) * i64::from(weight.clamp(0, 100));
    let rounded = i32::try_from((of + 99) / 100).unwrap_or(i32::MAX);
    if replicas > 0 { rounded.max(1) } else { 0 }
}

#[cfg(test)]
mod tests {
    use strata_kinds::model_deployment::Canary;

    use super::*;

    fn live(revision: &str, replicas: i32) -> Live {
        Live {
            revision: revision.to_owned(),
            replicas,
            without_surge: false,
            owns_replicas: true,
            refusal: None,
        }
    }

    fn canary(weight: i32) -> Rollout {
        Rollout { canary: Some(Canary { weight }), ..Rollout::default() }
    }

    fn nothing() -> Have<'static> {
        Have { stable: None, canary: None, stable_recorded: true, serving: None, scarce: false }
    }

    #[test]
    fn the_first_revision_needs_no_canary() {
        let rollout = canary(10);
        let want = Want { current: "a", replicas: Some(3), rollout: Some(&rollout) };
        let made = tracks(want, nothing());
        assert_eq!((made.stable.as_str(), made.canary), ("a", None));
    }

    #[test]
    fn a_canary_is_tried_given_up_and_promoted() {
        let (rollout, stable) = (canary(34), live("a", 3));
        let have = Have { stable: Some(&stable), serving: Some("a"), ..nothing() };
        let want = Want { current: "b", replicas: Some(3), rollout: Some(&rollout) };
        let tried = tracks(want, have);
        assert_eq!(tried.stable, "a");
        assert_eq!(tried.canary, Some(CanaryTrack { revision: "b".into(), replicas: 2, asked: true }));

        let trying = live("b", 2);
        let have = Have { canary: Some(&trying), ..have };
        let given_up = tracks(Want { current: "a", ..want }, have);
        assert_eq!((given_up.stable.as_str(), given_up.canary), ("a", None));

        for promoted in [None, Some(&canary(100))] {
            let want = Want { rollout: promoted, ..want };
            let now = tracks(want, have);
            let kept = now.canary.unwrap();
            assert_eq!(
                (now.stable.as_str(), kept.replicas, kept.asked),
                ("b", 2, false),
                "until all is rolled"
            );
            assert_eq!(tracks(want, Have { serving: None, ..have }).canary, Some(kept));
            assert_eq!(tracks(want, Have { scarce: true, ..have }).canary, None, "it holds the devices");
            assert_eq!(tracks(want, Have { serving: Some("b"), ..have }).canary, None);
        }
    }

    #[test]
    fn shares_are_rounded_up() {
        for (replicas, weight, wanted) in
            [(1, 1, 1), (1, 0, 1), (0, 50, 0), (10, 25, 3), (10, 30, 3), (3, 99, 3)]
        {
            assert_eq!(share(replicas, weight), wanted, "{weight}% of {replicas}");
        }
    }

    #[test]
    fn scarce_devices_are_passed_on_one_at_a_time() {
        let stable = live("b", 2);
        let have = Have { stable: Some(&stable), scarce: true, ..nothing() };
        let want = Want { current: "b", replicas: Some(2), rollout: None };
        let made = tracks(want, have);
        assert_eq!((made.surge, made.unavailable), (IntOrString::Int(0), IntOrString::Int(1)));
        assert_eq!(made.scarcity, Some(Scarcity::OneAtATime));

        let without = Live { without_surge: true, ..stable.clone() };
        let later = Have { stable: Some(&without), scarce: false, ..have };
        assert_eq!(tracks(want, later).surge, IntOrString::Int(0), "until the rollout is over");
        assert_eq!(tracks(want, Have { serving: Some("b"), ..later }).surge, IntOrString::Int(1));

        let never = Rollout { max_unavailable: Some(IntOrString::Int(0)), ..Rollout::default() };
        let made = tracks(Want { rollout: Some(&never), ..want }, have);
        assert_eq!((made.surge, made.scarcity), (IntOrString::Int(1), Some(Scarcity::Forbidden)));
    }

    #[test]
    fn without_surge_one_may_be_away() {
        let rollout = Rollout { max_surge: Some(IntOrString::Int(0)), ..Rollout::default() };
        let made = tracks(Want { current: "a", replicas: Some(2), rollout: Some(&rollout) }, nothing());
        assert_eq!((made.unavailable, made.scarcity), (IntOrString::Int(1), None));
    }
}
