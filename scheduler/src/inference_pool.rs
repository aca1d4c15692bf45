//! From an InferencePool of the Gateway API and the pods of its namespace to replicas. Pure.

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
}
