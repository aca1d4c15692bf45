//! Every request has an id: the client's where it is sane, a fresh one otherwise.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderValue;
use strata_wire::headers::REQUEST_ID;

use crate::mint;

/// Middleware: writes the id into the request, and into the response where the next layer gave none.
pub(crate) async fn attach(mut request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID).filter(|v| is_sane(v.as_bytes())).cloned();
    let id = given.unwrap_or_else(|| {
        HeaderValue::from_str(&mint::request_id()).expect("a UUID is a valid header value")
    });
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    tracing::debug!(%method, %path, status = response.status().as_u16(), request_id = ?id, "answered");
    response.headers_mut().entry(REQUEST_ID).or_insert(id);
    response
}

fn is_sane(id: &[u8]) -> bool {
    (1..=128).contains(&id.len())
        && id.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/'))
}

#[cfg(test)]
mod tests {
    use super::is_sane;

    #[test]
    fn ids_that_could_harm_a_log_are_replaced() {
        assert!(is_sane(b"0199-ab_c.d:e/f"));
        for bad in [&b""[..], b"a b", b"a\"b", b"{x}", "ü".as_bytes(), &[b'a'; 129]] {
            assert!(!is_sane(bad), "{bad:?}");
        }
    }
}
