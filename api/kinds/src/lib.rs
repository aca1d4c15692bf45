//! The three kinds by which Strata is run: [`ModelDeployment`], [`Tenant`] and [`QuotaPolicy`], group
//! `strata.dev`, version `v1alpha1`.
//!
//! The types here are the source of `crds/`. They accept what the generated schema accepts: unknown
//! fields, wrong types and broken rules are judged by the schema (by the API server, or by
//! [`manifest`] for a folder), never by the types.

mod cel;
pub mod crd;
pub mod glob;
pub mod manifest;
pub mod model_deployment;
pub mod quantity;
pub mod quota_policy;
pub mod schema;
mod suggest;
pub mod tenant;
pub mod unbuilt;
pub mod validate;
mod yaml;

pub use model_deployment::{ModelDeployment, ModelDeploymentSpec};
pub use quota_policy::{QuotaPolicy, QuotaPolicySpec};
pub use tenant::{Tenant, TenantSpec};

/// The API group of all kinds.
pub const GROUP: &str = "strata.dev";
/// The version of all kinds.
pub const VERSION: &str = "v1alpha1";
/// The namespace of objects that name none, and of everything in a folder.
pub const NAMESPACE: &str = "strata";
