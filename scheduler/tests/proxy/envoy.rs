//! A real Envoy asks the picker and sends requests where it says.

use std::time::Duration;

use http::HeaderValue;
use serde_json::json;
use strata_scheduler::SchedulerOptions;

use crate::support::envoy::{Envoy, Filter};
use crate::support::picker::Picker;
use crate::support::{Does, Engine, Rig, eventually, quick};

const BUFFERED: Filter = Filter::new("buffered", "BUFFERED");
const PARTIAL: Filter = Filter::new("partial", "BUFFERED_PARTIAL");
const STREAMED: Filter = Filter { early: true, ..Filter::new("streamed", "STREAMED") };
const DUPLEX: Filter = Filter::new("duplex", "FULL_DUPLEX_STREAMED");
/// As Envoy Gateway, Istio and kgateway set up their filters.
const BOTH_WAYS: Filter = Filter {
    response_body_mode: "FULL_DUPLEX_STREAMED",
    by_metadata: true,
    ..Filter::new("both-ways", "FULL_DUPLEX_STREAMED")
};
const NONE: Filter = Filter::new("none", "NONE");
/// Those that see the body.
const SEEING: [Filter; 5] = [BUFFERED, PARTIAL, STREAMED, DUPLEX, BOTH_WAYS];

/// A chat of this many bytes and a few, with what no client may send.
fn chat(bytes: usize, stream: bool) -> Vec<u8> {
    let content = "x".repeat(bytes);
    let body = json!({
        "model": "m",
        "kv_transfer_params": {"host": "evil"},
        "stream": stream,
        "messages": [{"role": "user", "content": content}],
    });
    body.to_string().into_bytes()
}

/// The same as an engine is to get it.
fn patched(bytes: usize, stream: bool) -> Vec<u8> {
    let text = String::from_utf8(chat(bytes, stream)).unwrap();
    text.replace(r#""kv_transfer_params":{"host":"evil"},"#, "").into_bytes()
}

fn in_flight(rig: &Rig) -> usize {
    rig.states("m").iter().map(|state| state.in_flight as usize).sum()
}

async fn crowded(engine: &Engine, rig: &Rig, waiting: f64) {
    engine.load(|load| load.waiting = waiting);
    eventually("the metrics are read", || (rig.states("m")[0].waiting - waiting).abs() < 1e-9).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_more_than_a_megabyte_reach_the_replica_that_was_picked() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], quick()).await;
    let picker = Picker::of(&rig.scheduler).await;
    let Some(envoy) = Envoy::before(&picker, &SEEING, None).await else { return };
    for filter in SEEING {
        let before = a.got().len() + b.got().len();
        for bytes in [1_500_000, 1_500_400, 10] {
            let path = "/v1/chat/completions";
            let mut request = envoy.request(filter.name, &rig, path, chat(bytes, false));
            request.headers_mut().insert("authorization", HeaderValue::from_static("Bearer secret"));
            request
                .headers_mut()
                .insert("x-gateway-destination-endpoint", HeaderValue::from_static("10.9.9.9:1"));
            request.headers_mut().insert("x-strata-cache-scope", HeaderValue::from_static("another's"));
            let reply = rig.send(request).await;
            assert_eq!(reply.status, 200, "{}: {:?}", filter.name, reply.body);
            assert_eq!(reply.json()["choices"][0]["message"]["content"], "yes");
            let got: Vec<_> = a.got().into_iter().chain(b.got()).collect();
            let got = got.iter().rev().find(|got| got.body.len() > bytes && got.body.len() < bytes + 300);
            let got = got.unwrap_or_else(|| panic!("{}: no engine got it", filter.name));
            assert!(got.body == patched(bytes, false), "{}: the body arrived as it should", filter.name);
            assert_eq!(got.path, path);
            assert!(got.headers.contains_key("x-strata-request-id"));
            for name in ["authorization", "x-strata-cache-scope"] {
                assert!(!got.headers.contains_key(name), "{}: {name} crossed", filter.name);
            }
            eventually("the place is given back", || in_flight(&rig) == 0).await;
        }
        assert_eq!(a.got().len() + b.got().len(), before + 3, "{}", filter.name);
    }
    // The long prompts begin alike: whoever had the first has had them all.
    let long = |engine: &Engine| engine.got().iter().filter(|got| got.body.len() > 1_000_000).count();
    let mut shares = [long(&a), long(&b)];
    shares.sort_unstable();
    assert_eq!(shares, [0, 2 * SEEING.len()], "prompts go where they are cached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_passes_as_it_comes_and_holds_its_place() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let picker = Picker::of(&rig.scheduler).await;
    let Some(envoy) = Envoy::before(&picker, &SEEING, None).await else { return };
    for filter in SEEING {
        engine.does(Does::Held);
        let request = envoy.request(filter.name, &rig, "/v1/chat/completions", chat(1_500_000, true));
        engine.let_go(1);
        let mut coming = rig.open(request).await;
        assert_eq!(coming.status, 200, "{}", filter.name);
        assert!(!coming.headers.contains_key("x-strata-decision"));
        assert!(coming.event().await.is_some(), "a piece comes before the next is made");
        assert_eq!(in_flight(&rig), 1, "{}: it is in the books while it streams", filter.name);
        engine.let_go(1);
        assert!(coming.event().await.is_some());
        assert_eq!(in_flight(&rig), 1, "{}", filter.name);
        // The client leaves in the middle.
        drop(coming);
        eventually(&format!("{}: the place is given back", filter.name), || in_flight(&rig) == 0).await;
        engine.does(Does::Answer);
        let request = envoy.request(filter.name, &rig, "/v1/chat/completions", chat(1_500_000, true));
        let events = rig.open(request).await.rest().await;
        assert_eq!((events.len(), events[3].as_str()), (4, "[DONE]"), "{}", filter.name);
        eventually("the place is given back", || in_flight(&rig) == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_room_is_held_by_envoy_too() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let picker = Picker::of(&rig.scheduler).await;
    let Some(envoy) = Envoy::before(&picker, &SEEING, None).await else { return };
    for filter in SEEING {
        crowded(&engine, &rig, 50.0).await;
        let request = || envoy.request(filter.name, &rig, "/v1/chat/completions", chat(10, false));
        {
            let leaves = rig.send(request());
            tokio::pin!(leaves);
            tokio::select! {
                reply = &mut leaves => panic!("{}: {reply:?}", filter.name),
                () = eventually("it is held", || rig.held("m") == 1) => {}
            }
        }
        eventually(&format!("{}: the client's place is free", filter.name), || rig.held("m") == 0).await;
        let stays = rig.send(request());
        let room = async {
            eventually("it is held", || rig.held("m") == 1).await;
            crowded(&engine, &rig, 0.0).await;
        };
        let (reply, ()) = tokio::join!(stays, room);
        assert_eq!(reply.status, 200, "{}: {:?}", filter.name, reply.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_reach_the_client_as_the_scheduler_made_them() {
    let mut engine = Engine::start("m-0");
    let options = SchedulerOptions { queue_timeout: Duration::from_millis(150), ..quick() };
    let rig = Rig::before(&[&engine], options).await;
    let picker = Picker::of(&rig.scheduler).await;
    let filters: Vec<Filter> = SEEING.into_iter().chain([NONE]).collect();
    let Some(envoy) = Envoy::before(&picker, &filters, None).await else { return };
    let path = "/v1/chat/completions";
    for filter in SEEING {
        let unknown =
            rig.send(envoy.request(filter.name, &rig, path, br#"{"model":"gpt-9"}"#.to_vec())).await;
        let wanted = (404, "model_not_found".to_owned(), "invalid_request_error".to_owned());
        assert_eq!(unknown.error(), wanted, "{}", filter.name);
        assert_eq!(unknown.header("content-type"), "application/json");
        let asleep = rig.send(envoy.request(filter.name, &rig, "/sleep", b"{}".to_vec())).await;
        assert_eq!(asleep.status, 404, "{}", filter.name);
        let mut list = envoy.request(filter.name, &rig, "/v1/models", Vec::new());
        *list.method_mut() = http::Method::GET;
        assert_eq!(rig.send(list).await.json()["data"][0]["id"], "m", "{}", filter.name);
    }
    let blind = rig.send(envoy.request("none", &rig, path, chat(1_500_000, false))).await;
    assert_eq!(blind.status, 200, "the only model is meant: {:?}", blind.body);
    crowded(&engine, &rig, 50.0).await;
    for filter in SEEING {
        let full = rig.send(envoy.request(filter.name, &rig, path, chat(10, false))).await;
        assert_eq!(full.error().1, "capacity_exceeded", "{}", filter.name);
        assert_eq!(full.header("retry-after"), "1");
    }
    engine.kill();
    rig.ready("m", 0).await;
    for filter in SEEING {
        let none = rig.send(envoy.request(filter.name, &rig, path, chat(10, false))).await;
        assert_eq!((none.error().0, none.error().1.as_str()), (503, "overloaded"), "{}", filter.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoys_subset_is_kept_to() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], quick()).await;
    let picker = Picker::of(&rig.scheduler).await;
    let only = b.url().trim_start_matches("http://").to_owned();
    let Some(envoy) = Envoy::before(&picker, &SEEING, Some(&[&only])).await else { return };
    for (n, filter) in SEEING.into_iter().enumerate() {
        for _ in 0..3 {
            let request = envoy.request(filter.name, &rig, "/v1/chat/completions", chat(5000, false));
            assert_eq!(rig.send(request).await.status, 200, "{}", filter.name);
        }
        assert_eq!((a.got().len(), b.got().len()), (0, 3 * (n + 1)), "{}", filter.name);
    }
}

/// Of three replicas the one that is picked refuses: Envoy goes on to the next that the scheduler named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_falls_back_to_the_next_that_was_named() {
    const HEADER: Filter = Filter { falls_back: true, ..Filter::new("falls-back", "FULL_DUPLEX_STREAMED") };
    const METADATA: Filter = Filter { name: "falls-back-metadata", by_metadata: true, ..HEADER };
    let engines: Vec<Engine> = (0..3).map(|n| Engine::start(&format!("m-{n}"))).collect();
    let ports: Vec<u16> =
        engines.iter().map(|e| e.url().rsplit(':').next().unwrap().parse().unwrap()).collect();
    let options = SchedulerOptions { extproc_endpoints: 3, ..quick() };
    let rig = Rig::before(&engines.iter().collect::<Vec<_>>(), options).await;
    let picker = Picker::of(&rig.scheduler).await;
    let filters = [HEADER, METADATA];
    let Some(envoy) = Envoy::knowing(&ports, &picker, &filters, None).await else { return };
    let path = "/v1/chat/completions";
    for filter in filters {
        let got = || engines.iter().map(|engine| engine.got().len()).collect::<Vec<_>>();
        let before = got();
        let prompt = 4000 + filter.name.len();
        assert_eq!(rig.send(envoy.request(filter.name, &rig, path, chat(prompt, false))).await.status, 200);
        let after = got();
        let first = (0..3).find(|at| after[*at] > before[*at]).unwrap();
        let (second, full) = ((first + 1) % 3, (first + 2) % 3);
        engines[first].does(Does::Refuse);
        engines[full].load(|load| load.waiting = 50.0);
        let is_full = || rig.states("m").iter().filter(|state| state.waiting > 40.0).count() == 1;
        eventually("the metrics are read", is_full).await;
        for _ in 0..6 {
            let reply = rig.send(envoy.request(filter.name, &rig, path, chat(prompt, false))).await;
            assert_eq!(reply.status, 200, "{}: {:?}", filter.name, reply.body);
        }
        let went = |at: usize| got()[at] - after[at];
        assert_eq!([went(first), went(second), went(full)], [6, 6, 0], "{}", filter.name);
        engines[full].load(|load| load.waiting = 0.0);
        engines[first].does(Does::Answer);
        eventually("the place is given back", || in_flight(&rig) == 0).await;
    }
}
