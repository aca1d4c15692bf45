//! Sessions, adapters, prompts of which nothing is known, and answers of which something is.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use serde_json::json;
use strata_scheduler::SchedulerOptions;
use strata_wire::decisions::Decisions;
use strata_wire::metrics::engine::LORA_REQUESTS;
use strata_wire::replicas::{Affinity, Endpoints, ModelEndpoints};

use crate::support::{Does, EndpointsFile, Engine, PATIENCE, Reply, Rig, eventually, listed, quick};

fn fleet(count: usize) -> Vec<Engine> {
    (0..count).map(|n| Engine::start(&format!("m-{n}"))).collect()
}

/// Two schedulers before the same engines, which are listed so.
async fn two(engines: &[Engine], affinity: Affinity) -> (EndpointsFile, [Rig; 2]) {
    let file = EndpointsFile::new();
    let all: Vec<&Engine> = engines.iter().collect();
    let model = ModelEndpoints { affinity, ..listed(&all) };
    file.write(&Endpoints { models: [("m".to_owned(), model)].into() });
    let start = async || {
        // What replicas said counts on a machine that is too busy to ask them again.
        let options = SchedulerOptions { scrape_timeout: PATIENCE, ..quick() };
        let rig = Rig::start(SchedulerOptions { endpoints: Some(file.path()), ..options }).await;
        rig.ready("m", engines.len()).await;
        rig
    };
    let rigs = [start().await, start().await];
    (file, rigs)
}

async fn ask(rig: &Rig, text: &str, header: Option<(&'static str, &str)>) -> Reply {
    let mut request = rig.chat_request(text, false);
    if let Some((name, value)) = header {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let reply = rig.send(request).await;
    assert_eq!(reply.status, 200);
    reply
}

fn replica(reply: &Reply) -> String {
    reply.header("x-strata-replica").to_owned()
}

#[tokio::test]
async fn a_session_goes_to_one_replica_by_whichever_scheduler() {
    let mut engines = fleet(3);
    let (_file, [a, b]) = two(&engines, Affinity::default()).await;
    let mut homes = Vec::new();
    for n in 0..12 {
        let session = ("x-session-id", &*format!("session-{n}"));
        let first = ask(&a, &format!("{n} begins"), Some(session)).await;
        let second = ask(&b, &format!("{n} says something else"), Some(session)).await;
        assert_eq!(replica(&first), replica(&second), "{n}");
        assert!(first.header("x-strata-decision").contains(" session=1"), "{first:?}");
        homes.push(replica(&first));
    }
    assert_eq!(homes.iter().collect::<BTreeSet<_>>().len(), 3, "{homes:?}");
    let told: Decisions = serde_json::from_value(a.get("/debug/decisions?last=1").await.json()).unwrap();
    let it = &told.decisions[0];
    assert_eq!(it.why, "the request's session is at home there");
    let scores: Vec<Option<f64>> = it.candidates.iter().map(|c| c.session).collect();
    assert_eq!(scores, [Some(1.0), Some(0.0), Some(0.0)]);
    assert!((it.weights.session - 100.0).abs() < 1e-9);
    assert!(engines.iter().flat_map(Engine::got).all(|got| !got.headers.contains_key("x-session-id")));

    // One dies: its sessions go elsewhere, the same for both, and the others stay.
    let gone = engines.iter().position(|engine| engine.name() == homes[0]).unwrap();
    engines[gone].kill();
    for rig in [&a, &b] {
        rig.ready("m", 2).await;
    }
    for (n, home) in homes.iter().enumerate() {
        let session = ("x-session-id", &*format!("session-{n}"));
        let now = replica(&ask(&a, "on", Some(session)).await);
        assert_eq!(now, replica(&ask(&b, "and on", Some(session)).await));
        assert!(now == *home || *home == homes[0], "{now} and {home}");
    }
    // The same words of another scope are another session.
    let mut scoped = a.chat_request("on", false);
    scoped.headers_mut().insert("x-session-id", "session-1".parse().unwrap());
    scoped.headers_mut().insert("x-strata-cache-scope", "theirs".parse().unwrap());
    assert!(a.send(scoped).await.header("x-strata-decision").contains(" session=1"));
}

#[tokio::test]
async fn the_header_of_a_session_is_the_models_own() {
    let engines = fleet(3);
    let affinity = Affinity { session_header: Some("x-conversation".to_owned()), ..Affinity::default() };
    let (_file, [a, _b]) = two(&engines, affinity).await;
    let mut seen = BTreeSet::new();
    for n in 0..16 {
        let reply = ask(&a, &format!("question {n}"), Some(("x-conversation", "one"))).await;
        seen.insert(replica(&reply));
    }
    assert_eq!(seen.len(), 1);
    let other = ask(&a, "question", Some(("x-session-id", "one"))).await;
    assert!(!other.header("x-strata-decision").contains("session="));
}

fn shows(engine: &Engine, running: &str) {
    let labels = format!("max_lora=\"1\",running_lora_adapters=\"{running}\",waiting_lora_adapters=\"\"");
    engine.load(|load| load.text = Some(format!("{LORA_REQUESTS}{{{labels}}} 1.0\n")));
}

#[tokio::test]
async fn an_adapter_is_asked_of_a_replica_that_has_it() {
    let engines: Vec<Engine> = (0..3).map(|n| Engine::serving(&format!("m-{n}"), "sql")).collect();
    for (engine, running) in engines.iter().zip(["other", "sql", ""]) {
        engine.inner.adapts.store(true, Ordering::SeqCst);
        shows(engine, running);
    }
    let options = SchedulerOptions { replicas: engines.iter().map(Engine::url).collect(), ..quick() };
    let rig = Rig::start(options.clone()).await;
    rig.ready("sql", 3).await;
    let asks = async |rig: &Rig, n: usize| {
        let body = json!({"model": "sql", "messages": [{"role": "user", "content": format!("{n}")}]});
        rig.send(rig.request("/v1/chat/completions", body.to_string())).await
    };
    for n in 0..6 {
        let reply = asks(&rig, n).await;
        assert!(engines[1].url().ends_with(reply.header("x-strata-replica")), "{reply:?}");
        assert!(reply.header("x-strata-decision").contains(" adapter=loaded"), "{reply:?}");
    }
    let told: Decisions = serde_json::from_value(rig.get("/debug/decisions?last=1").await.json()).unwrap();
    let scores: Vec<Option<f64>> = told.decisions[0].candidates.iter().map(|c| c.adapter).collect();
    assert_eq!(scores, [Some(1.0), Some(0.8), Some(0.0)]);

    // Nobody shows it: where it was sent last it is, though the replica shows nothing between two requests.
    for engine in &engines {
        shows(engine, "");
    }
    let fresh = Rig::start(options).await;
    fresh.ready("sql", 3).await;
    let first = asks(&fresh, 100).await;
    assert!(first.header("x-strata-decision").contains(" adapter=room"), "{first:?}");
    for n in 101..113 {
        assert_eq!(replica(&asks(&fresh, n).await), replica(&first));
    }
}

#[tokio::test]
async fn a_model_that_is_no_adapter_is_not_asked_about() {
    let engine = Engine::start("m-0");
    shows(&engine, "m");
    let rig = Rig::before(&[&engine], quick()).await;
    assert!(!rig.chat("hello").await.header("x-strata-decision").contains("adapter="));
}

/// Requests that run at one replica and at another, as many here as there, of which the second's may have four
/// tokens: the next ones go to the second.
#[tokio::test]
async fn a_replica_with_short_answers_is_less_busy() {
    let engines = fleet(2);
    let (_file, [rig, _b]) = two(&engines, Affinity::default()).await;
    for engine in &engines {
        engine.inner.answer_tokens.store(800, Ordering::SeqCst);
    }
    for n in 0..20 {
        ask(&rig, &format!("{n}"), None).await;
    }
    let said = ask(&rig, "how long", None).await.header("x-strata-decision").to_owned();
    let answer = said.split(" answer=").nth(1).and_then(|rest| rest.split([' ', ';']).next()).expect(&said);
    assert!((800..960).contains(&answer.parse::<u32>().unwrap()), "{said}");
    let told: Decisions = serde_json::from_value(rig.get("/debug/decisions?last=1").await.json()).unwrap();
    assert!(told.decisions[0].answer_tokens.is_some_and(|tokens| (800.0..960.0).contains(&tokens)));

    let mut sessions = [None, None];
    for n in 0.. {
        let session = format!("s{n}");
        let to = replica(&ask(&rig, "where", Some(("x-session-id", &session))).await);
        sessions[usize::from(to == "m-1")].get_or_insert(session);
        if sessions.iter().all(Option::is_some) {
            break;
        }
    }
    for engine in &engines {
        engine.does(Does::Held);
    }
    let rig = std::sync::Arc::new(rig);
    let stream = |n: usize, session: Option<String>, limit: Option<u32>| {
        let text = format!("stream {n}");
        let body = json!({"model": "m", "stream": true, "max_tokens": limit, "messages": [{"role": "user", "content": text}]});
        let mut request = rig.request("/v1/chat/completions", body.to_string());
        if let Some(session) = session {
            request.headers_mut().insert("x-session-id", session.parse().unwrap());
        }
        let rig = std::sync::Arc::clone(&rig);
        tokio::spawn(async move { rig.open(request).await.rest().await.len() })
    };
    let open = || [engines[0].open(), engines[1].open()];
    let [long, short] = sessions;
    let mut streams = Vec::new();
    for n in 0..6 {
        streams.push(stream(n, long.clone(), None));
        streams.push(stream(100 + n, short.clone(), Some(4)));
    }
    eventually("they run", || open() == [6, 6]).await;
    for n in 0..4 {
        streams.push(stream(200 + n, None, None));
        eventually("it runs where answers are short", || open() == [6, 7 + n]).await;
    }
    for engine in &engines {
        engine.inner.ended.store(true, Ordering::SeqCst);
        engine.let_go(1000);
    }
    for stream in streams {
        assert!(stream.await.unwrap() > 0);
    }
}

/// Schedulers that know nothing of each other send prompts that begin alike to one replica.
#[tokio::test]
async fn prompts_of_which_nothing_is_known_go_where_they_belong() {
    let engines = fleet(4);
    let (file, [a, b]) = two(&engines, Affinity::default()).await;
    let prompt = |group: usize, own: usize| format!("{} {own}", format!("group {group} ").repeat(400));
    let mut seen = BTreeSet::new();
    for group in 0..16 {
        let here = ask(&a, &prompt(group, 1), None).await;
        let there = ask(&b, &prompt(group, 2), None).await;
        assert_eq!(replica(&here), replica(&there), "group {group}");
        assert!(here.header("x-strata-decision").ends_with("that begin so belong there"), "{here:?}");
        seen.insert(replica(&here));
    }
    assert!(seen.len() > 2, "{seen:?}");

    // Short ones, of which the next turn comes to the other scheduler.
    for n in 0..16 {
        let mut turns = vec![json!({"role": "user", "content": format!("conversation {n}")})];
        let chat = |turns: &[serde_json::Value]| json!({"model": "m", "messages": turns}).to_string();
        let first = a.send(a.request("/v1/chat/completions", chat(&turns))).await;
        turns.push(json!({"role": "assistant", "content": "answer ".repeat(200)}));
        turns.push(json!({"role": "user", "content": "and then?"}));
        let second = b.send(b.request("/v1/chat/completions", chat(&turns))).await;
        assert_eq!(replica(&first), replica(&second), "conversation {n}");
    }

    let affinity = Affinity { hash_prefixes: Some(false), ..Affinity::default() };
    let all: Vec<&Engine> = engines.iter().collect();
    let model = ModelEndpoints { affinity, ..listed(&all) };
    file.write(&Endpoints { models: [("m".to_owned(), model)].into() });
    let off = || a.scheduler.registry.pool("m").unwrap().rules.load().affinity.hash_prefixes == Some(false);
    eventually("the file is read", off).await;
    let reply = ask(&a, &prompt(99, 1), None).await;
    assert!(!reply.header("x-strata-decision").contains("belong there"), "{reply:?}");
}
