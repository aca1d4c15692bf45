//! API keys: their format, where run-time keys are kept, and the ring by which a request is
//! authenticated.
//!
//! A key is `sk-strata-<id>_<secret>`. The id is public, names the key in the ledger and in limits,
//! and stays the same when the secret is rotated; the secret is shown once and stored only as a hash.

pub mod format;
pub mod ring;
pub mod store;

pub use format::KeyHash;
pub use ring::{Caller, Denied, KeyRing, Known};
pub use store::{KeyInfo, KeyStore, Role};

/// Whether a text has the form of a key, so that looking for it can make sense.
pub fn is_well_formed(key: &str) -> bool {
    format::split(key).is_some()
}
