//! Addresses on loopback, each for one process.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};

/// The ports that are promised to processes of this run.
#[derive(Clone, Debug, Default)]
pub(super) struct Ports {
    promised: Arc<Mutex<HashSet<u16>>>,
}

impl Ports {
    /// A free port that no other process of this run was promised.
    pub(super) fn free(&self) -> io::Result<u16> {
        for _ in 0..64 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            if self.promised.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
                return Ok(port);
            }
        }
        Err(io::Error::other("no free port on 127.0.0.1"))
    }

    /// The port, if nobody has taken it meanwhile; else another.
    pub(super) fn keep_or_replace(&self, port: u16) -> io::Result<u16> {
        if is_free(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
            return Ok(port);
        }
        let other = self.free()?;
        self.give_back(port);
        Ok(other)
    }

    /// The port is used by one process of this run.
    pub(super) fn promise(&self, port: u16) {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
    }

    /// A process that was promised the port is gone for good.
    pub(super) fn give_back(&self, port: u16) {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner).remove(&port);
    }
}

/// Whether nobody listens there.
pub(super) fn is_free(addr: SocketAddr) -> bool {
    TcpListener::bind(addr).is_ok()
}

/// The address that `listen` names, with a port: checked to be free.
pub(super) fn resolve(listen: &str) -> Result<SocketAddr, String> {
    let advice = "say where with --listen ADDRESS:PORT, such as --listen 127.0.0.1:8080";
    let addr = listen
        .to_socket_addrs()
        .map_err(|error| format!("`{listen}` is no address to listen on: {error}; {advice}"))?
        .next()
        .ok_or_else(|| format!("`{listen}` is no address to listen on; {advice}"))?;
    match TcpListener::bind(addr).and_then(|l| l.local_addr()) {
        Ok(bound) => Ok(bound),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(format!(
            "{addr} is in use by another process; stop it, or choose another address with --listen"
        )),
        Err(error) => Err(format!("cannot listen on {addr}: {error}; {advice}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_replaced() {
        let ports = Ports::default();
        let port = ports.free().unwrap();
        assert_eq!(ports.keep_or_replace(port).unwrap(), port);
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert_ne!(ports.keep_or_replace(port).unwrap(), port);
        let message = resolve(&taken.local_addr().unwrap().to_string()).unwrap_err();
        assert!(message.contains("in use") && message.contains("--listen"), "{message}");
    }

    #[test]
    fn addresses_are_resolved() {
        assert_ne!(resolve("127.0.0.1:0").unwrap().port(), 0);
        assert!(resolve("nonsense").unwrap_err().contains("--listen"));
    }
}
