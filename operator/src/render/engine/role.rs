//! What an engine is told that shares requests with others of its model: one computes the prompts and
//! another answers, and what the one has made of a prompt goes straight to the other.
//!
//! vLLM's connector is NIXL. An engine asks the one that has the blocks for them at its side channel,
//! whose address it finds in the request; then the blocks come by UCX, at any port.

use k8s_openapi::api::core::v1::EnvVar;
use strata_wire::replicas::Role;

use crate::render::pod::{from_field, variable};

/// Where the side channel listens: vLLM's own default. Each data-parallel rank takes the next port.
const SIDE_CHANNEL_PORT: u16 = 5600;
/// The flag of vLLM by which an engine can hand blocks over and take them.
const TRANSFER: &str = "--kv-transfer-config";
/// Its value: each can do both, and the scheduler tells which, request by request.
const NIXL: &str = r#"{"kv_connector":"NixlConnector","kv_role":"kv_both"}"#;

/// Variables of the container of an engine, whoever's it is.
pub(super) fn variables(role: Role) -> [EnvVar; 3] {
    [
        variable("STRATA_ROLE", role.to_string()),
        from_field("VLLM_NIXL_SIDE_CHANNEL_HOST", "status.podIP"),
        variable("VLLM_NIXL_SIDE_CHANNEL_PORT", SIDE_CHANNEL_PORT.to_string()),
    ]
}

/// vLLM's arguments, unless the user has others of the kind.
pub(super) fn args(own: &[String]) -> Vec<String> {
    if own.iter().any(|arg| arg.starts_with(TRANSFER)) {
        return Vec::new();
    }
    vec![TRANSFER.to_owned(), NIXL.to_owned()]
}
