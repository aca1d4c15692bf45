//! Opaque names: what leaves the gateway instead of a tenant's or a user's name.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::keys::format::hex;

/// Makes opaque ids that are the same over restarts and cannot be guessed or linked without the
/// ledger's secret.
#[derive(Clone)]
pub struct Opaque([u8; 32]);

impl std::fmt::Debug for Opaque {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opaque(redacted)")
    }
}

impl Opaque {
    /// Ids under this secret.
    pub fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// 128 bits of HMAC-SHA-256 over purpose and parts, in hexadecimal.
    fn id(&self, purpose: &str, parts: &[&str]) -> String {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0)
            .unwrap_or_else(|_| unreachable!("HMAC takes a key of any length"));
        for part in std::iter::once(&purpose).chain(parts) {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part.as_bytes());
        }
        hex(&mac.finalize().into_bytes()[..16])
    }

    /// Who owns objects that outlive a key.
    pub fn owner(&self, tenant: &str) -> String {
        format!("own_{}", self.id("owner", &[tenant]))
    }

    /// Whose turn it is, for the scheduler's fairness.
    pub fn fairness(&self, tenant: &str) -> String {
        self.id("fairness", &[tenant])
    }

    /// Inside which prefixes may be shared: the tenant's own scope, or the one of all that share.
    pub fn cache_scope(&self, tenant: &str, shared: bool) -> String {
        if shared { self.id("scope-shared", &[]) } else { self.id("scope", &[tenant]) }
    }

    /// What a tenant's clients call a session, for the scheduler to tell it from others.
    pub fn session(&self, tenant: &str, session: &str) -> String {
        self.id("session", &[tenant, session])
    }

    /// A tenant's user, in counters and the ledger.
    pub fn user(&self, tenant: &str, user: &str) -> String {
        self.id("user", &[tenant, user])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_stable_distinct_and_say_nothing() {
        let opaque = Opaque::new([7; 32]);
        let ids = [
            opaque.owner("acme"),
            opaque.fairness("acme"),
            opaque.cache_scope("acme", false),
            opaque.cache_scope("acme", true),
            opaque.user("acme", "zoe"),
            opaque.user("acm", "ezoe"),
            opaque.session("acme", "zoe"),
            opaque.session("zeta", "zoe"),
            Opaque::new([8; 32]).owner("acme"),
        ];
        for (i, id) in ids.iter().enumerate() {
            assert!(!id.contains("acme") && !ids[i + 1..].contains(id), "{id}");
        }
        assert_eq!(opaque.owner("acme"), Opaque::new([7; 32]).owner("acme"));
        assert_eq!(opaque.cache_scope("zeta", true), opaque.cache_scope("acme", true));
    }
}
