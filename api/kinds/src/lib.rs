//! The three kinds by which Strata is run: [`ModelDeployment`], [`Tenant`] and [`QuotaPolicy`], group
//! `strata.dev`, version `v1alpha1`.
//!
//! The types here are the source of `crds/`. They accept what the generated schema accepts: unknown
//! fields, wrong types and broken rules are judged by the schema (by the API server, or by
//! [`manifest`] for a folder), never by the types.

pub mod quota_policy;
pub mod tenant;

pub use quota_policy::{QuotaPolicy, QuotaPolicySpec};
pub use tenant::{Tenant, TenantSpec};

/// The API group of all kinds.
pub const GROUP: &str = "strata.dev";
/// The version of all kinds.
pub const VERSION: &str = "v1alpha1";
