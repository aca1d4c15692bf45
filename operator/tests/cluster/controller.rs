//! What Kubernetes makes of Deployments: its rolling update, its scheduler and its kubelet, as far as
//! decisions depend on them.

use serde_json::Value;

use super::world::{GPU, Phase, SimDeployment, SimPod, World};

/// Seconds that a pod takes to go.
const GRACE: u32 = 2;

impl World {
    /// One step of everything, and a second. Returns whether anything moved.
    pub fn kubernetes(&mut self) -> bool {
        let before = format!("{:?}{:?}", self.deployments, self.pods);
        self.deployments_step();
        self.replica_sets_step();
        self.schedule_step();
        self.kubelet_step();
        self.now += 1;
        before != format!("{:?}{:?}", self.deployments, self.pods)
    }

    fn track_of(name: &str) -> &'static str {
        match name {
            "a-engine-canary" => "canary",
            "a-engine-prefill" => "prefill",
            _ => "stable",
        }
    }

    /// Pods of a set that serve.
    fn available(&self, track: &str, revision: &str) -> i32 {
        let is = |p: &&SimPod| p.track == track && p.revision == revision && p.stays() && p.is_ready();
        self.pods.iter().filter(is).count() as i32
    }

    fn deployments_step(&mut self) {
        let names: Vec<String> = self.deployments.keys().cloned().collect();
        for name in names {
            let track = Self::track_of(&name);
            let mut live = self.deployments[&name].clone();
            let available = |revision: &str| self.available(track, revision);
            roll(&mut live, &available);
            self.deployments.insert(name, live);
        }
        let tracks: Vec<&str> = self.deployments.keys().map(|n| Self::track_of(n)).collect();
        for pod in &mut self.pods {
            if pod.stays() && !tracks.contains(&pod.track.as_str()) {
                pod.leaving = Some(GRACE);
            }
        }
    }

    fn replica_sets_step(&mut self) {
        let wanted: Vec<(String, String, i32)> = self
            .deployments
            .iter()
            .flat_map(|(name, live)| {
                live.sets
                    .iter()
                    .map(|(r, n)| (Self::track_of(name).to_owned(), r.clone(), *n))
                    .collect::<Vec<_>>()
            })
            .collect();
        for pod in self.pods.iter_mut().filter(|p| p.stays()) {
            if !wanted.iter().any(|(track, revision, _)| pod.track == *track && pod.revision == *revision) {
                pod.leaving = Some(GRACE);
            }
        }
        for (track, revision, wanted) in wanted {
            let mut there: Vec<usize> = (0..self.pods.len())
                .filter(|i| {
                    let p = &self.pods[*i];
                    p.track == track && p.revision == revision && p.stays()
                })
                .collect();
            // Those that do not serve go first, then the youngest.
            there.sort_by_key(|i| (self.pods[*i].is_ready(), std::cmp::Reverse(*i)));
            let surplus = (there.len() as i32 - wanted).max(0) as usize;
            for index in there.iter().take(surplus) {
                self.pods[*index].leaving = Some(GRACE);
            }
            for _ in there.len() as i32..wanted {
                let name = match track.as_str() {
                    "stable" => "a-engine".to_owned(),
                    other => format!("a-engine-{other}"),
                };
                let refuses = self.quota.is_some_and(|quota| self.pods.len() >= quota);
                if let Some(live) = self.deployments.get_mut(&name) {
                    live.refusal =
                        refuses.then(|| "pods \"x\" is forbidden: exceeded quota: pods".to_owned());
                }
                if refuses {
                    break;
                }
                self.made += 1;
                self.pods.push(SimPod {
                    name: format!("{name}-{revision}-{}", self.made),
                    track: track.clone(),
                    revision: revision.clone(),
                    phase: Phase::Pending,
                    leaving: None,
                    says: None,
                });
            }
        }
    }

    fn schedule_step(&mut self) {
        for index in 0..self.pods.len() {
            let used = self.pods.iter().filter(|p| p.is_placed()).count();
            let room = self.devices.is_none_or(|devices| used < devices);
            let pod = &mut self.pods[index];
            match pod.phase {
                Phase::Pending | Phase::Unschedulable(_) if !pod.stays() => {}
                Phase::Pending | Phase::Unschedulable(_) if room => pod.phase = Phase::Loading,
                Phase::Pending => pod.phase = Phase::Unschedulable(self.now),
                _ => {}
            }
        }
    }

    fn kubelet_step(&mut self) {
        let bad: Vec<String> = self
            .revisions
            .iter()
            .filter(|r| {
                let template = &r.data.as_ref().unwrap().0["template"];
                let env = template["spec"]["containers"][0]["env"].as_array().unwrap();
                env.iter().any(|v| v["name"] == "V" && self.bad.contains(v["value"].as_str().unwrap()))
            })
            .map(|r| r.metadata.name.as_deref().unwrap().rsplit('-').next().unwrap().to_owned())
            .collect();
        for pod in &mut self.pods {
            if let Some(left) = pod.leaving {
                pod.leaving = Some(left.saturating_sub(1));
            }
            if pod.phase == Phase::Loading && pod.stays() && pod.says.is_none() {
                pod.phase =
                    if bad.contains(&pod.revision) { Phase::Crashing } else { Phase::Ready(self.now) };
            }
        }
        self.pods.retain(|p| p.leaving != Some(0));
    }
}

/// A number or a share of `of`.
pub fn resolve(share: &Value, of: i32, up: bool) -> i32 {
    match share {
        Value::String(text) => {
            let percent: i32 = text.trim_end_matches('%').parse().unwrap();
            if up { (of * percent + 99) / 100 } else { of * percent / 100 }
        }
        other => other.as_i64().unwrap() as i32,
    }
}

/// Surge and unavailability of a Deployment, as Kubernetes resolves them.
pub fn bounds(live: &SimDeployment) -> (i32, i32) {
    let rolling = &live.object["spec"]["strategy"]["rollingUpdate"];
    let surge = resolve(&rolling["maxSurge"], live.replicas, true);
    let unavailable = resolve(&rolling["maxUnavailable"], live.replicas, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// The rolling update of Kubernetes' Deployment controller.
fn roll(live: &mut SimDeployment, available: &dyn Fn(&str) -> i32) {
    let (surge, unavailable) = bounds(live);
    let (wanted, new) = (live.replicas, live.revision());
    live.sets.entry(new.clone()).or_insert(0);
    let total = |sets: &std::collections::BTreeMap<String, i32>| sets.values().sum::<i32>();
    let old: Vec<String> = live.sets.keys().filter(|r| **r != new).cloned().collect();
    // Only another number of replicas cuts sets at once; those go first that serve least.
    if live.seen_replicas != Some(wanted) || live.sets.len() == 1 {
        let rolling = live.sets.len() > 1 && wanted > 0;
        let mut surplus = total(&live.sets) - if rolling { wanted + surge } else { wanted };
        let mut order: Vec<String> = live.sets.keys().cloned().collect();
        order.sort_by_key(|r| available(r));
        for revision in order {
            let size = live.sets.get_mut(&revision).unwrap();
            let cut = surplus.clamp(0, *size);
            *size -= cut;
            surplus -= cut;
        }
        live.seen_replicas = Some(wanted);
    }
    let room = (wanted + surge - total(&live.sets)).max(0);
    let missing = (wanted - live.sets[&new]).max(0);
    *live.sets.get_mut(&new).unwrap() += room.min(missing);

    let least = wanted - unavailable;
    let new_unavailable = live.sets[&new] - available(&new);
    let mut may_go = total(&live.sets) - least - new_unavailable;
    for revision in &old {
        let size = live.sets.get_mut(revision).unwrap();
        let broken = *size - available(revision);
        let cut = may_go.clamp(0, broken.max(0));
        *size -= cut;
        may_go -= cut;
    }
    let mut spare = live.sets.keys().map(|r| available(r).min(live.sets[r])).sum::<i32>() - least;
    for revision in &old {
        let size = live.sets.get_mut(revision).unwrap();
        let cut = spare.clamp(0, (*size).min(available(revision)));
        *size -= cut;
        spare -= cut;
    }
    live.sets.retain(|revision, size| *size > 0 || *revision == new);
}

#[test]
fn shares_are_resolved_as_kubernetes_does() {
    assert_eq!(resolve(&Value::from("25%"), 10, true), 3);
    assert_eq!(resolve(&Value::from("25%"), 10, false), 2);
    assert_eq!(resolve(&Value::from(2), 10, false), 2);
    assert_eq!(GPU, "nvidia.com/gpu");
}
