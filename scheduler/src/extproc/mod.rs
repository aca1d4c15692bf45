//! The endpoint-picker protocol: a proxy such as Envoy asks over gRPC, by its external processing filter,
//! which replica a request should go to, and sends it there itself. It is proposal 004 of the Gateway API
//! Inference Extension (version 1.0), which Envoy Gateway, Istio and kgateway speak.
//!
//! One stream is one HTTP request. [`exchange`] is what is said in which order, without clock or I/O;
//! [`session`] runs it: it looks for a replica by the same choice as the scheduler's own proxy and holds
//! its place in the books for as long as the stream lasts.

mod answer;
mod cut;
mod exchange;
mod head;
mod health;
mod place;
pub mod proto;
mod session;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::post;
use futures::Stream;
use futures::future::Ready;
use strata_hop::Above;
use strata_wire::defaults;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

use crate::CALLERS;
use crate::scheduler::Scheduler;
use proto::{HealthCheckRequest, HealthCheckResponse, ProcessingRequest, ProcessingResponse};

/// The service that a proxy asks.
pub const SERVICE: &str = "envoy.service.ext_proc.v3.ExternalProcessor";
/// Its one method, as a path.
pub const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
/// The path of the health check.
pub const CHECK: &str = "/grpc.health.v1.Health/Check";

/// Where llm-d's routing sidecar reads which replica, `ip:port`, computes the prompt before its own answers.
pub const PREFILLER: &str = "x-prefiller-host-port";

/// Largest message: a whole body, and what is around it.
const MAX_MESSAGE: usize = defaults::MAX_BODY_BYTES + defaults::MAX_HEADER_BYTES + 1024 * 1024;

/// The two services, for a listener that speaks HTTP/2. Who may call the scheduler may ask it so; its
/// health anybody may ask, as the kubelet does.
pub fn router(scheduler: Scheduler) -> Router {
    let options = &scheduler.options;
    let above = Above::new(options.hop_token.clone(), options.mtls.as_ref(), CALLERS);
    Router::new()
        .route(PROCESS, post(process))
        .layer(axum::middleware::from_fn_with_state(above, require))
        .route(CHECK, post(check))
        .fallback(unimplemented)
        .with_state(scheduler)
}

/// Refuses callers that are not the layer above, in gRPC's words.
async fn require(State(above): State<Above>, request: Request, next: Next) -> Response {
    match above.check(request.extensions(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(why) => refuse(&Status::unauthenticated(above.refuse(&request, &why).body.error.message)),
    }
}

fn refuse(status: &Status) -> Response {
    status.clone().into_http::<tonic::body::Body>().map(Body::new)
}

async fn process(State(scheduler): State<Scheduler>, request: Request) -> Response {
    let codec = ProstCodec::<ProcessingResponse, ProcessingRequest>::default();
    let mut grpc = Grpc::new(codec).apply_max_message_size_config(Some(MAX_MESSAGE), None);
    grpc.streaming(Processor(scheduler), request).await.map(Body::new)
}

async fn check(State(scheduler): State<Scheduler>, request: Request) -> Response {
    let mut grpc = Grpc::new(ProstCodec::<HealthCheckResponse, HealthCheckRequest>::default());
    grpc.unary(Health(scheduler), request).await.map(Body::new)
}

/// The answer to a method that is not here, in gRPC's words.
async fn unimplemented(request: Request) -> Response {
    let path = request.uri().path();
    refuse(&Status::unimplemented(format!("no such method: {path}; there are {PROCESS} and {CHECK}")))
}

struct Processor(Scheduler);

impl StreamingService<ProcessingRequest> for Processor {
    type Response = ProcessingResponse;
    type ResponseStream = futures::stream::BoxStream<'static, Result<ProcessingResponse, Status>>;
    type Future = Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<ProcessingRequest>>) -> Self::Future {
        let stream: Self::ResponseStream = Box::pin(answers(self.0.clone(), request.into_inner()));
        futures::future::ready(Ok(tonic::Response::new(stream)))
    }
}

fn answers(
    scheduler: Scheduler,
    from: Streaming<ProcessingRequest>,
) -> impl Stream<Item = Result<ProcessingResponse, Status>> + Send + 'static {
    let session = session::Session::new(scheduler, from);
    futures::stream::unfold(session, |mut session| async move {
        let next = session.next().await?;
        Some((next, session))
    })
}

struct Health(Scheduler);

impl UnaryService<HealthCheckRequest> for Health {
    type Response = HealthCheckResponse;
    type Future = Ready<Result<tonic::Response<HealthCheckResponse>, Status>>;

    fn call(&mut self, request: tonic::Request<HealthCheckRequest>) -> Self::Future {
        let answer = health::check(&request.get_ref().service, crate::report::is_ready(&self.0));
        futures::future::ready(answer.map(tonic::Response::new))
    }
}
