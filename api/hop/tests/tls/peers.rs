//! Peers that are not ours: curl and openssl.

use std::process::Stdio;

use strata_hop::Component;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::pki::{Authority, Mount, now};
use crate::{Server, open};

const CALLERS: &[Component] = &[Component::Scheduler];

async fn curl(server: &Server, client: &Mount, more: &[&str]) -> (bool, String) {
    // The certificate names no host: the chain is curl's to judge, the name is not.
    let host = format!("engine.models:{}:127.0.0.1", server.addr.port());
    let out = Command::new("curl")
        .args(["-sS", "--insecure", "--resolve", &host, "--max-time", "10"])
        .args(["--cert", &client.file("tls.crt"), "--key", &client.file("tls.key")])
        .args(more)
        .arg(format!("https://engine.models:{}/who", server.addr.port()))
        .output()
        .await
        .unwrap();
    (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

#[tokio::test]
async fn curl_with_a_certificate_is_answered() {
    let authority = Authority::new("ca");
    let (below, above) = (authority.mount("models", "engine"), authority.mount("models", "scheduler"));
    let server = Server::start(&open(below.path(), Component::Engine), CALLERS).await;
    let (ok, said) = curl(&server, &above, &[]).await;
    assert!(ok && said == "spiffe://strata/ns/models/scheduler", "{said}");
    // HTTP/1.1 is what both settle on, though curl offers HTTP/2 first.
    let (ok, said) = curl(&server, &above, &["--http2", "-v"]).await;
    assert!(ok && said.contains("server accepted http/1.1"), "{said}");
    let (ok, said) = curl(&server, &above, &["--tls-max", "1.2"]).await;
    assert!(!ok && said.contains("alert protocol version"), "{said}");
}

#[tokio::test]
async fn where_http2_is_spoken_nothing_else_is() {
    let authority = Authority::new("ca");
    let (below, above) = (authority.mount("models", "engine"), authority.mount("models", "scheduler"));
    let server = Server::over_http2(&open(below.path(), Component::Engine), CALLERS).await;
    let (ok, said) = curl(&server, &above, &["--http2", "-v"]).await;
    assert!(ok && said.contains("server accepted h2"), "{said}");
    assert!(said.contains("spiffe://strata/ns/models/scheduler"), "{said}");
    let (ok, said) = curl(&server, &above, &["--http1.1"]).await;
    assert!(!ok && said.contains("no application protocol"), "{said}");
    let stranger = authority.mount("models", "gateway");
    let (_, said) = curl(&server, &stranger, &["--http2"]).await;
    assert!(said.contains("invalid_api_key"), "{said}");
}

#[tokio::test]
async fn curl_with_a_certificate_that_does_not_hold_gets_the_alert_that_says_why() {
    let (authority, other) = (Authority::new("ca"), Authority::new("other"));
    let below = authority.mount("models", "engine");
    let server = Server::start(&open(below.path(), Component::Engine), CALLERS).await;
    let scheduler = "spiffe://strata/ns/models/scheduler";
    for (leaf, alert) in [
        (authority.leaf_for(scheduler, now() - 120, now() - 60), "certificate expired"),
        (authority.leaf_for(scheduler, now() + 600, now() + 900), "certificate expired"),
        (other.leaf("models", "scheduler"), "unknown ca"),
        (
            authority.leaf_for("spiffe://elsewhere/ns/models/scheduler", now() - 60, now() + 60),
            "certificate unknown",
        ),
    ] {
        let (ok, said) = curl(&server, &Mount::new(&leaf, &authority.pem()), &[]).await;
        assert!(!ok && said.contains(alert), "wanted {alert}: {said}");
    }
}

#[tokio::test]
async fn openssl_resumes_a_session_and_stays_known() {
    let authority = Authority::new("ca");
    let (below, above) = (authority.mount("models", "engine"), authority.mount("models", "scheduler"));
    let server = Server::start(&open(below.path(), Component::Engine), CALLERS).await;
    let session = above.file("session");
    let connect = async |how: &str| {
        let mut child = Command::new("openssl")
            .args(["s_client", "-connect", &server.addr.to_string(), "-ign_eof"])
            .args(["-cert", &above.file("tls.crt"), "-key", &above.file("tls.key")])
            .args(["-CAfile", &above.file("ca.crt"), "-verify_return_error"])
            .args([how, &session])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let request = b"GET /who HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        child.stdin.as_mut().unwrap().write_all(request).await.unwrap();
        let out = tokio::time::timeout(crate::PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
    };
    let first = connect("-sess_out").await;
    assert!(first.contains("New, TLSv1.3") && first.contains("Verification: OK"), "{first}");
    assert!(first.contains("spiffe://strata/ns/models/scheduler"), "{first}");
    let second = connect("-sess_in").await;
    assert!(second.contains("Reused, TLSv1.3"), "{second}");
    assert!(second.contains("\r\n\r\nspiffe://strata/ns/models/scheduler"), "{second}");
}
