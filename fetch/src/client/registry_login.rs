//! Tokens of a registry: had when it asks for one, and again when it has expired.

use std::sync::Mutex;

use http::{HeaderMap, HeaderValue, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::{Ask, Auth, Http, Peer};
use crate::error::FetchError;

const TOKEN_BYTES: usize = 256 * 1024;

/// User and password for one registry, and the token that was had with them.
pub(crate) struct RegistryLogin {
    user: Option<(String, String)>,
    /// Where the credentials came from, for messages.
    origin: String,
    current: Mutex<Option<HeaderValue>>,
}

/// What a registry asks for in `WWW-Authenticate`.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl RegistryLogin {
    pub(crate) fn new(user: Option<(String, String)>, origin: impl Into<String>) -> Self {
        Self { user, origin: origin.into(), current: Mutex::new(None) }
    }

    /// The `Authorization` to send, when there is one yet.
    pub(super) fn current(&self) -> Option<HeaderValue> {
        self.current.lock().expect("no holder panics").clone()
    }

    /// Answers the challenge of a 401. False when there is nothing that has not been tried.
    pub(super) async fn renew(&self, http: &Http, headers: &HeaderMap) -> Result<bool, FetchError> {
        let mut challenges = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
        let Some(challenge) = challenges.find_map(parse) else { return Ok(false) };
        let auth = match (&challenge, &self.user) {
            (Challenge::Basic, None) => return Ok(false),
            (_, None) => Auth::Nobody,
            (_, Some((user, password))) => Auth::basic(user, password, &self.origin)?,
        };
        let fresh = match (challenge, auth) {
            (Challenge::Basic, Auth::Header(value)) => value,
            (Challenge::Basic, _) => return Ok(false),
            (Challenge::Bearer { realm, service, scope }, auth) => {
                let mut url = realm;
                for (name, value) in [("service", service), ("scope", scope)] {
                    if let Some(value) = value {
                        let joint = if url.contains('?') { '&' } else { '?' };
                        url = format!("{url}{joint}{name}={}", utf8_percent_encode(&value, NON_ALPHANUMERIC));
                    }
                }
                let ask = Ask::get(&url, Peer::Oci, auth, "a token to pull with")?;
                let answer = Box::pin(http.small(&ask, TOKEN_BYTES)).await?;
                let token: Value = serde_json::from_slice(&answer).unwrap_or_default();
                let token = token.get("token").or_else(|| token.get("access_token")).and_then(Value::as_str);
                let Some(token) = token else {
                    return Err(FetchError::Answer {
                        host: super::host_of(&ask.url),
                        what: ask.what,
                        problem: "no token".to_owned(),
                    });
                };
                let Auth::Header(value) = Auth::bearer(token, &self.origin)? else { return Ok(false) };
                value
            }
        };
        let mut current = self.current.lock().expect("no holder panics");
        let is_new = current.as_ref() != Some(&fresh);
        *current = Some(fresh);
        Ok(is_new)
    }
}

fn parse(value: &str) -> Option<Challenge> {
    let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    let mut rest = rest.trim();
    while let Some((name, after)) = rest.split_once('=') {
        let (text, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match name.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(text.to_owned()),
            "service" => service = Some(text.to_owned()),
            "scope" => scope = Some(text.to_owned()),
            _ => {}
        }
        rest = after.trim_start_matches([',', ' ']);
    }
    Some(Challenge::Bearer { realm: realm?, service, scope })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        for (text, wanted) in [
            (
                r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#,
                bearer(
                    "https://auth.example/token",
                    Some("registry.example"),
                    Some("repository:a/b:pull,push"),
                ),
            ),
            (r#"bearer scope=x, realm="r" "#, bearer("r", None, Some("x"))),
            (r#"Basic realm="r""#, Some(Challenge::Basic)),
            ("Basic", Some(Challenge::Basic)),
            ("Bearer", None),
            ("Bearer service=\"x", None),
            ("Negotiate x", None),
        ] {
            assert_eq!(parse(text), wanted, "{text}");
        }
    }
}
