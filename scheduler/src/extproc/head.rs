//! A request's headers as the proxy tells of them. Pure.

use std::collections::BTreeSet;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use prost_types::value::Kind;
use strata_hop::Fault;
use strata_wire::hops::Hop;

use super::proto::{self, Metadata};
use crate::call;

/// Namespace of the metadata in which a proxy names the endpoints to choose from, and the key there.
const SUBSET_NAMESPACE: &str = "envoy.lb.subset_hint";
const SUBSET_KEY: &str = "x-gateway-destination-endpoint-subset";

/// Most endpoints of a subset that are read.
const MAX_SUBSET: usize = 10_000;

/// What is known of a request before its body.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Head {
    pub(crate) method: Method,
    /// Without the query.
    pub(crate) path: String,
    /// Without the pseudo-headers.
    pub(crate) headers: HeaderMap,
    /// The endpoints, `ip:port`, that the proxy allows; all when absent.
    pub(crate) subset: Option<BTreeSet<String>>,
}

impl Head {
    /// Reads the headers, and the subset from what filters before this one said.
    pub(crate) fn read(sent: &proto::HttpHeaders, metadata: Option<&Metadata>) -> Result<Self, Fault> {
        let (mut method, mut path, mut headers) = (None, None, HeaderMap::new());
        for header in sent.headers.iter().flat_map(|headers| &headers.headers) {
            match header.key.as_str() {
                ":method" => method = Method::from_bytes(value(header)).ok(),
                ":path" => path = std::str::from_utf8(value(header)).ok().map(str::to_owned),
                pseudo if pseudo.starts_with(':') => {}
                name => {
                    let bad = |_| Fault::invalid("the request has a header that is no HTTP header");
                    let name = HeaderName::from_bytes(name.as_bytes()).map_err(bad)?;
                    let value = HeaderValue::from_bytes(value(header))
                        .map_err(|_| Fault::invalid(format!("the header {name} must be plain text")))?;
                    headers.append(name, value);
                }
            }
        }
        let (Some(method), Some(path)) = (method, path) else {
            return Err(Fault::invalid(
                "the proxy sent a request without :method or :path; its ext_proc filter must send request headers",
            ));
        };
        let path = path.split('?').next().unwrap_or_default().to_owned();
        Ok(Self { method, path, headers, subset: metadata.and_then(subset) })
    }

    /// Whether it is for one of the engine's routes that are within reach.
    pub(crate) fn is_for_engine(&self) -> bool {
        self.method == Method::POST && call::ROUTES.iter().any(|(path, _)| *path == self.path)
    }

    /// Names of the headers that stay behind: all that the table of hops does not let through, but for
    /// those that belong to HTTP itself or to the proxy.
    pub(crate) fn left_behind(&self) -> Vec<String> {
        let goes = |name: &&str| !Hop::SchedulerToEngine.copies(name) && !is_the_proxys(name);
        self.headers.keys().map(HeaderName::as_str).filter(goes).map(str::to_owned).collect()
    }
}

/// Headers that a proxy needs itself after this filter, for framing, retries, tracing and its access log.
fn is_the_proxys(name: &str) -> bool {
    let own =
        ["host", "content-length", "transfer-encoding", "te", "expect", "x-forwarded-proto", "x-request-id"];
    own.contains(&name) || name.starts_with("x-envoy-")
}

/// A header's value, whichever field it is in.
pub(crate) fn value(header: &proto::HeaderValue) -> &[u8] {
    if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value }
}

/// The endpoints that the proxy allows: a list of texts, or one text with commas. Of anything else none
/// is allowed, for a limit that cannot be read must not be passed over.
fn subset(metadata: &Metadata) -> Option<BTreeSet<String>> {
    let hint = metadata.filter_metadata.get(SUBSET_NAMESPACE)?.fields.get(SUBSET_KEY)?;
    let split = |text: &str| -> Vec<String> {
        text.split(',').map(|one| one.trim().to_owned()).filter(|one| !one.is_empty()).collect()
    };
    let listed = match &hint.kind {
        Some(Kind::StringValue(text)) => split(text),
        Some(Kind::ListValue(list)) => {
            let text = |value: &prost_types::Value| match &value.kind {
                Some(Kind::StringValue(text)) => split(text),
                _ => Vec::new(),
            };
            list.values.iter().flat_map(text).collect()
        }
        _ => Vec::new(),
    };
    Some(listed.into_iter().take(MAX_SUBSET).collect())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn sent(headers: &[(&str, &str)]) -> proto::HttpHeaders {
        let header = |(key, value): &(&str, &str)| proto::HeaderValue {
            key: (*key).to_owned(),
            value: String::new(),
            raw_value: Bytes::copy_from_slice(value.as_bytes()),
        };
        let headers = headers.iter().map(header).collect();
        proto::HttpHeaders { headers: Some(proto::HeaderMap { headers }), end_of_stream: false }
    }

    fn hint(kind: Kind) -> Metadata {
        let value = prost_types::Value { kind: Some(kind) };
        let fields = [(SUBSET_KEY.to_owned(), value)].into();
        Metadata { filter_metadata: [(SUBSET_NAMESPACE.to_owned(), prost_types::Struct { fields })].into() }
    }

    #[test]
    fn a_head_is_read() {
        let sent = sent(&[
            (":method", "POST"),
            (":path", "/v1/completions?x=1"),
            (":scheme", "http"),
            ("accept", "a"),
            ("accept", "b"),
        ]);
        let head = Head::read(&sent, None).unwrap();
        assert_eq!(
            (head.path.as_str(), head.headers.get_all("accept").iter().count()),
            ("/v1/completions", 2)
        );
        assert!(head.is_for_engine() && head.subset.is_none() && head.headers.len() == 2);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let message = |headers: &[_]| Head::read(&sent(headers), None).unwrap_err().body.error.message;
        assert!(message(&[(":path", "/")]).contains("must send request headers"));
        assert!(message(&[(":method", "GET"), (":path", "/"), ("a b", "c")]).contains("no HTTP header"));
        assert!(message(&[(":method", "GET"), (":path", "/"), ("a", "\n")]).contains("header a must be"));
    }

    #[test]
    fn only_the_tables_headers_and_the_proxys_go_on() {
        let names = [
            ":method",
            ":path",
            "host",
            "content-length",
            "content-type",
            "accept",
            "traceparent",
            "x-request-id",
            "x-envoy-expected-rq-timeout-ms",
            "authorization",
            "cookie",
            "x-strata-hop-token",
            "x-forwarded-for",
            "x-gateway-destination-endpoint",
            "baggage",
            "x-strata-deadline-ms",
        ];
        let head = Head::read(&sent(&names.map(|name| (name, "POST"))), None).unwrap();
        let mut left = head.left_behind();
        left.sort();
        let wanted = [
            "authorization",
            "baggage",
            "cookie",
            "x-forwarded-for",
            "x-gateway-destination-endpoint",
            "x-strata-hop-token",
        ];
        assert_eq!(left, wanted);
    }

    #[test]
    fn a_subset_is_read_in_both_forms_and_never_passed_over() {
        let text = |text: &str| prost_types::Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let list = |values| Kind::ListValue(prost_types::ListValue { values });
        let wanted: BTreeSet<String> = ["10.0.0.1:8000".to_owned(), "[::1]:80".to_owned()].into();
        let values = vec![text("10.0.0.1:8000"), text(" [::1]:80")];
        assert_eq!(subset(&hint(list(values))), Some(wanted.clone()));
        assert_eq!(subset(&hint(Kind::StringValue("[::1]:80, 10.0.0.1:8000,".to_owned()))), Some(wanted));
        assert_eq!(subset(&hint(list(vec![]))), Some(BTreeSet::new()));
        assert_eq!(subset(&hint(Kind::BoolValue(true))), Some(BTreeSet::new()));
        assert_eq!(subset(&Metadata::default()), None);
    }
}
