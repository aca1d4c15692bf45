//! `strata status`: what runs on a state folder, from the host backend's file and the scheduler.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use strata_hop::{Body, Upstream, forward};
use strata_operator::host::status::{self, StackStatus};
use strata_wire::replicas::{ReplicaReport, ReplicaState};

use crate::args;
use crate::output::{self, Format, NotRunning};

/// How long the scheduler may take to say what it sees.
const ASK: Duration = Duration::from_secs(2);

pub(super) fn run(args: &args::Status) -> anyhow::Result<()> {
    let state = args.state.folder()?;
    let Some(stack) =
        status::read(&state).with_context(|| format!("cannot read {}", status::file(&state).display()))?
    else {
        return Err(NotRunning(format!(
            "nothing runs on {}: start it with `strata up -f FOLDER`, or name another folder with --state",
            state.display()
        ))
        .into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(ask_scheduler(&state, &stack));
    output::print(&match (args.output, &report) {
        (Format::Json, _) => format!("{:#}\n", json(&stack, &report)?),
        (Format::Table, Ok(report)) => text(&stack, report.as_ref()),
        (Format::Table, Err(failure)) => {
            format!("{}\nthe scheduler did not say what it sees: {failure:#}\n", text(&stack, None))
        }
    })
}

/// What the scheduler sees of the replicas. `None` in a mode without one.
async fn ask_scheduler(state: &Path, stack: &StackStatus) -> anyhow::Result<Option<ReplicaReport>> {
    let Some(scheduler) = stack.scheduler() else { return Ok(None) };
    let mut request = http::Request::get(format!("{}/replicas", scheduler.url)).body(Body::empty())?;
    if let Some(token) = status::hop_token(state) {
        token.attach(request.headers_mut());
    }
    let response = Upstream::new().send(request, ASK).await?;
    anyhow::ensure!(response.status().is_success(), "it answered {}", response.status());
    let body = forward::collect(response.into_body(), ASK, 1 << 24).await?;
    Ok(Some(serde_json::from_slice(&body)?))
}

/// The host's status as it is, and the scheduler's replicas, each with its model, beside it.
fn json(stack: &StackStatus, report: &anyhow::Result<Option<ReplicaReport>>) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(stack)?;
    value["replicas"] = match report {
        Ok(Some(report)) => rows(report)
            .map(|(model, replica)| {
                let mut row = json!(replica);
                row["model"] = model.into();
                row["hit_rate"] = json!(hit_rate(replica));
                row
            })
            .collect(),
        Ok(None) | Err(_) => json!([]),
    };
    Ok(value)
}

fn rows(report: &ReplicaReport) -> impl Iterator<Item = (&str, &ReplicaState)> {
    report.models.iter().flat_map(|(model, replicas)| replicas.iter().map(move |r| (model.as_str(), r)))
}

/// Share of prompt tokens that were in the replica's prefix cache. `None` before the first prompt.
fn hit_rate(replica: &ReplicaState) -> Option<f64> {
    (replica.prefix_queries > 0.0).then(|| replica.prefix_hits / replica.prefix_queries)
}

fn text(stack: &StackStatus, report: Option<&ReplicaReport>) -> String {
    let mut text = format!("mode {}, {}, manifests {}\n\n", stack.mode, stack.url, stack.folder.display());
    let layers: Vec<_> = stack
        .layers
        .iter()
        .map(|l| {
            [
                l.component.to_string(),
                l.name.clone(),
                format!("{:?}", l.phase),
                if l.ready { "yes" } else { "no" }.to_owned(),
                l.restarts.to_string(),
                l.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                l.url.clone(),
            ]
        })
        .collect();
    text += &output::table(["LAYER", "NAME", "PHASE", "READY", "RESTARTS", "PID", "URL"], &layers);
    let objects: Vec<_> = stack
        .objects
        .iter()
        .flat_map(|o| o.conditions.iter().map(move |c| (o, c)))
        .map(|(o, c)| {
            let object = format!("{}/{}", o.kind.to_lowercase(), o.name);
            [
                object,
                c.kind.clone(),
                c.status.as_str().to_owned(),
                c.reason.as_str().to_owned(),
                c.message.clone(),
            ]
        })
        .collect();
    if !objects.is_empty() {
        text.push('\n');
        text += &output::table(["OBJECT", "CONDITION", "STATUS", "REASON", "MESSAGE"], &objects);
    }
    if let Some(report) = report {
        let replicas: Vec<_> = rows(report)
            .map(|(model, r)| {
                [
                    model.to_owned(),
                    r.name.clone(),
                    if r.ready {
                        "yes".to_owned()
                    } else {
                        r.reason.clone().unwrap_or_else(|| "no".to_owned())
                    },
                    r.requests.to_string(),
                    r.in_flight.to_string(),
                    format!("{:.0}%", r.kv_usage * 100.0),
                    hit_rate(r).map_or_else(|| "-".to_owned(), |rate| format!("{:.0}%", rate * 100.0)),
                ]
            })
            .collect();
        text.push('\n');
        let headings = ["MODEL", "REPLICA", "ROUTED", "REQUESTS", "IN FLIGHT", "KV CACHE", "PREFIX HITS"];
        text += &output::table(headings, &replicas);
    }
    for problem in &stack.problems {
        let _ = writeln!(text, "\nproblem: {problem}");
    }
    text
}
