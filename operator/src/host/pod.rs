//! One pod: a process that is started, watched, started again when it ends, and stopped on order.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use nix::sys::signal::Signal;
use strata_hop::{HopToken, Upstream};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::backoff;
use super::child::Process;
use super::container::{Launch, Recipe, Secrets};
use super::drain;
use super::events::Events;
use super::guard::PARENT_ENV;
use super::logs::Log;
use super::ports::{self, Ports};
use super::probe::{self, Health};
use super::spawner::Spawner;
use super::status::{self, Phase};
use crate::render::LISTEN_ENV;

/// How often the log's size is looked at.
const LOG_CHECK: Duration = Duration::from_secs(10);

/// What all pods of a run share.
#[derive(Clone)]
pub(super) struct Tools {
    pub spawner: Spawner,
    pub client: Upstream,
    pub ports: Ports,
    pub token: HopToken,
    pub secrets: Arc<RwLock<Secrets>>,
    pub events: Events,
    pub wake: Arc<Notify>,
    pub binary: PathBuf,
    pub state: PathBuf,
    pub drain_grace: Duration,
}

/// Where a pod listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// There and nowhere else.
    Fixed(SocketAddr),
    /// On this port of loopback, or on another if somebody took it.
    Loopback(u16),
}

impl Address {
    pub(super) fn socket(self) -> SocketAddr {
        match self {
            Self::Fixed(addr) => addr,
            Self::Loopback(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        }
    }

    /// How a client on this machine reaches it.
    pub(super) fn url(self) -> String {
        let mut addr = self.socket();
        if addr.ip().is_unspecified() {
            addr.set_ip(if addr.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        format!("http://{addr}")
    }
}

/// What is wanted of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// To run.
    Run,
    /// To end once this scheduler has let go of it and its streams are done.
    Drain {
        /// The scheduler's URL, if there is one.
        scheduler: Option<String>,
    },
    /// To end at once.
    Kill,
}

/// What can be seen of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub phase: Phase,
    pub pid: Option<u32>,
    pub ready: bool,
    pub restarts: u32,
    /// Ends in a row without having served for a while.
    pub failures: u32,
    pub address: Address,
    pub message: Option<String>,
}

/// A pod to run.
pub(super) struct Pod {
    pub name: String,
    pub recipe: Recipe,
    pub tools: Tools,
    pub view: watch::Sender<View>,
    pub order: watch::Receiver<Order>,
}

/// How one life of the process went.
pub(super) enum Life {
    /// It ended, or never began, for this reason; how long it had served.
    Ended { why: String, served: Duration },
    /// It was stopped on order.
    Stopped,
}

impl Pod {
    pub(super) fn show(&self, change: impl FnOnce(&mut View)) {
        let changed = self.view.send_if_modified(|view| {
            let before = view.clone();
            change(view);
            *view != before
        });
        if changed {
            self.tools.wake.notify_one();
        }
    }

    fn ordered_away(&self) -> bool {
        *self.order.borrow() != Order::Run
    }

    /// Runs until it is ordered away.
    pub(super) async fn run(mut self) {
        while !self.ordered_away() {
            let Life::Ended { why, served } = self.live().await else { break };
            if self.ordered_away() {
                break;
            }
            let mut wait = Duration::ZERO;
            self.show(|view| {
                view.failures = if served >= backoff::SOUND_AFTER { 1 } else { view.failures + 1 };
                wait = backoff::delay(view.failures, backoff::jitter());
                view.restarts += 1;
                view.phase = Phase::BackingOff;
                view.pid = None;
                view.ready = false;
                view.message = Some(why.clone());
            });
            let again = if wait < Duration::from_secs(1) {
                "starting it again".to_owned()
            } else {
                format!("starting it again in {} s", wait.as_secs_f64().round())
            };
            let log = status::log_file(&self.tools.state, &self.name);
            self.tools.events.problem(format!("{} {why}; {again} (log: {})", self.name, log.display()));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = self.order.changed() => {}
            }
        }
        let view = self.view.borrow().clone();
        if let Address::Loopback(port) = view.address {
            self.tools.ports.give_back(port);
        }
        self.show(|view| {
            view.phase = Phase::Stopped;
            view.pid = None;
            view.ready = false;
        });
    }

    /// One process, from its start to its end.
    async fn live(&mut self) -> Life {
        let failed = |why: String| Life::Ended { why, served: Duration::ZERO };
        let address = match self.take_address() {
            Ok(address) => address,
            Err(why) => return failed(why),
        };
        if let Err(life) = self.prepare(address).await {
            return life;
        }
        let (mut log, command) = match self.command(&self.recipe.launch, address) {
            Ok(made) => made,
            Err(why) => return failed(why),
        };
        let mut process = match Process::start(&self.tools.spawner, command).await {
            Ok(process) => process,
            Err(error) => return failed(format!("cannot be started: {error}")),
        };
        let pid = process.pid();
        self.show(|view| {
            view.phase = Phase::Starting;
            view.pid = Some(pid);
        });
        let (told, mut health) = watch::channel(Health::default());
        let prober =
            tokio::spawn(probe::watch(address.url(), self.recipe.clone(), self.tools.client.clone(), told));
        let life = self.look_after(&mut process, &mut health, &mut log).await;
        prober.abort();
        life
    }

    async fn look_after(
        &mut self,
        process: &mut Process,
        health: &mut watch::Receiver<Health>,
        log: &mut Log,
    ) -> Life {
        let mut ready_since: Option<Instant> = None;
        let mut probing = true;
        loop {
            tokio::select! {
                end = process.ended() => {
                    let served = ready_since.map_or(Duration::ZERO, |since| since.elapsed());
                    let said = log.last_words().map_or_else(String::new, |words| format!(": {words}"));
                    return Life::Ended { why: format!("{}{said}", describe(end)), served };
                }
                changed = self.order.changed() => {
                    let order = self.order.borrow_and_update().clone();
                    if changed.is_err() || order != Order::Run {
                        self.stop(process, order).await;
                        return Life::Stopped;
                    }
                }
                changed = health.changed(), if probing => {
                    probing = changed.is_ok();
                    let health = *health.borrow_and_update();
                    if health.dead {
                        process.signal(Signal::SIGKILL);
                        process.ended().await;
                        let why = if health.started { "does not answer any more" } else { "did not start in time" };
                        return Life::Ended { why: why.to_owned(), served: Duration::ZERO };
                    }
                    if health.ready && ready_since.is_none() {
                        ready_since = Some(Instant::now());
                        let url = self.view.borrow().address.url();
                        self.tools.events.progress(format!("{} serves at {url}", self.name));
                    }
                    self.show(|view| {
                        view.ready = health.ready;
                        if health.ready {
                            view.phase = Phase::Running;
                        }
                    });
                }
                () = tokio::time::sleep(LOG_CHECK) => log.trim(),
            }
        }
    }

    /// Un-route, SIGTERM, wait, SIGKILL.
    async fn stop(&mut self, process: &mut Process, order: Order) {
        self.show(|view| view.phase = Phase::Draining);
        let Order::Drain { scheduler } = order else {
            process.signal(Signal::SIGKILL);
            process.ended().await;
            return;
        };
        let (tools, name, mut orders) = (self.tools.clone(), self.name.clone(), self.order.clone());
        let gently = async {
            if let Some(scheduler) = scheduler {
                tokio::select! {
                    () = drain::unrouted(&tools.client, &scheduler, &tools.token, &name) => {}
                    _ = process.ended() => return true,
                }
            }
            process.signal(Signal::SIGTERM);
            tokio::time::timeout(tools.drain_grace, process.ended()).await.is_ok()
        };
        let killed = async {
            if orders.wait_for(|order| *order == Order::Kill).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            ended = gently => ended,
            () = killed => false,
        };
        if !ended {
            process.signal(Signal::SIGKILL);
            process.ended().await;
        }
    }

    /// The address to start on; another port if somebody took ours meanwhile.
    fn take_address(&self) -> Result<Address, String> {
        let address = self.view.borrow().address;
        match address {
            Address::Fixed(addr) if ports::is_free(addr) => Ok(address),
            Address::Fixed(addr) => {
                Err(format!("cannot start: {addr} is in use by another process; stop that"))
            }
            Address::Loopback(port) => {
                let port =
                    self.tools.ports.keep_or_replace(port).map_err(|e| format!("cannot start: {e}"))?;
                let address = Address::Loopback(port);
                self.show(|view| view.address = address);
                Ok(address)
            }
        }
    }

    pub(super) fn command(&self, launch: &Launch, address: Address) -> Result<(Log, Command), String> {
        let tools = &self.tools;
        let environment = {
            let secrets = tools.secrets.read().unwrap_or_else(PoisonError::into_inner);
            launch.environment(&secrets)?
        };
        let path = status::log_file(&tools.state, &self.name);
        let (log, out, err) = Log::open(path.clone())
            .map_err(|error| format!("cannot write its log {}: {error}", path.display()))?;
        let mut command = Command::new(&tools.binary);
        {
            use std::os::unix::process::CommandExt;
            command.process_group(0);
        }
        command
            .args(&launch.args)
            .envs(environment)
            .env(LISTEN_ENV, address.socket().to_string())
            .env(strata_hop::token::ENV, tools.token.expose())
            .env(PARENT_ENV, std::process::id().to_string())
            .env("STRATA_POD", &self.name)
            .env_remove("STRATA_STATE")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        Ok((log, command))
    }
}

pub(super) fn describe(end: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (end.code(), end.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => {
            let name =
                Signal::try_from(signal).map_or_else(|_| signal.to_string(), |s| s.as_str().to_owned());
            format!("was ended by {name}")
        }
        (None, None) => "ended".to_owned(),
    }
}
