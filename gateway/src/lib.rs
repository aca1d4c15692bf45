//! The control plane: who is allowed, and under what policy.
//!
//! The gateway authenticates keys, authorizes models, reserves quota before a request and settles it
//! afterwards, meters what was used and appends it to a ledger, and passes requests on to the
//! scheduler. It reads no text of a request or a response.
#![allow(clippy::disallowed_methods)]

mod accounts;
pub mod ask;
mod call;
mod catalog;
pub mod clock;
pub mod directory;
pub mod events;
mod folder;
mod follow;
mod gateway;
mod guard;
pub mod identity;
mod inference;
pub mod keys;
pub mod ledger;
pub mod manifests;
mod metrics;
mod options;
mod place;
pub mod quota;
mod refuse;
mod routes;
mod selfservice;
mod session;
mod status;
mod usage_api;
mod watch;

pub use clock::Clock;
pub use gateway::{Gateway, run};
pub use keys::{KeyInfo, KeyStore, Role};
pub use ledger::{Ledger, LedgerError, UsageSum};
pub use options::{Cluster, GatewayError, GatewayOptions, Source};

/// The gateway's HTTP interface, for tests in one process.
pub fn router(gateway: &Gateway) -> axum::Router {
    gateway.router()
}
