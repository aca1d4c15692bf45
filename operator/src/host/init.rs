//! Containers that run before a pod's own, one after the other, each to its end.

use std::time::Duration;

use http::Request;
use nix::sys::signal::Signal;
use strata_hop::{Body, Upstream};
use strata_wire::download::{DownloadProgress, DownloadState};

use super::child::Process;
use super::pod::{Address, Life, Order, Pod, describe};

/// How often a container is asked how far it is.
const ASK: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(1);
const MAX_ANSWER: usize = 64 * 1024;
/// How long one may take to stop; what it fetched stays.
const GRACE: Duration = Duration::from_secs(5);

impl Pod {
    /// Runs them all. `Err` when the pod's own container must not start now.
    pub(super) async fn prepare(&mut self, address: Address) -> Result<(), Life> {
        for index in 0..self.recipe.init.len() {
            self.run_init(index, address).await?;
        }
        Ok(())
    }

    async fn run_init(&mut self, index: usize, address: Address) -> Result<(), Life> {
        let failed = |why: String| Life::Ended { why, served: Duration::ZERO };
        let init = self.recipe.init[index].clone();
        let (mut log, command) = self.command(&init.launch, address).map_err(failed)?;
        let mut process = Process::start(&self.tools.spawner, command)
            .await
            .map_err(|error| failed(format!("container {} cannot be started: {error}", init.name)))?;
        let pid = process.pid();
        self.show(|view| view.pid = Some(pid));
        let mut is_told = false;
        loop {
            tokio::select! {
                end = process.ended() => {
                    if end.success() {
                        self.show(|view| {
                            view.pid = None;
                            view.message = None;
                        });
                        return Ok(());
                    }
                    let said = log.last_words().map_or_else(String::new, |words| format!(": {words}"));
                    return Err(failed(format!("container {} {}{said}", init.name, describe(end))));
                }
                changed = self.order.changed() => {
                    let order = self.order.borrow_and_update().clone();
                    if changed.is_err() || order != Order::Run {
                        process.signal(if order == Order::Kill { Signal::SIGKILL } else { Signal::SIGTERM });
                        if tokio::time::timeout(GRACE, process.ended()).await.is_err() {
                            process.signal(Signal::SIGKILL);
                            process.ended().await;
                        }
                        return Err(Life::Stopped);
                    }
                }
                () = tokio::time::sleep(ASK) => {
                    log.trim();
                    let Some(progress) = ask(&self.tools.client, &address.url()).await else { continue };
                    if !is_told {
                        is_told = true;
                        self.tools.events.progress(format!("{} {}", self.name, words(&progress)));
                    }
                    self.show(|view| view.message = Some(words(&progress)));
                }
            }
        }
    }
}

async fn ask(client: &Upstream, url: &str) -> Option<DownloadProgress> {
    let url = format!("{url}{}", strata_wire::download::PATH);
    let request = Request::get(url).body(Body::empty()).ok()?;
    let response = client.send(request, PATIENCE).await.ok().filter(|r| r.status().is_success())?;
    let body = strata_hop::forward::collect(response.into_body(), PATIENCE, MAX_ANSWER).await.ok()?;
    serde_json::from_slice(&body).ok()
}

/// What it is doing, for people.
fn words(progress: &DownloadProgress) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let mut text = match progress.state {
        DownloadState::Waiting => "waits for another replica that fetches the model".to_owned(),
        _ => "fetches the model".to_owned(),
    };
    if let Some(total) = progress.bytes_total.filter(|&total| total > 0) {
        let percent = u128::from(progress.bytes_done) * 100 / u128::from(total);
        text = format!("{text}: {percent}% of {} MiB", mib(total));
    }
    if let Some(seconds) = progress.remaining_s.filter(|_| progress.state != DownloadState::Verifying) {
        text = format!("{text}, about {seconds} s left");
    }
    let said = progress.message.as_str();
    if progress.state != DownloadState::Waiting && !said.is_empty() {
        text = format!("{text} ({said})");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_in_words() {
        let mut progress = DownloadProgress {
            state: DownloadState::Fetching,
            bytes_done: 25 << 20,
            bytes_total: Some(100 << 20),
            remaining_s: Some(12),
            ..DownloadProgress::default()
        };
        assert_eq!(words(&progress), "fetches the model: 25% of 100 MiB, about 12 s left");
        progress.message = "h: 503; trying again".to_owned();
        progress.bytes_total = None;
        progress.remaining_s = None;
        assert_eq!(words(&progress), "fetches the model (h: 503; trying again)");
        progress.state = DownloadState::Waiting;
        assert_eq!(words(&progress), "waits for another replica that fetches the model");
    }
}
