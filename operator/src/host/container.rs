//! From a pod template to a command line: what a host can honour of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, EnvVar, PodTemplateSpec, Probe};
use strata_kinds::manifest::Folder;

/// Entries of Secrets, by Secret and entry.
pub(super) type Secrets = BTreeMap<(String, String), OsString>;

/// What a process needs to start and to be looked after.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Recipe {
    /// What runs to its end before, in this order.
    pub init: Vec<Init>,
    pub launch: Launch,
    /// Asked until it succeeds once.
    pub startup: Option<HttpProbe>,
    /// Whether it serves.
    pub readiness: Option<HttpProbe>,
    /// Whether it is alive.
    pub liveness: Option<HttpProbe>,
}

/// A container that runs to its end before the pod's own.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Init {
    pub name: String,
    pub launch: Launch,
}

/// How a process is started.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Launch {
    /// Arguments after the binary.
    pub args: Vec<String>,
    env: Vec<EnvVar>,
    /// Secrets whose entries are all variables.
    secrets: Vec<String>,
}

/// A probe by `GET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HttpProbe {
    pub path: String,
    pub period: Duration,
    pub timeout: Duration,
    pub failures: u32,
}

impl Recipe {
    /// Reads a template. What a host cannot do is an error that names the field.
    pub(super) fn of(template: &PodTemplateSpec) -> Result<Self, String> {
        let refuse = |field: &str, what: &str| Err(format!("`spec.template.spec.{field}` {what}"));
        let Some(pod) = &template.spec else { return refuse("containers", "is missing") };
        if pod.volumes.as_ref().is_some_and(|v| !v.is_empty()) {
            return refuse("volumes", "cannot be mounted on a host");
        }
        let [container] = pod.containers.as_slice() else {
            return refuse("containers", "must be one on a host");
        };
        let init = pod.init_containers.iter().flatten().enumerate().map(|(index, container)| {
            let launch = Launch::of(container, &format!("initContainers[{index}]"))?;
            Ok(Init { name: container.name.clone(), launch })
        });
        Ok(Self {
            init: init.collect::<Result<_, String>>()?,
            launch: Launch::of(container, "containers[0]")?,
            startup: probe(container, container.startup_probe.as_ref(), "startupProbe")?,
            readiness: probe(container, container.readiness_probe.as_ref(), "readinessProbe")?,
            liveness: probe(container, container.liveness_probe.as_ref(), "livenessProbe")?,
        })
    }
}

impl Launch {
    fn of(container: &Container, field: &str) -> Result<Self, String> {
        let refuse = |what: &str, why: &str| Err(format!("`spec.template.spec.{field}.{what}` {why}"));
        let command: Vec<&String> = container.command.iter().flatten().collect();
        if command.first().is_none_or(|c| *c != "strata") {
            return refuse("command", "must be `strata` on a host: there are no images to run others from");
        }
        let mut secrets = Vec::new();
        for source in container.env_from.iter().flatten() {
            match (&source.secret_ref, &source.prefix) {
                (Some(secret), None) => secrets.push(secret.name.clone()),
                _ => return refuse("envFrom", "must be a `secretRef` without a prefix on a host"),
            }
        }
        Ok(Self {
            args: command.into_iter().skip(1).chain(container.args.iter().flatten()).cloned().collect(),
            env: container.env.clone().unwrap_or_default(),
            secrets,
        })
    }

    /// The environment that the template asks for.
    pub(super) fn environment(&self, secrets: &Secrets) -> Result<Vec<(String, OsString)>, String> {
        let mut environment = Vec::new();
        for name in &self.secrets {
            let entries = secrets.iter().filter(|((secret, _), _)| secret == name);
            let before = environment.len();
            environment.extend(entries.map(|((_, key), value)| (key.clone(), value.clone())));
            if environment.len() == before {
                return Err(format!("Secret {name} is not in the folder, or has no entries: add it"));
            }
        }
        for variable in &self.env {
            environment.push((variable.name.clone(), value(variable, secrets)?));
        }
        Ok(environment)
    }
}

fn value(variable: &EnvVar, secrets: &Secrets) -> Result<OsString, String> {
    let name = &variable.name;
    let Some(source) = &variable.value_from else {
        return Ok(variable.value.clone().unwrap_or_default().into());
    };
    let Some(secret) = &source.secret_key_ref else {
        return Err(format!("env {name}: only `secretKeyRef` can be read on a host"));
    };
    secrets.get(&(secret.name.clone(), secret.key.clone())).cloned().ok_or_else(|| {
        format!("env {name}: Secret {} has no entry `{}` in the folder: add it", secret.name, secret.key)
    })
}

fn probe(container: &Container, probe: Option<&Probe>, field: &str) -> Result<Option<HttpProbe>, String> {
    let Some(probe) = probe else { return Ok(None) };
    let Some(get) = &probe.http_get else {
        return Err(format!("`{field}` of container {} must be httpGet on a host", container.name));
    };
    let seconds = |value: Option<i32>, default: u64| {
        Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default).max(1))
    };
    Ok(Some(HttpProbe {
        path: get.path.clone().unwrap_or_else(|| "/".to_owned()),
        period: seconds(probe.period_seconds, 10),
        timeout: seconds(probe.timeout_seconds, 1),
        failures: probe.failure_threshold.and_then(|f| u32::try_from(f).ok()).unwrap_or(3).max(1),
    }))
}

/// The Secrets of a folder.
pub(super) fn secrets(folder: &Folder) -> Secrets {
    use std::os::unix::ffi::OsStringExt;
    let mut secrets = Secrets::new();
    for secret in &folder.secrets {
        let name = secret.metadata.name.clone().unwrap_or_default();
        for (key, value) in secret.data.iter().flatten() {
            secrets.insert((name.clone(), key.clone()), OsString::from_vec(value.0.clone()));
        }
    }
    secrets
}

/// A folder's path as an argument. Rendered arguments are text.
pub(super) fn text(path: &std::path::Path) -> Result<String, String> {
    let absolute: PathBuf = std::path::absolute(path).map_err(|e| format!("{}: {e}", path.display()))?;
    absolute.to_str().map(ToOwned::to_owned).ok_or_else(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;
    use serde_json::json;

    use super::*;

    fn template(pod: serde_json::Value) -> PodTemplateSpec {
        let spec: PodSpec = serde_json::from_value(pod).unwrap();
        PodTemplateSpec { metadata: None, spec: Some(spec) }
    }

    #[test]
    fn what_a_host_cannot_do_names_the_field() {
        for (pod, field) in [
            (
                json!({ "containers": [{ "name": "a", "command": ["vllm", "serve"] }] }),
                "containers[0].command",
            ),
            (json!({ "containers": [{ "name": "a" }] }), "containers[0].command"),
            (json!({ "containers": [] }), "containers"),
            (
                json!({ "containers": [{ "name": "a", "command": ["strata"] }], "initContainers": [{ "name": "b" }] }),
                "initContainers[0].command",
            ),
            (
                json!({ "containers": [{ "name": "a", "command": ["strata"] }], "initContainers": [
                    { "name": "b", "command": ["strata", "fetch"], "envFrom": [{ "configMapRef": { "name": "c" } }] },
                ] }),
                "initContainers[0].envFrom",
            ),
            (
                json!({ "containers": [{ "name": "a", "command": ["strata"] }], "volumes": [{ "name": "b" }] }),
                "volumes",
            ),
            (
                json!({ "containers": [{ "name": "a", "command": ["strata"], "livenessProbe": { "exec": { "command": ["x"] } } }] }),
                "livenessProbe",
            ),
        ] {
            let message = Recipe::of(&template(pod)).unwrap_err();
            assert!(message.contains(field), "{message}");
        }
    }

    #[test]
    fn secrets_reach_the_environment() {
        let pod = json!({ "containers": [{ "name": "a", "command": ["strata", "engine"], "args": ["--x"], "env": [
            { "name": "A", "value": "b" },
            { "name": "C", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } },
        ] }] });
        let recipe = Recipe::of(&template(pod)).unwrap();
        assert_eq!(recipe.launch.args, ["engine", "--x"]);
        let secrets = Secrets::from([(("s".to_owned(), "k".to_owned()), "hidden".into())]);
        let env = recipe.launch.environment(&secrets).unwrap();
        assert_eq!(env, [("A".to_owned(), "b".into()), ("C".to_owned(), "hidden".into())]);
        let message = recipe.launch.environment(&Secrets::new()).unwrap_err();
        assert!(message.contains("Secret s has no entry `k`"), "{message}");
    }

    #[test]
    fn all_entries_of_a_secret_reach_what_runs_before() {
        let pod = json!({
            "containers": [{ "name": "a", "command": ["strata", "engine"] }],
            "initContainers": [{
                "name": "fetch", "command": ["strata", "fetch"], "args": ["--to", "/m"],
                "envFrom": [{ "secretRef": { "name": "hub" } }],
            }],
        });
        let recipe = Recipe::of(&template(pod)).unwrap();
        let [init] = &recipe.init[..] else { panic!("{recipe:?}") };
        assert_eq!(
            (init.name.as_str(), &init.launch.args[..]),
            ("fetch", &["fetch", "--to", "/m"].map(str::to_owned)[..])
        );
        let entry = |secret: &str| (secret.to_owned(), "HF_TOKEN".to_owned());
        let secrets = Secrets::from([(entry("hub"), "hidden".into()), (entry("other"), "no".into())]);
        assert_eq!(init.launch.environment(&secrets).unwrap(), [("HF_TOKEN".to_owned(), "hidden".into())]);
        assert!(recipe.launch.environment(&secrets).unwrap().is_empty());
        let message = init.launch.environment(&Secrets::new()).unwrap_err();
        assert!(message.contains("Secret hub is not in the folder"), "{message}");
    }
}
