//! The HTTP client: TLS, proxies, redirects, credentials and patience.

mod ask;
mod dial;
mod patience;
mod refusal;
mod registry_login;
mod sigv4;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};

pub(crate) use ask::{Ask, Auth, Peer, host_of};
pub use patience::Backoff;
pub(crate) use patience::{Patience, retry_after};
pub(crate) use refusal::refusal;
pub(crate) use registry_login::RegistryLogin;
pub(crate) use sigv4::AwsSigner;

use crate::error::FetchError;
use crate::progress::Progress;

/// Bytes of an error's body that are read for its words.
const ERROR_BODY: usize = 16 * 1024;
const MAX_REDIRECTS: usize = 10;

/// A client. Cloning shares its connections.
#[derive(Clone)]
pub(crate) struct Http {
    client: Client<HttpsConnector<dial::Dialer>, Empty<Bytes>>,
    stall: Duration,
    backoff: Backoff,
    takes_plain: bool,
    progress: Option<Arc<Progress>>,
}

/// A response whose body has not been read.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    /// Where it came from, after redirects.
    pub(crate) url: Uri,
    /// The headers of the first response, when that was a redirect.
    pub(crate) redirect: Option<HeaderMap>,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }
}

/// Why one attempt failed.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Worth another attempt; the server may have said when.
    Passing { why: String, after: Option<Duration> },
    /// Another attempt fails alike.
    Lasting(FetchError),
}

impl From<FetchError> for Trouble {
    fn from(error: FetchError) -> Self {
        Self::Lasting(error)
    }
}

impl Trouble {
    pub(crate) fn passing(why: impl Into<String>) -> Self {
        Self::Passing { why: why.into(), after: None }
    }
}

impl Http {
    /// A client with the proxies and certificate authorities of the environment, and more authorities.
    pub(crate) fn new(
        stall: Duration,
        backoff: Backoff,
        allow_http: bool,
        authorities: Option<&str>,
    ) -> Result<Self, FetchError> {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(dial::connector(stall, authorities)?);
        Ok(Self { client, stall, backoff, takes_plain: allow_http, progress: None })
    }

    /// The same, which tells there why it tries again.
    pub(crate) fn telling(self, progress: Arc<Progress>) -> Self {
        Self { progress: Some(progress), ..self }
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience::new(self.backoff)
    }

    /// Whether a URL may be asked for: encrypted, or on this machine, or allowed.
    pub(crate) fn permit(&self, url: &Uri) -> Result<(), FetchError> {
        let is_loopback = match url.host().unwrap_or_default() {
            "localhost" => true,
            host => host
                .trim_matches(['[', ']'])
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.to_canonical().is_loopback()),
        };
        if url.scheme_str() == Some("https") || self.takes_plain || is_loopback {
            return Ok(());
        }
        Err(FetchError::Insecure { host: host_of(url) })
    }

    /// One attempt, redirects followed. Any status is an answer. Credentials go to the host that was
    /// asked first and to no other.
    pub(crate) async fn once(&self, ask: &Ask) -> Result<Answer, Trouble> {
        let answer = self.follow(ask).await?;
        // Only the registry itself may ask for its password, not whom it redirects to.
        if answer.status() == StatusCode::UNAUTHORIZED
            && ask::same_origin(&answer.url, &ask.url)
            && let Auth::Registry(login) = &ask.auth
            && login.renew(self, answer.headers()).await?
        {
            return self.follow(ask).await;
        }
        Ok(answer)
    }

    async fn follow(&self, ask: &Ask) -> Result<Answer, Trouble> {
        let mut url = ask.start.as_ref().unwrap_or(&ask.url).clone();
        let mut redirect = None;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.exchange(ask, &url).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { response, url, redirect });
            }
            let next = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok());
            let Some(next) = next.and_then(|location| ask::join(&url, location)) else {
                // S3 answers so for a bucket in another region: the caller reads why.
                return Ok(Answer { response, url, redirect });
            };
            redirect.get_or_insert_with(|| response.headers().clone());
            if url.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(FetchError::Insecure { host: host_of(&next) }.into());
            }
            url = next;
        }
        Err(Trouble::Lasting(FetchError::Answer {
            host: host_of(&ask.url),
            what: ask.what.clone(),
            problem: format!("more than {MAX_REDIRECTS} redirects"),
        }))
    }

    async fn exchange(&self, ask: &Ask, url: &Uri) -> Result<Response<Incoming>, Trouble> {
        self.permit(url)?;
        let host = host_of(url);
        let request = ask.request(url);
        match tokio::time::timeout(self.stall, self.client.request(request)).await {
            Err(_) => Err(Trouble::passing(format!("no answer within {} s", self.stall.as_secs_f32()))),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(match dial::certificate_problem(&error) {
                Some(problem) => FetchError::Certificate { host, problem }.into(),
                None => Trouble::passing(root_cause(&error)),
            }),
        }
    }

    /// The body of a success, of at most `limit` bytes; tried again while that may help.
    pub(crate) async fn small(&self, ask: &Ask, limit: usize) -> Result<Bytes, FetchError> {
        self.patiently(ask, || self.small_once(ask, limit)).await
    }

    async fn small_once(&self, ask: &Ask, limit: usize) -> Result<Bytes, Trouble> {
        let answer = self.once(ask).await?;
        if !answer.status().is_success() {
            return Err(self.judge(ask, answer).await);
        }
        let host = host_of(&answer.url);
        let Some(body) = self.read(answer.response.into_body(), limit).await? else {
            let problem = format!("more than {limit} bytes");
            return Err(FetchError::Answer { host, what: ask.what.clone(), problem }.into());
        };
        Ok(body)
    }

    /// An answer of success, or one of a status in `also`; its body is not read. Tried again while that
    /// may help.
    pub(crate) async fn opened(&self, ask: &Ask, also: &[StatusCode]) -> Result<Answer, FetchError> {
        let attempt = || async {
            match self.once(ask).await? {
                answer if answer.status().is_success() || also.contains(&answer.status()) => Ok(answer),
                answer => Err(self.judge(ask, answer).await),
            }
        };
        self.patiently(ask, attempt).await
    }

    async fn patiently<T, F>(&self, ask: &Ask, attempt: impl Fn() -> F) -> Result<T, FetchError>
    where
        F: Future<Output = Result<T, Trouble>>,
    {
        let mut patience = self.patience();
        loop {
            match attempt().await {
                Ok(answer) => return Ok(answer),
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Passing { why, after }) => {
                    let pause = patience.failed(&why, after).map_err(|end| end.error(ask))?;
                    if let Some(progress) = &self.progress {
                        progress.note(&format!("{}: {why}; trying again", host_of(&ask.url)));
                    }
                    tracing::warn!(host = %host_of(&ask.url), what = %ask.what, %why, pause_ms = pause.as_millis(), "trying again");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// What a response that is no success means: whether another attempt may help, and else what to do.
    pub(crate) async fn judge(&self, ask: &Ask, answer: Answer) -> Trouble {
        let Answer { response, url, redirect } = answer;
        let (head, body) = response.into_parts();
        let after = retry_after(&head.headers, std::time::SystemTime::now());
        let body = match self.read(body, ERROR_BODY).await {
            Ok(Some(body)) => body,
            _ => Bytes::new(),
        };
        let words = refusal::words(ask.peer, &head.headers, &body);
        if refusal::is_passing(head.status, &words) {
            let why =
                if words.is_empty() { head.status.to_string() } else { format!("{}: {words}", head.status) };
            return Trouble::Passing { why, after };
        }
        let elsewhere = redirect.is_some() && host_of(&url) != host_of(&ask.url);
        Trouble::Lasting(refusal(ask, &host_of(&url), elsewhere, head.status, &head.headers, &words))
    }

    /// A body of at most `limit` bytes; `None` when it is longer.
    async fn read(&self, mut body: Incoming, limit: usize) -> Result<Option<Bytes>, Trouble> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.frame(&mut body).await? {
            if whole.len() + chunk.len() > limit {
                return Ok(None);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(Some(whole.freeze()))
    }

    /// The next bytes of a body; `None` at its end. No byte within the stall time-out is trouble.
    pub(crate) async fn frame(&self, body: &mut Incoming) -> Result<Option<Bytes>, Trouble> {
        loop {
            match tokio::time::timeout(self.stall, body.frame()).await {
                Err(_) => {
                    let why = format!("stalled: no byte for {} s", self.stall.as_secs_f32());
                    return Err(Trouble::passing(why));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(Trouble::passing(root_cause(&error))),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
