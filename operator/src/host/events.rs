//! What is told to the person in front of the screen: each thing once.

use std::collections::BTreeSet;

use tokio::sync::mpsc::UnboundedSender;

use super::HostEvent;

/// Tells events.
#[derive(Clone, Debug)]
pub(super) struct Events {
    sender: UnboundedSender<HostEvent>,
}

impl Events {
    pub(super) fn new(sender: UnboundedSender<HostEvent>) -> Self {
        Self { sender }
    }

    /// Something went on as wanted.
    pub(super) fn progress(&self, text: impl Into<String>) {
        let text = text.into();
        tracing::debug!("{text}");
        let _ = self.sender.send(HostEvent::Progress(text));
    }

    /// Something is wrong.
    pub(super) fn problem(&self, text: impl Into<String>) {
        let _ = self.sender.send(HostEvent::Problem(text.into()));
    }

    /// Everything serves.
    pub(super) fn ready(&self, url: &str) {
        let _ = self.sender.send(HostEvent::Ready { url: url.to_owned() });
    }
}

/// The problems that stand, of which only new ones are told.
#[derive(Debug, Default)]
pub(super) struct Standing {
    told: BTreeSet<String>,
}

impl Standing {
    /// Tells those that are new, and forgets those that are gone.
    pub(super) fn update(&mut self, problems: &[String], events: &Events) {
        let now: BTreeSet<String> = problems.iter().cloned().collect();
        for problem in now.difference(&self.told) {
            events.problem(problem.clone());
        }
        if now.is_empty() && !self.told.is_empty() {
            events.progress("the folder has no problems any more");
        }
        self.told = now;
    }
}
