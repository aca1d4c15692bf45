//! A run of the host backend in a folder of its own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use strata_operator::host::status::{self, LayerStatus, Phase, StackStatus};
use strata_operator::host::{self, HostError, HostEvent, HostOptions};
use strata_operator::workload::Component;
use strata_wire::replicas::Endpoints;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Run {
    temp: TempDir,
    told: Arc<Mutex<Vec<HostEvent>>>,
    shutdown: CancellationToken,
    task: Option<JoinHandle<Result<(), HostError>>>,
}

pub(crate) fn model(name: &str, replicas: i32) -> String {
    format!(
        "apiVersion: strata.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {{name: {name}}}\nspec:\n  model: {{name: {name}-served, uri: /models/{name}}}\n  replicas: {replicas}\n"
    )
}

pub(crate) fn tenant(name: &str) -> String {
    format!(
        "apiVersion: strata.dev/v1alpha1\nkind: Tenant\nmetadata: {{name: {name}}}\nspec: {{models: ['*']}}\n"
    )
}

impl Run {
    pub(crate) fn prepare(files: &[(&str, &str)]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("manifests")).unwrap();
        let stub = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/host/strata.py");
        std::fs::copy(stub, temp.path().join("strata")).unwrap();
        let run = Self { temp, told: Arc::default(), shutdown: CancellationToken::new(), task: None };
        for (name, text) in files {
            run.write(name, text);
        }
        run
    }

    pub(crate) fn options(&self) -> HostOptions {
        let root = self.temp.path();
        let mut options = HostOptions::new(root.join("manifests"), self.state(), root.join("strata"));
        options.listen = "127.0.0.1:0".to_owned();
        options
    }

    pub(crate) fn start_with(&mut self, options: HostOptions) {
        let (events, mut inbox) = tokio::sync::mpsc::unbounded_channel();
        let told = self.told.clone();
        tokio::spawn(async move {
            while let Some(event) = inbox.recv().await {
                told.lock().unwrap().push(event);
            }
        });
        self.task = Some(tokio::spawn(host::run(options, events, self.shutdown.clone())));
    }

    /// Starts and waits until everything is ready.
    pub(crate) async fn start(files: &[(&str, &str)]) -> Self {
        let mut run = Self::prepare(files);
        run.start_with(run.options());
        run.wait_for("ready", |run| run.told().iter().any(|e| matches!(e, HostEvent::Ready { .. }))).await;
        run
    }

    /// What the run ends with when it cannot start.
    pub(crate) async fn refusal(&mut self, options: HostOptions) -> String {
        self.start_with(options);
        let task = self.task.take().unwrap();
        let result = tokio::time::timeout(DEADLINE, task).await.expect("the run ends").unwrap();
        result.expect_err("the run is refused").to_string()
    }

    pub(crate) fn root(&self) -> &Path {
        self.temp.path()
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.temp.path().join("state")
    }

    /// Replaces a manifest atomically.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.temp.path().join("manifests").join(name);
        let part = path.with_extension("part");
        std::fs::write(&part, text).unwrap();
        std::fs::rename(part, path).unwrap();
    }

    pub(crate) fn delete(&self, name: &str) {
        std::fs::remove_file(self.temp.path().join("manifests").join(name)).unwrap();
    }

    /// Sets or removes one of the files that steer the stand-in.
    pub(crate) fn steer(&self, name: &str, text: Option<&str>) {
        let path = self.temp.path().join(name);
        match text {
            Some(text) => std::fs::write(path, text).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
    }

    pub(crate) fn told(&self) -> Vec<HostEvent> {
        self.told.lock().unwrap().clone()
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let problem = |event| if let HostEvent::Problem(text) = event { Some(text) } else { None };
        self.told().into_iter().filter_map(problem).collect()
    }

    /// What the processes noted: (component, pod, pid, what).
    pub(crate) fn events(&self) -> Vec<(String, String, u32, String)> {
        let text = std::fs::read_to_string(self.temp.path().join("events")).unwrap_or_default();
        text.lines()
            .filter_map(|line| {
                let mut words = line.splitn(4, ' ');
                let mut next = || words.next().map(ToOwned::to_owned);
                Some((next()?, next()?, next()?.parse().ok()?, next()?))
            })
            .collect()
    }

    pub(crate) fn status(&self) -> StackStatus {
        self.first_status().expect("it runs")
    }

    /// Nothing until the run has written one.
    pub(crate) fn first_status(&self) -> Option<StackStatus> {
        status::read(&self.state()).unwrap()
    }

    pub(crate) fn layers(&self, component: Component) -> Vec<LayerStatus> {
        self.status().layers.into_iter().filter(|l| l.component == component).collect()
    }

    /// Engines that serve and stay.
    pub(crate) fn serving(&self) -> Vec<LayerStatus> {
        self.layers(Component::Engine).into_iter().filter(|l| l.ready && l.phase == Phase::Running).collect()
    }

    pub(crate) fn pids(&self) -> Vec<(String, Option<u32>)> {
        let layers = self.status().layers.into_iter().filter(|l| l.component != Component::Engine);
        layers.map(|l| (l.name, l.pid)).collect()
    }

    /// Names in the endpoints file.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        let text = std::fs::read(self.state().join("endpoints.json")).unwrap();
        let endpoints: Endpoints = serde_json::from_slice(&text).unwrap();
        endpoints.models.into_values().flat_map(|m| m.replicas).map(|r| r.name).collect()
    }

    pub(crate) async fn wait_for(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !condition(self) {
            if let Some(task) = &self.task {
                assert!(!task.is_finished(), "the run ended while waiting for {what}: {:?}", self.told());
            }
            assert!(
                Instant::now() < end,
                "waited for {what}: {:#?}\n{:#?}\n{:?}",
                self.told(),
                status::read(&self.state()),
                self.events()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops as Ctrl-C does. Nothing that was started is left.
    pub(crate) async fn stop(mut self) -> Vec<(String, String, u32, String)> {
        let started: Vec<u32> = self.status().layers.into_iter().filter_map(|l| l.pid).collect();
        assert!(!started.is_empty());
        self.shutdown.cancel();
        let task = self.task.take().unwrap();
        tokio::time::timeout(DEADLINE, task).await.expect("the run ends").unwrap().expect("in good order");
        let left: Vec<&u32> = started.iter().filter(|pid| is_alive(**pid)).collect();
        assert!(left.is_empty(), "still running: {left:?}");
        assert!(status::read(&self.state()).unwrap().is_none());
        assert!(status::hop_token(&self.state()).is_none());
        self.events()
    }
}

pub(crate) fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Where something is first noted.
pub(crate) fn position(events: &[(String, String, u32, String)], who: &str, what: &str) -> usize {
    events
        .iter()
        .position(|(component, pod, _, noted)| (component == who || pod == who) && noted == what)
        .unwrap_or_else(|| panic!("{who} never noted {what}: {events:?}"))
}
