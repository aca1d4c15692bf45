//! Which replicas to start and to stop next. Pure, and called again after everything that happens, so
//! that nothing depends on what was decided before.

/// How replicas of a new template take the place of old ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turnover {
    /// A new one is ready before an old one stops; at most one more than wanted.
    OneMore,
    /// The old ones stop before the new ones start, because they need the same address.
    Recreate,
}

/// A replica as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Hash of the template that it runs.
    pub revision: String,
    /// Its number among those of its template.
    pub ordinal: u32,
    /// Whether it serves.
    pub ready: bool,
    /// Whether it is on its way out.
    pub leaving: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start a replica of the wanted template with this number.
    Start {
        /// The number.
        ordinal: u32,
    },
    /// Take this replica (by its place in the list) out of use: un-route, drain, stop.
    Retire {
        /// The place.
        index: usize,
    },
}

/// The next steps towards `wanted` replicas of `revision`.
pub fn steps(wanted: u32, revision: &str, strategy: Turnover, replicas: &[Replica]) -> Vec<Step> {
    let staying = |(_, r): &(usize, &Replica)| !r.leaving;
    let current: Vec<(usize, &Replica)> =
        replicas.iter().enumerate().filter(staying).filter(|(_, r)| r.revision == revision).collect();
    let old: Vec<(usize, &Replica)> =
        replicas.iter().enumerate().filter(staying).filter(|(_, r)| r.revision != revision).collect();
    let wanted = wanted as usize;
    let mut steps = Vec::new();

    // Of the current ones, those that do not serve go first, then the youngest.
    let surplus = current.len().saturating_sub(wanted);
    let mut leaving = current.clone();
    leaving.sort_by_key(|(_, r)| (r.ready, std::cmp::Reverse(r.ordinal)));
    steps.extend(leaving.iter().take(surplus).map(|(index, _)| Step::Retire { index: *index }));
    let ready = leaving.iter().skip(surplus).filter(|(_, r)| r.ready).count();
    let kept = current.len() - surplus;

    let missing = match strategy {
        Turnover::OneMore => {
            // An old replica that does not serve is of no use to anybody.
            let serving = old.iter().filter(|(_, r)| r.ready).count();
            steps.extend(
                old.iter().filter(|(_, r)| !r.ready).map(|(index, _)| Step::Retire { index: *index }),
            );
            let mut youngest = old.clone();
            youngest.sort_by_key(|(_, r)| std::cmp::Reverse(r.ordinal));
            let spare = (ready + serving).saturating_sub(wanted).min(serving);
            let retired = youngest.iter().filter(|(_, r)| r.ready).take(spare);
            steps.extend(retired.map(|(index, _)| Step::Retire { index: *index }));
            let room = if serving == 0 { wanted } else { wanted + 1 };
            wanted.saturating_sub(kept).min(room.saturating_sub(kept + serving))
        }
        Turnover::Recreate => {
            steps.extend(old.iter().map(|(index, _)| Step::Retire { index: *index }));
            let occupied = old.len() + replicas.iter().filter(|r| r.leaving).count();
            if occupied > 0 { 0 } else { wanted.saturating_sub(kept) }
        }
    };
    let taken = |ordinal: u32| replicas.iter().any(|r| r.revision == revision && r.ordinal == ordinal);
    steps.extend((0..).filter(|o| !taken(*o)).take(missing).map(|ordinal| Step::Start { ordinal }));
    steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replica(revision: &str, ordinal: u32, ready: bool) -> Replica {
        Replica { revision: revision.to_owned(), ordinal, ready, leaving: false }
    }

    /// Carries steps out: a started replica is ready, a retired one leaves and then is gone.
    fn carry_out(replicas: &mut Vec<Replica>, steps: &[Step], revision: &str) {
        for step in steps {
            match step {
                Step::Start { ordinal } => replicas.push(replica(revision, *ordinal, false)),
                Step::Retire { index } => replicas[*index].leaving = true,
            }
        }
    }

    #[test]
    fn scaling_leaves_the_oldest_alone() {
        let one = vec![replica("a", 0, true)];
        let up = steps(3, "a", Turnover::OneMore, &one);
        assert_eq!(up, [Step::Start { ordinal: 1 }, Step::Start { ordinal: 2 }]);
        let three = vec![replica("a", 0, true), replica("a", 1, true), replica("a", 2, true)];
        let down = steps(1, "a", Turnover::OneMore, &three);
        assert_eq!(down, [Step::Retire { index: 2 }, Step::Retire { index: 1 }]);
        let broken = vec![replica("a", 0, false), replica("a", 1, true)];
        assert_eq!(steps(1, "a", Turnover::OneMore, &broken), [Step::Retire { index: 0 }]);
    }

    #[test]
    fn a_new_template_starts_before_the_old_one_stops() {
        let mut replicas = vec![replica("a", 0, true), replica("a", 1, true)];
        let first = steps(2, "b", Turnover::OneMore, &replicas);
        assert_eq!(first, [Step::Start { ordinal: 0 }]);
        carry_out(&mut replicas, &first, "b");
        assert_eq!(steps(2, "b", Turnover::OneMore, &replicas), [], "until the new one is ready");
        replicas[2].ready = true;
        assert_eq!(steps(2, "b", Turnover::OneMore, &replicas), [Step::Retire { index: 1 }]);
        replicas[1].leaving = true;
        assert_eq!(steps(2, "b", Turnover::OneMore, &replicas), [Step::Start { ordinal: 1 }]);
    }

    #[test]
    fn a_template_that_never_serves_takes_nothing_down() {
        let mut replicas = vec![replica("a", 0, true)];
        for _ in 0..5 {
            let next = steps(1, "bad", Turnover::OneMore, &replicas);
            assert!(!next.iter().any(|s| matches!(s, Step::Retire { .. })), "{next:?}");
            carry_out(&mut replicas, &next, "bad");
        }
        assert_eq!(replicas.len(), 2);
        assert_eq!(steps(1, "a", Turnover::OneMore, &replicas), [Step::Retire { index: 1 }]);
    }

    #[test]
    fn those_with_one_address_take_turns() {
        let mut replicas = vec![replica("a", 0, true)];
        assert_eq!(steps(1, "b", Turnover::Recreate, &replicas), [Step::Retire { index: 0 }]);
        replicas[0].leaving = true;
        assert_eq!(steps(1, "b", Turnover::Recreate, &replicas), []);
        assert_eq!(steps(1, "b", Turnover::Recreate, &[]), [Step::Start { ordinal: 0 }]);
    }

    fn any_replica() -> impl Strategy<Value = Replica> {
        ("[ab]", 0u32..4, any::<bool>(), any::<bool>())
            .prop_map(|(revision, ordinal, ready, leaving)| Replica { revision, ordinal, ready, leaving })
    }

    proptest! {
        /// From any state, with replicas that become ready and go when told, the wanted state is reached,
        /// never with fewer that serve than there were or are wanted.
        #[test]
        fn converges_without_a_gap(wanted in 0u32..4, start in prop::collection::vec(any_replica(), 0..6), recreate: bool) {
            let strategy = if recreate { Turnover::Recreate } else { Turnover::OneMore };
            let mut replicas = start;
            replicas.sort_by_key(|r| (r.revision.clone(), r.ordinal));
            replicas.dedup_by_key(|r| (r.revision.clone(), r.ordinal));
            for _ in 0..40 {
                let serving = |rs: &[Replica]| rs.iter().filter(|r| r.ready && !r.leaving).count();
                let before = serving(&replicas);
                let next = steps(wanted, "b", strategy, &replicas);
                carry_out(&mut replicas, &next, "b");
                if !recreate {
                    prop_assert!(serving(&replicas) >= before.min(wanted as usize));
                    let many = replicas.iter().filter(|r| !r.leaving).count();
                    let only_fewer = next.iter().all(|s| matches!(s, Step::Retire { .. }));
                    prop_assert!(only_fewer || many <= wanted as usize + 1);
                }
                let mut names: Vec<_> = replicas.iter().map(|r| (r.revision.clone(), r.ordinal)).collect();
                names.sort();
                names.dedup();
                prop_assert_eq!(names.len(), replicas.len(), "two of one name");
                if next.is_empty() {
                    if replicas.iter().any(|r| r.leaving) {
                        replicas.retain(|r| !r.leaving);
                    } else if let Some(slow) = replicas.iter_mut().find(|r| !r.ready) {
                        slow.ready = true;
                    } else {
                        break;
                    }
                }
            }
            prop_assert_eq!(replicas.len(), wanted as usize);
            prop_assert!(replicas.iter().all(|r| r.revision == "b" && r.ready && !r.leaving));
        }
    }
}
