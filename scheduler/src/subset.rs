//! Some of the replicas, by where they are. Pure.

use std::collections::BTreeSet;

use crate::replica::Replica;

/// Replicas that a gateway allows, by their `host:port`.
#[derive(Clone, Debug)]
pub struct Subset(BTreeSet<String>);

impl Subset {
    /// Those at these addresses.
    pub fn new(addresses: BTreeSet<String>) -> Self {
        Self(addresses)
    }

    /// Whether a replica is one of them.
    pub fn has(&self, replica: &Replica) -> bool {
        self.0.contains(&authority(replica.url()))
    }
}

/// Where the server of a base URL is, as `host:port`; empty when it is no URL.
pub fn authority(url: &str) -> String {
    let of = |uri: http::Uri| {
        let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        Some(format!("{}:{}", uri.host()?, uri.port_u16().unwrap_or(usual)))
    };
    url.parse().ok().and_then(of).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_has_a_port() {
        let all = ["http://10.0.0.1:8000", "https://engine", "http://[fd00::7]", "http://[fd00::7]:81/", ""];
        let wanted = ["10.0.0.1:8000", "engine:443", "[fd00::7]:80", "[fd00::7]:81", ""];
        assert_eq!(all.map(authority), wanted);
    }
}
