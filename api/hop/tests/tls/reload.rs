//! Certificates that change while requests run.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use futures::StreamExt;
use strata_hop::{Component, Upstream, forward};
use tokio::sync::mpsc;

use crate::pki::{Authority, Leaf, Mount, now};
use crate::{PATIENCE, Server, keep_log, logged, open, until};

const CALLERS: &[Component] = &[Component::Scheduler];

type Sender = mpsc::UnboundedSender<Result<Bytes, std::io::Error>>;

fn streaming() -> (Sender, Router) {
    let (send, receive) = mpsc::unbounded_channel();
    let receive = Arc::new(Mutex::new(Some(receive)));
    let handler = move || {
        let receive: Option<mpsc::UnboundedReceiver<Result<Bytes, std::io::Error>>> =
            receive.lock().unwrap().take();
        async move {
            Body::from_stream(futures::stream::unfold(receive.unwrap(), |mut r| async move {
                r.recv().await.map(|item| (item, r))
            }))
        }
    };
    (send, Router::new().route("/stream", get(handler)))
}

/// Every step of a change of authority, with a stream open all the while.
#[tokio::test]
async fn a_stream_goes_on_while_certificates_and_authority_change() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (below, above) = (old.mount("models", "engine"), old.mount("models", "scheduler"));
    let (engine, scheduler) =
        (open(below.path(), Component::Engine), open(above.path(), Component::Scheduler));
    let (send, router) = streaming();
    let server = Server::with(&engine, CALLERS, router).await;
    let client = Upstream::to(Some(&scheduler), &[Component::Engine]);
    let request = http::Request::get(format!("{}/stream", server.url)).body(Body::empty()).unwrap();
    let response = client.send(request, PATIENCE).await.unwrap();
    let mut chunks = std::pin::pin!(forward::chunks(response.into_body(), PATIENCE));
    let mut passes = async |text: &'static str| {
        send.send(Ok(Bytes::from_static(text.as_bytes()))).unwrap();
        assert_eq!(chunks.next().await.unwrap().unwrap(), text);
        assert_eq!(server.get(&client, "/who").await.unwrap().0, 200, "{text}");
        let fresh = Upstream::to(Some(&scheduler), &[Component::Engine]);
        assert_eq!(server.get(&fresh, "/who").await.unwrap().0, 200, "{text}");
    };
    passes("at first").await;
    let both = format!("{}{}", old.pem(), new.pem());
    let steps: [(&'static str, &Mount, &str, Leaf, &str); 6] = [
        ("the callee trusts both", &below, "engine", old.leaf("models", "engine"), &both),
        ("the caller trusts both", &above, "scheduler", old.leaf("models", "scheduler"), &both),
        ("the caller is named anew", &above, "scheduler", new.leaf("models", "scheduler"), &both),
        ("the callee is named anew", &below, "engine", new.leaf("models", "engine"), &both),
        ("the callee forgets", &below, "engine", new.leaf("models", "engine"), &new.pem()),
        ("the caller forgets", &above, "scheduler", new.leaf("models", "scheduler"), &new.pem()),
    ];
    for (step, mount, whose, leaf, authorities) in steps {
        let mtls = if whose == "engine" { &engine } else { &scheduler };
        let before = mtls.generation();
        mount.replace(&leaf, authorities);
        until(step, || (mtls.generation() > before).then_some(())).await;
        passes(step).await;
    }
    drop(send);
    assert!(chunks.next().await.is_none());
}

#[tokio::test]
async fn what_cannot_be_used_is_not_taken_over() {
    keep_log();
    let authority = Authority::new("ca");
    let mount = authority.mount("keeps-the-last", "engine");
    let engine = open(mount.path(), Component::Engine);
    let above = authority.mount("keeps-the-last", "scheduler");
    let server = Server::start(&engine, CALLERS).await;
    let client = || Upstream::to(Some(&open(above.path(), Component::Scheduler)), &[Component::Engine]);
    let folder = mount.path().to_str().unwrap();
    let good = authority.leaf("keeps-the-last", "engine");
    let expired = authority.leaf_for("spiffe://strata/ns/keeps-the-last/engine", now() - 90, now() - 30);
    let another = authority.leaf("keeps-the-last", "gateway");
    for (certificate, key, why) in [
        ("", "", "tls.crt holds no certificate in PEM"),
        (&good.certificate, &another.key, "tls.key is not the key of tls.crt"),
        (&expired.certificate, &expired.key, "has expired, or does not hold yet"),
        (&another.certificate, &another.key, "is now of spiffe://strata/ns/keeps-the-last/gateway"),
    ] {
        mount.replace_raw(certificate, key, &authority.pem());
        logged(&["WARN", folder, "certificates not taken over", why]).await;
        assert_eq!(server.get(&client(), "/who").await.unwrap().0, 200, "{why}");
    }
    std::fs::remove_file(mount.path().join("..data")).unwrap();
    logged(&["WARN", folder, "certificates not taken over", "cannot read", "tls.crt"]).await;
    assert_eq!(server.get(&client(), "/who").await.unwrap().0, 200);
    assert_eq!(engine.generation(), 1);
    mount.replace(&good, &authority.pem());
    until("the good ones", || (engine.generation() == 2).then_some(())).await;
    assert_eq!(server.get(&client(), "/who").await.unwrap().0, 200);
}

#[tokio::test]
async fn a_component_that_nobody_renews_says_so() {
    keep_log();
    let authority = Authority::new("ca");
    let leaf = authority.leaf_for("spiffe://strata/ns/forgotten/engine", now() - 60, now() + 2);
    let mount = Mount::new(&leaf, &authority.pem());
    let engine = open(mount.path(), Component::Engine);
    let folder = mount.path().to_str().unwrap();
    logged(&["ERROR", folder, "has expired and nobody has renewed it"]).await;
    mount.replace(&authority.leaf("forgotten", "engine"), &authority.pem());
    until("the new certificate", || (engine.generation() == 2).then_some(())).await;
}

#[tokio::test]
async fn open_streams_are_finished_after_the_order_to_stop() {
    let authority = Authority::new("ca");
    let (below, above) = (authority.mount("models", "engine"), authority.mount("models", "scheduler"));
    let (engine, scheduler) =
        (open(below.path(), Component::Engine), open(above.path(), Component::Scheduler));
    let (send, router) = streaming();
    let server = Server::with(&engine, CALLERS, router).await;
    let client = Upstream::to(Some(&scheduler), &[Component::Engine]);
    let request = http::Request::get(format!("{}/stream", server.url)).body(Body::empty()).unwrap();
    let response = client.send(request, PATIENCE).await.unwrap();
    let mut chunks = std::pin::pin!(forward::chunks(response.into_body(), PATIENCE));
    // In the middle of a handshake when the order comes: it must not hold the stop up.
    let _half = tokio::net::TcpStream::connect(server.addr).await.unwrap();
    server.stop.cancel();
    for text in ["one", "two"] {
        send.send(Ok(Bytes::from_static(text.as_bytes()))).unwrap();
        assert_eq!(chunks.next().await.unwrap().unwrap(), text);
    }
    drop(send);
    assert!(chunks.next().await.is_none(), "ended, not cut");
    tokio::time::timeout(Duration::from_secs(5), server.task).await.unwrap().unwrap();
}
