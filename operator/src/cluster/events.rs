//! Which changes of conditions are worth an event.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// An event to publish about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventNote {
    /// Whether it is of the type `Warning`, else `Normal`.
    pub warning: bool,
    /// The condition's reason.
    pub reason: String,
    /// The condition's type, in words of an action.
    pub action: String,
    /// The condition's message.
    pub note: String,
}

/// The events between two states of an object: one when a condition's status or reason has changed.
/// A message alone, such as that of a download, is none.
pub fn events(before: &[Condition], after: &[Condition]) -> Vec<EventNote> {
    after
        .iter()
        .filter(|now| now.type_ == "Ready" || now.type_ == "Enforced")
        .filter(|now| {
            let old = before.iter().find(|b| b.type_ == now.type_);
            old.is_none_or(|b| b.status != now.status || b.reason != now.reason)
        })
        .map(|now| EventNote {
            warning: now.status == "False"
                && after.iter().any(|c| c.type_ == "Stalled" && c.status == "True"),
            reason: now.reason.clone(),
            action: now.type_.clone(),
            note: now.message.clone(),
        })
        .collect()
}
