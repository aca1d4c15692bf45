use serde_json::json;
use strata_kinds::model_deployment::ModelDeploymentSpec;

use super::*;
use crate::Mode;
use crate::workload::{EngineWorkload, Owner, SchedulerWorkload};

fn engine(spec: serde_json::Value) -> Workload {
    let spec: Box<ModelDeploymentSpec> = serde_json::from_value(spec).unwrap();
    Workload::Engine(EngineWorkload {
        namespace: "strata".into(),
        owner: Owner { name: "smollm2".into(), uid: Some("11-22".into()) },
        spec,
        refresh: None,
        role: None,
    })
}

fn plain() -> Workload {
    engine(json!({ "model": { "name": "smollm2-135m", "uri": "file://~/m.gguf" }, "replicas": 2 }))
}

fn cluster() -> ClusterSite {
    ClusterSite::new("strata:1", Mode::Production, "strata")
}

fn host() -> HostSite {
    HostSite {
        folder: "/manifests".into(),
        state: "/state".into(),
        home: Some("/home/ada".into()),
        endpoints: "/state/endpoints.json".into(),
        platform_upstream: "http://127.0.0.1:4001".into(),
        platform_upstream_is_gateway: true,
        gateway_upstream: "http://127.0.0.1:4002".into(),
        ..HostSite::default()
    }
}

fn command(rendered: &Rendered) -> String {
    let template = rendered.template();
    let container = template.spec.unwrap().containers.remove(0);
    let words = container.command.into_iter().flatten().chain(container.args.into_iter().flatten());
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn an_engine_that_embeds_is_told_to() {
    let spec = |task| json!({ "model": { "name": "e5", "uri": "file:///models/e5" }, "task": task });
    let told = |task| {
        let rendered = render(&engine(spec(task)), Site::Cluster(&cluster()));
        command(&rendered).contains("--task embed")
    };
    assert_eq!(["Embed", "Generate"].map(told), [true, false]);
}

#[test]
fn an_engine_on_kubernetes() {
    let rendered = render(
        &engine(json!({
            "model": { "name": "smollm2-135m", "uri": "file:///models/m.gguf" },
            "replicas": 2,
            "engine": { "maxModelLen": 2048, "kvCache": { "memory": "1Gi" }, "args": ["--step-tokens", "256"] },
            "podTemplate": {
                "labels": { "team": "a" },
                "nodeSelector": { "disk": "fast" },
                "resources": { "requests": { "cpu": "1" }, "limits": { "cpu": "2", "memory": "4Gi" } },
                "env": [{ "name": "A", "value": "b" }, { "name": "C", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }],
            },
        })),
        Site::Cluster(&cluster()),
    );
    insta::assert_yaml_snapshot!("engine_deployment", rendered.deployment);
}

#[test]
fn a_scheduler_on_kubernetes() {
    let scheduler = Workload::Scheduler(SchedulerWorkload {
        namespace: "strata".into(),
        owners: vec![
            Owner { name: "a".into(), uid: Some("1".into()) },
            Owner { name: "b".into(), uid: Some("2".into()) },
        ],
    });
    insta::assert_yaml_snapshot!(
        "scheduler_deployment",
        render(&scheduler, Site::Cluster(&cluster())).deployment
    );
}

#[test]
fn commands_on_a_host() {
    let scheduler = Workload::Scheduler(SchedulerWorkload { namespace: "strata".into(), owners: vec![] });
    let tuned = engine(json!({
        "model": { "name": "m", "uri": "/m.gguf" },
        "engine": { "kvCache": { "blocks": 64, "prefixCaching": false } },
        "podTemplate": { "resources": { "limits": { "cpu": "1500m" } } },
    }));
    let lines: Vec<String> = [plain(), tuned, scheduler, Workload::Gateway, Workload::Platform]
        .iter()
        .map(|w| command(&render(w, Site::Host(&host()))))
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_home_folder_is_a_hosts_alone() {
    let cached = engine(json!({ "model": { "name": "m", "uri": "file://~/.cache/strata/models/m.gguf" } }));
    let uri =
        |site: &HostSite| command(&render(&cached, Site::Host(site))).split(' ').nth(3).unwrap().to_owned();
    assert_eq!(uri(&host()), "file:///home/ada/.cache/strata/models/m.gguf");
    assert_eq!(uri(&HostSite { models: Some("/big/".into()), ..host() }), "file:///big/m.gguf");
}

#[test]
fn a_host_fetches_what_is_elsewhere() {
    let fetched = engine(json!({ "model": {
        "name": "m", "uri": "hf://a/b/m.gguf", "revision": "v1", "credentialsSecretRef": { "name": "hub" },
    } }));
    for (site, folder) in [
        (host(), "/home/ada/.cache/strata/models"),
        (HostSite { models: Some("/big/".into()), ..host() }, "/big"),
        (HostSite { home: None, ..host() }, "/state/models"),
    ] {
        let rendered = render(&fetched, Site::Host(&site));
        let init = rendered.template().spec.unwrap().init_containers.unwrap().remove(0);
        assert_eq!(init.command.unwrap(), ["strata", "fetch"]);
        assert_eq!(init.args.unwrap(), ["--uri", "hf://a/b/m.gguf", "--revision", "v1", "--to", folder]);
        assert_eq!(init.env_from.unwrap()[0].secret_ref.as_ref().unwrap().name, "hub");
        let path = strata_wire::model_uri::model_path("hf://a/b/m.gguf", Some("v1")).unwrap().under(folder);
        assert_eq!(command(&rendered).split(' ').nth(3), Some(path.as_str()));
    }
}

#[test]
fn adapters_on_a_host() {
    let adapted = engine(json!({
        "model": { "name": "m", "uri": "/m.gguf" },
        "engine": { "args": ["--step-tokens", "64"] },
        "adapters": [
            { "name": "here", "uri": "file:///lora/here" },
            { "name": "home", "uri": "file://~/lora/home" },
            { "name": "kept", "uri": "file://~/.cache/strata/models/kept" },
            { "name": "team/sql", "uri": "hf://team/sql", "credentialsSecretRef": { "name": "hub" } },
        ],
    }));
    let rendered = render(&adapted, Site::Host(&HostSite { models: Some("/big/".into()), ..host() }));
    let template = rendered.template();
    let path = strata_wire::model_uri::model_path("hf://team/sql", None).unwrap().under("/big");
    assert_eq!(
        command(&rendered),
        format!(
            "strata engine --model /m.gguf --served-model-name m --enable-lora --max-loras 4 --lora-modules \
             here=/lora/here home=/home/ada/lora/home kept=/big/kept team/sql={path} --step-tokens 64"
        )
    );
    let init = template.spec.unwrap().init_containers.unwrap();
    assert_eq!(init.len(), 1, "only what is elsewhere is fetched");
    assert_eq!(init[0].name, "fetch-adapter-3");
    assert_eq!(init[0].args.as_deref().unwrap(), ["--uri", "hf://team/sql", "--to", "/big"]);
    assert_eq!(init[0].env_from.as_ref().unwrap()[0].secret_ref.as_ref().unwrap().name, "hub");
    let annotations = template.metadata.unwrap().annotations.unwrap();
    assert_eq!(annotations[ADAPTERS_ANNOTATION], "here,home,kept,team/sql");
}

#[test]
fn a_revision_follows_the_template_and_nothing_else() {
    let base = render(&plain(), Site::Host(&host())).revision();
    let spec = |change: serde_json::Value| {
        let mut spec =
            json!({ "model": { "name": "smollm2-135m", "uri": "file://~/m.gguf" }, "replicas": 2 });
        for (key, value) in change.as_object().unwrap() {
            spec[key] = value.clone();
        }
        render(&engine(spec), Site::Host(&host())).revision()
    };
    assert_eq!(spec(json!({ "replicas": 3 })), base);
    assert_eq!(
        spec(json!({ "routing": { "weights": { "prefix": 1.0 } }, "access": { "tiers": ["gold"] } })),
        base
    );
    assert_ne!(spec(json!({ "engine": { "maxModelLen": 64 } })), base);
    let adapter = |uri: &str| spec(json!({ "adapters": [{ "name": "a", "uri": uri }] }));
    assert!(adapter("/a") != base && adapter("/a") != adapter("/b"));
    assert_ne!(spec(json!({ "podTemplate": { "env": [{ "name": "A", "value": "b" }] } })), base);
}

#[test]
fn nothing_that_runs_is_privileged() {
    for workload in [plain(), Workload::Gateway, Workload::Platform] {
        let pod = render(&workload, Site::Cluster(&cluster())).template().spec.unwrap();
        let security = pod.security_context.unwrap();
        assert_eq!((security.run_as_non_root, security.run_as_user), (Some(true), Some(65532)));
        assert_eq!(pod.automount_service_account_token, Some(false));
        for container in pod.containers {
            let security = container.security_context.unwrap();
            assert_eq!(security.allow_privilege_escalation, Some(false));
            assert_eq!(security.capabilities.unwrap().drop.unwrap(), ["ALL"]);
        }
    }
}
