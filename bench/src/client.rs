//! One request over HTTP.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Map, Value, json};
use strata_wire::sse::Splitter;

use crate::dataset::{Prompt, Request};
use crate::stream::{Answer, Seen, message};

/// A server that says nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(600);
/// What is read of an error's body, and of the list of models.
const SHORT_BODY: usize = 1 << 20;
/// An event longer than this is no chunk of an answer.
const LONGEST_EVENT: usize = 16 << 20;

/// Which API is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`, the prompt as one user message
    Chat,
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Target {
    /// Scheme and authority, such as `http://127.0.0.1:8000`.
    pub base_url: String,
    /// Path of the API, such as `/v1/completions`.
    pub endpoint: String,
    /// Which API that is.
    pub api: Api,
    /// Name of the model; without one, the first that the server lists.
    pub model: Option<String>,
    /// Headers of every request.
    pub headers: HeaderMap,
    /// Members of every request's body, beside the prompt and its limits.
    pub body: Map<String, Value>,
}

/// Why a server cannot be measured at all.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The address is none.
    #[error("`{url}` is no address of a server: {problem}; give it as http://HOST:PORT")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// There are no certificates to check it by.
    #[error("no certificate authority is known here, and {url} is https")]
    Authorities {
        /// The server.
        url: String,
    },
    /// It does not answer.
    #[error("{url} does not answer: {problem}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why not.
        problem: String,
    },
    /// It lists no model, and none was named.
    #[error("{url} lists no model; name one with --model")]
    NoModel {
        /// What was asked.
        url: String,
    },
    /// Token ids cannot be sent as a message.
    #[error("the chat API takes text and these prompts are token ids; use the endpoint /v1/completions")]
    TokensToChat,
}

/// A client of one server.
#[derive(Debug)]
pub(crate) struct Client {
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    uri: Uri,
    api: Api,
    model: String,
    headers: HeaderMap,
    body: Map<String, Value>,
}

impl Client {
    /// A client, once the server answers; it is asked again until `ready_within` is over.
    pub(crate) async fn connect(target: Target, ready_within: Duration) -> Result<Self, TargetError> {
        let base = target.base_url.trim_end_matches('/').to_owned();
        let wrong = |problem: String| TargetError::Url { url: target.base_url.clone(), problem };
        let uri: Uri = format!("{base}{}", target.endpoint).parse().map_err(|e| wrong(format!("{e}")))?;
        match uri.scheme_str() {
            Some("http" | "https") => {}
            _ => return Err(wrong("it does not begin with http:// or https://".into())),
        }
        let pool = pool(uri.scheme_str() == Some("https"))
            .ok_or_else(|| TargetError::Authorities { url: base.clone() })?;
        let mut client = Self {
            pool,
            base,
            uri,
            api: target.api,
            model: target.model.clone().unwrap_or_default(),
            headers: target.headers,
            body: target.body,
        };
        let until = Instant::now() + ready_within;
        let listed = loop {
            match client.models().await {
                Ok(listed) => break listed,
                Err(_) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(error) => return Err(error),
            }
        };
        if target.model.is_none() {
            client.model = listed.ok_or_else(|| TargetError::NoModel { url: client.models_url() })?;
        }
        Ok(client)
    }

    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    fn models_url(&self) -> String {
        format!("{}/v1/models", self.base)
    }

    /// The first model that the server lists.
    async fn models(&self) -> Result<Option<String>, TargetError> {
        let url = self.models_url();
        let failed = |problem: String| TargetError::Unreachable { url: url.clone(), problem };
        let mut request =
            http::Request::get(&url).body(Full::default()).map_err(|e| failed(e.to_string()))?;
        request.headers_mut().extend(self.headers.clone());
        let answer = tokio::time::timeout(SILENCE, self.pool.request(request)).await;
        let response = answer.map_err(|_| failed(silence()))?.map_err(|e| failed(root_cause(&e)))?;
        let status = response.status();
        let body = short_body(response.into_body()).await.map_err(failed)?;
        if status != StatusCode::OK {
            return Err(failed(refusal(status, &body)));
        }
        let listed: Value = serde_json::from_slice(&body).map_err(|e| failed(e.to_string()))?;
        Ok(listed["data"][0]["id"].as_str().map(str::to_owned))
    }

    /// Sends a request, to this adapter instead of the model if one is named, and reads its answer to the
    /// end. Times count from `sent`.
    pub(crate) async fn send(
        &self,
        request: &Request,
        adapter: Option<&str>,
        id: &str,
        sent: Instant,
    ) -> Result<Seen, String> {
        let body = Bytes::from(self.request_body(request, adapter)?.to_string());
        let mut head = http::Request::post(&self.uri)
            .header(CONTENT_TYPE, "application/json")
            .header("x-request-id", id)
            .body(Full::new(body))
            .map_err(|e| e.to_string())?;
        head.headers_mut().extend(self.headers.clone());
        let response = tokio::time::timeout(SILENCE, self.pool.request(head)).await;
        let response = response.map_err(|_| silence())?.map_err(|e| root_cause(&e))?;
        let status = response.status();
        let mut body = response.into_body();
        if status != StatusCode::OK {
            return Err(refusal(status, &short_body(body).await?));
        }
        let (mut answer, mut events) = (Answer::default(), Splitter::default());
        while let Some(frame) = tokio::time::timeout(SILENCE, body.frame()).await.map_err(|_| silence())? {
            let frame = frame.map_err(|e| format!("the answer broke off: {}", root_cause(&e)))?;
            let at = sent.elapsed();
            if let Some(data) = frame.data_ref() {
                events.push(data);
            }
            while let Some(event) = events.next_event() {
                answer.chunk(&event.data, at)?;
            }
            if events.pending() > LONGEST_EVENT {
                return Err(format!("an event of the answer is longer than {LONGEST_EVENT} bytes"));
            }
        }
        answer.end()
    }

    fn request_body(&self, request: &Request, adapter: Option<&str>) -> Result<Value, String> {
        let mut body = self.body.clone();
        body.insert("model".into(), adapter.unwrap_or(&self.model).into());
        body.insert("stream".into(), true.into());
        body.insert("stream_options".into(), json!({"include_usage": true}));
        match (self.api, &request.prompt) {
            (Api::Completions, prompt) => {
                body.insert("prompt".into(), json!(prompt));
                body.insert("max_tokens".into(), request.output_len.into());
            }
            (Api::Chat, Prompt::Text(text)) => {
                body.insert("messages".into(), json!([{"role": "user", "content": text}]));
                body.insert("max_completion_tokens".into(), request.output_len.into());
            }
            (Api::Chat, Prompt::Tokens(_)) => return Err(TargetError::TokensToChat.to_string()),
        }
        Ok(Value::Object(body))
    }
}

/// `None` when certificates are wanted and there is no authority to check them by.
fn pool(secure: bool) -> Option<Pool<HttpsConnector<HttpConnector>, Full<Bytes>>> {
    let mut roots = rustls::RootCertStore::empty();
    if secure {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return None;
        }
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    // Else a small request may wait for the acknowledgement of the one before.
    http.set_nodelay(true);
    let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1();
    // A connection for each request: some servers close one after a stream without saying so before, and
    // the next request on it would fail through no fault of theirs.
    let mut builder = Pool::builder(TokioExecutor::new());
    Some(builder.pool_max_idle_per_host(0).build(connector.wrap_connector(http)))
}

async fn short_body(body: Incoming) -> Result<Bytes, String> {
    let read = tokio::time::timeout(SILENCE, Limited::new(body, SHORT_BODY).collect()).await;
    read.map_err(|_| silence())?.map(http_body_util::Collected::to_bytes).map_err(|e| e.to_string())
}

fn refusal(status: StatusCode, body: &[u8]) -> String {
    let said = match serde_json::from_slice::<Value>(body) {
        Ok(error) => message(&error),
        Err(_) => String::from_utf8_lossy(body).chars().take(300).collect(),
    };
    format!("HTTP {}: {said}", status.as_u16())
}

fn silence() -> String {
    format!("the server said nothing for {} s", SILENCE.as_secs())
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
