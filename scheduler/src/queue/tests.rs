use proptest::prelude::*;

use super::*;

const MOST: Duration = Duration::from_secs(30);
const TIMES: (Duration, Duration) = (Duration::ZERO, MOST);

fn rank(priority: i32, flow: u64, cost: u64) -> Rank {
    Rank { class: Class { priority, flow }, cost, bytes: 10, ..Rank::default() }
}

fn queue(items: &[u32]) -> Queue<u32> {
    let mut queue = Queue::default();
    for item in items {
        queue.push(*item, Rank::default(), Duration::ZERO);
    }
    queue
}

fn placed<T: Copy>(
    queue: &mut Queue<T>,
    now: Duration,
    mut takes: impl FnMut(T, Patience) -> Offer<()>,
) -> Vec<T> {
    let mut out = Vec::new();
    queue.offer((now, MOST), |item, patience| takes(*item, patience), |item, ()| out.push(item));
    out
}

/// Offers so many places that suit everybody.
fn places<T: Copy>(queue: &mut Queue<T>, now: Duration, mut count: usize) -> Vec<T> {
    placed(queue, now, |_, _| {
        if count == 0 {
            return Offer::NoRoom;
        }
        count -= 1;
        Offer::Placed(())
    })
}

#[test]
fn who_waits_for_another_place_holds_nobody_up() {
    let mut queue = queue(&[1, 2, 3, 4]);
    let odd = |item: u32, _| if item % 2 == 1 { Offer::Waits } else { Offer::Placed(()) };
    assert_eq!(placed(&mut queue, Duration::ZERO, odd), [2, 4]);
    queue.push(9, Rank { first: true, ..rank(-5, 0, 1) }, Duration::ZERO);
    assert_eq!(places(&mut queue, Duration::ZERO, 2), [9, 1]);
    let last = queue.push(5, Rank::default(), Duration::ZERO);
    assert_eq!((queue.remove(last), queue.remove(last), queue.len()), (Some(5), None, 1));
}

#[test]
fn what_is_left_goes_to_those_without_a_holder() {
    // 2 waits for a replica that has its prompt, nobody has the others'.
    let mut queue = queue(&[1, 2, 3]);
    let takes = |item: u32, patience: Patience| {
        let waits = if item == 2 { patience.for_holder } else { patience.for_room };
        if waits { Offer::Waits } else { Offer::Placed(()) }
    };
    assert_eq!(placed(&mut queue, Duration::ZERO, takes), [1, 3]);
}

#[test]
fn patience_ends() {
    let half = Duration::from_secs(15);
    let all = Patience { for_holder: true, for_room: true };
    assert_eq!(patience(Duration::ZERO, MOST, 0, false), all);
    assert_eq!(patience(half, MOST, 0, false), all);
    assert_eq!(patience(half, MOST, 0, true), Patience { for_holder: false, for_room: false });
    assert_eq!(patience(Duration::ZERO, MOST, OVERTAKEN, false), Patience { for_room: false, ..all });
    assert_eq!(patience(Duration::ZERO, MOST, 0, true), Patience { for_room: false, ..all });
}

#[test]
fn who_may_wait_less_is_less_patient() {
    let mut queue = Queue::default();
    queue.push(0, Rank { most: Some(Duration::from_secs(1)), ..rank(-1, 0, 1) }, Duration::ZERO);
    queue.push(1, rank(0, 0, 1), Duration::ZERO);
    let choosy = |_, patience: Patience| if patience.for_holder { Offer::Waits } else { Offer::Placed(()) };
    assert!(placed(&mut queue, Duration::from_millis(400), choosy).is_empty());
    assert_eq!(placed(&mut queue, Duration::from_millis(500), choosy), [0]);
}

#[test]
fn a_flow_with_many_does_not_delay_the_first_of_another() {
    let mut queue = Queue::default();
    for n in 0..500 {
        queue.push(n, rank(0, 1, 100), Duration::ZERO);
    }
    assert_eq!(places(&mut queue, Duration::ZERO, 3), [0, 1, 2]);
    queue.push(1000, rank(0, 2, 5000), Duration::ZERO);
    queue.push(1001, rank(0, 2, 5000), Duration::ZERO);
    assert_eq!(places(&mut queue, Duration::ZERO, 4), [1000, 3, 4, 5], "then the other has its share");
}

#[test]
fn higher_priorities_go_first() {
    let mut queue = Queue::default();
    for (item, priority) in [(1, 0), (2, -3), (3, 10), (4, 0), (5, 10)] {
        queue.push(item, rank(priority, 0, 1), Duration::ZERO);
    }
    assert_eq!((queue.before(10), queue.before(0), queue.before(-9)), (2, 4, 5));
    assert_eq!(queue.by_priority().collect::<Vec<_>>(), [(-3, 1), (0, 2), (10, 2)]);
    assert_eq!(places(&mut queue, Duration::ZERO, 9), [3, 5, 1, 4, 2]);
}

#[test]
fn one_that_has_aged_gets_a_place_of_a_few() {
    let mut queue = Queue::default();
    queue.push(0, rank(0, 0, 1), Duration::ZERO);
    queue.push(1, rank(-1, 0, 1), Duration::ZERO);
    let old = Duration::from_secs(23);
    let mut order = Vec::new();
    for n in 2..40 {
        queue.push(n, rank(5, 0, 1), old);
        order.extend(places(&mut queue, old, 1));
    }
    let at = order.iter().position(|item| *item == 0).unwrap();
    assert_eq!(at, AGED_EVERY as usize, "{order:?}");
    assert!(!order.contains(&1), "what is refused rather than held does not age");
    let mut young = Queue::default();
    young.push(0, rank(0, 0, 1), Duration::ZERO);
    for n in 1..40 {
        young.push(n, rank(5, 0, 1), Duration::from_secs(22));
        assert_eq!(places(&mut young, Duration::from_secs(22), 1), [n]);
    }
}

#[test]
fn the_newest_of_the_greediest_of_the_lowest_goes() {
    let mut queue = Queue::default();
    for (item, priority, flow) in [(1, 0, 1), (2, -1, 2), (3, 5, 3), (4, -1, 4), (5, -1, 4), (6, 0, 1)] {
        queue.push(item, rank(priority, flow, 1), Duration::ZERO);
    }
    queue.push(7, Rank { first: true, ..rank(-9, 5, 1) }, Duration::ZERO);
    assert_eq!(queue.bytes(), 70);
    let evicted: Vec<_> = std::iter::from_fn(|| queue.evict()).collect();
    assert_eq!(evicted, [(5, false), (4, false), (2, false), (6, false), (1, false), (3, false)]);
    assert_eq!((queue.len(), queue.bytes()), (1, 10), "one that a replica has failed stays");
    assert_eq!(places(&mut queue, Duration::ZERO, 1), [7]);
    queue.push(8, rank(0, 1, 1), Duration::ZERO);
    assert_eq!(queue.evict(), Some((8, true)));
}

#[test]
fn a_place_that_suits_one_far_behind_is_found() {
    let mut queue = Queue::default();
    for n in 0..2000u32 {
        queue.push(n, rank(0, 0, 1), Duration::ZERO);
        let far = |item: u32, _| if item == 1500 { Offer::Placed(()) } else { Offer::Waits };
        let suits = placed(&mut queue, Duration::ZERO, far);
        assert_eq!(suits.len(), usize::from(n == 1500), "it is looked at when it comes");
    }
    for item in [700, 1999] {
        let far = |other: u32, _| if other == item { Offer::Placed(()) } else { Offer::Waits };
        let looks = (0..100).position(|_| placed(&mut queue, Duration::ZERO, far) == [item]);
        assert!(looks.is_some_and(|looks| looks <= 2000 / TURNS), "{item}: {looks:?}");
    }
}

#[test]
fn what_flows_have_had_is_not_remembered_for_ever() {
    let mut band = Band::<()>::default();
    band.push(0, 0, 1, ());
    for n in 1..20_000 {
        band.push(n, n, 100, ());
        band.remove(n, n, true);
    }
    assert!(band.flows() <= 4200, "{}", band.flows());
}

#[test]
fn one_that_leaves_costs_its_flow_nothing() {
    let mut queue = Queue::default();
    let tickets: Vec<u64> = (0..50).map(|n| queue.push(n, rank(0, 1, 100), Duration::ZERO)).collect();
    for n in 50..60 {
        queue.push(n, rank(0, 2, 100), Duration::ZERO);
    }
    for ticket in &tickets[..49] {
        queue.remove(*ticket);
    }
    assert_eq!(places(&mut queue, Duration::ZERO, 2), [49, 50]);
}

proptest! {
    /// One place at a time, which some take first: nobody is lost or placed twice, and a request that
    /// waits for room is overtaken so often and no more.
    #[test]
    fn nobody_is_overtaken_for_ever(holders in prop::collection::vec(any::<bool>(), 1..200)) {
        let mut queue = Queue::default();
        for (item, holder) in holders.iter().enumerate() {
            queue.push((item, *holder), Rank::default(), Duration::ZERO);
        }
        let (mut order, mut overtaken) = (Vec::new(), vec![0; holders.len()]);
        while order.len() < holders.len() {
            let mut room = 1;
            queue.offer(
                TIMES,
                |(_, holder), patience| {
                    if room == 0 {
                        Offer::NoRoom
                    } else if patience.for_room && !holder {
                        Offer::Waits
                    } else {
                        room -= 1;
                        Offer::Placed(())
                    }
                },
                |(item, _), ()| order.push(item),
            );
            prop_assert_eq!(room, 0, "no place is left while somebody waits");
            let last = order[order.len() - 1];
            for (earlier, times) in overtaken.iter_mut().enumerate().take(last) {
                *times += u32::from(!order.contains(&earlier));
            }
        }
        prop_assert!(overtaken.iter().all(|times| *times <= OVERTAKEN));
    }

    /// Two flows that always have requests waiting: what each has had differs by no more than their largest
    /// requests, whatever these cost, from whenever on the second is there.
    #[test]
    fn backlogged_flows_share_alike(
        costs in prop::collection::vec((1u64..3000, 1u64..3000), 20..200),
        late in 0usize..10,
    ) {
        let mut queue = Queue::default();
        for (a, _) in &costs {
            queue.push((0, *a), rank(0, 1, *a), Duration::ZERO);
        }
        prop_assert_eq!(places(&mut queue, Duration::ZERO, late).len(), late);
        for (_, b) in &costs {
            queue.push((1, *b), rank(0, 2, *b), Duration::ZERO);
        }
        let (mut had, mut left) = ([0u64; 2], [costs.len() - late, costs.len()]);
        while left.iter().all(|left| *left > 0) {
            let (flow, cost) = places(&mut queue, Duration::ZERO, 1)[0];
            had[flow] += cost;
            left[flow] -= 1;
            prop_assert!(had[0].abs_diff(had[1]) <= 6000, "{had:?}");
        }
    }

    /// Whatever comes, leaves and is evicted: a place is never left while somebody waits, no priority gets
    /// one before a higher (nothing has aged), a flow's requests keep their order, and no one is in two
    /// states.
    #[test]
    fn in_order_and_work_conserving(steps in prop::collection::vec((0u8..5, -2i32..3, 0u64..4, 1u64..500), 1..300)) {
        let mut queue = Queue::default();
        let mut waiting: BTreeMap<u64, (i32, u64)> = BTreeMap::new();
        for (what, priority, flow, cost) in steps {
            match what {
                0..=2 => {
                    let next = queue.next;
                    queue.push(next, rank(priority, flow, cost), Duration::ZERO);
                    waiting.insert(next, (priority, flow));
                }
                3 => {
                    let was = waiting.len();
                    let out = places(&mut queue, Duration::ZERO, 1);
                    prop_assert_eq!(out.len(), was.min(1));
                    for ticket in out {
                        let (priority, flow) = waiting.remove(&ticket).unwrap();
                        prop_assert!(waiting.values().all(|(other, _)| *other <= priority));
                        let same = waiting.iter().filter(|(_, at)| **at == (priority, flow));
                        prop_assert!(same.map(|(ticket, _)| *ticket).all(|other| other > ticket));
                    }
                }
                _ => if let Some((ticket, newest)) = queue.evict() {
                    prop_assert_eq!(newest, waiting.keys().max() == Some(&ticket));
                    let (priority, _) = waiting.remove(&ticket).unwrap();
                    prop_assert!(waiting.values().all(|(other, _)| *other >= priority));
                } else {
                    prop_assert!(waiting.is_empty());
                },
            }
            prop_assert_eq!((queue.len(), queue.bytes()), (waiting.len(), waiting.len() * 10));
        }
    }

    /// Within one priority nobody is starved, however others come: a request is placed after so many as
    /// its flow is due for what waits before it.
    #[test]
    fn nobody_starves_within_a_band(flows in 2u64..20, cost in 1u64..1000, before in 0usize..5) {
        let mut queue = Queue::default();
        for n in 0..before {
            queue.push(n as u64, rank(0, 0, cost), Duration::ZERO);
        }
        queue.push(u64::MAX, rank(0, 0, cost), Duration::ZERO);
        let mut others = 0;
        loop {
            for flow in 1..flows {
                queue.push(1000, rank(0, flow, cost), Duration::ZERO);
            }
            match places(&mut queue, Duration::ZERO, 1)[0] {
                u64::MAX => break,
                1000 => others += 1,
                _ => {}
            }
            prop_assert!(others <= (before as u64 + 2) * flows, "{others}");
        }
    }
}
