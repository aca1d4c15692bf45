//! The kinds that are watched: what is kept of each, and what makes one good.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::ByteString;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use strata_kinds::schema::Kind;
use strata_kinds::validate::{self, FieldError};
use strata_kinds::{ModelDeployment, QuotaPolicy, Tenant, unbuilt};

use super::cache::{Cache, Key};
use super::{Seen, Watched, set_endpoints};
use crate::directory::zone_of;
use crate::gateway::Inner;
use crate::manifests::{HASH, ID, KeySecret};
use crate::quota;

/// A kind that is watched.
pub(crate) trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + fmt::Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// What is kept of an object.
    type Kept: PartialEq + Send;
    /// Whether a version of the same generation says the same.
    const SAME_BY_GENERATION: bool;
    /// Whether the last good version stays in force while the newest is bad.
    const LAST_GOOD_STAYS: bool;
    /// Whether an object is gone as soon as its deletion has begun.
    const GONE_WHEN_DELETING: bool;

    /// What to keep of a good object, or what is wrong with it.
    fn keep(self) -> Result<Self::Kept, Vec<String>>;

    /// Where its kind is kept.
    fn cache(seen: &mut Seen) -> &mut Cache<Self>;

    /// Makes changes of these objects take effect.
    fn changed(_inner: &Inner, watched: &Watched, _keys: &[Key]) {
        watched.changed.notify_one();
    }
}

/// What is needed of an object's metadata. The rest may be large, and may repeat a Secret's data.
fn trimmed(meta: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: meta.name,
        namespace: meta.namespace,
        creation_timestamp: meta.creation_timestamp,
        ..ObjectMeta::default()
    }
}

fn judge<O: Serialize>(kind: Kind, object: &O, unbuilt: Vec<FieldError>) -> Result<(), Vec<String>> {
    let value = serde_json::to_value(object).map_err(|error| vec![error.to_string()])?;
    let mut errors = validate::validate(kind, &value);
    errors.extend(unbuilt);
    if errors.is_empty() { Ok(()) } else { Err(errors.iter().map(ToString::to_string).collect()) }
}

impl Object for Tenant {
    type Kept = Self;
    const SAME_BY_GENERATION: bool = true;
    const LAST_GOOD_STAYS: bool = true;
    const GONE_WHEN_DELETING: bool = true;

    fn keep(mut self) -> Result<Self, Vec<String>> {
        self.status = None;
        self.metadata = trimmed(self.metadata);
        judge(Kind::Tenant, &self, Vec::new())?;
        zone_of(&self.spec).map_err(|message| vec![message])?;
        Ok(self)
    }

    fn cache(seen: &mut Seen) -> &mut Cache<Self> {
        &mut seen.tenants
    }
}

impl Object for QuotaPolicy {
    type Kept = Self;
    const SAME_BY_GENERATION: bool = true;
    const LAST_GOOD_STAYS: bool = true;
    const GONE_WHEN_DELETING: bool = false;

    fn keep(mut self) -> Result<Self, Vec<String>> {
        self.status = None;
        self.metadata = trimmed(self.metadata);
        judge(Kind::QuotaPolicy, &self, unbuilt::quota_policy(&self.spec))?;
        quota::compile("", None, &self.spec).map_err(|message| vec![message])?;
        Ok(self)
    }

    fn cache(seen: &mut Seen) -> &mut Cache<Self> {
        &mut seen.policies
    }
}

impl Object for ModelDeployment {
    type Kept = Self;
    const SAME_BY_GENERATION: bool = true;
    const LAST_GOOD_STAYS: bool = true;
    const GONE_WHEN_DELETING: bool = false;

    fn keep(mut self) -> Result<Self, Vec<String>> {
        self.status = None;
        self.metadata = trimmed(self.metadata);
        // How it is served is its operator's business.
        judge(Kind::ModelDeployment, &self, Vec::new())?;
        Ok(self)
    }

    fn cache(seen: &mut Seen) -> &mut Cache<Self> {
        &mut seen.models
    }
}

/// A Secret of which nothing is read but the two entries of a key, and neither is ever shown.
#[derive(Clone)]
pub(crate) struct SecretObject {
    metadata: ObjectMeta,
    key: KeySecret,
}

impl fmt::Debug for SecretObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretObject({})", self.metadata.name.as_deref().unwrap_or_default())
    }
}

impl<'de> Deserialize<'de> for SecretObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            metadata: ObjectMeta,
            // Whatever it is: an error about its type would quote it.
            #[serde(default)]
            data: Value,
        }
        let raw = Raw::deserialize(deserializer)?;
        let entry = |name: &str| {
            let bytes: ByteString = serde_json::from_value(raw.data.get(name)?.clone()).ok()?;
            String::from_utf8(bytes.0).ok().filter(|text| !text.is_empty())
        };
        let key = KeySecret { id: entry(ID), hash: entry(HASH) };
        let mut metadata = trimmed(raw.metadata.clone());
        metadata.uid = raw.metadata.uid;
        metadata.resource_version = raw.metadata.resource_version;
        metadata.deletion_timestamp = raw.metadata.deletion_timestamp;
        Ok(Self { metadata, key })
    }
}

impl Resource for SecretObject {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Secret".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "secrets".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Object for SecretObject {
    type Kept = KeySecret;
    const SAME_BY_GENERATION: bool = false;
    // Who overwrites a key's hash wants the key to end, whatever stands there now.
    const LAST_GOOD_STAYS: bool = false;
    const GONE_WHEN_DELETING: bool = true;

    fn keep(self) -> Result<KeySecret, Vec<String>> {
        Ok(self.key)
    }

    fn cache(seen: &mut Seen) -> &mut Cache<Self> {
        &mut seen.secrets
    }
}

/// One endpoint of a scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Names the pod; its address where the slice does not say.
    pub pod: String,
    /// Where it listens, such as `10.0.0.1:8000`.
    pub authority: String,
}

impl Object for EndpointSlice {
    type Kept = Vec<Target>;
    const SAME_BY_GENERATION: bool = false;
    const LAST_GOOD_STAYS: bool = true;
    const GONE_WHEN_DELETING: bool = true;

    fn keep(self) -> Result<Vec<Target>, Vec<String>> {
        Ok(targets(&self))
    }

    fn cache(seen: &mut Seen) -> &mut Cache<Self> {
        &mut seen.slices
    }

    fn changed(inner: &Inner, watched: &Watched, keys: &[Key]) {
        for key in keys {
            set_endpoints(inner, watched, &key.namespace);
        }
        // The first full list of everything is what a start waits for.
        watched.changed.notify_one();
    }
}

/// The endpoints that take requests: ready, and not about to end. The port is the one named `http`, or
/// the only one.
fn targets(slice: &EndpointSlice) -> Vec<Target> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let named = ports.iter().find(|p| p.name.as_deref() == Some("http"));
    let only = || ports.first().filter(|_| ports.len() == 1);
    let Some(port) = named.or_else(only).and_then(|p| p.port) else { return Vec::new() };
    let takes_requests = |endpoint: &&k8s_openapi::api::discovery::v1::Endpoint| {
        endpoint
            .conditions
            .as_ref()
            .is_none_or(|c| c.ready.unwrap_or(true) && !c.terminating.unwrap_or(false))
    };
    let target = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
        let address = endpoint.addresses.first()?;
        let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
        let pod = endpoint.target_ref.as_ref().and_then(|t| t.uid.clone().or_else(|| t.name.clone()));
        let authority = format!("{host}:{port}");
        Some(Target { pod: pod.unwrap_or_else(|| authority.clone()), authority })
    };
    slice.endpoints.iter().filter(takes_requests).filter_map(target).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_ready_endpoints_take_requests() {
        let slice = |family: &str, ports: Value, endpoints: Value| -> Vec<String> {
            let slice: EndpointSlice = serde_json::from_value(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {"name": "s", "namespace": "models"}, "ports": ports, "endpoints": endpoints,
            }))
            .unwrap();
            targets(&slice).into_iter().map(|t| t.authority).collect()
        };
        let http = json!([{"name": "metrics", "port": 9}, {"name": "http", "port": 8000}]);
        let some = json!([
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": true, "serving": true, "terminating": true}},
            {"addresses": ["10.0.0.4"]},
            {"addresses": []},
        ]);
        assert_eq!(slice("IPv4", http.clone(), some.clone()), ["10.0.0.1:8000", "10.0.0.4:8000"]);
        assert_eq!(slice("IPv6", http, json!([{"addresses": ["fd00::1"]}])), ["[fd00::1]:8000"]);
        assert_eq!(slice("IPv4", json!([{"port": 80}]), some.clone()).len(), 2, "the only port, unnamed");
        for none in [json!([]), json!([{"name": "a", "port": 1}, {"name": "b", "port": 2}]), json!([{}])] {
            assert!(slice("IPv4", none, some.clone()).is_empty());
        }
    }
}
