//! Who may call whom.

use strata_hop::{Above, Bound, Component, HopToken, SendError, Upstream};

use crate::pki::{Authority, Mount, now};
use crate::{Server, keep_log, logged, open};

const CALLERS: &[Component] = &[Component::Scheduler, Component::Operator];

#[tokio::test]
async fn the_layer_above_is_let_in_and_known() {
    let authority = Authority::new("ca");
    let (below, above) = (authority.mount("models", "engine"), authority.mount("models", "scheduler"));
    let (engine, scheduler) =
        (open(below.path(), Component::Engine), open(above.path(), Component::Scheduler));
    let server = Server::start(&engine, CALLERS).await;
    assert!(server.url.starts_with("https://"));
    let client = Upstream::to(Some(&scheduler), &[Component::Engine]);
    for _ in 0..3 {
        let (status, who) = server.get(&client, "/who").await.unwrap();
        assert_eq!((status.as_u16(), who.as_str()), (200, "spiffe://strata/ns/models/scheduler"));
    }
    // Far more than one TLS record in each direction.
    let request = http::Request::post(format!("{}/count", server.url))
        .body(strata_hop::Body::from(vec![7; 5_000_000]))
        .unwrap();
    let response = client.send(request, crate::PATIENCE).await.unwrap();
    let body = strata_hop::forward::collect(response.into_body(), crate::PATIENCE, 100).await.unwrap();
    assert_eq!(body, "5000000");
}

#[tokio::test]
async fn without_a_certificate_only_probes_and_metrics_answer() {
    keep_log();
    let authority = Authority::new("ca");
    let mount = authority.mount("no-certificate", "scheduler");
    let server = Server::start(&open(mount.path(), Component::Scheduler), CALLERS).await;
    let curl = |path: &str| {
        let url = format!("{}{path}", server.url);
        async move {
            tokio::process::Command::new("curl").args(["-sk", "-w", "\n%{http_code}", &url]).output().await
        }
    };
    for open in ["/health", "/metrics"] {
        let out = String::from_utf8(curl(open).await.unwrap().stdout).unwrap();
        assert!(out.ends_with("\n200"), "{open}: {out}");
    }
    let out = String::from_utf8(curl("/who").await.unwrap().stdout).unwrap();
    assert!(out.ends_with("\n401") && out.contains("invalid_api_key"), "{out}");
    assert!(out.contains("spiffe://strata/ns/no-certificate/scheduler answers only a scheduler or an operator, by certificate; it shows no certificate"), "{out}");
    logged(&["WARN", "refused a caller", "peer=\"127.0.0.1:", "path=\"/who\"", "it shows no certificate"])
        .await;
}

#[tokio::test]
async fn a_caller_of_another_kind_or_namespace_is_told_so() {
    keep_log();
    let authority = Authority::new("ca");
    for (namespace, component, kind, why) in [
        (
            "kind-here",
            "gateway",
            Component::Gateway,
            "spiffe://strata/ns/kind-here/gateway is not a scheduler or an operator",
        ),
        (
            "elsewhere",
            "scheduler",
            Component::Scheduler,
            "spiffe://strata/ns/elsewhere/scheduler is not of the namespace kind-here",
        ),
    ] {
        let below = authority.mount("kind-here", "engine");
        let server = Server::start(&open(below.path(), Component::Engine), CALLERS).await;
        let above = authority.mount(namespace, component);
        let client = Upstream::to(Some(&open(above.path(), kind)), &[Component::Engine]).within("kind-here");
        let (status, body) = server.get(&client, "/who").await.unwrap();
        assert_eq!(status, 401);
        assert!(body.contains(why), "{body}");
        logged(&["WARN", "refused a caller", why]).await;
        assert_eq!(server.get(&client, "/health").await.unwrap().0, 200);
    }
}

#[tokio::test]
async fn a_caller_that_another_authority_names_is_cut_off_and_told_so() {
    keep_log();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let below = ours.mount("stranger", "engine");
    let server = Server::start(&open(below.path(), Component::Engine), CALLERS).await;
    // It trusts our authority, but is named by another; its own folder must hold both to be usable.
    let leaf = theirs.leaf("stranger", "scheduler");
    let above = Mount::new(&leaf, &format!("{}{}", ours.pem(), theirs.pem()));
    let client = Upstream::to(Some(&open(above.path(), Component::Scheduler)), &[Component::Engine]);
    let error = server.get(&client, "/who").await.unwrap_err();
    assert!(matches!(error, SendError::Untrusted { .. }), "{error:?}");
    assert!(error.to_string().contains("knows no authority that signed this certificate"), "{error}");
    let fault = error.fault("the replica");
    assert_eq!(fault.kind.status(), 502);
    assert!(
        fault.body.error.message.contains("the replica and the layer before it do not accept each other")
    );
    logged(&[
        "WARN",
        "refused a caller's certificate",
        "peer=127.0.0.1:",
        "claims=\"spiffe://strata/ns/stranger/scheduler\"",
        "signed by no authority in ca.crt",
    ])
    .await;
}

#[tokio::test]
async fn a_client_refuses_a_server_that_it_did_not_mean() {
    let (authority, other) = (Authority::new("ca"), Authority::new("other"));
    let above = authority.mount("models", "scheduler");
    let scheduler = open(above.path(), Component::Scheduler);
    let refusal = async |below: &Mount, kind: Component, client: &Upstream| {
        let server = Server::start(&open(below.path(), kind), CALLERS).await;
        match server.get(client, "/health").await {
            Err(SendError::Untrusted { message, .. }) => message,
            other => format!("{other:?}"),
        }
    };
    let client = Upstream::to(Some(&scheduler), &[Component::Engine]);
    insta(
        &refusal(&authority.mount("models", "scheduler"), Component::Scheduler, &client).await,
        "spiffe://strata/ns/models/scheduler is not an engine",
    );
    insta(
        &refusal(&authority.mount("elsewhere", "engine"), Component::Engine, &client).await,
        "spiffe://strata/ns/elsewhere/engine is not of the namespace models",
    );
    insta(
        &refusal(&other.mount("models", "engine"), Component::Engine, &client).await,
        "its certificate is signed by no authority in ca.crt",
    );

    let central = authority.mount("strata", "gateway");
    let gateway = Upstream::to(Some(&open(central.path(), Component::Gateway)), &[Component::Scheduler]);
    let here = authority.mount("team-a", "scheduler");
    let server = Server::start(&open(here.path(), Component::Scheduler), &[Component::Gateway]).await;
    assert_eq!(server.get(&gateway, "/who").await.unwrap().0, 200);
    assert_eq!(server.get(&gateway.within("team-a"), "/who").await.unwrap().0, 200);
    let wrong = server.get(&gateway.within("team-b"), "/who").await.unwrap_err();
    assert!(wrong.to_string().contains("is not of the namespace team-b"), "{wrong}");
}

fn insta(found: &str, expected: &str) {
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_certificate_that_expires_counts_no_more_even_on_an_open_connection() {
    let authority = Authority::new("ca");
    let below = authority.mount("models", "engine");
    let server = Server::start(&open(below.path(), Component::Engine), CALLERS).await;
    let leaf = authority.leaf_for("spiffe://strata/ns/models/scheduler", now() - 60, now() + 3);
    let above = Mount::new(&leaf, &authority.pem());
    let scheduler = open(above.path(), Component::Scheduler);
    let client = Upstream::to(Some(&scheduler), &[Component::Engine]);
    assert_eq!(server.get(&client, "/who").await.unwrap().0, 200);
    let deadline = std::time::Instant::now() + crate::PATIENCE;
    let message = loop {
        let (status, body) = server.get(&client, "/who").await.unwrap();
        if status == 401 {
            break body;
        }
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(message.contains("expired while its connection was open"), "{message}");
    let anew = Upstream::to(Some(&scheduler), &[Component::Engine]);
    let error = server.get(&anew, "/who").await.unwrap_err();
    assert!(error.to_string().contains("finds this certificate expired"), "{error}");
}

#[tokio::test]
async fn callers_can_be_narrowed_and_a_token_does_not_stand_in_for_a_certificate() {
    let authority = Authority::new("ca");
    let mount = authority.mount("models", "engine");
    let only = Some(vec![Component::Scheduler]);
    let engine = strata_hop::Mtls::open_as(mount.path(), Component::Engine, only, crate::LOOK).unwrap();
    let server = Server::start(&engine, CALLERS).await;
    let operator = authority.mount("strata", "operator");
    let operator = Upstream::to(Some(&open(operator.path(), Component::Operator)), &[Component::Engine]);
    let (status, body) = server.get(&operator, "/who").await.unwrap();
    assert_eq!(status, 401);
    assert!(body.contains("answers only a scheduler, by"), "{body}");

    let token = HopToken::new("of-the-run").unwrap();
    let above = Above::new(Some(token.clone()), Some(&engine), CALLERS);
    let mut headers = http::HeaderMap::new();
    token.attach(&mut headers);
    assert!(!above.knows(&http::Extensions::new(), &headers));
    assert!(Above::new(Some(token), None, CALLERS).knows(&http::Extensions::new(), &headers));
    assert!(!Above::default().knows(&http::Extensions::new(), &headers), "nobody has proven anything");
}

#[tokio::test]
async fn a_process_without_certificates_cannot_call_https_and_can_call_http() {
    let authority = Authority::new("ca");
    let mount = authority.mount("models", "scheduler");
    let scheduler = open(mount.path(), Component::Scheduler);
    let server = Server::start(&scheduler, CALLERS).await;
    let error = server.get(&Upstream::new(), "/health").await.unwrap_err();
    assert!(
        error.to_string().contains("https needs this component's certificates: STRATA_HOP_DIR"),
        "{error}"
    );

    // An image that is not ours: no TLS, called plainly by a scheduler that has certificates.
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let request = http::Request::get(bound.url()).body(strata_hop::Body::empty()).unwrap();
    let router = axum::Router::new().route("/", axum::routing::get(|| async { "plain" }));
    tokio::spawn(bound.serve(router, server.stop.clone(), crate::PATIENCE));
    let client = Upstream::to(Some(&scheduler), &[Component::Engine]);
    assert_eq!(client.send(request, crate::PATIENCE).await.unwrap().status(), 200);
}
