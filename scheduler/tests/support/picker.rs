//! A proxy's side of the endpoint-picker protocol, over a real connection.

use bytes::Bytes;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use http::uri::PathAndQuery;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost_types::value::Kind;
use strata_hop::Bound;
use strata_scheduler::Scheduler;
use strata_scheduler::extproc::proto::{
    Answer, HeaderMap, HeaderValue, HealthCheckRequest, HealthCheckResponse, HttpBody, HttpHeaders,
    ImmediateResponse, Metadata, Mutation, Part, PartResponse, ProcessingRequest, ProcessingResponse,
    ProtocolConfiguration,
};
use strata_scheduler::extproc::{self, CHECK, PROCESS};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::client::Grpc;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::PATIENCE;

/// Numbers of body modes.
pub(crate) const NONE: i32 = 0;
pub(crate) const STREAMED: i32 = 1;
pub(crate) const BUFFERED: i32 = 2;
pub(crate) const PARTIAL: i32 = 3;
pub(crate) const DUPLEX: i32 = 4;

type Http = Client<HttpConnector, tonic::body::Body>;

/// The scheduler's picker on a free port, until it is dropped, and a connection to it.
pub(crate) struct Picker {
    pub(crate) port: u16,
    grpc: Grpc<Http>,
    token: Option<String>,
    _stop: DropGuard,
}

impl Picker {
    pub(crate) async fn of(scheduler: &Scheduler) -> Self {
        let bound = Bound::bind("127.0.0.1:0").await.unwrap().over_http2();
        let (port, stop) = (bound.addr().port(), CancellationToken::new());
        let router = extproc::router(scheduler.clone());
        tokio::spawn(bound.serve(router, stop.clone(), std::time::Duration::ZERO));
        let http = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        let grpc = Grpc::with_origin(http, format!("http://127.0.0.1:{port}").parse().unwrap());
        Self { port, grpc, token: None, _stop: stop.drop_guard() }
    }

    /// The same, showing this hop token.
    pub(crate) fn showing(self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("x-strata-hop-token", token.parse().unwrap());
        }
        request
    }

    /// Opens a stream, as a proxy does for a request.
    pub(crate) async fn open(&self) -> Result<Asking, Status> {
        let (to, messages) = unbounded();
        let codec = ProstCodec::<ProcessingRequest, ProcessingResponse>::default();
        let request: Request<UnboundedReceiver<ProcessingRequest>> = self.request(messages);
        let mut grpc = self.grpc.clone();
        grpc.ready().await.unwrap();
        let response = grpc.streaming(request, PathAndQuery::from_static(PROCESS), codec).await?;
        Ok(Asking { to, from: response.into_inner() })
    }

    /// Opens a stream and sends the headers, set up so.
    pub(crate) async fn ask(&self, ask: &Ask<'_>) -> Asking {
        let asking = self.open().await.unwrap();
        asking.send(ask.first());
        asking
    }

    pub(crate) async fn health(&self, service: &str) -> Result<i32, tonic::Code> {
        let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let request = self.request(HealthCheckRequest { service: service.to_owned() });
        let mut grpc = self.grpc.clone();
        grpc.ready().await.unwrap();
        let answer = grpc.unary(request, PathAndQuery::from_static(CHECK), codec).await;
        answer.map(|answer| answer.into_inner().status).map_err(|status| status.code())
    }
}

/// A request, and how the proxy's filter is set up.
#[derive(Clone)]
pub(crate) struct Ask<'a> {
    pub(crate) mode: i32,
    pub(crate) early: bool,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) subset: Option<&'a [&'a str]>,
    pub(crate) end_of_stream: bool,
}

impl Ask<'_> {
    pub(crate) fn new(mode: i32) -> Self {
        Self {
            mode,
            early: mode == STREAMED,
            method: "POST",
            path: "/v1/chat/completions",
            headers: &[],
            subset: None,
            end_of_stream: false,
        }
    }

    pub(crate) fn first(&self) -> ProcessingRequest {
        let first = [(":method", self.method), (":path", self.path), ("content-type", "application/json")];
        let header = |(key, value): &(&str, &str)| HeaderValue {
            key: (*key).to_owned(),
            raw_value: Bytes::copy_from_slice(value.as_bytes()),
            ..HeaderValue::default()
        };
        let headers = HeaderMap { headers: first.iter().chain(self.headers).map(header).collect() };
        let headers = HttpHeaders { headers: Some(headers), end_of_stream: self.end_of_stream };
        ProcessingRequest {
            metadata_context: self.subset.map(subset),
            protocol_config: Some(ProtocolConfiguration {
                request_body_mode: self.mode,
                response_body_mode: NONE,
                send_body_without_waiting_for_header_response: self.early,
            }),
            ..message(Part::RequestHeaders(headers))
        }
    }
}

fn subset(endpoints: &[&str]) -> Metadata {
    let text = |text: &&str| prost_types::Value { kind: Some(Kind::StringValue((*text).to_owned())) };
    let list = prost_types::ListValue { values: endpoints.iter().map(text).collect() };
    let value = prost_types::Value { kind: Some(Kind::ListValue(list)) };
    let fields = [("x-gateway-destination-endpoint-subset".to_owned(), value)].into();
    let namespace = ("envoy.lb.subset_hint".to_owned(), prost_types::Struct { fields });
    Metadata { filter_metadata: [namespace].into() }
}

pub(crate) fn message(part: Part) -> ProcessingRequest {
    ProcessingRequest { part: Some(part), ..ProcessingRequest::default() }
}

/// One stream to the picker. Dropped, the proxy has left.
pub(crate) struct Asking {
    to: UnboundedSender<ProcessingRequest>,
    from: Streaming<ProcessingResponse>,
}

impl Asking {
    pub(crate) fn send(&self, message: ProcessingRequest) {
        self.to.unbounded_send(message).unwrap();
    }

    /// Sends a body in pieces of this size, its end in the last.
    pub(crate) fn send_body(&self, body: &[u8], piece: usize) {
        let count = body.len().div_ceil(piece).max(1);
        for n in 0..count {
            let bytes = Bytes::copy_from_slice(&body[n * piece..body.len().min((n + 1) * piece)]);
            self.send(message(Part::RequestBody(HttpBody { body: bytes, end_of_stream: n + 1 == count })));
        }
    }

    pub(crate) fn send_response(&self, status: &str) {
        let header =
            HeaderValue { key: ":status".to_owned(), value: status.to_owned(), ..HeaderValue::default() };
        let headers = Some(HeaderMap { headers: vec![header] });
        self.send(message(Part::ResponseHeaders(HttpHeaders { headers, end_of_stream: false })));
    }

    /// The next message; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Result<ProcessingResponse, Status>> {
        let next = tokio::time::timeout(PATIENCE, self.from.message()).await.expect("a message in time");
        next.transpose()
    }

    /// The next message, which must be there.
    pub(crate) async fn answer(&mut self) -> ProcessingResponse {
        self.next().await.expect("an answer").expect("no error")
    }

    /// The response that the proxy is to give; the stream ends with it.
    pub(crate) async fn refusal(mut self) -> ImmediateResponse {
        let message = self.answer().await;
        let Some(Answer::Immediate(response)) = message.answer else { panic!("{message:?}") };
        assert!(self.next().await.is_none(), "nothing comes after the answer");
        response
    }
}

/// A refusal's status, `error.code` and `retry-after`.
pub(crate) fn refused(response: &ImmediateResponse) -> (i32, String, String) {
    let body: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    let set = response.headers.clone().unwrap_or_default().set_headers;
    let headers: Vec<HeaderValue> = set.into_iter().filter_map(|option| option.header).collect();
    let value = |name: &str| {
        let header = headers.iter().find(|header| header.key == name);
        header.map_or("-".to_owned(), |header| String::from_utf8(header.raw_value.to_vec()).unwrap())
    };
    assert_eq!(value("content-type"), "application/json");
    let code = body["error"]["code"].as_str().unwrap_or("-").to_owned();
    (response.status.unwrap().code, code, value("retry-after"))
}

/// What one answer says of the request.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// Which part it answers.
    pub(crate) to: &'static str,
    pub(crate) set: http::HeaderMap,
    pub(crate) removed: Vec<String>,
    pub(crate) body: Option<Mutation>,
    /// The endpoint in the metadata.
    pub(crate) metadata: Option<String>,
}

pub(crate) fn said(message: &ProcessingResponse) -> Said {
    let (to, response): (_, Option<PartResponse>) = match message.answer.clone().expect("an answer") {
        Answer::RequestHeaders(response) => ("headers", Some(response)),
        Answer::RequestBody(response) => ("body", Some(response)),
        Answer::ResponseHeaders(response) => ("response headers", Some(response)),
        Answer::ResponseBody(response) => ("response body", Some(response)),
        Answer::RequestTrailers(_) => ("trailers", None),
        Answer::ResponseTrailers(_) => ("response trailers", None),
        Answer::Immediate(response) => panic!("refused: {response:?}"),
    };
    let response = response.and_then(|response| response.response).unwrap_or_default();
    let headers = response.header_mutation.unwrap_or_default();
    let set = headers.set_headers.into_iter().filter_map(|option| option.header).map(|header| {
        let value = http::HeaderValue::from_bytes(&header.raw_value).unwrap();
        (header.key.parse::<http::HeaderName>().unwrap(), value)
    });
    let kind = |value: &prost_types::Value| value.kind.clone();
    let metadata = message.dynamic_metadata.as_ref().map(|metadata| {
        let Some(Kind::StructValue(inner)) = kind(&metadata.fields["envoy.lb"]) else {
            panic!("{metadata:?}")
        };
        let Some(Kind::StringValue(text)) = kind(&inner.fields["x-gateway-destination-endpoint"]) else {
            panic!("{inner:?}")
        };
        text
    });
    Said {
        to,
        set: set.collect(),
        removed: headers.remove_headers,
        body: response.body_mutation.and_then(|mutation| mutation.mutation),
        metadata,
    }
}
