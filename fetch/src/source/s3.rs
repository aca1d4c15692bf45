//! Objects of S3, Amazon's or another server's.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderName, Method, header};
use quick_xml::Reader;
use quick_xml::events::Event;
use strata_wire::model_uri::ModelUri;

use super::{Guard, Listing, MOST_FILES, RemoteFile, encoded, encoded_path, shards};
use crate::checksum::{self, Checksum};
use crate::client::{Ask, Auth, AwsSigner, Http, Peer, host_of};
use crate::credentials::Credentials;
use crate::error::FetchError;
use crate::name;

const PAGE_BYTES: usize = 16 << 20;

/// A bucket, and how it is asked.
struct Bucket {
    /// Without a slash at its end.
    base: String,
    auth: Auth,
}

pub(super) async fn list(
    http: &Http,
    uri: &ModelUri,
    (bucket, path): (&str, &str),
    credentials: &Credentials,
    connections: usize,
) -> Result<Listing, FetchError> {
    let asked = Bucket::new(bucket, credentials);
    let what = |key: &str| format!("{key} of bucket {bucket}");
    // Pairs of key and path in the model's folder.
    let named: Vec<(String, String)> = if uri.file().is_some() {
        let name = |key: &str| key.rsplit('/').next().unwrap_or(key).to_owned();
        shards(path).into_iter().map(|key| (key.clone(), name(&key))).collect()
    } else {
        let prefix = format!("{path}/");
        let keys = asked.keys(http, &prefix, &what(&prefix)).await?;
        if keys.is_empty() {
            let problem =
                "has no objects: check bucket and path; a single file must end with .gguf".to_owned();
            return Err(FetchError::Unusable { uri: uri.to_string(), problem });
        }
        let inside = |key: String| key.strip_prefix(&prefix).map(|rest| (key.clone(), rest.to_owned()));
        keys.into_iter().filter_map(inside).collect()
    };
    let files = futures::stream::iter(named)
        .map(|(key, path)| {
            let (asked, what) = (&asked, what(&key));
            async move { asked.file(http, &key, &path, what).await }
        })
        .buffered(connections)
        .try_collect()
        .await?;
    Ok(Listing { revision: None, files })
}

impl Bucket {
    fn new(bucket: &str, credentials: &Credentials) -> Self {
        let region = credentials.aws_region.as_deref().unwrap_or("us-east-1");
        let base = if let Some(endpoint) = &credentials.aws_endpoint {
            format!("{}/{bucket}", endpoint.trim_end_matches('/'))
        } else {
            let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
            // A dot in the bucket's name would not match the certificate.
            if bucket.contains('.') {
                format!("https://s3.{region}.{domain}/{bucket}")
            } else {
                format!("https://{bucket}.s3.{region}.{domain}")
            }
        };
        let auth = credentials.aws.as_ref().map_or(Auth::Nobody, |keys| {
            Auth::Aws(Arc::new(AwsSigner {
                key_id: keys.id.clone(),
                secret: keys.secret.clone(),
                session_token: keys.session_token.clone(),
                region: region.to_owned(),
            }))
        });
        Self { base, auth }
    }

    /// All keys that begin with the prefix, but for those that stand for folders.
    async fn keys(&self, http: &Http, prefix: &str, what: &str) -> Result<Vec<String>, FetchError> {
        let mut keys = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let token =
                next.map(|token| format!("continuation-token={}&", encoded(&token))).unwrap_or_default();
            let url =
                format!("{}/?{token}encoding-type=url&list-type=2&prefix={}", self.base, encoded(prefix));
            let ask = Ask::get(&url, Peer::S3, self.auth.clone(), what)?;
            let answer = http.small(&ask, PAGE_BYTES).await?;
            let wrong = |problem: String| FetchError::Answer {
                host: host_of(&ask.url),
                what: what.to_owned(),
                problem,
            };
            let page = page(&answer).map_err(|e| wrong(format!("what is no listing: {e}")))?;
            keys.extend(page.keys.into_iter().filter(|key| !key.ends_with('/')));
            if keys.len() > MOST_FILES {
                return Err(wrong(format!(
                    "more than {MOST_FILES} objects, which is no model: name a longer path"
                )));
            }
            match page.next {
                Some(token) => next = Some(token),
                None => return Ok(keys),
            }
        }
    }

    async fn file(&self, http: &Http, key: &str, path: &str, what: String) -> Result<RemoteFile, FetchError> {
        let url = format!("{}/{}", self.base, encoded_path(key));
        let ask = Ask::get(&url, Peer::S3, self.auth.clone(), what)?;
        let path = name::checked(&host_of(&ask.url), path)?;
        let head = Ask { method: Method::HEAD, ..ask.clone() };
        let head = head.with(HeaderName::from_static("x-amz-checksum-mode"), "ENABLED")?;
        let answer = http.opened(&head, &[]).await?;
        let headers = answer.headers();
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let size = text(header::CONTENT_LENGTH.as_str()).and_then(|n| n.parse().ok());
        let tag = text(header::ETAG.as_str()).map(str::to_owned);
        let checksum = promised(headers);
        Ok(RemoteFile {
            path,
            ask,
            size,
            identity: tag.as_ref().map(|tag| format!("tag:{tag}")),
            guard: tag.map_or(Guard::Nothing, Guard::IfMatch),
            checksum,
            unpack: None,
        })
    }
}

/// The checksum that S3 gives of a whole object: its own where the object was stored with one, else the
/// tag where that is an MD5, which it is not for objects of several parts or under keys of KMS.
fn promised(headers: &HeaderMap) -> Option<Checksum> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let sha256 = text("x-amz-checksum-sha256")
        .filter(|_| text("x-amz-checksum-type").is_none_or(|kind| kind.eq_ignore_ascii_case("FULL_OBJECT")))
        .and_then(|encoded| BASE64_STANDARD.decode(encoded).ok())
        .filter(|bytes| bytes.len() == 32);
    if let Some(bytes) = sha256 {
        return Some(Checksum::Sha256(checksum::hex(&bytes)));
    }
    let is_plain = text("x-amz-server-side-encryption").is_none_or(|kind| kind == "AES256")
        && text("x-amz-server-side-encryption-customer-algorithm").is_none();
    let tag = text(header::ETAG.as_str())?.trim_matches('"');
    let is_md5 = is_plain && tag.len() == 32 && tag.bytes().all(|b| b.is_ascii_hexdigit());
    is_md5.then(|| Checksum::Md5(tag.to_ascii_lowercase()))
}

/// One page of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
struct Page {
    keys: Vec<String>,
    next: Option<String>,
}

fn page(xml: &[u8]) -> Result<Page, String> {
    let mut reader = Reader::from_str(std::str::from_utf8(xml).map_err(|e| e.to_string())?);
    let mut path: Vec<String> = Vec::new();
    let mut text = String::new();
    let (mut keys, mut next, mut is_truncated, mut is_encoded) = (Vec::new(), None, false, false);
    let mut is_listing = false;
    loop {
        match reader.read_event().map_err(|e| e.to_string())? {
            Event::Start(element) => {
                path.push(element.local_name().as_ref().to_owned());
                is_listing |= path.len() == 1 && path[0] == "ListBucketResult";
                text.clear();
            }
            Event::Text(piece) => text.push_str(&piece),
            Event::GeneralRef(reference) => {
                let whole = format!("&{};", &*reference);
                text.push_str(&quick_xml::escape::unescape(&whole).map_err(|e| e.to_string())?);
            }
            Event::CData(piece) => text.push_str(&piece),
            Event::End(_) => {
                let names: Vec<&str> = path.iter().skip(1).map(String::as_str).collect();
                match names[..] {
                    ["Contents", "Key"] => keys.push(std::mem::take(&mut text)),
                    ["NextContinuationToken"] => next = Some(std::mem::take(&mut text)),
                    ["IsTruncated"] => is_truncated = text.trim() == "true",
                    ["EncodingType"] => is_encoded = text.trim() == "url",
                    _ => {}
                }
                path.pop();
                text.clear();
            }
            Event::Eof => break,
            _ => {}
        }
    }
    if !is_listing || !path.is_empty() {
        return Err("a ListBucketResult was expected".to_owned());
    }
    if is_encoded {
        let plain = |key: &String| {
            let key = key.replace('+', " ");
            percent_encoding::percent_decode_str(&key)
                .decode_utf8()
                .map(std::borrow::Cow::into_owned)
                .map_err(|e| e.to_string())
        };
        keys = keys.iter().map(plain).collect::<Result<_, _>>()?;
    }
    if is_truncated && next.is_none() {
        return Err("it is cut off and has no token to go on with".to_owned());
    }
    Ok(Page { keys, next: next.filter(|_| is_truncated) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page() {
        let xml = br#"<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <Name>b</Name><Prefix>m/</Prefix><IsTruncated>true</IsTruncated>
            <NextContinuationToken>1/x+=</NextContinuationToken><EncodingType>url</EncodingType>
            <Contents><Key>m/a%20b+c%2B.json</Key><Size>7</Size><Owner><Key>no</Key></Owner></Contents>
            <Contents><Key>m/&amp;&#x41;</Key></Contents></ListBucketResult>"#;
        let page = page(xml).unwrap();
        assert_eq!(page.keys, ["m/a b c+.json", "m/&A"]);
        assert_eq!(page.next.as_deref(), Some("1/x+="));
    }

    #[test]
    fn what_is_no_page() {
        for xml in [
            "",
            "<Error/>",
            "<html>",
            "{}",
            "<ListBucketResult><Contents>",
            "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        ] {
            assert!(page(xml.as_bytes()).is_err(), "{xml}");
        }
    }

    #[test]
    fn the_tag_is_a_checksum_only_sometimes() {
        let promised = |headers: &[(&'static str, &'static str)]| {
            let headers = headers.iter().map(|(n, v)| (HeaderName::from_static(n), v.parse().unwrap()));
            super::promised(&headers.collect())
        };
        let md5 = ("etag", "\"b1946ac92492d2347c6235b4d2611184\"");
        let sha256 = ("x-amz-checksum-sha256", "WJG1tSLV3whtD/CxEPvZ0hu0/HFjrzTQgoai6Eb2vgM=");
        assert_eq!(promised(&[md5]), Some(Checksum::Md5("b1946ac92492d2347c6235b4d2611184".to_owned())));
        assert!(
            matches!(promised(&[md5, sha256]), Some(Checksum::Sha256(hex)) if hex.starts_with("5891b5b5"))
        );
        assert!(matches!(
            promised(&[md5, sha256, ("x-amz-checksum-type", "COMPOSITE")]),
            Some(Checksum::Md5(_))
        ));
        assert_eq!(promised(&[md5, ("x-amz-server-side-encryption", "aws:kms")]), None);
        assert_eq!(promised(&[("etag", "\"b1946ac92492d2347c6235b4d2611184-2\"")]), None);
    }
}
