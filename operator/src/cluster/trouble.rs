//! Why a pod does not serve, as far as it says so itself, and what to do about it.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use kube::ResourceExt;

use super::pods;
use crate::condition::Reason;

/// Restarts from which on more of them will not help.
const HOPELESS: i32 = 3;
/// Characters of a container's last words that are passed on.
const LAST_WORDS: usize = 300;

/// What stands in a pod's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// What kind of thing it is.
    pub reason: Reason,
    /// What it is, and what to do.
    pub message: String,
    /// Whether somebody must do something, as far as can be told.
    pub lasting: bool,
}

/// What stands in the way of a pod that does not serve; nothing when it is a matter of time.
pub(super) fn of(pod: &Pod) -> Option<Trouble> {
    let name = pod.name_any();
    let say = |reason, message: String, lasting| {
        Some(Trouble { reason, message: format!("pod {name}: {message}"), lasting })
    };
    if let Some((message, _)) = pods::unschedulable(pod) {
        let advice = match pods::lacking_device(message) {
            Some(device) => format!("; add a node with {device}, or free one"),
            None if message.contains("persistentvolumeclaim") => "; make the claim in the model's namespace".to_owned(),
            None => "; add a node, ask for less in `spec.podTemplate.resources`, or check the node selector and the tolerations".to_owned(),
        };
        return say(
            Reason::Unschedulable,
            format!("no node has room for it: {}{advice}", brief(message)),
            false,
        );
    }
    let status = pod.status.as_ref()?;
    let fetching = status.init_container_statuses.iter().flatten();
    let serving = status.container_statuses.iter().flatten();
    fetching
        .map(|c| (c, true))
        .chain(serving.map(|c| (c, false)))
        .find_map(|(container, fetches)| of_container(container, fetches))
        .and_then(|(reason, message, lasting)| say(reason, message, lasting))
}

fn of_container(container: &ContainerStatus, fetches: bool) -> Option<(Reason, String, bool)> {
    let state = container.state.as_ref();
    let hopeless = container.restart_count >= HOPELESS;
    if let Some(waiting) = state.and_then(|s| s.waiting.as_ref()) {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let message = brief(waiting.message.as_deref().unwrap_or(reason));
        match reason {
            "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "RegistryUnavailable" => {
                let lasting = reason != "ErrImagePull";
                let advice = "check the image's name, and the Secret in `spec.podTemplate.imagePullSecrets`";
                return Some((Reason::ImagePullFailed, format!("{message}; {advice}"), lasting));
            }
            "CreateContainerConfigError" if message.contains("secret") => {
                return Some((
                    Reason::SecretMissing,
                    format!("{message}: create it in the model's namespace"),
                    true,
                ));
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                return Some((Reason::Failing, message, hopeless));
            }
            _ => {}
        }
    }
    let ended = |s: Option<&k8s_openapi::api::core::v1::ContainerState>| {
        s.and_then(|s| s.terminated.clone()).filter(|t| t.exit_code != 0)
    };
    let waits = state.is_some_and(|s| s.waiting.is_some());
    // One that runs again is given another chance; until it serves, how it ended last is what is known.
    let last = ended(state).or_else(|| ended(container.last_state.as_ref()))?;
    let again = waits || container.restart_count > 0;
    if fetches {
        let runs = state.is_some_and(|s| s.running.is_some());
        return (!runs && again).then(|| {
            let message = format!("the model cannot be fetched: {}", last_words(&last));
            (Reason::DownloadFailed, message, hopeless)
        });
    }
    if last.reason.as_deref() == Some("OOMKilled") {
        let advice = "raise `spec.podTemplate.resources.limits.memory`, or lower `spec.engine.kvCache` or `spec.engine.maxModelLen`";
        return Some((
            Reason::OutOfMemory,
            format!("it needs more memory than its limit; {advice}"),
            hopeless,
        ));
    }
    if last.exit_code == 137 && container.started != Some(true) && !waits_with_words(&last) {
        let message = "it was stopped because it did not serve in time; raise `spec.engine.startupTimeout`";
        return Some((Reason::StartupTimeout, message.to_owned(), hopeless));
    }
    again.then(|| (Reason::Failing, format!("it ends again and again: {}", last_words(&last)), hopeless))
}

fn waits_with_words(last: &ContainerStateTerminated) -> bool {
    last.message.as_deref().is_some_and(|m| m.contains("rror"))
}

/// The end of what it said: that is where the error is.
fn last_words(ended: &ContainerStateTerminated) -> String {
    let said = ended.message.as_deref().map(str::trim).filter(|m| !m.is_empty());
    match said {
        Some(said) => {
            let last = |wanted: &dyn Fn(&str) -> bool| said.lines().rev().find(|line| wanted(line));
            // Command lines say what is wrong, and then how to ask for help.
            let error = last(&|line| line.trim_start().to_lowercase().starts_with("error"));
            brief(error.or_else(|| last(&|line| !line.trim().is_empty())).unwrap_or(said))
        }
        None => match ended.signal.filter(|s| *s != 0) {
            Some(signal) => format!("ended by signal {signal}"),
            None => format!("ended with status {}", ended.exit_code),
        },
    }
}

fn brief(text: &str) -> String {
    let text = text.trim();
    if text.chars().count() <= LAST_WORDS {
        return text.trim_end_matches('.').to_owned();
    }
    format!("{}…", text.chars().take(LAST_WORDS).collect::<String>())
}
