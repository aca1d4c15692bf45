//! The schema of each kind, made once from its definition.

use std::fmt;
use std::sync::OnceLock;

use kube::core::cel::{CompiledSchema, compile_schema};
use serde_json::Value;

use crate::{GROUP, VERSION, crd};

/// A kind of Strata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A model and how it is served.
    ModelDeployment,
    /// Who may call.
    Tenant,
    /// How much.
    QuotaPolicy,
}

impl Kind {
    /// All kinds, in the order of [`crd::all`].
    pub const ALL: [Self; 3] = [Self::ModelDeployment, Self::Tenant, Self::QuotaPolicy];

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }

    /// Its name, as manifests have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ModelDeployment => "ModelDeployment",
            Self::Tenant => "Tenant",
            Self::QuotaPolicy => "QuotaPolicy",
        }
    }

    /// Its group and version, as manifests have them.
    pub fn api_version() -> String {
        format!("{GROUP}/{VERSION}")
    }

    /// Its structural schema (OpenAPI v3), of the whole object.
    pub fn schema(self) -> &'static Value {
        &self.compiled().0
    }

    pub(crate) fn rules(self) -> &'static CompiledSchema {
        &self.compiled().1
    }

    fn compiled(self) -> &'static (Value, CompiledSchema) {
        static ALL: OnceLock<Vec<(Value, CompiledSchema)>> = OnceLock::new();
        let all = ALL.get_or_init(|| {
            crd::all()
                .iter()
                .map(|crd| {
                    let schema = crd::schema_of(crd);
                    let rules = compile_schema(&schema);
                    (schema, rules)
                })
                .collect()
        });
        &all[self as usize]
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
