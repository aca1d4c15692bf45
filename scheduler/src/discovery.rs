//! From what a namespace holds to what is routed to. Pure: models and pods in, lists out.

use std::collections::BTreeMap;

use strata_wire::replicas::{
    Affinity, Endpoint, Endpoints, KvEvents, ModelEndpoints, Objectives, Policy, Role, Track,
};

/// A ModelDeployment, as far as routing needs it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// The name that requests ask for.
    pub served: String,
    /// Those of the adapters that its pods serve beside it.
    pub adapters: Vec<String>,
    /// When the object was made, in seconds since 1970.
    pub created: i64,
    /// Whether the object is being deleted.
    pub leaving: bool,
    /// Weights of the scorers, by name.
    pub weights: BTreeMap<String, f64>,
    /// What its requests aim at.
    pub objectives: Objectives,
    /// How a replica is picked, if it says so.
    pub policy: Option<Policy>,
    /// Percent of the requests for pods of the canary track.
    pub canary_percent: Option<u8>,
    /// What leans its requests toward some replicas.
    pub affinity: Affinity,
}

/// An engine pod, as far as routing needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
// Each is a fact of its own.
#[allow(clippy::struct_excessive_bools)]
pub struct Pod {
    /// The object name of its ModelDeployment.
    pub model: String,
    /// The adapters that it serves: in the midst of a change pods of one model differ.
    pub adapters: Vec<String>,
    /// Which revision it runs.
    pub track: Track,
    /// What part of a request it does.
    pub role: Role,
    /// Who can use what it makes of a prompt, as [`Endpoint::handover`].
    pub handover: Option<String>,
    /// Where it publishes what its KV cache holds, as [`Endpoint::kv_events`].
    pub kv_events: Option<KvEvents>,
    /// Where it listens, such as `10.0.0.1:8000`, once it has an address.
    pub authority: Option<String>,
    /// Whether it speaks TLS there: pods of one model may differ while a cluster changes over.
    pub tls: bool,
    /// Whether the kubelet says that it can serve.
    pub ready: bool,
    /// Whether it has been up: then it may only be unready for a moment.
    pub started: bool,
    /// Whether it is being deleted.
    pub leaving: bool,
}

/// What is routed to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Every model, those without a pod too, and the pods that take its requests or prompts.
    pub endpoints: Endpoints,
    /// Pods that take none and are watched, so that they are known when they can again.
    pub resting: Vec<Endpoint>,
}

/// The lists for these models and pods, each by its object's name. Of two models that serve one name
/// the older wins; of two of the same second, the one whose object's name comes first. `secured` tells
/// that this scheduler has a certificate to show.
pub fn find(models: &BTreeMap<String, Model>, pods: &BTreeMap<String, Pod>, secured: bool) -> Found {
    let mut served: BTreeMap<&str, (&String, &Model)> = BTreeMap::new();
    for (object, model) in models.iter().filter(|(_, model)| !model.leaving) {
        let older = |(_, other): &(&String, &Model)| other.created <= model.created;
        for name in std::iter::once(&model.served).chain(&model.adapters) {
            if !served.get(&**name).is_some_and(older) {
                served.insert(name, (object, model));
            }
        }
    }

    let mut found = Found::default();
    for (name, (_, model)) in &served {
        let listed = ModelEndpoints {
            replicas: Vec::new(),
            weights: model.weights.clone(),
            policy: model.policy,
            objectives: model.objectives,
            canary_percent: model.canary_percent,
            affinity: model.affinity.clone(),
        };
        found.endpoints.models.insert((*name).to_owned(), listed);
    }
    for (name, pod) in pods.iter().filter(|(_, pod)| !pod.leaving) {
        let (Some(model), Some(authority)) = (models.get(&pod.model), &pod.authority) else { continue };
        let adapters = model.adapters.iter().filter(|adapter| pod.adapters.contains(adapter));
        let is_its = |name: &&String| served.get(&***name).is_some_and(|(object, _)| **object == pod.model);
        let names: Vec<&String> = std::iter::once(&model.served).chain(adapters).filter(is_its).collect();
        if names.is_empty() {
            continue;
        }
        let scheme = if secured && pod.tls { "https" } else { "http" };
        let url = format!("{scheme}://{authority}");
        let (name, handover) = (name.clone(), pod.handover.clone());
        let kv_events = pod.kv_events.clone();
        let endpoint = Endpoint { name, url, track: pod.track, role: pod.role, handover, kv_events };
        if pod.ready {
            for name in names {
                if let Some(listed) = found.endpoints.models.get_mut(name) {
                    listed.replicas.push(endpoint.clone());
                }
            }
        } else if pod.started {
            found.resting.push(endpoint);
        }
    }
    found
}

/// A list that is kept up to date by changes, and made anew by a whole list that takes the old one's
/// place when it is complete.
#[derive(Clone, Debug)]
pub struct Kept<T> {
    current: BTreeMap<String, T>,
    coming: Option<BTreeMap<String, T>>,
    whole: bool,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { current: BTreeMap::new(), coming: None, whole: false }
    }
}

/// What happens to a [`Kept`] list.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<T> {
    /// A whole list begins. One that had begun is given up.
    Begin,
    /// An object of it.
    Listed(String, T),
    /// An object of it that cannot be read.
    ListedMalformed(String),
    /// It is complete.
    Whole,
    /// An object is new or has changed.
    Set(String, T),
    /// An object has changed to what cannot be read: its last good state stays.
    Malformed(String),
    /// An object is gone.
    Gone(String),
}

impl<T: Clone> Kept<T> {
    /// Takes over a change.
    pub fn take(&mut self, change: Change<T>) {
        match change {
            Change::Begin => self.coming = Some(BTreeMap::new()),
            Change::Listed(name, object) => {
                self.coming.get_or_insert_default().insert(name, object);
            }
            Change::ListedMalformed(name) => {
                if let Some(last) = self.current.get(&name).cloned() {
                    self.coming.get_or_insert_default().insert(name, last);
                }
            }
            Change::Whole => {
                self.current = self.coming.take().unwrap_or_default();
                self.whole = true;
            }
            Change::Set(name, object) => {
                self.current.insert(name, object);
            }
            Change::Malformed(_) => {}
            Change::Gone(name) => {
                self.current.remove(&name);
            }
        }
    }

    /// Whether there has been a whole list.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The objects by name.
    pub fn objects(&self) -> &BTreeMap<String, T> {
        &self.current
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model(served: &str, created: i64) -> Model {
        Model { served: served.to_owned(), created, ..Model::default() }
    }

    fn pod(model: &str, host: u8) -> Pod {
        Pod {
            model: model.to_owned(),
            authority: Some(format!("10.0.0.{host}:8000")),
            ready: true,
            started: true,
            ..Pod::default()
        }
    }

    fn named<T>(objects: Vec<(&str, T)>) -> BTreeMap<String, T> {
        objects.into_iter().map(|(name, object)| (name.to_owned(), object)).collect()
    }

    #[test]
    fn ready_pods_that_stay_are_routed_to() {
        let models = named(vec![
            (
                "llama",
                Model {
                    weights: [("prefix".to_owned(), 70.0)].into(),
                    policy: Some(Policy::RoundRobin),
                    canary_percent: Some(20),
                    ..model("meta/llama", 1)
                },
            ),
            ("sleepy", model("sleepy", 2)),
        ]);
        let pods = named(vec![
            ("a", pod("llama", 1)),
            ("b-leaves", Pod { leaving: true, ..pod("llama", 2) }),
            ("c-starts", Pod { ready: false, started: false, ..pod("llama", 3) }),
            ("d-rests", Pod { ready: false, ..pod("llama", 4) }),
            ("e-has-no-address", Pod { authority: None, ..pod("llama", 5) }),
            ("f-canary", Pod { track: Track::Canary, ..pod("llama", 6) }),
            ("g-of-nobody", pod("gone", 7)),
            ("h-prefill", Pod { role: Role::Prefill, ..pod("llama", 8) }),
        ]);
        insta::assert_json_snapshot!(find(&models, &pods, false).endpoints, @r#"
        {
          "models": {
            "meta/llama": {
              "replicas": [
                {
                  "name": "a",
                  "url": "http://10.0.0.1:8000"
                },
                {
                  "name": "f-canary",
                  "url": "http://10.0.0.6:8000",
                  "track": "canary"
                },
                {
                  "name": "h-prefill",
                  "url": "http://10.0.0.8:8000",
                  "role": "prefill"
                }
              ],
              "weights": {
                "prefix": 70.0
              },
              "policy": "round-robin",
              "canary_percent": 20
            },
            "sleepy": {
              "replicas": [],
              "weights": {}
            }
          }
        }
        "#);
        let resting: Vec<String> = find(&models, &pods, false).resting.into_iter().map(|e| e.name).collect();
        assert_eq!(resting, ["d-rests"]);
    }

    #[test]
    fn adapters_are_asked_for_where_they_are() {
        let has = |adapters: &[&str]| adapters.iter().map(ToString::to_string).collect::<Vec<_>>();
        let models = named(vec![
            ("a", Model { adapters: has(&["sql", "fr"]), ..model("m", 1) }),
            ("b", Model { adapters: has(&["fr", "de"]), ..model("n", 2) }),
            ("c", model("de", 3)),
        ]);
        let pods = named(vec![
            ("a-new", Pod { adapters: has(&["sql", "fr"]), ..pod("a", 1) }),
            ("a-old", Pod { adapters: has(&["sql", "gone"]), ..pod("a", 2) }),
            ("a-rests", Pod { adapters: has(&["sql"]), ready: false, ..pod("a", 3) }),
            ("b-0", Pod { adapters: has(&["fr", "de"]), ..pod("b", 4) }),
            ("c-0", pod("c", 5)),
        ]);
        let found = find(&models, &pods, false);
        let names = |list: &ModelEndpoints| list.replicas.iter().map(|e| e.name.clone()).collect::<Vec<_>>();
        let lists: Vec<(&str, String)> = found
            .endpoints
            .models
            .iter()
            .map(|(name, list)| (name.as_str(), names(list).join(" ")))
            .collect();
        let listed: Vec<(&str, &str)> = lists.iter().map(|(name, list)| (*name, list.as_str())).collect();
        assert_eq!(
            listed,
            [("de", "b-0"), ("fr", "a-new"), ("m", "a-new a-old"), ("n", "b-0"), ("sql", "a-new a-old")],
            "the older one's names hold"
        );
        assert_eq!(found.resting.len(), 1, "once, whatever it serves");
        let asleep = find(&models, &BTreeMap::new(), false);
        assert!(asleep.endpoints.models["sql"].replicas.is_empty(), "it is known, and can be waited for");
    }

    #[test]
    fn the_older_of_two_models_serves_the_name() {
        let mut models = named(vec![("a-younger", model("m", 9)), ("b-older", model("m", 3))]);
        let pods = named(vec![("young", pod("a-younger", 1)), ("old", pod("b-older", 2))]);
        let serving = |models: &BTreeMap<String, Model>| {
            let found = find(models, &pods, false);
            found.endpoints.models["m"].replicas.iter().map(|e| e.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(serving(&models), ["old"]);
        models.get_mut("b-older").unwrap().leaving = true;
        assert_eq!(serving(&models), ["young"]);
        models.insert("b-older".to_owned(), model("m", 9));
        assert_eq!(serving(&models), ["young"], "of the same age: the first by name");
    }

    #[test]
    fn with_certificates_engines_that_have_some_are_called_by_tls() {
        let models = named(vec![("m", model("m", 1))]);
        let pods = named(vec![("a", Pod { tls: true, ..pod("m", 1) }), ("b", pod("m", 2))]);
        let urls = |secured| -> Vec<String> {
            let found = find(&models, &pods, secured).endpoints.models.remove("m").unwrap();
            found.replicas.into_iter().map(|replica| replica.url).collect()
        };
        assert_eq!(urls(true), ["https://10.0.0.1:8000", "http://10.0.0.2:8000"]);
        assert_eq!(urls(false), ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
    }

    #[test]
    fn a_whole_list_takes_the_old_ones_place_only_when_complete() {
        let mut kept = Kept::default();
        let set = |name: &str, value: i32| Change::Set(name.to_owned(), value);
        for change in [Change::Begin, Change::Listed("a".to_owned(), 1), Change::Listed("b".to_owned(), 2)] {
            kept.take(change);
            assert!(!kept.is_whole() && kept.objects().is_empty());
        }
        kept.take(Change::Whole);
        kept.take(set("c", 3));
        kept.take(Change::Gone("a".to_owned()));
        kept.take(Change::Malformed("b".to_owned()));
        assert_eq!(kept.objects(), &named(vec![("b", 2), ("c", 3)]));
        // The connection broke in the middle of a list: it begins again.
        kept.take(Change::Begin);
        kept.take(Change::Listed("x".to_owned(), 9));
        assert_eq!(kept.objects(), &named(vec![("b", 2), ("c", 3)]));
        kept.take(Change::Begin);
        kept.take(Change::ListedMalformed("c".to_owned()));
        kept.take(Change::ListedMalformed("unknown".to_owned()));
        kept.take(Change::Whole);
        assert!(kept.is_whole());
        assert_eq!(kept.objects(), &named(vec![("c", 3)]));
    }

    fn any_pod() -> impl Strategy<Value = Pod> {
        ("[a-c]", any::<[bool; 5]>(), 0u8..9).prop_map(
            |(model, [ready, started, leaving, canary, tls], host)| Pod {
                tls,
                track: if canary { Track::Canary } else { Track::Stable },
                role: if host % 3 == 2 { Role::Prefill } else { Role::Decode },
                handover: None,
                kv_events: None,
                adapters: Vec::new(),
                authority: (host > 0).then(|| format!("10.0.0.{host}:8000")),
                model,
                ready,
                started,
                leaving,
            },
        )
    }

    proptest! {
        /// Whatever the namespace holds: only pods that are ready, stay and have an address are routed
        /// to, each for the one model that it belongs to, and every model that stays is known.
        #[test]
        fn only_pods_that_can_serve(
            pods in prop::collection::btree_map("[a-z]{1,3}", any_pod(), 0..12),
            models in prop::collection::btree_map(
                "[a-c]",
                ("[x-z]", 0i64..3, any::<bool>())
                    .prop_map(|(served, created, leaving)| Model { leaving, ..model(&served, created) }),
                0..4,
            ),
            secured: bool,
        ) {
            let found = find(&models, &pods, secured);
            for (name, listed) in &found.endpoints.models {
                let owners: Vec<_> = models.iter().filter(|(_, m)| !m.leaving && m.served == *name).collect();
                let oldest = owners.iter().map(|(_, m)| m.created).min().unwrap();
                for replica in &listed.replicas {
                    let pod = &pods[&replica.name];
                    let scheme = if secured && pod.tls { "https://" } else { "http://" };
                    prop_assert!(pod.ready && !pod.leaving && replica.url.strip_prefix(scheme) == pod.authority.as_deref());
                    prop_assert_eq!(models[&pod.model].created, oldest);
                    prop_assert_eq!(&models[&pod.model].served, name);
                    prop_assert_eq!(pod.track, replica.track);
                }
            }
            for model in models.values().filter(|m| !m.leaving) {
                prop_assert!(found.endpoints.models.contains_key(&model.served));
            }
            prop_assert!(found.resting.iter().all(|e| !pods[&e.name].ready && !pods[&e.name].leaving));
        }
    }
}
