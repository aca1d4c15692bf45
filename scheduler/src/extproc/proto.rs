//! The messages of Envoy's external processing service, as far as an endpoint picker reads or writes
//! them. Written by hand, so that a build needs no protobuf compiler; what is not here is skipped when it
//! is read, as protobuf asks for.
//!
//! Names and field numbers are those of Envoy 1.40: `envoy/service/ext_proc/v3/external_processor.proto`,
//! `envoy/extensions/filters/http/ext_proc/v3/processing_mode.proto`, `envoy/config/core/v3/base.proto`
//! and `envoy/type/v3/http_status.proto`; and `grpc/health/v1/health.proto`.

use std::collections::HashMap;

use bytes::Bytes;
use prost_types::Struct;

/// What the proxy sends: one part of a request or of its response.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessingRequest {
    /// The part.
    #[prost(oneof = "Part", tags = "2, 3, 4, 5, 6, 7")]
    pub part: Option<Part>,
    /// What filters before this one said of the request.
    #[prost(message, optional, tag = "8")]
    pub metadata_context: Option<Metadata>,
    /// Nobody waits for an answer: the proxy only lets its traffic be watched.
    #[prost(bool, tag = "10")]
    pub observability_mode: bool,
    /// How the proxy is set up; only in the first message.
    #[prost(message, optional, tag = "11")]
    pub protocol_config: Option<ProtocolConfiguration>,
}

/// One part of an HTTP exchange.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Part {
    /// The request's headers.
    #[prost(message, tag = "2")]
    RequestHeaders(HttpHeaders),
    /// The response's headers.
    #[prost(message, tag = "3")]
    ResponseHeaders(HttpHeaders),
    /// A piece of the request's body, or all of it.
    #[prost(message, tag = "4")]
    RequestBody(HttpBody),
    /// A piece of the response's body, or all of it.
    #[prost(message, tag = "5")]
    ResponseBody(HttpBody),
    /// The request's trailers.
    #[prost(message, tag = "6")]
    RequestTrailers(HttpTrailers),
    /// The response's trailers.
    #[prost(message, tag = "7")]
    ResponseTrailers(HttpTrailers),
}

/// How the proxy sends bodies: numbers of `ProcessingMode.BodySendMode`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ProtocolConfiguration {
    /// The request's.
    #[prost(int32, tag = "1")]
    pub request_body_mode: i32,
    /// The response's.
    #[prost(int32, tag = "2")]
    pub response_body_mode: i32,
    /// Whether pieces of the request's body come before its headers were answered, where it is streamed.
    #[prost(bool, tag = "3")]
    pub send_body_without_waiting_for_header_response: bool,
}

/// `envoy.config.core.v3.Metadata`: by the name of who wrote it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metadata {
    /// Free-form values.
    #[prost(map = "string, message", tag = "1")]
    pub filter_metadata: HashMap<String, Struct>,
}

/// The headers of a request or response.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HttpHeaders {
    /// Them, with `:method`, `:path` and `:status` among them.
    #[prost(message, optional, tag = "1")]
    pub headers: Option<HeaderMap>,
    /// Whether neither body nor trailers follow.
    #[prost(bool, tag = "3")]
    pub end_of_stream: bool,
}

/// A piece of a body.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HttpBody {
    /// Its bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub body: Bytes,
    /// Whether nothing follows, trailers neither.
    #[prost(bool, tag = "2")]
    pub end_of_stream: bool,
}

/// Trailers. What they say is of no interest here.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct HttpTrailers {}

/// `envoy.config.core.v3.HeaderMap`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HeaderMap {
    /// Names and values in the order in which they came.
    #[prost(message, repeated, tag = "1")]
    pub headers: Vec<HeaderValue>,
}

/// One header.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HeaderValue {
    /// Its name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value as text, where it is not in `raw_value`.
    #[prost(string, tag = "2")]
    pub value: String,
    /// Its value.
    #[prost(bytes = "bytes", tag = "3")]
    pub raw_value: Bytes,
}

/// What the proxy is told: the answer to one part, or what to answer its client.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessingResponse {
    /// Which of these.
    #[prost(oneof = "Answer", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub answer: Option<Answer>,
    /// What later filters and the load balancer should know, by namespace.
    #[prost(message, optional, tag = "8")]
    pub dynamic_metadata: Option<Struct>,
}

/// The answer to a part, of the same kind as the part.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Answer {
    /// To the request's headers.
    #[prost(message, tag = "1")]
    RequestHeaders(PartResponse),
    /// To the response's headers.
    #[prost(message, tag = "2")]
    ResponseHeaders(PartResponse),
    /// To a piece of the request's body.
    #[prost(message, tag = "3")]
    RequestBody(PartResponse),
    /// To a piece of the response's body.
    #[prost(message, tag = "4")]
    ResponseBody(PartResponse),
    /// To the request's trailers.
    #[prost(message, tag = "5")]
    RequestTrailers(TrailersResponse),
    /// To the response's trailers.
    #[prost(message, tag = "6")]
    ResponseTrailers(TrailersResponse),
    /// The request ends here, with this response.
    #[prost(message, tag = "7")]
    Immediate(ImmediateResponse),
}

/// `HeadersResponse` and `BodyResponse`, which are alike.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PartResponse {
    /// What to change.
    #[prost(message, optional, tag = "1")]
    pub response: Option<CommonResponse>,
}

/// Changes to headers or body. Its status is never set: to go on is the default.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CommonResponse {
    /// Of the headers.
    #[prost(message, optional, tag = "2")]
    pub header_mutation: Option<HeaderMutation>,
    /// Of the body.
    #[prost(message, optional, tag = "3")]
    pub body_mutation: Option<BodyMutation>,
}

/// The answer to trailers: they stay as they are.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct TrailersResponse {}

/// Headers to set and to remove.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HeaderMutation {
    /// Those to set.
    #[prost(message, repeated, tag = "1")]
    pub set_headers: Vec<HeaderValueOption>,
    /// Names of those to remove.
    #[prost(string, repeated, tag = "2")]
    pub remove_headers: Vec<String>,
}

/// A header to set, and what becomes of one that is there.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HeaderValueOption {
    /// The header.
    #[prost(message, optional, tag = "1")]
    pub header: Option<HeaderValue>,
    /// A number of `HeaderAppendAction`.
    #[prost(int32, tag = "3")]
    pub append_action: i32,
}

/// `HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD`.
pub const OVERWRITE_OR_ADD: i32 = 2;

/// What takes a body's place.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BodyMutation {
    /// Which of these.
    #[prost(oneof = "Mutation", tags = "1, 2, 3")]
    pub mutation: Option<Mutation>,
}

/// A new body, or a new piece of one.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Mutation {
    /// These bytes take the place of the piece that was sent.
    #[prost(bytes = "bytes", tag = "1")]
    Body(Bytes),
    /// The piece that was sent goes.
    #[prost(bool, tag = "2")]
    Clear(bool),
    /// The next piece, in full duplex.
    #[prost(message, tag = "3")]
    Streamed(StreamedBodyResponse),
}

/// A piece of a body in full duplex, where what comes back is all that passes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamedBodyResponse {
    /// Its bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub body: Bytes,
    /// Whether it is the last, and no trailers follow.
    #[prost(bool, tag = "2")]
    pub end_of_stream: bool,
}

/// A response that the proxy makes itself.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImmediateResponse {
    /// Its status.
    #[prost(message, optional, tag = "1")]
    pub status: Option<HttpStatus>,
    /// Its headers.
    #[prost(message, optional, tag = "2")]
    pub headers: Option<HeaderMutation>,
    /// Its body.
    #[prost(bytes = "bytes", tag = "3")]
    pub body: Bytes,
    /// Why, for the proxy's access log.
    #[prost(string, tag = "5")]
    pub details: String,
}

/// `envoy.type.v3.HttpStatus`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct HttpStatus {
    /// The status code.
    #[prost(int32, tag = "1")]
    pub code: i32,
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HealthCheckRequest {
    /// Whose health; empty for the server's.
    #[prost(string, tag = "1")]
    pub service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct HealthCheckResponse {
    /// [`SERVING`] or [`NOT_SERVING`].
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// Requests should be sent here.
pub const SERVING: i32 = 1;
/// They should not.
pub const NOT_SERVING: i32 = 2;
