//! Credentials and endpoints, from the environment: a Secret's entries become variables there.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use crate::client::Auth;
use crate::error::FetchError;

/// What may be read with, and where. Shows nothing of itself when printed.
#[derive(Default)]
pub struct Credentials {
    /// `HF_TOKEN`.
    pub(crate) hf_token: Option<String>,
    /// `HF_ENDPOINT`: a mirror of the Hub.
    pub(crate) hf_endpoint: Option<String>,
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`.
    pub(crate) aws: Option<AwsKeys>,
    /// `AWS_REGION` or `AWS_DEFAULT_REGION`.
    pub(crate) aws_region: Option<String>,
    /// `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`: a server that is not Amazon's.
    pub(crate) aws_endpoint: Option<String>,
    /// `REGISTRY_USERNAME` and `REGISTRY_PASSWORD`.
    registry: Option<(String, String)>,
    /// Of a Docker configuration: registry to user and password.
    docker: BTreeMap<String, (String, String)>,
    /// `HTTPS_TOKEN`.
    https_token: Option<String>,
    /// `CA_CERTIFICATES`: certificates of authorities, as PEM, to trust beside the others.
    pub(crate) authorities: Option<String>,
}

pub(crate) struct AwsKeys {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) session_token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl Credentials {
    /// Those of a list of variables and values, for callers that have their own.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, FetchError> {
        let pairs: BTreeMap<&str, &str> = pairs.into_iter().collect();
        Self::read(&|name| pairs.get(name).map(|v| (*v).to_owned()), &|path| std::fs::read_to_string(path))
    }

    /// Those of this process's environment.
    pub fn from_env() -> Result<Self, FetchError> {
        Self::read(&|name| std::env::var(name).ok(), &|path| std::fs::read_to_string(path))
    }

    fn read(
        variable: &dyn Fn(&str) -> Option<String>,
        file: &dyn Fn(&str) -> std::io::Result<String>,
    ) -> Result<Self, FetchError> {
        // A Secret made from a file often ends with a line break.
        let get = |name: &str| variable(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let both = |first: &'static str, second: &'static str| match (get(first), get(second)) {
            (Some(a), Some(b)) => Ok(Some((a, b))),
            (None, None) => Ok(None),
            (found, _) => {
                let (set, missing) = if found.is_some() { (first, second) } else { (second, first) };
                let problem = format!("is not set, but {set} is: set both or neither");
                Err(FetchError::Setting { name: missing.to_owned(), problem })
            }
        };
        let session_token = get("AWS_SESSION_TOKEN");
        let aws = both("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")?.map(|(id, secret)| AwsKeys {
            id,
            secret,
            session_token,
        });
        // The key of a Secret of type kubernetes.io/dockerconfigjson.
        let mut docker = BTreeMap::new();
        if let Some(text) = get(".dockerconfigjson") {
            docker = docker_auths(&text, ".dockerconfigjson")?;
        } else if let Some(folder) = get("DOCKER_CONFIG") {
            let path = format!("{}/config.json", folder.trim_end_matches('/'));
            match file(&path) {
                Ok(text) => docker = docker_auths(&text, "DOCKER_CONFIG")?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    let problem = format!("names {path}, which cannot be read: {error}");
                    return Err(FetchError::Setting { name: "DOCKER_CONFIG".to_owned(), problem });
                }
            }
        }
        Ok(Self {
            hf_token: get("HF_TOKEN"),
            hf_endpoint: get("HF_ENDPOINT"),
            aws,
            aws_region: get("AWS_REGION").or_else(|| get("AWS_DEFAULT_REGION")),
            aws_endpoint: get("AWS_ENDPOINT_URL_S3").or_else(|| get("AWS_ENDPOINT_URL")),
            registry: both("REGISTRY_USERNAME", "REGISTRY_PASSWORD")?,
            docker,
            https_token: get("HTTPS_TOKEN"),
            authorities: get("CA_CERTIFICATES"),
        })
    }

    pub(crate) fn hf(&self) -> Result<Auth, FetchError> {
        self.hf_token.as_deref().map_or(Ok(Auth::Nobody), |token| Auth::bearer(token, "HF_TOKEN"))
    }

    pub(crate) fn https(&self) -> Result<Auth, FetchError> {
        self.https_token.as_deref().map_or(Ok(Auth::Nobody), |token| Auth::bearer(token, "HTTPS_TOKEN"))
    }

    /// User and password for a registry, and where they came from.
    pub(crate) fn registry(&self, host: &str) -> (Option<(String, String)>, &'static str) {
        if let Some(user) = &self.registry {
            return (Some(user.clone()), "REGISTRY_PASSWORD");
        }
        (self.docker.get(host).cloned(), "DOCKER_CONFIG")
    }
}

fn docker_auths(text: &str, name: &str) -> Result<BTreeMap<String, (String, String)>, FetchError> {
    let wrong = |problem: String| FetchError::Setting { name: name.to_owned(), problem };
    let config: DockerConfig = serde_json::from_str(text).map_err(|e| {
        wrong(format!("is no Docker configuration (line {}, column {})", e.line(), e.column()))
    })?;
    let mut auths = BTreeMap::new();
    for (server, auth) in config.auths {
        let host = server.trim_start_matches("https://").trim_start_matches("http://");
        let host = host.split('/').next().unwrap_or_default();
        let host =
            if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
        let pair = match (auth.username, auth.password, auth.auth) {
            (Some(user), Some(password), _) => Some((user, password)),
            (_, _, Some(encoded)) => {
                let plain =
                    BASE64_STANDARD.decode(encoded.trim()).ok().and_then(|b| String::from_utf8(b).ok());
                let pair = plain.as_deref().and_then(|p| p.split_once(':'));
                let (user, password) = pair.ok_or_else(|| {
                    wrong(format!("has an `auth` for {host} that is not base64 of USER:PASSWORD"))
                })?;
                Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
            }
            _ => None,
        };
        if let Some(pair) = pair {
            auths.insert(host.to_owned(), pair);
        }
    }
    Ok(auths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Credentials, FetchError> {
        Credentials::read(
            &|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()),
            &|path| match path {
                "/docker/config.json" => {
                    Ok(r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"}}}"#.to_owned())
                }
                _ => Err(std::io::ErrorKind::NotFound.into()),
            },
        )
    }

    #[test]
    fn a_docker_configuration() {
        let json = r#"{"auths":{"r.example:5000":{"username":"u","password":"p:w"}}}"#;
        let found = read(&[(".dockerconfigjson", json)]).unwrap();
        assert_eq!(found.registry("r.example:5000").0, Some(("u".to_owned(), "p:w".to_owned())));
        assert_eq!(found.registry("r.example").0, None);
        let found = read(&[("DOCKER_CONFIG", "/docker/")]).unwrap();
        assert_eq!(found.registry("docker.io").0, Some(("a".to_owned(), "b".to_owned())));
        assert_eq!(read(&[("DOCKER_CONFIG", "/none")]).unwrap().registry("docker.io").0, None);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_value() {
        for variables in [
            [("AWS_ACCESS_KEY_ID", "hunter2")],
            [("REGISTRY_PASSWORD", "hunter2")],
            [(".dockerconfigjson", "{\"hunter2")],
            [(".dockerconfigjson", "{\"auths\":{\"r\":{\"auth\":\"hunter2\"}}}")],
        ] {
            let error = read(&variables).unwrap_err().to_string();
            assert!(error.starts_with("the environment variable ") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_trailing_line_break_is_no_part_of_a_token() {
        let found = read(&[("HF_TOKEN", "hf_x\n"), ("AWS_REGION", " ")]).unwrap();
        assert_eq!(found.hf_token.as_deref(), Some("hf_x"));
        assert_eq!(found.aws_region, None);
        assert_eq!(format!("{found:?}"), "Credentials(..)");
    }
}
