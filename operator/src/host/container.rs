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
    /// Arguments after the binary.
    pub args: Vec<String>,
    env: Vec<EnvVar>,
    /// Asked until it succeeds once.
    pub startup: Option<HttpProbe>,
    /// Whether it serves.
    pub readiness: Option<HttpProbe>,
    /// Whether it is alive.
    pub liveness: Option<HttpProbe>,
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
        if pod.init_containers.as_ref().is_some_and(|c| !c.is_empty()) {
            return refuse("initContainers", "cannot run on a host");
        }
        if pod.volumes.as_ref().is_some_and(|v| !v.is_empty()) {
            return refuse("volumes", "cannot be mounted on a host");
        }
        let [container] = pod.containers.as_slice() else {
            return refuse("containers", "must be one on a host");
        };
        let command: Vec<&String> = container.command.iter().flatten().collect();
        if command.first().is_none_or(|c| *c != "strata") {
            return refuse(
                "containers[0].command",
                "must be `strata` on a host: there are no images to run others from",
            );
        }
        let args = command.into_iter().skip(1).chain(container.args.iter().flatten()).cloned().collect();
        Ok(Self {
            args,
            env: container.env.clone().unwrap_or_default(),
            startup: probe(container, container.startup_probe.as_ref(), "startupProbe")?,
            readiness: probe(container, container.readiness_probe.as_ref(), "readinessProbe")?,
            liveness: probe(container, container.liveness_probe.as_ref(), "livenessProbe")?,
        })
    }

    /// The environment that the template asks for.
    pub(super) fn environment(&self, secrets: &Secrets) -> Result<Vec<(String, OsString)>, String> {
        self.env
            .iter()
            .map(|variable| {
                let name = variable.name.clone();
                let Some(source) = &variable.value_from else {
                    return Ok((name, variable.value.clone().unwrap_or_default().into()));
                };
                let Some(secret) = &source.secret_key_ref else {
                    return Err(format!("env {name}: only `secretKeyRef` can be read on a host"));
                };
                let key = (secret.name.clone(), secret.key.clone());
                match secrets.get(&key) {
                    Some(value) => Ok((name, value.clone())),
                    None => Err(format!(
                        "env {name}: Secret {} has no entry `{}` in the folder: add it",
                        secret.name, secret.key
                    )),
                }
            })
            .collect()
    }
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
                "initContainers",
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
        assert_eq!(recipe.args, ["engine", "--x"]);
        let secrets = Secrets::from([(("s".to_owned(), "k".to_owned()), "hidden".into())]);
        let env = recipe.environment(&secrets).unwrap();
        assert_eq!(env, [("A".to_owned(), "b".into()), ("C".to_owned(), "hidden".into())]);
        let message = recipe.environment(&Secrets::new()).unwrap_err();
        assert!(message.contains("Secret s has no entry `k`"), "{message}");
    }
}
