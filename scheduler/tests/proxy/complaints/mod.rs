//! What users of other routers complained of, as a client sees it. Each test is named after one complaint;
//! `docs/reference/complaints.md` lists them.

mod caches;
mod failures;
mod load;
mod refusals;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::support::{Engine, Reply, Rig, eventually};

fn name(engine: &Engine) -> String {
    engine.url().trim_start_matches("http://").to_owned()
}

fn ask(rig: &Arc<Rig>, text: &str) -> JoinHandle<Reply> {
    let (rig, text) = (Arc::clone(rig), text.to_owned());
    tokio::spawn(async move { rig.chat(&text).await })
}

/// A replica that says that so much waits at it: with fifty it is full.
async fn crowded(engine: &Engine, rig: &Rig, waiting: f64) {
    engine.load(|load| load.waiting = waiting);
    let read = || {
        let states = rig.states("m");
        states.iter().any(|s| s.url == engine.url() && (s.waiting - waiting).abs() < 1e-9)
    };
    eventually("the metrics are read", read).await;
}

/// Lets so much time pass.
async fn passes(time: Duration) {
    let began = std::time::Instant::now();
    eventually("time passes", || began.elapsed() >= time).await;
}
