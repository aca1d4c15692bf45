//! From an InferencePool of the Gateway API, what refers to it, and the pods of its namespace to replicas,
//! priorities and other schedulers. Pure.

use std::collections::BTreeMap;

use strata_wire::replicas::Endpoint;

/// An InferencePool, as far as routing needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InferencePool {
    /// Labels that its pods have, all of them.
    pub labels: BTreeMap<String, String>,
    /// Ports at which each of its pods serves.
    pub ports: Vec<u16>,
    /// Whether the object is being deleted.
    pub leaving: bool,
}

/// A pod of the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnyPod {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its address, once it has one.
    pub ip: Option<String>,
    /// Whether the kubelet says that it can serve.
    pub ready: bool,
    /// Whether it has been up: then it may only be unready for a moment.
    pub started: bool,
    /// Whether it is being deleted.
    pub leaving: bool,
}

/// An InferenceObjective: a priority by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objective {
    /// The InferencePool whose requests may name it.
    pub pool: String,
    /// Higher is served first; below zero is sheddable.
    pub priority: i32,
    /// Whether the object is being deleted.
    pub leaving: bool,
}

/// The replicas of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Those that take requests.
    pub serving: Vec<Endpoint>,
    /// Those that take none and are watched, so that they are known when they can again.
    pub resting: Vec<Endpoint>,
}

/// The replicas of this pool, of which there may be none. A pool that selects by no label has no pod: it
/// would have all.
pub fn members(pool: Option<&InferencePool>, pods: &BTreeMap<String, AnyPod>) -> Members {
    let mut members = Members::default();
    let Some(pool) = pool.filter(|pool| !pool.leaving && !pool.labels.is_empty()) else {
        return members;
    };
    let is_selected =
        |pod: &AnyPod| pool.labels.iter().all(|(name, value)| pod.labels.get(name) == Some(value));
    for (name, pod) in pods.iter().filter(|(_, pod)| !pod.leaving && is_selected(pod)) {
        let Some(ip) = &pod.ip else { continue };
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        let list = match (pod.ready, pod.started) {
            (true, _) => &mut members.serving,
            (false, true) => &mut members.resting,
            (false, false) => continue,
        };
        for port in &pool.ports {
            let name = if pool.ports.len() == 1 { name.clone() } else { format!("{name}:{port}") };
            list.push(Endpoint::new(name, format!("http://{host}:{port}")));
        }
    }
    members
}

/// The priorities that requests may name: those of this pool, or all where none is followed.
pub fn priorities(objectives: &BTreeMap<String, Objective>, pool: Option<&str>) -> BTreeMap<String, i32> {
    let counts =
        |objective: &&Objective| !objective.leaving && pool.is_none_or(|pool| pool == objective.pool);
    let named = |(name, objective): (&String, &Objective)| (name.clone(), objective.priority);
    objectives.iter().filter(|(_, objective)| counts(objective)).map(named).collect()
}

/// Labels by which the pods of one Deployment or StatefulSet differ, or those of two versions of it.
const OWN: &[&str] = &[
    "pod-template-hash",
    "controller-revision-hash",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "app.kubernetes.io/version",
    "helm.sh/chart",
];

/// The schedulers among these pods that serve beside the pod of this name. Where `alike`, the pods are not
/// only schedulers: then they are those with its labels, and none when it is not known.
pub fn peers(pods: &BTreeMap<String, AnyPod>, own: Option<&str>, alike: bool) -> Vec<String> {
    fn labels(pod: &AnyPod) -> impl Iterator<Item = (&String, &String)> {
        pod.labels.iter().filter(|(name, _)| !OWN.contains(&name.as_str()))
    }
    let this = own.and_then(|own| pods.get(own)).filter(|pod| labels(pod).next().is_some());
    let is_scheduler = |pod: &AnyPod| !alike || this.is_some_and(|this| labels(this).eq(labels(pod)));
    let serves = |name: &str, pod: &AnyPod| pod.ready && !pod.leaving && Some(name) != own;
    let others = pods.iter().filter(|(name, pod)| serves(name, pod) && is_scheduler(pod));
    others.map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn pool(ports: &[u16]) -> InferencePool {
        InferencePool { labels: labels(&[("app", "vllm")]), ports: ports.to_vec(), leaving: false }
    }

    fn pod(ip: &str) -> AnyPod {
        AnyPod {
            labels: labels(&[("app", "vllm"), ("more", "yes")]),
            ip: Some(ip.to_owned()),
            ready: true,
            started: true,
            leaving: false,
        }
    }

    #[test]
    fn ready_pods_with_the_pools_labels_are_its_replicas() {
        let pods: BTreeMap<String, AnyPod> = [
            ("a", pod("10.0.0.1")),
            ("b-six", pod("fd00::7")),
            ("c-other", AnyPod { labels: labels(&[("app", "other")]), ..pod("10.0.0.2") }),
            ("d-rests", AnyPod { ready: false, ..pod("10.0.0.3") }),
            ("e-starts", AnyPod { ready: false, started: false, ..pod("10.0.0.4") }),
            ("f-leaves", AnyPod { leaving: true, ..pod("10.0.0.5") }),
            ("g-has-no-address", AnyPod { ip: None, ..pod("") }),
        ]
        .map(|(name, pod)| (name.to_owned(), pod))
        .into();
        let urls = |list: &[Endpoint]| -> Vec<String> {
            list.iter().map(|endpoint| format!("{} {}", endpoint.name, endpoint.url)).collect()
        };
        let found = members(Some(&pool(&[8000])), &pods);
        assert_eq!(urls(&found.serving), ["a http://10.0.0.1:8000", "b-six http://[fd00::7]:8000"]);
        assert_eq!(urls(&found.resting), ["d-rests http://10.0.0.3:8000"]);
        let two = members(Some(&pool(&[8000, 8001])), &pods);
        assert_eq!(urls(&two.serving)[..2], ["a:8000 http://10.0.0.1:8000", "a:8001 http://10.0.0.1:8001"]);
        let all = InferencePool { labels: BTreeMap::new(), ..pool(&[8000]) };
        let leaving = InferencePool { leaving: true, ..pool(&[8000]) };
        for none in [None, Some(&all), Some(&leaving)] {
            assert_eq!(members(none, &pods), Members::default());
        }
    }

    #[test]
    fn only_a_pools_own_priorities_are_its_requests() {
        let objective = |pool: &str, priority| Objective { pool: pool.to_owned(), priority, leaving: false };
        let all: BTreeMap<String, Objective> = [
            ("batch", objective("llama", -1)),
            ("gold", objective("other", 7)),
            ("gone", Objective { leaving: true, ..objective("llama", 3) }),
        ]
        .map(|(name, objective)| (name.to_owned(), objective))
        .into();
        let named = |pool| priorities(&all, pool).into_iter().collect::<Vec<_>>();
        assert_eq!(named(Some("llama")), [("batch".to_owned(), -1)]);
        assert_eq!(named(None), [("batch".to_owned(), -1), ("gold".to_owned(), 7)]);
    }

    #[test]
    fn schedulers_are_those_that_are_labelled_as_this_one() {
        let picker = |hash: &str| AnyPod {
            labels: labels(&[("app", "picker"), ("pod-template-hash", hash)]),
            ..pod("10.0.0.1")
        };
        let pods: BTreeMap<String, AnyPod> = [
            ("p-0", picker("a")),
            ("p-1", picker("a")),
            ("p-2-of-another-version", picker("b")),
            ("p-3-starts", AnyPod { ready: false, ..picker("a") }),
            ("p-4-leaves", AnyPod { leaving: true, ..picker("a") }),
            ("vllm", pod("10.0.0.2")),
        ]
        .map(|(name, pod)| (name.to_owned(), pod))
        .into();
        assert_eq!(peers(&pods, Some("p-0"), true), ["p-1", "p-2-of-another-version"]);
        assert_eq!(peers(&pods, Some("p-3-starts"), true).len(), 3);
        assert!(peers(&pods, Some("elsewhere"), true).is_empty() && peers(&pods, None, true).is_empty());
        assert_eq!(peers(&pods, Some("p-0"), false), ["p-1", "p-2-of-another-version", "vllm"]);
        let bare: BTreeMap<String, AnyPod> =
            ["a", "b"].map(|name| (name.to_owned(), AnyPod { labels: BTreeMap::new(), ..pod("::1") })).into();
        assert!(peers(&bare, Some("a"), true).is_empty(), "what has no labels is like anything");
    }
}
