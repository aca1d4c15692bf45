//! Why a request is not served: our own fault message, or an upstream's answer passed on unchanged.

use axum::response::{IntoResponse, Response};
use strata_hop::Fault;
use strata_wire::ErrorKind;

use crate::store::StoreError;

/// A response that ends a request early.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) Box<Response>);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        *self.0
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self(Box::new(fault.into_response()))
    }
}

impl From<Response> for Refusal {
    fn from(response: Response) -> Self {
        Self(Box::new(response))
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed");
        Fault::new(ErrorKind::Internal, format!("{error}; nothing of this request was saved")).into()
    }
}

/// 404 for an object that does not exist, or that belongs to another owner.
pub(crate) fn not_found(what: &str, id: &str) -> Fault {
    Fault::new(ErrorKind::NotFound, format!("no {what} with id '{id}'"))
}

/// 400 for a part of the API that exists elsewhere and not here yet.
pub(crate) fn not_built(param: &str, what: &str) -> Fault {
    let mut fault = Fault::invalid_param(param, format!("`{param}`: {what} is not built yet; leave it out"));
    fault.body.error.code = Some("unsupported_parameter".to_owned());
    fault
}
