//! gRPC's health check, with the names that endpoint pickers are asked by. Pure.

use tonic::Status;

use super::SERVICE;
use super::proto::{HealthCheckResponse, NOT_SERVING, SERVING};

/// How a service of this name is. `liveness`, and no name, ask whether the process answers; the others
/// whether requests should be sent here.
pub(crate) fn check(service: &str, ready: bool) -> Result<HealthCheckResponse, Status> {
    let serves = match service {
        "" | "liveness" => true,
        "readiness" | "inference-extension" | SERVICE => ready,
        other => {
            let shown: String = other.chars().take(100).collect();
            return Err(Status::not_found(format!(
                "no service `{shown}`; there are `liveness`, `readiness` and `{SERVICE}`"
            )));
        }
    };
    Ok(HealthCheckResponse { status: if serves { SERVING } else { NOT_SERVING } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn liveness_is_told_from_readiness() {
        let status = |service, ready| check(service, ready).map(|answer| answer.status).ok();
        assert_eq!([status("", false), status("liveness", false)], [Some(SERVING); 2]);
        for service in ["readiness", SERVICE] {
            assert_eq!([status(service, true), status(service, false)], [Some(SERVING), Some(NOT_SERVING)]);
        }
        assert_eq!(status("nothing", true), None);
    }
}
