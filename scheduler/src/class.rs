//! What a request is to the queue: how important, and one of whose.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use http::HeaderMap;
use strata_hop::Fault;
use strata_wire::headers;
use strata_wire::hops::Hop;
use strata_wire::patch::{self, Patch};
use strata_wire::rope::Rope;
use strata_wire::toplevel::TopLevel;

use crate::replica::Replica;

/// How the gateway names the objective of a priority, and the operator the InferenceObjective.
const NAMED: &str = "priority-";
/// Routes on which an engine knows a priority.
const ORDERED: &[&str] = &["/v1/chat/completions", "/v1/completions"];
/// Who serves a model, where the engine is Strata's own.
const OURS: &str = "strata";

/// A request's priority and flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Class {
    /// Higher is served first; below zero it is refused rather than held when replicas are full.
    pub priority: i32,
    /// Requests of one flow share what the flow is due. Those that name none are one flow.
    pub flow: u64,
}

impl Class {
    /// What the layer above says of a request. An objective is one of these that have names, or `priority-N`,
    /// or N; one of another name has priority 0, as in the Gateway API Inference Extension.
    pub fn of(received: &HeaderMap, named: &BTreeMap<String, i32>) -> Result<Self, Fault> {
        let text = |name: &str| {
            let value = received.get(name).map(|value| value.to_str());
            value.transpose().map_err(|_| Fault::invalid(format!("the header {name} must be plain text")))
        };
        let priority = text(headers::OBJECTIVE)?.map(str::trim).map_or(0, |name| {
            let number = || name.strip_prefix(NAMED).unwrap_or(name).parse().ok();
            named.get(name).copied().or_else(number).unwrap_or_else(|| {
                tracing::debug!(objective = name, "an objective of this name has no priority here");
                0
            })
        });
        let flow = text(headers::FAIRNESS_ID)?.filter(|id| !id.is_empty()).map_or(0, |id| {
            let mut hasher = DefaultHasher::new();
            id.hash(&mut hasher);
            hasher.finish()
        });
        Ok(Self { priority, flow })
    }

    /// Whether it is refused rather than held when replicas are full.
    pub fn is_sheddable(self) -> bool {
        self.priority < 0
    }

    /// The body with the priority in it, for an engine that knows it: Strata's. vLLM refuses one unless it
    /// was started for it. There, lower is served first.
    pub fn told<'b>(self, path: &str, body: &'b Rope, top: &TopLevel, replica: &Replica) -> Cow<'b, Rope> {
        if self.priority == 0 || !ORDERED.contains(&path) || !is_ours(replica) {
            return Cow::Borrowed(body);
        }
        let patch = Patch::Set("priority", (-i64::from(self.priority)).to_string());
        debug_assert!(patch.is_allowed(&Hop::SchedulerToEngine.patches()));
        patch::splice(body, top, &[patch]).map_or(Cow::Borrowed(body), |(patched, _)| Cow::Owned(patched))
    }
}

/// Whether a replica is an engine of Strata's own.
pub(crate) fn is_ours(replica: &Replica) -> bool {
    replica.models().iter().any(|model| model.owned_by == OURS)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(objective: &str, flow: &str) -> Class {
        let mut headers = HeaderMap::new();
        headers.insert(headers::OBJECTIVE, HeaderValue::from_str(objective).unwrap());
        headers.insert(headers::FAIRNESS_ID, HeaderValue::from_str(flow).unwrap());
        Class::of(&headers, &[("gold", 9), ("batch", -1), ("7", 8)].map(|(n, p)| (n.to_owned(), p)).into())
            .unwrap()
    }

    #[test]
    fn an_objective_has_a_name_or_is_a_number_or_named_by_one() {
        let priority = |objective| of(objective, "").priority;
        assert_eq!((priority("priority-10"), priority("priority--5"), priority(" 6 ")), (10, -5, 6));
        assert_eq!((priority("silver"), priority("priority-"), priority("99999999999")), (0, 0, 0));
        assert_eq!((priority("gold"), priority("batch"), priority("7")), (9, -1, 8));
        assert_eq!(Class::of(&HeaderMap::new(), &BTreeMap::new()).unwrap(), Class::default());
        let mut wrong = HeaderMap::new();
        wrong.insert(headers::FAIRNESS_ID, HeaderValue::from_bytes(b"\xff").unwrap());
        assert!(Class::of(&wrong, &BTreeMap::new()).is_err());
    }

    #[test]
    fn flows_are_told_apart() {
        assert_eq!(of("0", "a"), of("0", "a"));
        assert_ne!(of("0", "a").flow, of("0", "b").flow);
        assert_eq!(of("0", "").flow, 0);
    }
}
