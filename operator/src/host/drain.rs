//! Waits until the scheduler no longer sends a replica requests.

use std::time::Duration;

use http::Request;
use strata_hop::{Body, HopToken, Upstream};
use strata_wire::replicas::ReplicaReport;

/// Longest answer of a scheduler that is read.
const MAX_REPORT: usize = 8 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(1);

/// Longest time to wait for a scheduler that does not answer.
const UNROUTE_LIMIT: Duration = Duration::from_secs(5);

/// What the scheduler says about its replicas.
pub(super) async fn report(client: &Upstream, scheduler: &str, token: &HopToken) -> Option<ReplicaReport> {
    let mut request = Request::get(format!("{scheduler}/replicas")).body(Body::empty()).ok()?;
    token.attach(request.headers_mut());
    let response = client.send(request, PATIENCE).await.ok().filter(|r| r.status().is_success())?;
    let body = strata_hop::forward::collect(response.into_body(), PATIENCE, MAX_REPORT).await.ok()?;
    serde_json::from_slice(&body).ok()
}

/// Whether a replica may still be sent requests.
pub(super) fn is_routed(report: &ReplicaReport, pod: &str) -> bool {
    report.models.values().flatten().any(|replica| replica.name == pod && replica.ready)
}

/// Waits until the scheduler has let go of a replica that the endpoints file no longer lists.
pub(super) async fn unrouted(client: &Upstream, scheduler: &str, token: &HopToken, pod: &str) {
    let waiting = async {
        loop {
            if let Some(report) = report(client, scheduler, token).await
                && !is_routed(&report, pod)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(UNROUTE_LIMIT, waiting).await.is_err() {
        tracing::warn!(
            pod,
            "the scheduler did not say that it let go of the replica; stopping it all the same"
        );
    }
}
