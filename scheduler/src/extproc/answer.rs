//! What the proxy is told, as messages. Pure.

use bytes::Bytes;
use http::HeaderMap;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use strata_hop::Fault;

use super::proto::{
    Answer, BodyMutation, CommonResponse, HeaderMutation, HeaderValue, HeaderValueOption, HttpStatus,
    ImmediateResponse, Mutation, OVERWRITE_OR_ADD, PartResponse, ProcessingResponse, StreamedBodyResponse,
};

/// Where the proxy reads the chosen endpoint, as a header and as metadata of [`NAMESPACE`].
pub(crate) const DESTINATION: &str = "x-gateway-destination-endpoint";
/// Namespace of the metadata.
pub(crate) const NAMESPACE: &str = "envoy.lb";

/// Where a request goes, and as what.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Chosen {
    /// The replica's `ip:port`, then those of others to fall back to, with commas between them.
    pub(crate) endpoint: String,
    /// Headers that it gets beside those that it has.
    pub(crate) set: HeaderMap,
    /// Headers that it loses.
    pub(crate) remove: Vec<String>,
    /// Its body, where that was read.
    pub(crate) body: Option<Bytes>,
}

impl Chosen {
    /// What becomes of the headers. `length` is the body's, where the proxy must be told.
    pub(crate) fn headers(&self, length: Option<usize>) -> HeaderMutation {
        let mut set = vec![overwrite(DESTINATION, Bytes::copy_from_slice(self.endpoint.as_bytes()))];
        for (name, value) in &self.set {
            set.push(overwrite(name.as_str(), Bytes::copy_from_slice(value.as_bytes())));
        }
        if let Some(length) = length {
            set.push(overwrite("content-length", length.to_string().into()));
        }
        // A proxy may set first and remove then.
        let is_set = |name: &str| name == DESTINATION || self.set.contains_key(name);
        let remove = self.remove.iter().filter(|name| !is_set(name)).cloned().collect();
        HeaderMutation { set_headers: set, remove_headers: remove }
    }

    /// `envoy.lb: {x-gateway-destination-endpoint: ip:port}`.
    pub(crate) fn metadata(&self) -> Struct {
        let of = |key: &str, kind| Struct { fields: [(key.to_owned(), Value { kind: Some(kind) })].into() };
        let endpoint = of(DESTINATION, Kind::StringValue(self.endpoint.clone()));
        of(NAMESPACE, Kind::StructValue(endpoint))
    }
}

/// A response that the proxy gives its client.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// For the proxy's access log; of one word.
    pub(crate) details: String,
}

impl From<&Fault> for Reply {
    fn from(fault: &Fault) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        if let Some(after) = fault.retry_after_seconds() {
            headers.insert(http::header::RETRY_AFTER, http::HeaderValue::from(after));
        }
        for (name, value) in &fault.headers {
            headers.insert(name.clone(), value.clone());
        }
        let details = fault.body.error.code.clone().unwrap_or_else(|| fault.body.error.kind.clone());
        Self { status: fault.kind.status(), headers, body: fault.body.to_bytes(), details }
    }
}

impl Reply {
    pub(crate) fn message(&self) -> ProcessingResponse {
        let set = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            overwrite(name.as_str(), Bytes::copy_from_slice(value.as_bytes()))
        };
        let headers = HeaderMutation {
            set_headers: self.headers.iter().map(set).collect(),
            remove_headers: Vec::new(),
        };
        say(Answer::Immediate(ImmediateResponse {
            status: Some(HttpStatus { code: i32::from(self.status) }),
            headers: Some(headers),
            body: self.body.clone(),
            details: format!("strata_{}", self.details),
        }))
    }
}

/// A message of this answer and nothing else.
pub(crate) fn say(answer: Answer) -> ProcessingResponse {
    ProcessingResponse { answer: Some(answer), dynamic_metadata: None }
}

/// Changes of headers, of a body, or of both.
pub(crate) fn change(headers: Option<HeaderMutation>, body: Option<Mutation>) -> PartResponse {
    let body_mutation = body.map(|mutation| BodyMutation { mutation: Some(mutation) });
    PartResponse { response: Some(CommonResponse { header_mutation: headers, body_mutation }) }
}

/// No change.
pub(crate) fn unchanged() -> PartResponse {
    PartResponse { response: Some(CommonResponse::default()) }
}

/// A piece of a body in full duplex.
pub(crate) fn piece(body: Bytes, end_of_stream: bool) -> PartResponse {
    change(None, Some(Mutation::Streamed(StreamedBodyResponse { body, end_of_stream })))
}

fn overwrite(name: &str, value: Bytes) -> HeaderValueOption {
    let header = HeaderValue { key: name.to_owned(), value: String::new(), raw_value: value };
    HeaderValueOption { header: Some(header), append_action: OVERWRITE_OR_ADD }
}
