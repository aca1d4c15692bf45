//! Every request to the API server goes through here: counted, and if it writes, only while we lead.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::{BoxError, Layer, Service};

use super::gate::Gate;
use super::metrics::Metrics;
use super::queue::Queue;

/// A write that takes longer is given up: admission webhooks may take thirty seconds.
const WRITE_TIMEOUT: Duration = Duration::from_secs(35);
/// Longest pause that an API server can impose by `Retry-After`.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// This process does not lead, or no more: the request was not sent, or was broken off.
#[derive(Debug, thiserror::Error)]
#[error("this process is not the leader")]
pub(super) struct NotLeader;

/// Whether a request failed because we do not lead.
pub(super) fn is_not_leader(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Service(cause) if cause.is::<NotLeader>())
}

/// What requests pass.
#[derive(Clone)]
pub(super) struct Counted {
    pub(super) metrics: Arc<Metrics>,
    /// Waits when the API server is overloaded.
    pub(super) queue: Arc<Queue>,
    /// None for the Lease's own client.
    pub(super) gate: Option<Arc<Gate>>,
}

impl Counted {
    /// A client whose requests pass this.
    pub(super) fn client(&self, mut config: Config) -> Result<Client, kube::Error> {
        // Tries again by the queue's rules instead, which let other objects go on.
        config.default_retry = false;
        Ok(ClientBuilder::try_from(config)?.with_layer(self).build())
    }
}

impl<S> Layer<S> for Counted {
    type Service = CountedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CountedService { inner, rules: self.clone() }
    }
}

#[derive(Clone)]
pub(super) struct CountedService<S> {
    inner: S,
    rules: Counted,
}

impl<S, B> Service<Request<Body>> for CountedService<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    B: 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let rules = self.rules.clone();
        let called = Called::of(&request);
        let writes = request.method() != Method::GET;
        let over = match rules.gate.as_ref().filter(|_| writes) {
            Some(gate) => match gate.pass(Instant::now()) {
                Some(over) => Some(over),
                None => return Box::pin(async { Err(NotLeader.into()) }),
            },
            None => None,
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = match over {
                Some(over) => tokio::select! {
                    answer = tokio::time::timeout(WRITE_TIMEOUT, answer) => match answer {
                        Ok(answer) => answer,
                        Err(_) => Err("the API server did not answer within 35 s".into()),
                    },
                    () = over.cancelled() => return Err(NotLeader.into()),
                },
                None => answer.await,
            };
            let code = answer.as_ref().map_or(0, |a| a.status().as_u16());
            rules.metrics.api_call(called.verb, &called.resource, code);
            if let Ok(answer) = &answer
                && let Some(wait) = asked_to_wait(answer)
            {
                rules.queue.pause(wait);
            }
            answer
        })
    }
}

/// How long the API server asks everybody to wait.
fn asked_to_wait<B>(answer: &Response<B>) -> Option<Duration> {
    let overloaded = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
    if !overloaded.contains(&answer.status()) {
        return None;
    }
    let seconds: u64 = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

/// What a request does to which resource.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Called {
    verb: &'static str,
    resource: String,
}

impl Called {
    fn of<B>(request: &Request<B>) -> Self {
        let uri = request.uri();
        let mut path: Vec<&str> = uri.path().split('/').filter(|s| !s.is_empty()).collect();
        // api/VERSION or apis/GROUP/VERSION, then namespaces/NAME if it is in one.
        let lead = if path.first() == Some(&"apis") { 3 } else { 2 };
        path.drain(..lead.min(path.len()));
        if path.first() == Some(&"namespaces") && path.len() > 2 {
            path.drain(..2);
        }
        let resource = match path.as_slice() {
            [] => "discovery".to_owned(),
            [resource, _, subresource, ..] => format!("{resource}/{subresource}"),
            [resource, ..] => (*resource).to_owned(),
        };
        let named = path.len() > 1;
        let query = uri.query().unwrap_or_default();
        let watches = query.split('&').any(|q| q == "watch=true" || q == "watch=1");
        let content = request.headers().get(header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
        let verb = match (request.method(), watches, named) {
            (&Method::GET, true, _) => "watch",
            (&Method::GET, false, true) => "get",
            (&Method::GET, false, false) => "list",
            (&Method::POST, ..) => "create",
            (&Method::PUT, ..) => "update",
            (&Method::DELETE, ..) => "delete",
            (&Method::PATCH, ..) if content.is_some_and(|c| c.starts_with(b"application/apply-patch")) => {
                "apply"
            }
            (&Method::PATCH, ..) => "patch",
            _ => "other",
        };
        Self { verb, resource }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(method: Method, uri: &str) -> (&'static str, String) {
        let apply = method == Method::PATCH;
        let mut request = Request::builder().method(method).uri(uri);
        if apply {
            request = request.header(header::CONTENT_TYPE, "application/apply-patch+yaml");
        }
        let called = Called::of(&request.body(()).unwrap());
        (called.verb, called.resource)
    }

    #[test]
    fn requests_are_named_by_verb_and_resource() {
        let models = "/apis/strata.dev/v1alpha1/namespaces/n/modeldeployments";
        assert_eq!(
            called(Method::GET, "/api/v1/pods?&watch=true&timeoutSeconds=290"),
            ("watch", "pods".into())
        );
        assert_eq!(called(Method::GET, "/api/v1/namespaces/n/pods?limit=500"), ("list", "pods".into()));
        assert_eq!(called(Method::GET, &format!("{models}/m?")), ("get", "modeldeployments".into()));
        assert_eq!(
            called(Method::PATCH, &format!("{models}/m/status?")),
            ("apply", "modeldeployments/status".into())
        );
        assert_eq!(
            called(Method::POST, "/apis/events.k8s.io/v1/namespaces/n/events?"),
            ("create", "events".into())
        );
        assert_eq!(called(Method::DELETE, "/api/v1/namespaces/n/services/s"), ("delete", "services".into()));
        assert_eq!(called(Method::GET, "/api/v1/namespaces/n"), ("get", "namespaces".into()));
        assert_eq!(called(Method::GET, "/apis"), ("list", "discovery".into()));
    }

    #[test]
    fn an_overloaded_server_is_left_alone_for_as_long_as_it_asks() {
        let answer = |code: u16, after: &str| {
            let answer =
                Response::builder().status(code).header(header::RETRY_AFTER, after).body(()).unwrap();
            asked_to_wait(&answer).map(|d| d.as_secs())
        };
        assert_eq!((answer(429, "3"), answer(503, "1")), (Some(3), Some(1)));
        assert_eq!(
            (answer(429, "99999999999"), answer(429, "soon"), answer(200, "3")),
            (Some(60), None, None)
        );
    }
}
