//! The operator: what should be running?
//!
//! [`plan`] turns the three kinds into wanted workloads and verdicts, [`render`] turns workloads into
//! Kubernetes objects, [`rollout`] says which replicas to start and to stop next. All three are pure:
//! no clock, no I/O. Two backends carry the result out: [`kube_backend`] by server-side apply,
//! [`host`] as local processes.

pub mod cluster;
pub mod condition;
pub mod host;
pub mod kube_backend;
pub mod mode;
pub mod plan;
pub mod rbac;
pub mod render;
pub mod rollout;
pub mod trust;
pub mod workload;

pub use mode::Mode;
