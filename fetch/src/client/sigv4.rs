//! Signatures for S3: AWS Signature Version 4, for requests without a body.

use crate::checksum::hex;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};

/// SHA-256 of nothing.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Signs requests to S3 in one region.
pub(crate) struct AwsSigner {
    pub(crate) key_id: String,
    pub(crate) secret: String,
    pub(crate) session_token: Option<String>,
    pub(crate) region: String,
}

impl AwsSigner {
    /// Adds date, content hash, session token and `Authorization` for a request at `now`. The path and
    /// query of `url` must be encoded as S3 encodes them: everything but letters, digits, `-._~` (and `/`
    /// in the path).
    pub(super) fn sign(&self, method: &Method, url: &Uri, headers: &mut HeaderMap, now: jiff::Timestamp) {
        let moment = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let date = &moment[..8];
        let mut set = |name: HeaderName, value: &str| {
            // A value that cannot be sent would be refused by the server as unsigned.
            if let Ok(mut value) = HeaderValue::from_str(value) {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        };
        set(header::HOST, &super::host_of(url));
        set(HeaderName::from_static("x-amz-content-sha256"), EMPTY);
        set(HeaderName::from_static("x-amz-date"), &moment);
        if let Some(token) = &self.session_token {
            set(HeaderName::from_static("x-amz-security-token"), token);
        }

        let mut signed: Vec<(&str, &str)> = headers
            .iter()
            .filter(|(name, _)| {
                matches!(**name, header::HOST | header::RANGE) || name.as_str().starts_with("x-amz-")
            })
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?.trim())))
            .collect();
        signed.sort_unstable();
        let names: Vec<&str> = signed.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines: Vec<String> = signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let lines = lines.concat();
        let request =
            format!("{method}\n{}\n{}\n{lines}\n{names}\n{EMPTY}", url.path(), canonical_query(url));

        let scope = format!("{date}/{}/s3/aws4_request", self.region);
        let text = format!("{ALGORITHM}\n{moment}\n{scope}\n{}", hex(&Sha256::digest(request.as_bytes())));
        let mut key = hmac(format!("AWS4{}", self.secret).as_bytes(), date);
        for part in [self.region.as_str(), "s3", "aws4_request"] {
            key = hmac(&key, part);
        }
        let authorization = format!(
            "{ALGORITHM} Credential={}/{scope},SignedHeaders={names},Signature={}",
            self.key_id,
            hex(&hmac(&key, &text))
        );
        if let Ok(mut value) = HeaderValue::from_str(&authorization) {
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
    }
}

/// The parameters in the order of their names, each with its `=`.
fn canonical_query(url: &Uri) -> String {
    let mut parameters: Vec<(String, String)> = url
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|p| {
            let (name, value) = p.split_once('=').unwrap_or((p, ""));
            (name.to_owned(), value.to_owned())
        })
        .collect();
    // The order is that of the decoded names.
    parameters.sort_by_cached_key(|(name, value)| {
        (percent_decode_str(name).collect::<Vec<u8>>(), percent_decode_str(value).collect::<Vec<u8>>())
    });
    let parameters: Vec<String> =
        parameters.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    parameters.join("&")
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(url: &str, range: Option<&str>, token: Option<&str>) -> HeaderMap {
        let signer = AwsSigner {
            key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            session_token: token.map(str::to_owned),
            region: "us-east-1".to_owned(),
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static("not signed"));
        if let Some(range) = range {
            headers.insert(header::RANGE, range.parse().unwrap());
        }
        signer.sign(
            &Method::GET,
            &url.parse().unwrap(),
            &mut headers,
            "2013-05-24T00:00:00Z".parse().unwrap(),
        );
        headers
    }

    fn signature(headers: &HeaderMap) -> &str {
        headers[header::AUTHORIZATION].to_str().unwrap().rsplit_once("Signature=").unwrap().1
    }

    /// The examples of the Amazon S3 API reference, "Signature calculations for the Authorization header".
    #[test]
    fn the_published_examples() {
        let object = signed("https://examplebucket.s3.amazonaws.com/test.txt", Some("bytes=0-9"), None);
        assert_eq!(
            object[header::AUTHORIZATION],
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,\
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        let lifecycle = signed("https://examplebucket.s3.amazonaws.com/?lifecycle", None, None);
        assert_eq!(signature(&lifecycle), "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
        for query in ["max-keys=2&prefix=J", "prefix=J&max-keys=2"] {
            let list = signed(&format!("https://examplebucket.s3.amazonaws.com/?{query}"), None, None);
            assert_eq!(signature(&list), "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
        }
    }

    #[test]
    fn nothing_of_it_is_printed() {
        let headers = signed("https://b.s3.amazonaws.com/x", None, Some("session-hunter2"));
        assert_eq!(headers["x-amz-security-token"], "session-hunter2");
        let shown = format!("{headers:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("AKIA"), "{shown}");
    }
}
