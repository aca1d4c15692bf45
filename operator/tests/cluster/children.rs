//! What is applied, frozen: for each runtime, each source of a model, and what a namespace shares.

use std::path::PathBuf;

use serde_json::{Value, json};
use strata_operator::Mode;
use strata_operator::cluster::{
    Capabilities, Child, ClusterSite, MANAGED_LABEL, NamespaceSeen, Picker, Trust, namespace_step, workload,
};

use super::world::World;

const MODEL_LABEL: &str = "strata.dev/model-deployment";

fn children(world: &World) -> Vec<Child> {
    world.decide().unwrap().apply
}

/// The objects, without the recorded template, which is that of the Deployment.
fn objects(world: &World) -> Vec<Value> {
    let shown = children(world).into_iter().filter(|c| c.key().kind != "ControllerRevision");
    shown.map(|c| c.object).collect()
}

fn of_kind(world: &World, kind: &str) -> Value {
    objects(world).into_iter().find(|o| o["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

fn pod(world: &World) -> Value {
    of_kind(world, "Deployment")["spec"]["template"]["spec"].clone()
}

fn everything() -> Capabilities {
    Capabilities::found(|_| true, true)
}

fn full() -> World {
    let mut world = World::new(json!({
        "model": {
            "name": "meta/llama-3:8b", "uri": "hf://meta-llama/Llama-3.1-8B-Instruct", "revision": "main",
            "credentialsSecretRef": { "name": "hf-token" }, "cache": { "claimName": "models" },
        },
        "engine": {
            "runtime": "Vllm", "image": "vllm/vllm-openai:v0.11.0", "maxModelLen": 8192, "threads": 8,
            "kvCache": { "memory": "20Gi", "prefixCaching": true }, "args": ["--enable-auto-tool-choice"],
        },
        "parallelism": { "tensor": 2, "pipeline": 2, "data": 1 },
        "autoscaling": { "min": 0, "max": 4, "targetKvUsage": 75, "targetWaiting": 3 },
        "rollout": { "maxSurge": "25%", "maxUnavailable": 0 },
        "podTemplate": {
            "labels": { "team": "a" }, "annotations": { "b": "c" }, "runtimeClassName": "nvidia",
            "priorityClassName": "high", "serviceAccountName": "models",
            "imagePullSecrets": [{ "name": "registry" }],
            "tolerations": [{ "key": GPU, "operator": "Exists" }],
            "resources": { "requests": { "cpu": "4" }, "limits": { "memory": "64Gi" } },
            "env": [{ "name": "HF_HUB_OFFLINE", "value": "0" }],
        },
    }));
    world.site.capabilities = everything();
    world.site.gateway = Some("infra/public".into());
    world.site.picker = Some(proxies());
    world.site.image_pull_secrets = vec!["strata-registry".into()];
    world.site.image_pull_policy = Some("IfNotPresent".into());
    world
}

const GPU: &str = super::world::GPU;

fn proxies() -> Picker {
    let envoys = r#"[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"infra"}}}]"#;
    envoys.parse().unwrap()
}

#[test]
fn a_canary() {
    let mut world = World::new(json!({ "replicas": 4, "rollout": { "canary": { "weight": 30 } } }));
    world.settle();
    world.edit(json!({ "engine": { "maxModelLen": 64 } }));
    let deployments: Vec<Value> = objects(&world)
        .into_iter()
        .filter(|o| o["kind"] == "Deployment")
        .map(|mut o| {
            o["spec"]["template"]["spec"] =
                json!({ "args": o["spec"]["template"]["spec"]["containers"][0]["args"] });
            o
        })
        .collect();
    insta::assert_yaml_snapshot!(deployments);
}

#[test]
fn each_source_of_a_model() {
    let hex = "0123456789abcdef".repeat(4);
    let uris = [
        "/models/m.gguf".to_owned(),
        "file:///models/llama".to_owned(),
        "pvc://claim/path/m.gguf".to_owned(),
        "hf://owner/name".to_owned(),
        "hf://owner/name/m.gguf@v1".to_owned(),
        format!("oci://registry:5000/models/m@sha256:{hex}"),
        "s3://bucket/models/m/".to_owned(),
        format!("https://host:8443/m.gguf#sha256={hex}"),
    ];
    let shown: Vec<Value> = uris
        .iter()
        .map(|uri| {
            let world = World::new(json!({ "model": { "name": "m", "uri": uri } }));
            let pod = pod(&world);
            let main = &pod["containers"][0];
            let policy = objects(&world).into_iter().find(|o| o["kind"] == "NetworkPolicy");
            json!({
                "uri": uri, "args": main["args"], "mounts": main["volumeMounts"], "volumes": pod["volumes"],
                "fetch": pod["initContainers"][0]["args"],
                "egress": policy.map(|p| p["spec"]["egress"].as_array().unwrap().iter().map(|e| e["ports"].clone()).collect::<Vec<_>>()),
            })
        })
        .collect();
    insta::assert_yaml_snapshot!(shown);
}

/// What a pod is made of that serves adapters, by where the model and they are.
#[test]
fn adapters_beside_each_source_of_a_model() {
    let adapters = json!([
        { "name": "team/sql", "uri": "hf://team/sql@v2", "credentialsSecretRef": { "name": "hub" } },
        { "name": "fr", "uri": "pvc://models/lora/fr" },
        { "name": "de", "uri": "pvc://others/de,r=8" },
        { "name": "es", "uri": "file:///adapters/es" },
    ]);
    let vllm = json!({ "runtime": "Vllm", "image": "x", "args": ["--max-lora-rank", "64"] });
    let models = [
        (json!({ "name": "m", "uri": "/models/m" }), json!({})),
        (json!({ "name": "m", "uri": "pvc://models/m" }), json!({})),
        (json!({ "name": "m", "uri": "hf://owner/name" }), json!({})),
        (json!({ "name": "m", "uri": "hf://owner/name", "cache": { "claimName": "models" } }), vllm),
    ];
    let shown: Vec<Value> = models
        .iter()
        .map(|(model, engine)| {
            let world = World::new(json!({ "model": model, "engine": engine, "adapters": adapters }));
            let template = of_kind(&world, "Deployment")["spec"]["template"].clone();
            let (pod, main) = (&template["spec"], &template["spec"]["containers"][0]);
            let init: Vec<Value> = pod["initContainers"]
                .as_array()
                .unwrap()
                .iter()
                .map(|c| json!([c["name"], c["args"], c["envFrom"], c["volumeMounts"]]))
                .collect();
            let policy = objects(&world).into_iter().find(|o| o["kind"] == "NetworkPolicy").unwrap();
            json!({
                "uri": model["uri"], "args": main["args"], "mounts": main["volumeMounts"],
                "volumes": pod["volumes"], "init": init, "serves": template["metadata"]["annotations"],
                "egress": policy["spec"]["egress"][1]["ports"],
            })
        })
        .collect();
    insta::assert_yaml_snapshot!(shown);
}

#[test]
fn another_adapter_is_another_revision() {
    let mut world = World::new(json!({ "adapters": [{ "name": "a", "uri": "/a" }] }));
    let revision = |world: &World| {
        of_kind(world, "Deployment")["spec"]["template"]["metadata"]["labels"]["strata.dev/revision"].clone()
    };
    let first = revision(&world);
    world.edit(json!({ "adapters": [{ "name": "a", "uri": "/b" }] }));
    let second = revision(&world);
    assert_ne!(first, second, "where it is");
    world.edit(json!({ "adapters": [{ "name": "b", "uri": "/b" }] }));
    assert_ne!(revision(&world), second, "what it is called");
    let said = json!({ "annotations": { "strata.dev/adapters": "mine" } });
    let plain = World::new(json!({ "podTemplate": said }));
    let template = &of_kind(&plain, "Deployment")["spec"]["template"];
    assert_eq!(template["metadata"].get("annotations"), None, "which there are is for the operator to say");
}

#[test]
fn the_credentials_are_the_fetchers_alone() {
    let pod = pod(&full());
    assert_eq!(pod["initContainers"][0]["envFrom"][0]["secretRef"]["name"], "hf-token");
    assert!(!pod["containers"][0].to_string().contains("hf-token"));
    assert_eq!(pod["initContainers"][0]["name"], "fetch");
}

#[test]
fn devices_are_asked_for_once() {
    let gpus = |spec: Value| {
        let mut world = World::new(json!({ "engine": { "runtime": "Vllm", "image": "x" } }));
        world.edit(spec);
        pod(&world)["containers"][0]["resources"]["limits"][GPU].clone()
    };
    assert_eq!(gpus(json!({})), "1");
    assert_eq!(gpus(json!({ "parallelism": { "tensor": 4, "pipeline": 2 } })), "8");
    let own = json!({ "podTemplate": { "resources": { "limits": { GPU: 2 } } } });
    assert_eq!(gpus(own), "2", "what the user says holds");
    let other = json!({ "podTemplate": { "resources": { "limits": { "amd.com/gpu": 1 } } } });
    assert_eq!(gpus(other), Value::Null, "another device is asked for");
    for network in ["rdma/hca_shared_devices_a", "vpc.amazonaws.com/efa"] {
        let beside = json!({ "podTemplate": { "resources": { "limits": { network: 1 } } } });
        assert_eq!(gpus(beside), "1", "{network} computes nothing");
    }
    let cpu = json!({ "engine": { "runtime": "Vllm", "image": "x", "device": "Cpu" } });
    assert_eq!(gpus(cpu), Value::Null);
}

#[test]
fn loading_has_time_by_its_size() {
    let looks = |spec: Value| {
        let probe = pod(&World::new(spec))["containers"][0]["startupProbe"].clone();
        probe["periodSeconds"].as_u64().unwrap() * probe["failureThreshold"].as_u64().unwrap()
    };
    assert_eq!(looks(json!({})), 600);
    let memory = |memory: &str| json!({ "podTemplate": { "resources": { "limits": { "memory": memory } } } });
    assert_eq!(looks(memory("100G")), 1600);
    let vllm = json!({ "engine": { "runtime": "Vllm", "image": "x" }, "parallelism": { "tensor": 8 } });
    assert_eq!(looks(vllm), 600 + 6400);
    assert_eq!(looks(json!({ "engine": { "startupTimeout": "2h" } })), 7200);
    // Nothing kills an engine that loads: liveness begins after it.
    let pod = pod(&World::new(json!({})));
    assert_eq!(pod["containers"][0]["livenessProbe"]["httpGet"]["path"], "/health");
    assert_eq!(pod["containers"][0]["startupProbe"]["httpGet"]["path"], "/health");
}

#[test]
fn streams_have_their_time() {
    let pod_of = |spec: Value| pod(&World::new(spec));
    let whole = pod_of(json!({}));
    assert_eq!(whole["terminationGracePeriodSeconds"], 30 * 60 + 15);
    assert_eq!(whole["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"], 15);
    let drain = |pod: &Value| {
        let env = pod["containers"][0]["env"].as_array().unwrap().clone();
        env.into_iter().find(|v| v["name"] == "STRATA_DRAIN_GRACE").unwrap()["value"].clone()
    };
    assert_eq!(drain(&whole), "1800");
    let short = pod_of(json!({ "podTemplate": { "terminationGracePeriodSeconds": 75 } }));
    assert_eq!((short["terminationGracePeriodSeconds"].clone(), drain(&short)), (json!(75), json!("60")));
}

#[test]
fn a_namespace_shares_a_scheduler() {
    let mut first = World::new(json!({})).object();
    first.metadata.name = Some("b".into());
    let engines = [workload(&World::new(json!({})).object()), workload(&first)];
    let make = |site: &ClusterSite| namespace_step("models", &engines, &NamespaceSeen::default(), site);
    let site = ClusterSite {
        capabilities: everything(),
        priorities: [0, 10].into(),
        picker: Some(proxies()),
        metrics_namespaces: vec!["monitoring".into()],
        ..ClusterSite::new("strata:1", Mode::Enterprise, "strata")
    };
    let objects: Vec<Value> =
        make(&site).into_iter().filter(|c| c.key().kind != "ControllerRevision").map(|c| c.object).collect();
    insta::assert_yaml_snapshot!(objects);
    assert_eq!(namespace_step("models", &[], &NamespaceSeen::default(), &site), []);
    // A pool without a picker would be refused by every gateway.
    let unasked = make(&ClusterSite { picker: None, ..site.clone() });
    assert!(unasked.iter().all(|c| !c.key().kind.starts_with("Inference")), "{unasked:?}");
    assert!(!format!("{unasked:?}").contains("9002"));
    let development = make(&ClusterSite { mode: Mode::Development, ..site.clone() });
    let kinds: Vec<String> = development.iter().map(|c| c.key().kind).collect();
    assert_eq!(kinds, ["NetworkPolicy"]);

    // A new operator with the same image restarts no scheduler; another image does.
    let image = |children: &[Child]| {
        let deployment = children.iter().find(|c| c.key().kind == "Deployment").unwrap();
        deployment.object["spec"]["template"]["metadata"]["labels"]["strata.dev/revision"].clone()
    };
    let recorded: Vec<_> = make(&site)
        .into_iter()
        .filter(|c| c.key().kind == "ControllerRevision")
        .map(|mut c| {
            c.object["data"]["template"]["spec"]["enableServiceLinks"] = json!(true);
            std::sync::Arc::new(serde_json::from_value(c.object).unwrap())
        })
        .collect();
    let seen = NamespaceSeen { revisions: &recorded };
    let again = namespace_step("models", &engines, &seen, &site);
    let as_recorded = again.iter().find(|c| c.key().kind == "Deployment").unwrap();
    assert_eq!(as_recorded.object["spec"]["template"]["spec"]["enableServiceLinks"], true);
    let upgraded =
        namespace_step("models", &engines, &seen, &ClusterSite { image: "strata:2".into(), ..site.clone() });
    assert_ne!(image(&upgraded), image(&again));
}

#[test]
fn mutual_tls() {
    let mut world = World::new(json!({}));
    world.site.trust = Trust::Mtls;
    let shown = |pod: &Value| {
        let main = &pod["containers"][0];
        json!({ "env": main["env"], "probe": main["readinessProbe"], "mounts": main["volumeMounts"], "volumes": pod["volumes"] })
    };
    let engine = shown(&pod(&world));
    let protocol = of_kind(&world, "Service")["spec"]["ports"][0]["appProtocol"].clone();
    let shared =
        namespace_step("models", &[workload(&world.object())], &NamespaceSeen::default(), &world.site);
    let scheduler = shared.iter().find(|c| c.key().kind == "Deployment").unwrap();
    let scheduler = shown(&scheduler.object["spec"]["template"]["spec"]);
    insta::assert_yaml_snapshot!(json!({ "engine": engine, "service": protocol, "scheduler": scheduler }));
    world.edit(json!({ "engine": { "runtime": "Vllm", "image": "x" } }));
    let foreign = shown(&pod(&world)).to_string();
    assert!(!foreign.contains("hop") && !foreign.contains("HTTPS"), "a foreign engine gets no credential");
    assert_eq!(of_kind(&world, "Service")["spec"]["ports"][0]["appProtocol"], "http");
}

#[test]
fn development_has_one_address() {
    let mut world = World::new(json!({}));
    world.site.mode = Mode::Development;
    let services: Vec<String> =
        children(&world).iter().filter(|c| c.key().kind == "Service").map(|c| c.name().to_owned()).collect();
    assert_eq!(services, ["a-engine", "strata-model"]);
}

/// PodSecurity's profile `restricted`, for all that is rendered.
#[test]
fn nothing_that_runs_is_privileged() {
    let custom = json!({ "engine": { "runtime": "Custom", "image": "x" }, "podTemplate": { "resources": { "limits": { GPU: 1 } } } });
    for world in [World::new(json!({})), full(), World::new(custom)] {
        let shared =
            namespace_step("models", &[workload(&world.object())], &NamespaceSeen::default(), &world.site);
        for child in children(&world).iter().chain(&shared).filter(|c| c.key().kind == "Deployment") {
            let pod = &child.object["spec"]["template"]["spec"];
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
            for never in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod.get(never).is_none());
            }
            for volume in pod["volumes"].as_array().into_iter().flatten() {
                assert!(volume.get("hostPath").is_none());
            }
            let containers = ["containers", "initContainers"].map(|list| pod[list].as_array().cloned());
            for container in containers.into_iter().flatten().flatten() {
                let security = &container["securityContext"];
                assert_eq!(security["allowPrivilegeEscalation"], false);
                assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
                assert_eq!(security["readOnlyRootFilesystem"], true);
                assert_eq!(container["terminationMessagePolicy"], "FallbackToLogsOnError");
            }
        }
    }
}

#[test]
fn all_children_can_be_told_and_swept() {
    let world = full();
    let swept = strata_operator::cluster::swept_kinds();
    let shared =
        namespace_step("models", &[workload(&world.object())], &NamespaceSeen::default(), &world.site);
    let of_model = children(&world);
    for child in of_model.iter().chain(&shared) {
        let labels = &child.object["metadata"]["labels"];
        assert_eq!(labels[MANAGED_LABEL.0], MANAGED_LABEL.1, "{:?}", child.key());
        assert!(swept.contains(&child.resource), "{:?}", child.key());
        assert_eq!(child.namespace(), "models");
        let owner = &child.object["metadata"]["ownerReferences"][0];
        assert_eq!(owner["uid"], "1-2-3");
        assert_eq!(owner["controller"] == true, of_model.contains(child), "{:?}", child.key());
    }
    assert!(of_model.iter().all(|c| c.object["metadata"]["labels"][MODEL_LABEL] == "a"));
    assert!(shared.iter().all(|c| c.object["metadata"]["labels"].get(MODEL_LABEL).is_none()));
}

/// `rendered/` holds what is applied for some models as Kubernetes reads it, for the strict dry run of a
/// real API server. `UPDATE_RENDERED=1` writes it anew.
#[test]
fn rendered_objects_are_as_kept() {
    let mut hpa = full();
    hpa.site.capabilities = Capabilities { external_metrics: true, ..Capabilities::default() };
    let plain = World::new(json!({ "replicas": 2, "engine": { "kvCache": { "memory": "1Gi" } } }));
    let mut tls = World::new(json!({}));
    tls.site.trust = Trust::Mtls;
    for (name, world) in [("plain", plain), ("everything", full()), ("hpa", hpa), ("tls", tls)] {
        let shared =
            namespace_step("models", &[workload(&world.object())], &NamespaceSeen::default(), &world.site);
        let documents =
            children(&world).into_iter().chain(shared).map(|c| serde_yaml::to_string(&c.object).unwrap());
        let wanted = documents.collect::<Vec<_>>().join("---\n");
        let path =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/cluster/rendered/{name}.yaml"));
        if std::env::var_os("UPDATE_RENDERED").is_some() {
            std::fs::write(&path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == wanted,
            "{} differs: look at it, then run `UPDATE_RENDERED=1 cargo test -p strata-operator --test cluster rendered`",
            path.display()
        );
    }
}
