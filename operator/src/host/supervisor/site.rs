//! The addresses of the layers, which the layers above are told.

use std::net::{Ipv4Addr, SocketAddr};

use super::super::container;
use super::super::pod::Address;
use super::super::ports::Ports;
use super::super::{HostError, HostOptions, status};
use super::fleet::Fleet;
use crate::Mode;
use crate::render::HostSite;
use crate::workload::Component;

/// Where each layer listens.
#[derive(Debug)]
pub(super) struct Addresses {
    listen: SocketAddr,
    /// Whether any port will do for the platform (`--listen 127.0.0.1:0`).
    any_port: bool,
    scheduler: u16,
    gateway: u16,
    /// In mode development, the engine that the platform calls.
    engine: u16,
}

impl Addresses {
    /// The platform's address as resolved, the others on free ports. `asked` is what the person wrote.
    pub(super) fn new(asked: &str, listen: SocketAddr, ports: &Ports) -> std::io::Result<Self> {
        ports.promise(listen.port());
        let any_port = asked.ends_with(":0") && listen.ip() == Ipv4Addr::LOCALHOST;
        Ok(Self { listen, any_port, scheduler: ports.free()?, gateway: ports.free()?, engine: ports.free()? })
    }

    pub(super) fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The base URL for clients.
    pub(super) fn url(&self) -> String {
        format!("{}/v1", Address::Fixed(self.listen).url())
    }

    pub(super) fn scheduler(&self) -> String {
        Address::Loopback(self.scheduler).url()
    }

    /// Where a new pod of a workload listens.
    pub(super) fn for_new_pod(
        &self,
        component: Component,
        fixed_engine: bool,
        ports: &Ports,
    ) -> std::io::Result<Address> {
        let port = match component {
            Component::Platform if self.any_port => self.listen.port(),
            Component::Platform => return Ok(Address::Fixed(self.listen)),
            Component::Gateway => self.gateway,
            Component::Scheduler => self.scheduler,
            Component::Engine if fixed_engine => self.engine,
            Component::Engine => ports.free()?,
        };
        ports.promise(port);
        Ok(Address::Loopback(port))
    }

    /// Takes over the address of a layer that had to move, because somebody took its port.
    pub(super) fn follow(&mut self, fleet: &Fleet) {
        for (component, slot) in [
            (Component::Gateway, &mut self.gateway),
            (Component::Scheduler, &mut self.scheduler),
            (Component::Engine, &mut self.engine),
        ] {
            if let Some(Address::Loopback(port)) = fleet.address_of(component) {
                *slot = port;
            }
        }
        if let Some(Address::Loopback(port)) = fleet.address_of(Component::Platform) {
            self.listen.set_port(port);
        }
    }

    /// What rendering must know of this host.
    pub(super) fn site(&self, options: &HostOptions, mode: Mode) -> Result<HostSite, HostError> {
        let text = |path| container::text(path).map_err(|message| HostError::Manifests(vec![message]));
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let below_gateway = self.scheduler();
        let platform_upstream = match mode {
            Mode::Development => Address::Loopback(self.engine).url(),
            Mode::Production => below_gateway.clone(),
            Mode::Enterprise => Address::Loopback(self.gateway).url(),
        };
        Ok(HostSite {
            folder: text(&options.folder)?,
            state: text(&options.state)?,
            home: variable("HOME"),
            models: variable("STRATA_MODELS"),
            endpoints: text(&status::endpoints_file(&options.state))?,
            platform_upstream,
            platform_upstream_is_gateway: mode.has_gateway(),
            gateway_upstream: below_gateway,
            insecure_no_auth: options.insecure_no_auth && !mode.has_gateway(),
            fixed_engines: !mode.has_scheduler(),
        })
    }
}
