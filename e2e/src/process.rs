//! The binary `strata` as a user starts it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::body::Body;
use http::Request;
use strata_hop::Upstream;

/// The binary that `cargo build -p strata-cli` made for the profile that the test was built in, or
/// the one that `STRATA_BIN` names.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("STRATA_BIN") {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("a running test knows its own path");
    let profile = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps");
    let path = profile.join("strata");
    assert!(
        path.exists(),
        "{} is missing: run `cargo build -p strata-cli` first, as `make test` does",
        path.display()
    );
    path
}

/// The real model's file, or `None` with a line that says so.
pub fn model() -> Option<PathBuf> {
    let path = std::env::var_os("STRATA_TEST_MODEL").map_or_else(
        || {
            let home = std::env::var_os("HOME").unwrap_or_default();
            PathBuf::from(home).join(".cache/strata/models/SmolLM2-135M-Instruct.Q4_1.gguf")
        },
        PathBuf::from,
    );
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not there; run `make model`", path.display());
    None
}

/// A free port on loopback.
pub fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener.local_addr().expect("a bound listener has an address").to_string()
}

/// One component as a process, killed when it is dropped.
#[derive(Debug)]
pub struct Layer {
    child: Child,
    /// Where it listens.
    pub url: String,
}

impl Layer {
    /// Starts `strata ARGS --listen ADDR` with this hop token and waits until it says it is healthy.
    pub async fn start(args: &[&str], hop_token: &str) -> Self {
        let address = free_address();
        let child = Command::new(binary())
            .args(args)
            .args(["--listen", &address])
            .env(strata_hop::token::ENV, hop_token)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the binary starts");
        let mut layer = Self { child, url: format!("http://{address}") };
        layer.wait_until_healthy().await;
        layer
    }

    async fn wait_until_healthy(&mut self) {
        let (client, deadline) = (Upstream::new(), Instant::now() + Duration::from_secs(60));
        loop {
            let request =
                Request::get(format!("{}/health", self.url)).body(Body::empty()).expect("a valid URL");
            if let Ok(response) = client.send(request, Duration::from_secs(2)).await
                && response.status().is_success()
            {
                return;
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{} ended with {status} before it was healthy", self.url);
            }
            assert!(Instant::now() < deadline, "{} was not healthy in time", self.url);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
