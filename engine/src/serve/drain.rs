//! What becomes of requests that are still being sent when the engine is told to stop.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use strata_hop::{Fault, Upload};
use strata_wire::ErrorKind;
use tokio_util::sync::CancellationToken;

/// How long a request may go on being sent after that.
const PATIENCE: Duration = Duration::from_secs(1);

/// The refusal of a request by an engine that is about to stop.
pub(super) fn refusal() -> Fault {
    let fault = Fault::new(ErrorKind::Overloaded, "this replica is draining and takes no new request");
    fault.retry_after(Duration::from_secs(1))
}

/// Refuses requests that are not whole soon after `stop`: they would be refused once they are, and a client
/// that sends slowly, or no more, would hold the drain up to its end.
pub(crate) async fn end_uploads(
    State(stop): State<CancellationToken>,
    request: Request,
    next: Next,
) -> Response {
    let upload = request.extensions().get::<Upload>().cloned();
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(PATIENCE).await;
        if upload.is_none_or(|upload| upload.is_whole()) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        response = next.run(request) => response,
        () = late => refusal().into_response(),
    }
}
