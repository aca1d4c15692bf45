//! The book as a whole.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use strata_kinds::quota_policy::{LimitScope, Per, Period, Resource};

use super::super::rule::tests::{rule, subject, window};
use super::*;

const MINUTE: u64 = 60_000;

fn take(requests: u64, input: u64, output: u64) -> Amounts {
    Amounts { requests, input, output }
}

fn at(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

#[test]
fn it_is_all_or_nothing() {
    let mut book = Book::new(vec![
        rule("r", window(Resource::Requests, MINUTE, Per::Tenant), 10),
        rule("t", window(Resource::Tokens, MINUTE, Per::Tenant), 100),
    ]);
    let who = subject("acme", "gold", "m");
    book.reserve(1, &who, take(1, 40, 40), 0).unwrap();
    let refused = book.reserve(2, &who, take(1, 30, 0), 0).unwrap_err();
    assert_eq!((&*refused.policy, refused.remaining, refused.wanted), ("t", 20, 30));
    let standing = book.standing(&who, 0);
    assert_eq!(standing.requests.unwrap().remaining, 9, "the refused request took none");
    assert_eq!(standing.tokens.unwrap().remaining, 20);
}

#[test]
fn settling_charges_what_was_used_in_the_window_of_the_reservation() {
    let mut book = Book::new(vec![rule("t", window(Resource::Tokens, MINUTE, Per::Tenant), 100)]);
    let who = subject("acme", "gold", "m");
    book.reserve(1, &who, take(1, 10, 90), 0).unwrap();
    assert!(!book.settle(1, take(1, 5, 15), 30_000));
    assert_eq!(book.standing(&who, 30_000).tokens.unwrap().remaining, 80);
    assert_eq!(book.standing(&who, 60_600).tokens.unwrap().remaining, 100, "not a minute after settling");
    assert!(!book.settle(1, take(1, 50, 50), 60_600), "a second settling changes nothing");
    assert_eq!(book.standing(&who, 60_600).tokens.unwrap().remaining, 100);
    book.reserve(2, &who, take(1, 1, 1), 60_600).unwrap();
    assert!(book.settle(2, take(1, 70, 70), 60_600), "more was used than reserved");
    assert_eq!(book.standing(&who, 60_600).tokens.unwrap().remaining, 0, "it is counted all the same");
}

#[test]
fn the_refusal_waits_for_the_slowest_limit_and_its_wait_is_true() {
    let mut book = Book::new(vec![
        rule("s", window(Resource::Requests, 1000, Per::Tenant), 1),
        rule("m", window(Resource::Requests, MINUTE, Per::Tenant), 1),
    ]);
    let who = subject("acme", "gold", "m");
    book.reserve(1, &who, take(1, 0, 0), 0).unwrap();
    let refused = book.reserve(2, &who, take(1, 0, 0), 10).unwrap_err();
    assert_eq!(&*refused.policy, "m");
    let Why::Window(wait) = refused.why else { panic!("{refused:?}") };
    assert!(book.reserve(2, &who, take(1, 0, 0), 10 + wait - 1).is_err());
    book.reserve(3, &who, take(1, 0, 0), 10 + wait).unwrap();
}

#[test]
fn what_is_larger_than_the_limit_never_fits() {
    let mut book = Book::new(vec![rule("t", window(Resource::Tokens, MINUTE, Per::Tenant), 100)]);
    let refused = book.reserve(1, &subject("a", "b", "m"), take(1, 101, 0), 0).unwrap_err();
    assert_eq!(refused.why, Why::TooLarge);
    let huge = book.reserve(1, &subject("a", "b", "m"), take(1, u64::MAX, u64::MAX), 0).unwrap_err();
    assert_eq!(huge.why, Why::TooLarge);
}

#[test]
fn a_budget_that_is_only_reserved_is_not_said_to_be_spent() {
    let mut book = Book::new(vec![rule("b", Measure::Budget(Period::Day), 100)]);
    let who = subject("acme", "gold", "m");
    let day = 86_400_000;
    book.reserve(1, &who, take(1, 0, 90), 0).unwrap();
    let refused = book.reserve(2, &who, take(1, 0, 20), 0).unwrap_err();
    assert_eq!((refused.why, refused.remaining), (Why::Held, 10));
    book.settle(1, take(1, 0, 85), 0);
    assert_eq!(book.reserve(2, &who, take(1, 0, 20), 0).unwrap_err().why, Why::Budget(day));
    // What an earlier period reserved holds nothing of this one.
    book.reserve(3, &who, take(1, 0, 15), 0).unwrap();
    book.reserve(4, &who, take(1, 0, 90), day).unwrap();
    book.settle(4, take(1, 0, 90), day);
    assert_eq!(book.reserve(5, &who, take(1, 0, 20), day).unwrap_err().why, Why::Budget(day));
}

#[test]
fn a_budget_ends_with_its_month_in_the_tenants_zone() {
    let mut book = Book::new(vec![rule("b", Measure::Budget(Period::Month), 100)]);
    let mut who = subject("acme", "gold", "m");
    who.zone = jiff::tz::TimeZone::get("Asia/Tokyo").unwrap();
    let last = at("2026-10-31T14:59:59Z");
    book.reserve(0, &who, take(1, 50, 0), last).unwrap();
    book.settle(0, take(1, 50, 0), last);
    book.reserve(1, &who, take(1, 10, 40), last).unwrap();
    let refused = book.reserve(2, &who, take(1, 51, 0), last).unwrap_err();
    assert_eq!(refused.why, Why::Budget(1000));
    book.reserve(3, &who, take(1, 100, 0), last + 1000).unwrap();
    // Settled in November, charged to October.
    book.settle(1, take(1, 10, 10), last + 2000);
    assert!(book.reserve(4, &who, take(1, 1, 0), last + 2000).is_err());
    book.release(3, last + 2000);
    book.reserve(5, &who, take(1, 100, 0), last + 2000).unwrap();
}

#[test]
fn in_flight_is_given_back_when_a_request_ends() {
    let mut book = Book::new(vec![rule("c", Measure::InFlight, 2)]);
    let who = subject("acme", "gold", "m");
    book.reserve(1, &who, take(1, 5, 5), 0).unwrap();
    book.reserve(2, &who, take(1, 5, 5), 0).unwrap();
    assert_eq!(book.reserve(3, &who, take(1, 5, 5), 0).unwrap_err().why, Why::InFlight);
    book.settle(1, take(1, 5, 5), 0);
    book.reserve(3, &who, take(1, 5, 5), 0).unwrap();
}

#[test]
fn each_owner_and_each_model_has_its_own_counter() {
    let each = |per, scope| Measure::Window { resource: Resource::Requests, length_ms: MINUTE, per, scope };
    for (per, scope, shared) in [
        (Per::Key, LimitScope::AllModels, [false, true, false, false]),
        (Per::User, LimitScope::AllModels, [true, true, false, false]),
        (Per::Tenant, LimitScope::AllModels, [true, true, true, false]),
        (Per::Tier, LimitScope::AllModels, [true, true, true, true]),
        (Per::All, LimitScope::AllModels, [true, true, true, true]),
        (Per::Tenant, LimitScope::EachModel, [true, false, true, false]),
    ] {
        let first = subject("acme", "gold", "m");
        let mut key = first.clone();
        key.key = "k2".into();
        let model = subject("acme", "gold", "m2");
        let mut user = first.clone();
        user.user = Some("u".into());
        user.key = "k3".into();
        let mut tenant = subject("zeta", "gold", "m");
        tenant.key = "k4".into();
        for (other, shared) in [key, model, user, tenant].into_iter().zip(shared) {
            let mut book = Book::new(vec![rule("r", each(per, scope), 1)]);
            book.reserve(1, &first, take(1, 0, 0), 0).unwrap();
            assert_eq!(
                book.reserve(2, &other, take(1, 0, 0), 0).is_err(),
                shared,
                "{per:?} {scope:?} {other:?}"
            );
        }
    }
}

#[test]
fn a_trial_counts_and_reports_and_refuses_nothing() {
    let mut trial = rule("try", window(Resource::Requests, MINUTE, Per::Tenant), 1);
    trial.enforced = false;
    let mut book = Book::new(vec![trial]);
    let who = subject("acme", "gold", "m");
    assert!(book.reserve(1, &who, take(1, 0, 0), 0).unwrap().would_refuse.is_empty());
    let second = book.reserve(2, &who, take(1, 0, 0), 0).unwrap();
    assert_eq!(second.would_refuse, ["try".into()]);
    assert_eq!(second.standing, Standing::default(), "no header speaks of it");
}

#[test]
fn a_clock_that_goes_back_gives_nothing_away() {
    let mut book = Book::new(vec![
        rule("r", window(Resource::Requests, MINUTE, Per::Tenant), 1),
        rule("b", Measure::Budget(Period::Day), 10),
    ]);
    let who = subject("acme", "gold", "m");
    let noon = at("2026-11-23T12:00:00Z");
    book.reserve(1, &who, take(1, 5, 5), noon).unwrap();
    for back in [1, 60_000, 86_400_000] {
        assert!(book.reserve(2, &who, take(1, 5, 5), noon - back).is_err());
    }
    book.release(1, noon - 86_400_000);
    book.reserve(3, &who, take(1, 5, 5), noon - 86_400_000).unwrap();
}

#[test]
fn many_users_share_a_counter_at_last() {
    let mut book = Book::new(vec![rule("u", window(Resource::Requests, MINUTE, Per::User), 1)]);
    let mut who = subject("acme", "gold", "m");
    for n in 0..=USERS {
        who.user = Some(n.to_string().into());
        book.reserve(n as u128, &who, take(1, 0, 0), 0).unwrap();
    }
    who.user = Some("one more".into());
    assert!(book.reserve(u128::MAX, &who, take(1, 0, 0), 0).is_err());
    assert!(book.counters() <= USERS + 2);
    for n in 0..SWEEP_EVERY {
        let _ = book.reserve(u128::from(n) << 64, &subject("zeta", "gold", "m"), take(1, 0, 0), 120_000);
    }
    assert!(book.counters() <= 2, "empty counters are forgotten: {}", book.counters());
}

#[test]
fn litellm_34732_racing_threads_never_overshoot() {
    let rules = vec![
        rule("t", window(Resource::Tokens, MINUTE, Per::Tenant), 1000),
        rule("b", Measure::Budget(Period::Month), 1000),
    ];
    let book = Arc::new(Mutex::new(Book::new(rules)));
    let admitted: u64 = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8u128)
            .map(|client| {
                let book = book.clone();
                scope.spawn(move || {
                    let who = subject("acme", "gold", "m");
                    (0..200u128)
                        .filter(|n| {
                            let id = client << 64 | n;
                            book.lock().unwrap().reserve(id, &who, take(1, 3, 4), 0).is_ok()
                        })
                        .count() as u64
                })
            })
            .collect();
        clients.into_iter().map(|c| c.join().unwrap()).sum()
    });
    assert_eq!(admitted, 1000 / 7, "as many as fit, not one more and not one less");
}

#[derive(Clone, Debug)]
enum Step {
    Reserve(u64, u64),
    Settle(usize, u64),
    Release(usize),
    Wait(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..30, 0u64..30).prop_map(|(i, o)| Step::Reserve(i, o)),
        (any::<usize>(), 0u64..100).prop_map(|(n, share)| Step::Settle(n, share)),
        any::<usize>().prop_map(Step::Release),
        (-500i64..20_000).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever clients do, what was reserved or used in any trailing window never exceeds the limit.
    #[test]
    fn no_window_ever_exceeds_its_limit(steps in proptest::collection::vec(step(), 1..120)) {
        const LENGTH: i64 = 10_000;
        let mut book = Book::new(vec![
            rule("t", window(Resource::Tokens, LENGTH as u64, Per::Tenant), 100),
            rule("r", window(Resource::Requests, LENGTH as u64, Per::Tenant), 8),
        ]);
        let who = subject("acme", "gold", "m");
        let (mut now, mut latest, mut id) = (1_000_000i64, 1_000_000i64, 0u128);
        // A clock can only be seen to go back by who has seen it before.
        book.standing(&who, now);
        // (true time, reserved or used tokens, requests)
        let mut held: Vec<(u128, i64, u64, u64, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Wait(ms) => { now += ms; latest = latest.max(now); }
                Step::Reserve(input, output) => {
                    id += 1;
                    if book.reserve(id, &who, take(1, input, output), now).is_ok() {
                        held.push((id, latest, input + output, 1, true));
                    }
                }
                Step::Settle(n, share) if !held.is_empty() => {
                    let n = n % held.len();
                    let entry = &mut held[n];
                    if entry.4 {
                        entry.2 = entry.2 * share.min(100) / 100;
                        entry.4 = false;
                        book.settle(entry.0, take(1, entry.2, 0), now);
                    }
                }
                Step::Release(n) if !held.is_empty() => {
                    let n = n % held.len();
                    if held[n].4 {
                        book.release(held[n].0, now);
                        held.remove(n);
                    }
                }
                _ => {}
            }
            let (tokens, requests) = held.iter().filter(|h| h.1 > latest - LENGTH)
                .fold((0, 0), |(t, r), h| (t + h.2, r + h.3));
            prop_assert!(tokens <= 100 && requests <= 8, "{tokens} tokens, {requests} requests");
            let told = book.standing(&who, now);
            prop_assert!(told.tokens.unwrap().remaining <= 100 - tokens);
        }
    }

    /// A reservation that is taken back leaves every counter as it was.
    #[test]
    fn reserving_and_releasing_is_nothing(before in proptest::collection::vec((0u64..20, 0u64..20), 0..10), input in 0u64..50, output in 0u64..50) {
        let mut book = Book::new(vec![
            rule("t", window(Resource::Tokens, MINUTE, Per::Key), 100),
            rule("b", Measure::Budget(Period::Week), 120),
            rule("c", Measure::InFlight, 6),
        ]);
        let who = subject("acme", "gold", "m");
        for (n, (i, o)) in before.into_iter().enumerate() {
            let _ = book.reserve(n as u128, &who, take(1, i, o), n as i64);
        }
        let _ = book.standing(&who, 1000);
        let snapshot = book.counters.clone();
        if book.reserve(99, &who, take(1, input, output), 1000).is_ok() {
            book.release(99, 1000);
        }
        for (key, counter) in &book.counters {
            match snapshot.get(key) {
                Some(kept) => prop_assert_eq!(kept, counter),
                None => prop_assert!(counter.is_empty()),
            }
        }
    }

    /// Counters made again from what was used equal those that lived through it.
    #[test]
    fn replaying_the_ledger_gives_the_same_counters(calls in proptest::collection::vec((0i64..1_600, 1u64..9, 1u64..9), 0..30)) {
        let rules = vec![
            rule("t", window(Resource::Tokens, MINUTE, Per::Tenant), 10_000),
            rule("b", Measure::Budget(Period::Day), 10_000),
        ];
        let who = subject("acme", "gold", "m");
        // Pauses become moments; a call begins no earlier than the one before it was settled, 7 ms after
        // its own beginning, so that the clock does not go back.
        let calls: Vec<_> = calls.into_iter().scan(0, |at, (pause, input, output)| {
            *at += pause + 7;
            Some((*at, input, output))
        }).collect();
        let (mut lived, mut again) = (Book::new(rules.clone()), Book::new(rules));
        for (n, (at, input, output)) in calls.iter().enumerate() {
            lived.reserve(n as u128, &who, take(1, 50, 50), *at).unwrap();
            lived.settle(n as u128, take(1, *input, *output), *at + 7);
        }
        for (at, input, output) in calls.iter().rev() {
            again.replay(&who, take(1, *input, *output), *at, 55_000);
        }
        lived.standing(&who, 55_000);
        prop_assert_eq!(lived.counters, again.counters);
    }
}
