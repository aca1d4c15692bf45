//! A request before it is sent: where, for what, and on whose behalf.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use http_body_util::Empty;

use super::{AwsSigner, RegistryLogin};
use crate::error::FetchError;

/// Which kind of server is asked: it decides what a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Hf,
    S3,
    Oci,
    Https,
}

/// On whose behalf a request is made. Shows nothing of itself when printed.
#[derive(Clone)]
pub(crate) enum Auth {
    Nobody,
    /// A complete `Authorization` value.
    Header(HeaderValue),
    Registry(Arc<RegistryLogin>),
    Aws(Arc<AwsSigner>),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "Nobody",
            Self::Header(_) => "Header(..)",
            Self::Registry(_) => "Registry(..)",
            Self::Aws(_) => "Aws(..)",
        })
    }
}

impl Auth {
    /// `Bearer TOKEN`; `name` is the variable that the token came from.
    pub(crate) fn bearer(token: &str, name: &str) -> Result<Self, FetchError> {
        Self::header(&format!("Bearer {token}"), name)
    }

    pub(crate) fn basic(user: &str, password: &str, name: &str) -> Result<Self, FetchError> {
        Self::header(&format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))), name)
    }

    fn header(value: &str, name: &str) -> Result<Self, FetchError> {
        let mut value = HeaderValue::from_str(value).map_err(|_| FetchError::Setting {
            name: name.to_owned(),
            problem: "has a character that no token has, perhaps a line break".to_owned(),
        })?;
        value.set_sensitive(true);
        Ok(Self::Header(value))
    }
}

/// A request, which may be sent several times.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) url: Uri,
    /// Where to begin, when an earlier answer has sent us there.
    pub(crate) start: Option<Uri>,
    pub(crate) headers: HeaderMap,
    pub(crate) auth: Auth,
    pub(crate) peer: Peer,
    /// The file, repository or bucket, for messages.
    pub(crate) what: String,
}

impl Ask {
    pub(crate) fn get(
        url: &str,
        peer: Peer,
        auth: Auth,
        what: impl Into<String>,
    ) -> Result<Self, FetchError> {
        let what = what.into();
        let url: Uri = match url.parse::<Uri>() {
            Ok(url) if url.host().is_some() && matches!(url.scheme_str(), Some("http" | "https")) => url,
            _ => {
                let shown = url.split('?').next().unwrap_or_default();
                let problem = "is no http or https URL".to_owned();
                return Err(FetchError::Unusable { uri: shown.to_owned(), problem });
            }
        };
        Ok(Self { method: Method::GET, url, start: None, headers: HeaderMap::new(), auth, peer, what })
    }

    pub(crate) fn with(mut self, name: header::HeaderName, value: &str) -> Result<Self, FetchError> {
        let value = HeaderValue::from_str(value).map_err(|_| FetchError::Answer {
            host: host_of(&self.url),
            what: self.what.clone(),
            problem: format!("a value for {name} that cannot be sent back"),
        })?;
        self.headers.insert(name, value);
        Ok(self)
    }

    /// The request to `url`, which is this one's own or one that it was redirected to.
    pub(super) fn request(&self, url: &Uri) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = url.clone();
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("strata/", env!("CARGO_PKG_VERSION"))),
        );
        // A body that is encoded on the way would have other offsets and another checksum.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if same_origin(url, &self.url) {
            match &self.auth {
                Auth::Nobody => {}
                Auth::Header(value) => {
                    headers.insert(header::AUTHORIZATION, value.clone());
                }
                Auth::Registry(login) => {
                    if let Some(value) = login.current() {
                        headers.insert(header::AUTHORIZATION, value);
                    }
                }
                Auth::Aws(signer) => signer.sign(&self.method, url, headers, jiff::Timestamp::now()),
            }
        }
        request
    }
}

/// Host and port, as messages have them. Never a path or query.
pub(crate) fn host_of(url: &Uri) -> String {
    let host = url.host().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(super) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |url: &Uri| url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    let host = |url: &Uri| url.host().unwrap_or_default().to_ascii_lowercase();
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

/// The absolute URL of a `Location`. `None` when it is none, or of another scheme.
pub(super) fn join(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let authority = base.authority()?;
    let scheme = base.scheme_str()?;
    let absolute = if location.contains("://") && !location.starts_with('/') && !location.starts_with('?') {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') || location.is_empty() {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let url: Uri = absolute.parse().ok()?;
    (url.host().is_some() && matches!(url.scheme_str(), Some("http" | "https"))).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let base: Uri = "https://a.example:1/x/y?z=1".parse().unwrap();
        for (location, wanted) in [
            ("https://b.example/c?d=e#f", Some("https://b.example/c?d=e")),
            ("//b.example/c", Some("https://b.example/c")),
            ("/c?next=https://d/", Some("https://a.example:1/c?next=https://d/")),
            ("c", Some("https://a.example:1/x/c")),
            ("?q", Some("https://a.example:1/x/y?q")),
            ("ftp://b/c", None),
            ("file:///etc/passwd", None),
        ] {
            assert_eq!(join(&base, location).map(|u| u.to_string()).as_deref(), wanted, "{location}");
        }
    }

    #[test]
    fn credentials_go_to_the_first_origin_alone() {
        let auth = Auth::bearer("hunter2", "HF_TOKEN").unwrap();
        let ask = Ask::get("https://hub.example/a", Peer::Hf, auth, "a").unwrap();
        let sent = |url: &str| ask.request(&url.parse().unwrap()).headers().contains_key("authorization");
        assert!(sent("https://hub.example/a"));
        assert!(sent("https://HUB.example:443/b"));
        assert!(!sent("https://cdn.example/a"));
        assert!(!sent("http://hub.example/a"));
        assert!(!sent("https://hub.example:444/a"));
        assert!(!format!("{ask:?}").contains("hunter2"));
    }

    #[test]
    fn a_token_with_a_line_break_names_its_variable() {
        let error = Auth::bearer("hunter2\nx", "HF_TOKEN").unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN") && !error.contains("hunter2"), "{error}");
    }
}
