//! What a response that is no success means, and what to do about it.

use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::{Ask, Peer};
use crate::error::FetchError;

/// Characters of a server's words that are repeated.
const WORDS: usize = 200;

/// Whether another attempt may help.
pub(super) fn is_passing(status: StatusCode, words: &str) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
        // S3 says so of a connection that stood still, with status 400.
        || (status == StatusCode::BAD_REQUEST && words.starts_with("RequestTimeout"))
}

/// The server's own words: a code and a message, in one line of printable characters.
pub(super) fn words(peer: Peer, headers: &HeaderMap, body: &[u8]) -> String {
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let found = match peer {
        Peer::Hf => header("x-error-message").or_else(|| json_words(body)),
        Peer::S3 => xml_words(body),
        Peer::Oci => json_words(body),
        Peer::Https => None,
    };
    let printable: String =
        found.unwrap_or_default().chars().map(|c| if c.is_control() { ' ' } else { c }).take(WORDS).collect();
    printable.trim().to_owned()
}

fn json_words(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let first = body.pointer("/errors/0");
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    match (text(first.and_then(|e| e.get("code"))), text(first.and_then(|e| e.get("message")))) {
        (Some(code), Some(message)) if !message.is_empty() => Some(format!("{code}: {message}")),
        (Some(code), _) => Some(code),
        (None, message) => message.or_else(|| text(body.get("error"))).or_else(|| text(body.get("message"))),
    }
}

fn xml_words(body: &[u8]) -> Option<String> {
    let body = std::str::from_utf8(body).ok()?;
    let element = |name: &str| {
        let (_, rest) = body.split_once(&format!("<{name}>"))?;
        Some(rest.split_once('<')?.0.to_owned())
    };
    match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => Some(format!("{code}: {message}")),
        (code, message) => code.or(message),
    }
}

/// The error of a response that another attempt does not change. `elsewhere` says that it came from a
/// host that the asked one redirected to.
pub(crate) fn refusal(
    ask: &Ask,
    host: &str,
    elsewhere: bool,
    status: StatusCode,
    headers: &HeaderMap,
    words: &str,
) -> FetchError {
    let code = headers.get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let reason = match (words, code) {
        ("", "") => status.to_string(),
        ("", code) => format!("{status}, {code}"),
        (words, _) => format!("{status}, {words}"),
    };
    let (host, what) = (host.to_owned(), ask.what.clone());
    if let Some(region) = headers.get("x-amz-bucket-region").and_then(|v| v.to_str().ok())
        && (status.is_redirection() || status == StatusCode::BAD_REQUEST)
    {
        return FetchError::Refused { host, what, reason: format!("{reason}; set AWS_REGION to {region}") };
    }
    match status.as_u16() {
        401 | 403 => {
            let advice = if elsewhere { ELSEWHERE } else { denied(ask.peer, status, code) };
            FetchError::Denied { host, what, reason, advice }
        }
        404 | 410 => FetchError::NotFound { host, what, reason, advice: not_found(ask.peer) },
        _ => FetchError::Refused { host, what, reason },
    }
}

const ELSEWHERE: &str =
    "the server sent us there; check that this host may be reached and has not expired the link";

fn denied(peer: Peer, status: StatusCode, code: &str) -> &'static str {
    match (peer, code, status) {
        (Peer::Hf, "GatedRepo", _) => {
            "the model is gated: accept its license on the Hub with the account whose token is in HF_TOKEN"
        }
        (Peer::Hf, _, StatusCode::UNAUTHORIZED) => {
            "the name is wrong, or the model is private or gated: check the URI, and set HF_TOKEN to a token that may read it"
        }
        (Peer::Hf, ..) => {
            "the token in HF_TOKEN may not read it: accept the model's license, or use another token"
        }
        (Peer::S3, ..) => {
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and that they allow s3:GetObject and s3:ListBucket"
        }
        (Peer::Oci, ..) => {
            "check the name, and set REGISTRY_USERNAME and REGISTRY_PASSWORD, or a Docker configuration, that may pull it"
        }
        (Peer::Https, ..) => "set HTTPS_TOKEN to a token that may read it, or renew the signed link",
    }
}

fn not_found(peer: Peer) -> &'static str {
    match peer {
        Peer::Hf => "check owner, name, file and revision in the URI",
        Peer::S3 => "check bucket and path in the URI, AWS_REGION and AWS_ENDPOINT_URL",
        Peer::Oci => "check name and tag or digest in the URI",
        Peer::Https => "check the URI",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Auth;

    #[test]
    fn each_refusal_says_what_to_do() {
        let mut told = Vec::new();
        for (peer, url) in [
            (Peer::Hf, "https://huggingface.co/x"),
            (Peer::S3, "https://bucket.s3.us-east-1.amazonaws.com/x"),
            (Peer::Oci, "https://registry.example/x"),
            (Peer::Https, "https://h.example/x?signature=hunter2"),
        ] {
            for (status, code, body) in [
                (401, "", ""),
                (403, "GatedRepo", r#"{"error":"Access restricted"}"#),
                (404, "", r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no\nmanifest"}]}"#),
                (403, "", "<?xml?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"),
                (418, "", ""),
            ] {
                let ask = Ask::get(url, peer, Auth::Nobody, "a model").unwrap();
                let status = StatusCode::from_u16(status).unwrap();
                let mut headers = HeaderMap::new();
                if !code.is_empty() {
                    headers.insert("x-error-code", code.parse().unwrap());
                }
                let words = words(peer, &headers, body.as_bytes());
                told.push(refusal(&ask, "host", false, status, &headers, &words).to_string());
            }
        }
        assert!(!told.join("").contains("hunter2"));
        insta::assert_snapshot!(told.join("\n"));
    }

    #[test]
    fn a_bucket_in_another_region_names_it() {
        let ask =
            Ask::get("https://b.s3.us-east-1.amazonaws.com/", Peer::S3, Auth::Nobody, "bucket b").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-bucket-region", "eu-central-1".parse().unwrap());
        let error = refusal(&ask, "h", false, StatusCode::MOVED_PERMANENTLY, &headers, "PermanentRedirect");
        assert!(error.to_string().ends_with("set AWS_REGION to eu-central-1"), "{error}");
    }

    #[test]
    fn what_passes() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(is_passing(StatusCode::from_u16(status).unwrap(), ""));
        }
        for status in [400, 401, 403, 404, 410, 416, 501] {
            assert!(!is_passing(StatusCode::from_u16(status).unwrap(), ""));
        }
        assert!(is_passing(StatusCode::BAD_REQUEST, "RequestTimeout: idle"));
    }
}
