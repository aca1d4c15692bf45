//! Which layers run.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A chain of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// app → platform → engine: one person, one machine.
    Development,
    /// app → platform → scheduler → engines: many replicas, no tenants.
    Production,
    /// app → platform → gateway → scheduler → engines: tenants, quotas, audit.
    Enterprise,
}

impl Mode {
    /// The mode of a folder that names none: tenants need a gateway.
    pub fn default_for(has_tenants: bool) -> Self {
        if has_tenants { Self::Enterprise } else { Self::Production }
    }

    /// Whether a gateway checks who calls.
    pub fn has_gateway(self) -> bool {
        self == Self::Enterprise
    }

    /// Whether a scheduler stands before the engines.
    pub fn has_scheduler(self) -> bool {
        self != Self::Development
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Development => "development",
            Self::Production => "production",
            Self::Enterprise => "enterprise",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "development" => Ok(Self::Development),
            "production" => Ok(Self::Production),
            "enterprise" => Ok(Self::Enterprise),
            other => Err(format!("`{other}` is no mode: use development, production or enterprise")),
        }
    }
}
