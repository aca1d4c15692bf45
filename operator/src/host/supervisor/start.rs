//! Everything that is checked before the first process starts.

use std::os::unix::fs::DirBuilderExt;
use std::sync::{Arc, RwLock};

use k8s_openapi::jiff::Timestamp;
use strata_hop::{HopToken, Upstream};
use strata_kinds::manifest::{self, Folder};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, watch};

use super::super::events::Events;
use super::super::pod::Tools;
use super::super::ports::{self, Ports};
use super::super::registry::Registry;
use super::super::spawner::Spawner;
use super::super::watch::FolderWatch;
use super::super::{HostError, HostEvent, HostOptions, container, replace, status};
use super::fleet::Fleet;
use super::site::Addresses;
use super::{Held, ROUTE_POLL, Supervisor, cannot_write, follow_routes};
use crate::Mode;

pub(super) async fn start(
    options: HostOptions,
    events: UnboundedSender<HostEvent>,
) -> Result<(Supervisor, Held), HostError> {
    let watch = FolderWatch::new(&options.folder);
    let mut folder = good_folder(&options)?;
    let mode = options.mode.unwrap_or_else(|| Mode::default_for(!folder.tenants.is_empty()));
    let listen = ports::resolve(&options.listen).map_err(HostError::Listen)?;
    if !mode.has_gateway() && !listen.ip().to_canonical().is_loopback() && !options.insecure_no_auth {
        return Err(HostError::Unguarded { mode, listen: listen.to_string() });
    }
    let mut registry = Registry::default();
    registry.stamp(&mut folder, Timestamp::now());
    let planned = registry.plan(&folder, mode);
    if planned.models_refused {
        return Err(HostError::Manifests(planned.problems));
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&options.state).map_err(|source| {
        HostError::System { what: format!("cannot make {}", options.state.display()), source }
    })?;
    let lock = Held::take(&options.state)?;
    let token = new_token()?;
    let token_file = status::token_file(&options.state);
    replace::file(&token_file, token.expose().as_bytes(), 0o600)
        .map_err(|source| cannot_write(&token_file, source))?;
    let events = Events::new(events);
    events.progress(format!("mode {mode}: {}", describe(mode)));
    if let Err(message) = call_hook(&options, &folder).await {
        events.problem(message);
    }
    let system = |what: &str| {
        let what = what.to_owned();
        |source| HostError::System { what, source }
    };
    let addresses_ports = Ports::default();
    let tools = Tools {
        spawner: Spawner::start().map_err(system("cannot start a thread"))?,
        client: Upstream::new(),
        ports: addresses_ports.clone(),
        token,
        secrets: Arc::new(RwLock::new(container::secrets(&folder))),
        events,
        wake: Arc::new(Notify::new()),
        binary: options.binary.clone(),
        state: options.state.clone(),
        drain_grace: options.drain_grace,
    };
    let addresses = Addresses::new(&options.listen, listen, &addresses_ports)
        .map_err(system("cannot find a free port"))?;
    let (report_from, asked) = watch::channel((None, ROUTE_POLL));
    let (told, report) = watch::channel(None);
    tokio::spawn(follow_routes(tools.clone(), asked, told));
    let supervisor = Supervisor {
        options,
        mode,
        folder,
        watch,
        registry,
        planned,
        addresses,
        fleet: Fleet::default(),
        tools,
        standing: super::Standing::default(),
        endpoints: None,
        status: None,
        told: Vec::new(),
        report,
        report_from,
        announced: false,
    };
    Ok((supervisor, lock))
}

/// The folder, in which nothing is wrong: what is started is what was meant, all of it. An edit that
/// goes wrong later stops nothing.
fn good_folder(options: &HostOptions) -> Result<Folder, HostError> {
    let folder = manifest::load(&options.folder);
    if !folder.problems.is_empty() {
        return Err(HostError::Manifests(folder.problems.iter().map(ToString::to_string).collect()));
    }
    if folder.models.is_empty() {
        let message = format!(
            "{} has no ModelDeployment: add one (see examples/quickstart/model.yaml)",
            options.folder.display()
        );
        return Err(HostError::Manifests(vec![message]));
    }
    Ok(folder)
}

/// Calls the hook where it may block.
pub(super) async fn call_hook(options: &HostOptions, folder: &Folder) -> Result<(), String> {
    let (hook, folder) = (options.on_snapshot.clone(), folder.clone());
    match tokio::task::spawn_blocking(move || hook(&folder)).await {
        Ok(result) => result,
        Err(error) => Err(format!("preparing the folder's objects failed: {error}")),
    }
}

fn new_token() -> Result<HopToken, HostError> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| HostError::System {
        what: "cannot get randomness".to_owned(),
        source: std::io::Error::other(error),
    })?;
    let text = bytes.iter().fold(String::new(), |mut text, byte| {
        use std::fmt::Write as _;
        let _ = write!(text, "{byte:02x}");
        text
    });
    HopToken::new(&text).ok_or_else(|| HostError::System {
        what: "cannot make a token".to_owned(),
        source: std::io::Error::other("not a header value"),
    })
}

fn describe(mode: Mode) -> &'static str {
    match mode {
        Mode::Development => "platform → engine",
        Mode::Production => "platform → scheduler → engines",
        Mode::Enterprise => "platform → gateway → scheduler → engines",
    }
}
