//! The authority over years, and whether holders trust each other all the while.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use strata_hop::tls::credentials::{certificates, signed_by};

use super::*;

#[test]
fn a_renewal_is_by_the_old_authority_until_all_trust_the_new_one() {
    const HALF: i64 = DAY / 2;
    // The second authority is made on day 299.5, and all certificates are due on day 300.
    let schedule = Schedule { authority: 449 * DAY + DAY / 4, leaf: 90 * DAY, overlap: DAY, skew: 3600 };
    let (store, authority) = (Memory::default(), Authority::with("strata", schedule));
    let wanted = everybody(&["m"]);
    let first = {
        reconcile_at(&authority, &store, &wanted, NOW);
        store.authorities().remove(0)
    };
    let mut story = Vec::new();
    for half in 1..=2 * 362 {
        let now = NOW + half * HALF;
        reconcile_at(&authority, &store, &wanted, now);
        let held = held_by(&store, &wanted);
        let by_first = held.iter().filter(|(_, f)| signed_by(&certificates(&f.certificate), &first.der, now));
        let trusted = held.iter().map(|(_, f)| certificates(&f.authorities).len()).max().unwrap();
        let now = format!("{} named by the first, {trusted} trusted", by_first.count());
        if story.last().is_none_or(|(_, before)| *before != now) {
            story.push((half, now));
        }
    }
    let story: Vec<String> =
        story.iter().map(|(half, what)| format!("day {:.1}: {what}", *half as f64 / 2.0)).collect();
    insta::assert_snapshot!(story.join("\n"), @r"
    day 0.5: 5 named by the first, 1 trusted
    day 299.5: 5 named by the first, 2 trusted
    day 360.0: 0 named by the first, 2 trusted
    day 361.0: 0 named by the first, 1 trusted
    ");
}

#[test]
fn who_joins_while_the_authority_changes_is_named_by_the_old_one() {
    let schedule = Schedule { authority: 360 * DAY, leaf: 90 * DAY, overlap: DAY, skew: 3600 };
    let (store, authority) = (Memory::default(), Authority::with("strata", schedule));
    reconcile_at(&authority, &store, &everybody(&["m"]), NOW);
    let first = store.authorities().remove(0);
    for day in 1..=240 {
        reconcile_at(&authority, &store, &everybody(&["m"]), NOW + day * DAY);
    }
    assert_eq!(store.authorities().len(), 2);
    let wanted = everybody(&["m", "n"]);
    reconcile_at(&authority, &store, &wanted, NOW + 240 * DAY + DAY / 2);
    let joined = store.files(&Identity::new("n", Component::Engine).unwrap()).unwrap();
    assert!(signed_by(&certificates(&joined.certificate), &first.der, NOW + 241 * DAY));
}

/// Its holder goes on with what it read before, when there was one authority.
#[test]
fn a_secret_that_was_spoilt_makes_a_change_of_authority_wait() {
    let schedule = Schedule { authority: 360 * DAY, leaf: 90 * DAY, overlap: DAY, skew: 3600 };
    let (store, authority) = (Memory::default(), Authority::with("strata", schedule));
    let wanted = everybody(&["m"]);
    reconcile_at(&authority, &store, &wanted, NOW);
    let first = store.authorities().remove(0);
    for day in 1..=240 {
        reconcile_at(&authority, &store, &wanted, NOW + day * DAY);
    }
    assert_eq!(store.authorities().len(), 2);
    let engine = Identity::new("m", Component::Engine).unwrap();
    store.delete(&SecretName::of(&engine));
    let now = NOW + 243 * DAY;
    reconcile_at(&authority, &store, &wanted, now);
    let anew = store.files(&engine).unwrap();
    assert!(signed_by(&certificates(&anew.certificate), &first.der, now), "though the second was ripe");
    assert_eq!(store.authorities()[0].trusted_since, Some(now), "and is counted from now");
}

/// A Secret's version, since when there is something in it to be read, and whether that can be used.
#[derive(Default)]
struct Change {
    version: Option<String>,
    since: i64,
    sound: bool,
}

/// Pods that notice a change of their Secret late, at different times.
struct Pods {
    lag: i64,
    loaded: BTreeMap<Identity, (Files, Option<String>)>,
    changed: RefCell<BTreeMap<Identity, Change>>,
    spoilt: BTreeSet<Identity>,
}

impl Pods {
    /// What the pods of everybody hold at `now`; `eager` says who looks before it has to.
    fn look(&mut self, store: &Memory, wanted: &[Wanted], now: i64, eager: impl Fn(usize) -> bool) {
        for (i, identity) in wanted.iter().map(|w| &w.identity).enumerate() {
            let version = store.version(identity);
            // The last good ones stay in force, as in a process.
            let sound = |files: &Files| Credentials::parse(files, now).is_ok();
            let mut changed = self.changed.borrow_mut();
            let change =
                changed.entry(identity.clone()).or_insert(Change { since: now, ..Change::default() });
            if change.version != version {
                // Who is to read a change in time reads what is there by then: another change meanwhile
                // gives no more time.
                let is_read = self.loaded.get(identity).is_some_and(|(_, seen)| *seen == change.version);
                if is_read || !change.sound {
                    change.since = now;
                }
                change.version.clone_from(&version);
                change.sound = store.files(identity).is_some_and(|files| sound(&files));
            }
            let must = !self.loaded.contains_key(identity) || now - change.since >= self.lag;
            let is_new = self.loaded.get(identity).is_none_or(|(_, seen)| *seen != version);
            if is_new
                && (must || eager(i))
                && let Some(files) = store.files(identity).filter(sound)
            {
                self.loaded.insert(identity.clone(), (files, version));
                self.spoilt.remove(identity);
            }
        }
    }

    fn held(&self) -> Vec<(Identity, Files)> {
        self.loaded.iter().map(|(identity, (files, _))| (identity.clone(), files.clone())).collect()
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// Time passes: this share of the longest time that the operator may be away.
    Wait(f64),
    /// Time passes until something is due, and the operator runs.
    Leap,
    /// The operator runs.
    Operate,
    /// Somebody deletes a certificate's Secret.
    Delete(usize),
    /// Somebody writes nonsense into one.
    Garble(usize),
    /// These pods look at their Secrets.
    Look(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0.0..1.0f64).prop_map(|share| Event::Wait(share * share)),
        4 => Just(Event::Operate),
        12 => Just(Event::Leap),
        1 => any::<usize>().prop_map(Event::Delete),
        1 => any::<usize>().prop_map(Event::Garble),
        3 => any::<u64>().prop_map(Event::Look),
    ]
}

/// Times in proportion to each other as the real ones are, but shorter, so that much happens.
fn schedules() -> impl Strategy<Value = Schedule> {
    (20..90i64, 4..7i64, 1..3i64).prop_map(|(leaf, lives, overlap)| Schedule {
        authority: leaf * lives * DAY,
        leaf: leaf * DAY,
        overlap: overlap * DAY,
        skew: 3600,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, ..ProptestConfig::default() })]

    /// Whatever happens to certificates, and whenever the operator and the pods look, no two pods ever
    /// stop trusting each other, over several changes of the authority.
    #[test]
    fn no_two_holders_ever_distrust_each_other(
        schedule in schedules(),
        lag_share in 0.5..0.95f64,
        // When namespaces join, in shares of twice the overlap: authorities last as long as a number of
        // certificates, so that around each change some certificate is due.
        joins in proptest::collection::vec(0.0..1.0f64, 5..8),
        events in proptest::collection::vec(event(), 0..120),
    ) {
        let (store, authority) = (Memory::default(), Authority::with("strata", schedule));
        let mut all = everybody(&[]);
        let mut pods = Pods {
            lag: (schedule.overlap as f64 * lag_share) as i64,
            loaded: BTreeMap::new(),
            changed: RefCell::default(),
            spoilt: BTreeSet::new(),
        };
        let (mut now, mut operated) = (NOW, NOW);
        // A certificate is renewed when a third of its time is left: the operator may be away that long.
        // Even if what it wrote was spoilt before anybody saw it, so that the next must come in time.
        let away = schedule.leaf / 10;
        reconcile_at(&authority, &store, &all, now);
        pods.look(&store, &all, now, |_| true);
        let mut joins = joins;
        joins.sort_by(f64::total_cmp);
        for (n, share) in joins.iter().enumerate() {
            now = NOW + (share * 2.0 * schedule.overlap as f64) as i64;
            pods.look(&store, &all, now, |_| false);
            let spaces: Vec<String> = (0..=n).map(|n| format!("m{n}")).collect();
            all = everybody(&spaces.iter().map(String::as_str).collect::<Vec<_>>());
            // Its pods start once their Secrets are there.
            reconcile_at(&authority, &store, &all, now);
            pods.look(&store, &all, now, |_| false);
            all_believe(&pods.held(), now);
        }
        let mut seen = BTreeSet::new();
        // Afterwards until the authority has changed twice.
        let more = std::iter::repeat_n(Event::Leap, 600);
        for (n, event) in events.iter().cloned().chain(more).enumerate() {
            seen.extend(store.authorities().into_iter().map(|a| a.id));
            if n >= events.len() && seen.len() > 2 {
                break;
            }
            match event {
                Event::Wait(share) => {
                    let wait = (share * away as f64) as i64;
                    if now + wait - operated >= away {
                        reconcile_at(&authority, &store, &all, now);
                        operated = now;
                        pods.look(&store, &all, now, |_| false);
                    }
                    now += wait;
                }
                Event::Leap => {
                    reconcile_at(&authority, &store, &all, now);
                    pods.look(&store, &all, now, |_| false);
                    let existing = store.existing();
                    let world =
                        World { namespace: "strata", existing: &existing, wanted: &all, schedule: &schedule };
                    now = due(&world, now).min(now + away);
                    pods.look(&store, &all, now, |_| false);
                    reconcile_at(&authority, &store, &all, now);
                    operated = now;
                }
                Event::Operate => {
                    reconcile_at(&authority, &store, &all, now);
                    operated = now;
                }
                Event::Delete(n) | Event::Garble(n) => {
                    let identity = &all[n % all.len()].identity;
                    let name = SecretName::of(identity);
                    // No holder lives for ever on what it read before; it sees every second version.
                    if !pods.spoilt.insert(identity.clone()) {
                        continue;
                    }
                    if matches!(event, Event::Delete(_)) {
                        store.delete(&name);
                    } else {
                        let nonsense = ByteString(b"nonsense".to_vec());
                        store.edit(&name, |data| drop(data.insert("tls.crt".to_owned(), nonsense)));
                    }
                }
                Event::Look(who) => pods.look(&store, &all, now, |i| who >> (i % 64) & 1 == 1),
            }
            pods.look(&store, &all, now, |_| false);
            all_believe(&pods.held(), now);
        }
        prop_assert!(seen.len() > 2, "the authority has changed: {}", seen.len());
    }

    /// Nothing is written before it is due, and a plan that was carried out leaves nothing to do.
    #[test]
    fn nothing_is_due_before_its_time(schedule in schedules(), shares in proptest::collection::vec(0.0..1.0f64, 20)) {
        let (store, authority) = (Memory::default(), Authority::with("strata", schedule));
        let all = everybody(&["m"]);
        let mut now = NOW;
        for share in shares {
            reconcile_at(&authority, &store, &all, now);
            let existing = store.existing();
            let world = World { namespace: "strata", existing: &existing, wanted: &all, schedule: &schedule };
            prop_assert_eq!(plan(&world, now), []);
            let due = due(&world, now);
            prop_assert!(due > now);
            let between = now + ((due - 1 - now) as f64 * share) as i64;
            for moment in [between, due - 1] {
                prop_assert_eq!(plan(&world, moment), [], "at {} of {}..{}", moment, now, due);
            }
            now = due;
        }
    }

    /// A clock that jumps anywhere, Secrets that hold anything: no panic, and what was carried out
    /// is good at the time it was carried out.
    #[test]
    fn any_clock_and_any_content_end_in_certificates_that_hold(
        times in proptest::collection::vec(prop_oneof![0..4_000_000_000i64, any::<i64>()], 1..6),
        garbage in proptest::collection::btree_map("[a-z.0-9]{1,20}", proptest::collection::vec(any::<u8>(), 0..40), 0..4),
    ) {
        let (store, authority) = (Memory::default(), Authority::new("strata"));
        let all = everybody(&["m"]);
        let data = garbage.into_iter().map(|(k, v)| (k, ByteString(v))).collect();
        let name = SecretName::authorities("strata");
        let metadata = kube::api::ObjectMeta {
            name: Some(name.name.clone()), namespace: Some(name.namespace.clone()), ..Default::default()
        };
        lock(&store.secrets).insert(name, Secret { metadata, data: Some(data), ..Secret::default() });
        for now in times {
            reconcile_at(&authority, &store, &all, now);
            if (0..=issue::LAST).contains(&now) {
                let held = held_by(&store, &all);
                prop_assert_eq!(held.len(), all.len());
                all_believe(&held, now);
            }
        }
    }
}
