//! S3: a fake that lists in pages and minds If-Match. A real server checks the signatures elsewhere.
#![allow(clippy::unwrap_used)]

mod fake;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use fake::{Fake, Fault, fetch, md5, models, noise, options, sha256};
use strata_fetch::{Credentials, FetchError, FetchOptions};

fn with_keys(fake: &Fake, uri: &str, to: &std::path::Path) -> FetchOptions {
    let credentials = Credentials::from_pairs([
        ("AWS_ENDPOINT_URL", fake.url.as_str()),
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_SESSION_TOKEN", "session"),
        ("AWS_REGION", "eu-central-1"),
    ]);
    FetchOptions { credentials: credentials.unwrap(), ..options(uri, to) }
}

fn object(fake: &Fake, key: &str, bytes: &[u8]) {
    let tag = format!("\"{}\"", md5(bytes));
    fake.put_with(&format!("/bucket/{key}"), bytes.to_vec(), vec![("etag", tag)]);
}

fn page(keys: &[String], next: Option<&str>) -> String {
    let contents: Vec<String> =
        keys.iter().map(|key| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>")).collect();
    let contents = contents.concat();
    let next =
        next.map(|t| format!("<NextContinuationToken>{t}</NextContinuationToken>")).unwrap_or_default();
    let is_truncated = !next.is_empty();
    format!("<ListBucketResult><IsTruncated>{is_truncated}</IsTruncated>{next}{contents}</ListBucketResult>")
}

#[tokio::test]
async fn a_listing_of_many_pages() {
    let fake = Fake::start().await;
    let keys: Vec<String> = (0..1_100).map(|n| format!("m/part-{n:04}.bin")).collect();
    for key in &keys {
        object(&fake, key, key.as_bytes());
    }
    let pages: Vec<Vec<String>> = keys.chunks(400).map(<[String]>::to_vec).collect();
    fake.script(move |seen| {
        let query = seen.path.strip_prefix("/bucket/?")?;
        let at = query
            .split('&')
            .find_map(|p| p.strip_prefix("continuation-token=page%2F"))
            .map_or(0, |n| n.parse().unwrap());
        let next = (at + 1 < pages.len()).then(|| format!("page/{}", at + 1));
        Some(Fault::Answer(200, vec![], page(&pages[at], next.as_deref())))
    });
    let to = tempfile::tempdir().unwrap();
    let fetched = fetch(FetchOptions { connections: 16, ..with_keys(&fake, "s3://bucket/m", to.path()) })
        .await
        .unwrap();
    assert_eq!(std::fs::read_dir(&fetched.path).unwrap().count(), 1_101);
    assert_eq!(std::fs::read(fetched.path.join("part-1099.bin")).unwrap(), b"m/part-1099.bin");
    for seen in fake.seen() {
        let authorization = seen.header("authorization").unwrap();
        assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/"), "{authorization}");
        assert!(authorization.contains("/eu-central-1/s3/aws4_request"));
        assert_eq!(seen.header("x-amz-security-token"), Some("session"));
    }
}

#[tokio::test]
async fn one_object_by_its_own_checksum_or_its_tag() {
    let bytes = noise(600_000, 1);
    let sum = |hex: String| {
        let raw: Vec<u8> = (0..32).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect();
        BASE64_STANDARD.encode(raw)
    };
    let wrong = noise(600_000, 2);
    let of_many_parts = "\"0123456789abcdef0123456789abcdef-2\"".to_owned();
    for (headers, is_right) in [
        (vec![("etag", format!("\"{}\"", md5(&bytes)))], true),
        (vec![("etag", format!("\"{}\"", md5(&wrong)))], false),
        (vec![("etag", of_many_parts.clone())], true),
        (vec![("etag", of_many_parts.clone()), ("x-amz-checksum-sha256", sum(sha256(&bytes)))], true),
        (vec![("etag", of_many_parts), ("x-amz-checksum-sha256", sum(sha256(&wrong)))], false),
    ] {
        let fake = Fake::start().await;
        fake.put_with("/bucket/a/m.gguf", bytes.clone(), headers.clone());
        let to = tempfile::tempdir().unwrap();
        match fetch(with_keys(&fake, "s3://bucket/a/m.gguf", to.path())).await {
            Ok(fetched) => {
                assert!(is_right, "{headers:?}");
                assert!(fetched.path.ends_with("m.gguf") && std::fs::read(fetched.path).unwrap() == bytes);
            }
            Err(error) => {
                assert!(!is_right && matches!(error, FetchError::Mismatch { .. }), "{headers:?} {error}");
                assert!(models(to.path()).is_empty());
            }
        }
    }
}

#[tokio::test]
async fn an_object_that_is_replaced_meanwhile_is_asked_for_anew() {
    let fake = Fake::start().await;
    let (old, new) = (noise(900_000, 1), noise(900_000, 2));
    object(&fake, "m.gguf", &old);
    let old_tag = format!("\"{}\"", md5(&old));
    fake.script(move |seen| {
        (seen.nth >= 2 && seen.header("if-match") == Some(&old_tag))
            .then(|| Fault::Answer(412, vec![], String::new()))
    });
    let to = tempfile::tempdir().unwrap();
    let running = tokio::spawn(fetch(with_keys(&fake, "s3://bucket/m.gguf", to.path())));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while fake.seen().len() < 2 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    object(&fake, "m.gguf", &new);
    let fetched = running.await.unwrap().unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == new);
}

#[tokio::test]
async fn nothing_there_and_not_allowed() {
    let fake = Fake::start().await;
    fake.script(|seen| seen.path.contains('?').then(|| Fault::Answer(200, vec![], page(&[], None))));
    let to = tempfile::tempdir().unwrap();
    let error = fetch(with_keys(&fake, "s3://bucket/m", to.path())).await.unwrap_err().to_string();
    assert!(error.contains("has no objects"), "{error}");
    let error = fetch(with_keys(&fake, "s3://bucket/m.gguf", to.path())).await.unwrap_err().to_string();
    assert!(error.contains("check bucket and path"), "{error}");
    fake.script(|_| {
        let body = "<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>".to_owned();
        Some(Fault::Answer(403, vec![], body))
    });
    let error = fetch(with_keys(&fake, "s3://bucket/m", to.path())).await.unwrap_err().to_string();
    assert!(error.contains("SignatureDoesNotMatch") && error.contains("AWS_SECRET_ACCESS_KEY"), "{error}");
}

#[tokio::test]
async fn keys_that_would_leave_the_folder_are_refused() {
    for key in ["m/../x", "m//x", "m/a\\b"] {
        let fake = Fake::start().await;
        fake.script(move |_| Some(Fault::Answer(200, vec![], page(&[key.to_owned()], None))));
        let to = tempfile::tempdir().unwrap();
        let error = fetch(with_keys(&fake, "s3://bucket/m", to.path())).await.unwrap_err();
        assert!(matches!(error, FetchError::BadName { .. }), "{key}: {error}");
    }
}
