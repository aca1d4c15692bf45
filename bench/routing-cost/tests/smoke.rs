//! The bench itself, small: the load through mock replicas, and through the scheduler's router.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use strata_routing_cost::load::{self, Load, Summary};
use strata_routing_cost::replicas::{self, CHUNKS, Pace, Seen};
use strata_scheduler::{Scheduler, SchedulerOptions, router};
use tokio_util::sync::CancellationToken;

const PACE: Pace = Pace { first: Duration::from_millis(2), think: Duration::from_millis(1) };

/// A little load, longer while the machine is so slow that nothing is answered in time.
fn send(to: &[SocketAddr], bytes: usize, stream: bool) -> Summary {
    let mut measured = Duration::from_millis(200);
    loop {
        let load = Load {
            to: to.to_vec(),
            connections: 4,
            bytes,
            stream,
            groups: 2,
            warm_up: Duration::from_millis(20),
            measured,
            timeout: Duration::from_secs(30),
            threads: 2,
            seed: 1,
        };
        let summary = load::run(&load, || {}, || {}).unwrap();
        if summary.requests > 0 || summary.errors > 0 || measured > Duration::from_secs(20) {
            return summary;
        }
        measured *= 2;
    }
}

fn assert_whole(summary: &Summary, stream: bool) {
    assert_eq!((summary.errors, &summary.first_error), (0, &None));
    assert!(summary.requests > 0 && summary.latency.p50 > 0, "{summary:?}");
    assert!(summary.first_byte.p50 <= summary.latency.p50, "{summary:?}");
    if stream {
        let pauses = PACE.first + PACE.think * (CHUNKS as u32 - 1);
        assert!(
            u128::from(summary.latency.p50) >= pauses.as_micros() * 9 / 10,
            "chunks come apart: {summary:?}"
        );
        assert!(summary.first_byte.p50 < summary.latency.p50 / 2, "the first comes first: {summary:?}");
    }
}

#[test]
fn replicas_answer_and_tell_what_is_wrong() {
    let seen = Arc::new(Seen::default());
    let to = replicas::start(&[0, 0], PACE, &seen).unwrap();
    for (bytes, stream) in [(4096, false), (70_000, false), (4096, true)] {
        assert_whole(&send(&to, bytes, stream), stream);
    }
    let [answered, broken, left] = seen.counts();
    assert!(answered > 0 && (broken, left) == (0, 0));
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    assert!(send(&[nobody], 4096, false).errors > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scheduler_passes_everything_on() {
    let seen = Arc::new(Seen::default());
    let to = replicas::start(&[0, 0], PACE, &seen).unwrap();
    let options = SchedulerOptions {
        replicas: to.iter().map(|address| format!("http://{address}")).collect(),
        ..SchedulerOptions::default()
    };
    let bound = strata_hop::Bound::bind(&options.listen).await.unwrap();
    let at = bound.addr();
    let stop = CancellationToken::new();
    let scheduler = Scheduler::start(options, stop.clone()).await.unwrap();
    tokio::spawn(bound.serve(router(scheduler.clone()), stop.clone(), Duration::ZERO));
    let until = Instant::now() + Duration::from_secs(30);
    let ready = || {
        let pools = scheduler.registry.pools();
        pools
            .values()
            .any(|pool| pool.replicas.load().iter().filter(|replica| replica.is_ready()).count() == 2)
    };
    while !ready() {
        assert!(Instant::now() < until, "the replicas are not known");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for (bytes, stream) in [(4096, false), (70_000, false), (4096, true)] {
        let summary = tokio::task::spawn_blocking(move || send(&[at], bytes, stream)).await.unwrap();
        assert_whole(&summary, stream);
    }
    assert!(seen.counts()[0] > 0 && seen.counts()[1] == 0);
    stop.cancel();
}
