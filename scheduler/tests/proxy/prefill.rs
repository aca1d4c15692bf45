//! Prompts that replicas of their own compute: two legs, and one whenever the first fails.

use std::time::Duration;

use serde_json::{Value, json};
use strata_scheduler::{Kubernetes, SchedulerOptions};
use strata_wire::hops::Hop;
use strata_wire::replicas::{Endpoints, Role};

use crate::support::api_server::{MODELS, NAMESPACE, PODS, model, pod};
use crate::support::engine::{Got, KEPT};
use crate::support::{ApiServer, Does, EndpointsFile, Engine, Reply, Rig, eventually, listed_with, quick};

/// A prompt that is worth the way, and no other has begun like it.
fn long(name: &str) -> String {
    format!("{name} {}", "word ".repeat(1000))
}

async fn rig_with(
    file: &EndpointsFile,
    decode: &[&Engine],
    prefill: &[&Engine],
    options: SchedulerOptions,
) -> Rig {
    file.write(&Endpoints { models: [("m".to_owned(), listed_with(decode, prefill))].into() });
    let rig = Rig::start(SchedulerOptions { endpoints: Some(file.path()), ..options }).await;
    eventually("the file is read", || rig.states("m").len() == decode.len() + prefill.len()).await;
    rig.ready("m", decode.len() + prefill.len()).await;
    rig
}

/// A replica that answers, one that computes prompts, and a scheduler before them.
struct Pair {
    decode: Engine,
    prefill: Engine,
    rig: Rig,
    _file: EndpointsFile,
}

impl Pair {
    async fn start() -> Self {
        Self::with(quick()).await
    }

    async fn with(options: SchedulerOptions) -> Self {
        let (decode, prefill) = (Engine::start("m-d"), Engine::start("m-p"));
        let file = EndpointsFile::new();
        let rig = rig_with(&file, &[&decode], &[&prefill], options).await;
        Self { decode, prefill, rig, _file: file }
    }

    async fn counted(&self, outcome: &str) -> f64 {
        let begins = format!("strata_scheduler_prefills_total{{model_name=\"m\",outcome=\"{outcome}\"}}");
        self.rig.metric(&begins).await
    }
}

fn body(got: &Got) -> Value {
    serde_json::from_slice(&got.body).unwrap()
}

fn decision(reply: &Reply) -> String {
    reply.header("x-strata-decision").to_owned()
}

#[tokio::test]
async fn a_long_prompt_goes_two_legs_in_order() {
    let pair = Pair::start().await;
    pair.prefill.does(Does::Late);
    let text = long("a");
    let sent = format!(
        r#"{{ "model":"m", "stream":true,"stream_options":{{"include_usage":true}} ,"min_tokens":5,"max_completion_tokens":50,"kv_transfer_params":{{"remote_host":"evil"}},"messages":[{{"role":"user","content":"{text}"}}] }}"#
    );
    let mut request = pair.rig.request("/v1/chat/completions", sent.clone());
    request.headers_mut().insert("traceparent", "00-1-2-01".parse().unwrap());
    let prefill_open = || pair.prefill.open() == 1;
    let (reply, ()) = tokio::join!(pair.rig.send(request), async {
        eventually("the prompt is being computed", prefill_open).await;
        assert!(pair.decode.got().is_empty(), "the answer waits for the prompt");
        let waits = pair.rig.states("m");
        assert!(waits.iter().all(|s| s.in_flight == 1), "both have it");
        pair.prefill.let_go(1);
    });
    assert_eq!(reply.status, 200);
    assert!(reply.header("content-type").starts_with("text/event-stream"));
    assert_eq!(reply.header("x-strata-replica"), "m-d");
    assert!(decision(&reply).contains(" prefill=m-p;"), "{}", decision(&reply));

    let (first, second) = (pair.prefill.got().remove(0), pair.decode.got().remove(0));
    assert_eq!((first.path.as_str(), second.path.as_str()), ("/v1/chat/completions", "/v1/chat/completions"));
    let asked = body(&first);
    assert_eq!(asked["messages"][0]["content"], text);
    assert_eq!(
        (&asked["max_tokens"], &asked["max_completion_tokens"], &asked["stream"]),
        (&json!(1), &json!(1), &json!(false))
    );
    assert!(asked.get("stream_options").is_none() && asked.get("min_tokens").is_none());
    assert_eq!(
        asked["kv_transfer_params"],
        json!({"do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
            "remote_block_ids": null, "remote_host": null, "remote_port": null})
    );
    // To the byte what the client sent, but for the client's own words and with the replica's.
    let cleaned = sent.replace(r#""kv_transfer_params":{"remote_host":"evil"},"#, "");
    let (head, _) = cleaned.rsplit_once(" }").unwrap();
    let got = String::from_utf8(second.body.to_vec()).unwrap();
    assert_eq!(got, format!("{head},\"kv_transfer_params\":{KEPT} }}"));

    for name in first.headers.keys() {
        assert!(Hop::SchedulerToPrefill.allows(name.as_str()), "{name} crossed");
    }
    assert_eq!(first.headers["traceparent"], "00-1-2-01");
    assert_eq!(first.headers["x-strata-request-id"], second.headers["x-strata-request-id"]);
    assert!((pair.counted("computed").await - 1.0).abs() < 1e-9);
    let sent_to =
        pair.rig.metric("strata_scheduler_prefill_replica_requests{name=\"m\",model_server_pod=\"m-p\"}");
    assert!((sent_to.await - 1.0).abs() < 1e-9);
    eventually("both are done", || pair.rig.states("m").iter().all(|s| s.in_flight == 0)).await;
}

#[tokio::test]
async fn what_is_short_or_there_already_or_no_prompt_goes_one() {
    let pair = Pair::start().await;
    let reply = pair.rig.chat("hello").await;
    assert!(reply.status == 200 && !decision(&reply).contains("prefill"), "{}", decision(&reply));
    for path in ["/v1/embeddings", "/tokenize", "/detokenize"] {
        let body = json!({"model": "m", "input": long("e"), "prompt": long("e")}).to_string();
        assert_eq!(pair.rig.send(pair.rig.request(path, body)).await.status, 200);
    }
    let several = json!({"model": "m", "n": 2, "prompt": long("n")}).to_string();
    assert_eq!(pair.rig.send(pair.rig.request("/v1/completions", several)).await.status, 200);
    assert!(pair.prefill.got().is_empty());

    let text = long("b");
    let completion = json!({"model": "m", "prompt": text}).to_string();
    let ask = || pair.rig.send(pair.rig.request("/v1/completions", completion.clone()));
    assert!(decision(&ask().await).contains("prefill=m-p"));
    let again = ask().await;
    assert!(!decision(&again).contains("prefill"), "{}", decision(&again));
    assert_eq!(pair.prefill.got().len(), 1, "it holds the prompt now");
    let longer = json!({"model": "m", "prompt": format!("{text}{}", "more ".repeat(1000))}).to_string();
    let more = pair.rig.send(pair.rig.request("/v1/completions", longer)).await;
    assert!(decision(&more).contains("prefill=m-p"), "{}", decision(&more));
}

#[tokio::test]
async fn a_first_leg_that_fails_leaves_the_second() {
    let options = SchedulerOptions { first_byte_timeout: Duration::from_millis(300), ..quick() };
    let pair = Pair::with(options).await;
    let mut asked = 0;
    for (does, why) in [
        (Does::Fail, "error"),
        (Does::Reject, "error"),
        (Does::Forbid, "error"),
        (Does::Forget, "no_params"),
        (Does::Nothing, "timeout"),
        (Does::Refuse, "refused"),
    ] {
        pair.rig.ready("m", 2).await;
        pair.prefill.does(does);
        let reply = pair.rig.chat(&long(&format!("{does:?}"))).await;
        assert_eq!(reply.status, 200, "{does:?}");
        assert!(decision(&reply).contains(&format!("prefill=none({why})")), "{}", decision(&reply));
        asked += 1;
        assert_eq!(pair.prefill.got().len(), asked, "{does:?}: it is asked once");
        let got = body(pair.decode.got().last().unwrap());
        assert!(got.get("kv_transfer_params").is_none() && got.get("max_tokens").is_none(), "{got}");
    }
    assert!((pair.counted("error").await - 3.0).abs() < 1e-9);
    assert!((pair.counted("timeout").await - 1.0).abs() < 1e-9);
    let left = pair.rig.metric("strata_scheduler_retry_budget").await;
    assert!((left - 128.0).abs() < 1e-9, "nothing was sent a second time: {left}");
    pair.prefill.does(Does::Answer);
    pair.rig.ready("m", 2).await;
    assert!(decision(&pair.rig.chat(&long("well")).await).contains("prefill=m-p"));
}

#[tokio::test]
async fn a_prefill_replica_that_is_down_or_full_is_missed_by_nobody() {
    let mut pair = Pair::start().await;
    pair.prefill.load(|load| load.waiting = 50.0);
    eventually("it is full", || pair.rig.states("m").iter().any(|s| s.waiting > 40.0)).await;
    assert!(decision(&pair.rig.chat(&long("f")).await).contains("prefill=none(full)"));
    pair.prefill.load(|load| load.waiting = 0.0);
    eventually("it is not", || pair.rig.states("m").iter().all(|s| s.waiting < 1.0)).await;
    pair.prefill.kill();
    let first = pair.rig.chat(&long("k")).await;
    assert!(first.status == 200 && decision(&first).contains("prefill=none("), "{}", decision(&first));
    pair.rig.ready("m", 1).await;
    assert!(decision(&pair.rig.chat(&long("l")).await).contains("prefill=none(none_ready)"));
    pair.prefill.restart();
    pair.rig.ready("m", 2).await;
    assert!(decision(&pair.rig.chat(&long("m")).await).contains("prefill=m-p"));
}

#[tokio::test]
async fn a_deadline_is_kept_over_both_legs() {
    let pair = Pair::start().await;
    pair.prefill.does(Does::Nothing);
    let mut request = pair.rig.chat_request(&long("d"), false);
    request.headers_mut().insert("x-strata-deadline-ms", "800".parse().unwrap());
    let began = std::time::Instant::now();
    let reply = pair.rig.send(request).await;
    assert_eq!(reply.status, 200);
    assert!(began.elapsed() < Duration::from_millis(800), "half of it is for the first leg");
    let given = |got: &Got| got.headers["x-strata-deadline-ms"].to_str().unwrap().parse::<u64>().unwrap();
    assert!(given(&pair.prefill.got()[0]) <= 400 && given(&pair.decode.got()[0]) <= 400);
}

#[tokio::test]
async fn a_prompt_that_cannot_be_fetched_is_computed_anew() {
    let pair = Pair::start().await;
    pair.decode.does(Does::FailToFetch);
    let reply = pair.rig.chat(&long("t")).await;
    assert_eq!(reply.status, 200);
    assert!(decision(&reply).contains("prefill=none(transfer)"), "{}", decision(&reply));
    assert_eq!((pair.prefill.got().len(), pair.decode.got().len()), (1, 2));
    let retried = pair.rig.metric("strata_scheduler_retries_total{reason=\"transfer\"}").await;
    assert!((retried - 1.0).abs() < 1e-9);
    // Another error of its own is the client's to see.
    pair.decode.does(Does::Fail);
    assert_eq!(pair.rig.chat(&long("u")).await.status, 500);
    assert_eq!(pair.rig.chat("short").await.status, 500);
}

#[tokio::test]
async fn without_retries_left_it_is_not_sent_again() {
    let pair = Pair::with(SchedulerOptions { retry_burst: 0, ..quick() }).await;
    pair.decode.does(Does::FailToFetch);
    assert_eq!(pair.rig.chat(&long("t")).await.status, 500);
    assert_eq!(pair.decode.got().len(), 1);
}

#[tokio::test]
async fn a_request_that_goes_to_another_replica_takes_no_words_with_it() {
    let (mut a, b, prefill) = (Engine::start("m-a"), Engine::start("m-b"), Engine::start("m-p"));
    let file = EndpointsFile::new();
    let rig = rig_with(&file, &[&a, &b], &[&prefill], quick()).await;
    b.load(|load| load.waiting = 50.0);
    eventually("one is full", || rig.states("m").iter().any(|s| s.waiting > 40.0)).await;
    prefill.does(Does::Late);
    let request = rig.chat_request(&long("r"), false);
    let (reply, ()) = tokio::join!(rig.send(request), async {
        eventually("the prompt is being computed", || prefill.open() == 1).await;
        a.kill();
        b.load(|load| load.waiting = 0.0);
        prefill.let_go(1);
    });
    assert_eq!((reply.status.as_u16(), reply.header("x-strata-replica")), (200, "m-b"));
    assert!(decision(&reply).contains("prefill=none(retry)"), "{}", decision(&reply));
    assert!(body(&b.got()[0]).get("kv_transfer_params").is_none(), "they may have been used");
    assert_eq!(prefill.got().len(), 1);
}

#[tokio::test]
async fn prompts_go_where_their_beginning_is() {
    let (decode, p, q) = (Engine::start("m-d"), Engine::start("m-p"), Engine::start("m-q"));
    let file = EndpointsFile::new();
    let rig = rig_with(&file, &[&decode], &[&p, &q], quick()).await;
    let begins = long("same");
    let ask = async |tail: &str| {
        let text = format!("{begins}{}", tail.repeat(1500));
        let reply = rig.chat(&text).await;
        let decision = decision(&reply);
        decision
            .split("prefill=")
            .nth(1)
            .unwrap_or_else(|| panic!("{decision}"))
            .split(';')
            .next()
            .unwrap()
            .to_owned()
    };
    let first = ask("x ").await;
    for tail in ["y ", "z ", "w "] {
        assert_eq!(ask(tail).await, first);
    }
    for n in 0..8 {
        rig.chat(&long(&format!("other {n}"))).await;
    }
    assert!(!p.got().is_empty() && !q.got().is_empty(), "others are spread");
}

#[tokio::test]
async fn they_are_found_by_their_label_and_get_nothing_else() {
    let server = ApiServer::start();
    let (decode, prefill) = (Engine::start("m-d"), Engine::start("m-p"));
    let as_prefill = |engine: &Engine| {
        let mut object = pod(engine, "m", "prefill");
        object["metadata"]["labels"]["strata.dev/role"] = json!("prefill");
        object
    };
    server.put(MODELS, model("m"));
    server.put(PODS, as_prefill(&prefill));
    let kubernetes = Kubernetes {
        namespace: Some(NAMESPACE.to_owned()),
        server: Some(server.url()),
        ..Kubernetes::default()
    };
    let options = SchedulerOptions {
        kubernetes: Some(kubernetes),
        wake_timeout: Duration::from_millis(200),
        ..quick()
    };
    let rig = Rig::start(options).await;
    rig.ready("m", 1).await;
    assert_eq!(rig.states("m")[0].role, Role::Prefill);
    assert_eq!(rig.get("/replicas").await.json()["models"]["m"][0]["role"], "prefill");
    let reply = rig.chat(&long("a")).await;
    assert_eq!(reply.error().1, "model_starting", "alone it answers nobody");
    server.put(PODS, pod(&decode, "m", "stable"));
    rig.ready("m", 2).await;
    for n in 0..20 {
        assert_eq!(rig.chat(&format!("short {n}")).await.header("x-strata-replica"), "m-d");
    }
    assert!(prefill.got().is_empty());
    let pool = |metric: &str| format!("inference_pool_{metric}{{name=\"m\"}}");
    assert!((rig.metric(&pool("ready_pods")).await - 1.0).abs() < 1e-9, "the pool is what answers");
    assert!(decision(&rig.chat(&long("b")).await).contains("prefill=m-p"));
    // In the midst of a change: what it makes of a prompt is of no use to the other.
    server.change(PODS, "m-p", |p| p["metadata"]["labels"]["strata.dev/handover"] = json!("new"));
    let moved = || rig.scheduler.registry.replicas().iter().any(|r| r.endpoint().handover.is_some());
    eventually("the label is read", moved).await;
    rig.ready("m", 2).await;
    assert!(decision(&rig.chat(&long("x")).await).contains("prefill=none(none_ready)"));
    server.change(PODS, "m-d", |p| p["metadata"]["labels"]["strata.dev/handover"] = json!("new"));
    eventually("the label is read", || {
        rig.scheduler.registry.replicas().iter().all(|r| r.endpoint().handover.is_some())
    })
    .await;
    rig.ready("m", 2).await;
    assert!(decision(&rig.chat(&long("y")).await).contains("prefill=m-p"));
    server.delete(PODS, "m-p");
    eventually("it is not listed", || rig.states("m").len() == 1).await;
    let alone = decision(&rig.chat(&long("c")).await);
    assert!(!alone.contains("prefill"), "{alone}");
}
