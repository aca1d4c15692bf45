//! Whom a caller's objects belong to, as the gateway tells the platform on `GET /internal/v1/whoami`.

use serde::{Deserialize, Serialize};

/// The owner of everything where there is no gateway.
pub const LOCAL_OWNER: &str = "local";

/// Who calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoAmI {
    /// An opaque, stable id that outlives every key.
    pub owner: String,
    /// What the key may do: `admin`, `member`.
    #[serde(default)]
    pub roles: Vec<String>,
    /// Earlier owners whose objects belong to this one from now on, such as those that were made while
    /// there was no gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adopts: Vec<String>,
}
