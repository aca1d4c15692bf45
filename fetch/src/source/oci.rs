//! Artifacts and images in an OCI registry.

mod layer;

use std::sync::Arc;

use http::header;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use strata_wire::model_uri::{ModelUri, OciReference};

use self::layer::{Descriptor, Place};
use super::{Guard, Listing, RemoteFile};
use crate::checksum::{self, Checksum};
use crate::client::{Ask, Auth, Http, Peer, RegistryLogin, host_of};
use crate::credentials::Credentials;
use crate::error::FetchError;
use crate::name;

const MANIFEST_BYTES: usize = 4 << 20;
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// A repository in a registry, and how it is asked.
struct Repository {
    /// `https://HOST/v2/NAME`.
    base: String,
    auth: Auth,
    shown: String,
}

pub(super) async fn list(
    http: &Http,
    uri: &ModelUri,
    (registry, name, reference): (&str, &str, &OciReference),
    credentials: &Credentials,
) -> Result<Listing, FetchError> {
    let repository = Repository::new(http, registry, name, credentials).await?;
    let reference = match reference {
        OciReference::Tag(reference) | OciReference::Digest(reference) => reference,
    };
    let unusable = |problem: String| FetchError::Unusable { uri: uri.to_string(), problem };
    let (mut digest, mut body) = repository.manifest(http, reference).await?;
    if body.get("manifests").is_some() {
        let index: Index = read(&body).map_err(&unusable)?;
        let chosen = layer::of_this_machine(&index.manifests).ok_or_else(|| {
            unusable(format!("is an index without a manifest for {}", std::env::consts::ARCH))
        })?;
        (digest, body) = repository.manifest(http, &chosen.digest).await?;
    }
    let manifest: Manifest = read(&body).map_err(&unusable)?;
    let mut files = Vec::new();
    for descriptor in &manifest.layers {
        let (path, unpack) = match layer::place(descriptor).map_err(&unusable)? {
            Place::Skip => continue,
            Place::File(path) => (name::checked(registry, &path)?, None),
            Place::Archive(unpack) => (descriptor.digest.replace(':', "-"), Some(unpack)),
        };
        // The same layer may be there twice.
        if unpack.is_some() && files.iter().any(|file: &RemoteFile| file.path == path) {
            continue;
        }
        files.push(repository.file(descriptor, path, unpack)?);
    }
    if files.is_empty() {
        return Err(unusable(
            "has no layer with a model: it is neither a model artifact nor an image".to_owned(),
        ));
    }
    Ok(Listing { revision: Some(digest), files })
}

fn read<T: for<'de> Deserialize<'de>>(body: &Value) -> Result<T, String> {
    T::deserialize(body).map_err(|e| format!("has a manifest that cannot be read: {e}"))
}

impl Repository {
    async fn new(
        http: &Http,
        registry: &str,
        name: &str,
        credentials: &Credentials,
    ) -> Result<Self, FetchError> {
        // Docker's own registry goes by another name, and leaves a part of others out.
        let (host, name) = match registry {
            "docker.io" | "index.docker.io" if !name.contains('/') => {
                ("registry-1.docker.io", format!("library/{name}"))
            }
            "docker.io" | "index.docker.io" => ("registry-1.docker.io", name.to_owned()),
            other => (other, name.to_owned()),
        };
        let (user, origin) =
            credentials.registry(if registry == "index.docker.io" { "docker.io" } else { registry });
        let auth = Auth::Registry(Arc::new(RegistryLogin::new(user, origin)));
        let shown = format!("{registry}/{name}");
        let plain = Ask::get(&format!("http://{host}/v2/"), Peer::Oci, Auth::Nobody, "the registry")?;
        let mut scheme = "https";
        if http.permit(&plain.url).is_ok() {
            // Where plain HTTP is allowed, what answers decides.
            let ping = Ask::get(&format!("https://{host}/v2/"), Peer::Oci, Auth::Nobody, "the registry")?;
            if http.once(&ping).await.is_err() && http.once(&plain).await.is_ok() {
                scheme = "http";
            }
        }
        Ok(Self { base: format!("{scheme}://{host}/v2/{name}"), auth, shown })
    }

    /// A manifest by tag or digest, and its digest.
    async fn manifest(&self, http: &Http, reference: &str) -> Result<(String, Value), FetchError> {
        let url = format!("{}/manifests/{reference}", self.base);
        let ask = Ask::get(&url, Peer::Oci, self.auth.clone(), format!("{} {reference}", self.shown))?;
        let ask = ask.with(header::ACCEPT, MANIFESTS)?;
        let answer = http.small(&ask, MANIFEST_BYTES).await?;
        let digest = format!("sha256:{}", checksum::hex(&Sha256::digest(&answer)));
        let wrong =
            |problem: String| FetchError::Answer { host: host_of(&ask.url), what: ask.what.clone(), problem };
        if reference.starts_with("sha256:") && reference != digest {
            return Err(wrong(format!("a manifest whose digest is {digest}")));
        }
        let body = serde_json::from_slice(&answer).map_err(|e| wrong(format!("what is no manifest: {e}")))?;
        Ok((digest, body))
    }

    fn file(
        &self,
        layer: &Descriptor,
        path: String,
        unpack: Option<crate::unpack::Unpack>,
    ) -> Result<RemoteFile, FetchError> {
        let url = format!("{}/blobs/{}", self.base, layer.digest);
        let ask = Ask::get(&url, Peer::Oci, self.auth.clone(), format!("{path} of {}", self.shown))?;
        let Some(hex) = layer.sha256() else {
            let problem = format!("the digest `{}`, which is no SHA-256", layer.digest);
            return Err(FetchError::Answer { host: host_of(&ask.url), what: ask.what, problem });
        };
        Ok(RemoteFile {
            path,
            ask,
            size: Some(layer.size),
            identity: Some(layer.digest.clone()),
            guard: Guard::Nothing,
            checksum: Some(Checksum::Sha256(hex.to_owned())),
            unpack,
        })
    }
}
