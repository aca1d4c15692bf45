//! A gateway that is killed in the middle of its work.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use common::{TENANT, World, answer, chunk, eventually_every, policy, question, streaming};
use http::{Method, StatusCode};
use serde_json::json;
use strata_gateway::{Clock, Gateway, GatewayOptions, Role, Source};
use strata_hop::{Body, Bound};
use tokio_util::sync::CancellationToken;

const CHILD: &str = "STRATA_TEST_GATEWAY_CHILD";

/// The child: a gateway by the options in the environment, until it is killed.
async fn serve(options: GatewayOptions) {
    let gateway = Gateway::start(&options, Clock::System).await.unwrap();
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    println!("\nlistens {}", bound.url());
    bound.serve(gateway.router(), CancellationToken::new(), Duration::ZERO).await;
}

#[tokio::test]
async fn kuadrant_rfc_0021_a_killed_gateway_forgets_nothing() {
    if let Ok(child) = std::env::var(CHILD) {
        let mut parts = child.split('\n').map(str::to_owned);
        let mut next = || parts.next().unwrap();
        let (upstream, folder, state) = (next(), next().into(), next().into());
        let listen = "127.0.0.1:0".to_owned();
        return serve(GatewayOptions {
            source: Source::Folder { upstream, folder },
            listen,
            state,
            hop_token: None,
            internal_listen: None,
            mtls: None,
            grace: Duration::ZERO,
            adopt_local: None,
        })
        .await;
    }
    let budget = policy("b", &json!({"budget": {"tokens": 2000, "period": "Month"}}));
    let mut world = World::with(&format!("{TENANT}{budget}"), Clock::System).await;
    let key = world.key("acme", Role::Member).await;
    world.halt().await;
    let options = world.options();
    let Source::Folder { upstream, folder } = &options.source else { panic!("{options:?}") };
    let wanted = [upstream.as_str(), folder.to_str().unwrap(), options.state.to_str().unwrap()];
    let mut child = None;
    // The gateway that was stopped lets go of the ledger a moment later.
    eventually_every(Duration::from_millis(20), "the child listens", async || {
        let mut started = Command::new(std::env::current_exe().unwrap())
            .args(["kuadrant_rfc_0021_a_killed_gateway_forgets_nothing", "--exact", "--nocapture"])
            .env(CHILD, wanted.join("\n"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(started.stdout.take().unwrap()).lines();
        let found =
            lines.map_while(Result::ok).find_map(|line| line.strip_prefix("listens ").map(str::to_owned));
        match found {
            Some(url) => {
                world.url = url;
                child = Some(started);
            }
            None => {
                started.wait().unwrap();
            }
        }
        child.is_some()
    })
    .await;
    let mut child = child.unwrap();

    world.mock.script(|_| answer(300, 400));
    assert_eq!(world.chat(&key, &question(400)).await.status, StatusCode::OK);
    world.mock.script(|_| {
        let first = futures::stream::iter([Ok::<_, std::io::Error>(chunk("a", Some((5, 1))))]);
        streaming(Body::from_stream(futures::StreamExt::chain(
            first,
            futures::stream::pending::<Result<Bytes, _>>(),
        )))
    });
    let mut body = question(500);
    body["stream"] = json!(true);
    let in_flight = world.send(Method::POST, "/v1/chat/completions", &key, body.to_string()).await;
    assert_eq!(in_flight.status(), StatusCode::OK);
    child.kill().unwrap();
    child.wait().unwrap();
    drop(in_flight);

    world.start().await;
    let rows = world.rows(2).await;
    assert_eq!((rows[0].prompt_tokens, rows[0].completion_tokens, rows[0].estimated), (300, 400, false));
    assert_eq!((rows[1].completion_tokens, rows[1].estimated, rows[1].status), (500, true, 0));
    let spent: u64 = rows.iter().map(|r| r.prompt_tokens + r.completion_tokens).sum();
    world.mock.script(|_| answer(1, 1));
    let refused = world.chat(&key, &question(2000 - spent)).await;
    assert_eq!(refused.code(), "insufficient_quota", "{:?}", refused.body);
    assert_eq!(world.chat(&key, &question(1)).await.status, StatusCode::OK);
}
