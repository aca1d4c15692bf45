//! Slows down whoever tries many bad keys. Pure but for the map's lock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Peers remembered at once.
const PEERS: usize = 10_000;
/// Bad keys a minute that cost nothing.
const FREE: u32 = 10;
/// Longest answer to a bad key.
const LONGEST: Duration = Duration::from_secs(2);
const MINUTE_MS: i64 = 60_000;

/// Counts bad keys by peer. Requests with a good key are never slowed.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    peers: Mutex<HashMap<IpAddr, (i64, u32)>>,
}

impl Guard {
    /// Notes a bad key and says how long to hold its refusal back.
    pub(crate) fn failed(&self, peer: IpAddr, now: i64) -> Duration {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = network(peer);
        if peers.len() >= PEERS && !peers.contains_key(&peer) {
            peers.retain(|_, (since, _)| now.saturating_sub(*since) < MINUTE_MS);
            if peers.len() >= PEERS {
                // An attack from everywhere: everyone new is treated as a repeater.
                return LONGEST;
            }
        }
        let (since, count) = peers.entry(peer).or_insert((now, 0));
        if now.saturating_sub(*since) >= MINUTE_MS {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        let excess = count.saturating_sub(FREE);
        if excess == 0 { Duration::ZERO } else { Duration::from_millis(25 << excess.min(7)).min(LONGEST) }
    }
}

/// One host has a whole /64 of IPv6 to itself.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_keys_get_slower_and_are_forgotten() {
        let guard = Guard::default();
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        let pauses: Vec<u128> = (0..20).map(|_| guard.failed(peer, 0).as_millis()).collect();
        assert_eq!(pauses[..10], [0; 10]);
        assert_eq!(pauses[10..], [50, 100, 200, 400, 800, 1600, 2000, 2000, 2000, 2000]);
        assert_eq!(guard.failed("10.0.0.2".parse().unwrap(), 0), Duration::ZERO);
        assert_eq!(guard.failed(peer, MINUTE_MS), Duration::ZERO);
    }

    #[test]
    fn the_map_is_bounded() {
        let guard = Guard::default();
        for n in 0..PEERS as u32 + 10 {
            guard.failed(std::net::Ipv4Addr::from(n).into(), 0);
        }
        assert!(guard.peers.lock().unwrap().len() <= PEERS);
        assert_eq!(guard.failed("250.0.0.1".parse().unwrap(), 0), LONGEST);
        assert_eq!(guard.failed("250.0.0.1".parse().unwrap(), MINUTE_MS), Duration::ZERO);
    }
}
