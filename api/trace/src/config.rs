//! Where spans go, from a flag and the variables that OpenTelemetry's SDKs read:
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};

use crate::sampler::Sampler;

/// Where a collector takes traces when only its address is known.
const PATH: &str = "/v1/traces";

/// How spans are exported.
#[derive(Clone, PartialEq)]
pub struct TraceConfig {
    /// Where they are sent, with the path.
    pub endpoint: Uri,
    /// Headers of each call; keys of a collector, never shown.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// A file of certificate authorities, in PEM, instead of the system's.
    pub certificate: Option<PathBuf>,
    /// What is said of this process, `service.name` among it.
    pub resource: Vec<(String, String)>,
    /// Which traces are recorded.
    pub sampler: Sampler,
    /// Spans that may wait; more are dropped.
    pub queue: usize,
    /// Spans in one call.
    pub batch: usize,
    /// Longest time that a span waits for others.
    pub delay: Duration,
}

impl fmt::Debug for TraceConfig {
    /// Without the headers, and without the address's query, which may hold keys as well.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceConfig")
            .field("endpoint", &self.shown())
            .field("headers", &self.headers.len())
            .field("sampler", &self.sampler)
            .finish_non_exhaustive()
    }
}

/// Why spans cannot be exported as asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {problem}")]
pub struct ConfigError {
    /// The flag or variable.
    pub name: String,
    /// What is wrong with it, and what to do.
    pub problem: String,
}

fn wrong(name: &str, problem: impl Into<String>) -> ConfigError {
    ConfigError { name: name.to_owned(), problem: problem.into() }
}

impl TraceConfig {
    /// What to do, from the address that a flag names and from variables; `None` when neither names an
    /// address, or `OTEL_SDK_DISABLED` is true. `service` is what this process is called where
    /// `OTEL_SERVICE_NAME` says nothing.
    pub fn read(
        flag: Option<(&str, &str)>,
        service: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ConfigError> {
        // An empty variable counts as none.
        let get = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        if get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        // The signal's own variable goes before the one for all signals.
        let either = |end: &str| {
            ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"].iter().find_map(|start| {
                let name = format!("{start}{end}");
                get(&name).map(|value| (name, value))
            })
        };
        let endpoint = match (flag, either("ENDPOINT")) {
            (Some((name, url)), _) => {
                let uri = address(name, url)?;
                // An address alone is meant as a collector's.
                if uri.path() == "/" { below(name, &uri)? } else { uri }
            }
            (None, Some((name, url))) if name.contains("_TRACES_") => address(&name, &url)?,
            (None, Some((name, url))) => below(&name, &address(&name, &url)?)?,
            (None, None) => return Ok(None),
        };
        if let Some((name, protocol)) = either("PROTOCOL").filter(|(_, protocol)| protocol != "http/protobuf")
        {
            return Err(wrong(
                &name,
                format!(
                    "`{protocol}` is not built; set it to http/protobuf, and the endpoint to the collector's \
                     port for HTTP, most often 4318"
                ),
            ));
        }
        if let Some((name, how)) = either("COMPRESSION").filter(|(_, how)| how != "none") {
            return Err(wrong(&name, format!("`{how}` is not built; set it to none")));
        }
        let headers = either("HEADERS").map_or(Ok(Vec::new()), |(name, list)| headers(&name, &list))?;
        let sampler = match get("OTEL_TRACES_SAMPLER") {
            None => Sampler::default(),
            Some(name) => Sampler::named(&name, get("OTEL_TRACES_SAMPLER_ARG").as_deref())
                .map_err(|problem| wrong("OTEL_TRACES_SAMPLER", problem))?,
        };
        let number = |(name, value): (String, String)| match value.trim().parse::<u32>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(wrong(&name, format!("`{value}` must be a whole number above 0"))),
        };
        let own = |name: &str| get(name).map(|value| (name.to_owned(), value)).map(number).transpose();
        let milliseconds = |number: u32| Duration::from_millis(u64::from(number));
        let queue = own("OTEL_BSP_MAX_QUEUE_SIZE")?.unwrap_or(2048) as usize;
        let batch = own("OTEL_BSP_MAX_EXPORT_BATCH_SIZE")?.unwrap_or(512) as usize;
        let resource = resource(
            service,
            get("OTEL_SERVICE_NAME").as_deref(),
            get("OTEL_RESOURCE_ATTRIBUTES").as_deref(),
        )?;
        Ok(Some(Self {
            endpoint,
            headers,
            timeout: either("TIMEOUT").map(number).transpose()?.map_or(Duration::from_secs(10), milliseconds),
            certificate: either("CERTIFICATE").map(|(_, path)| PathBuf::from(path)),
            resource,
            sampler,
            queue,
            batch: batch.min(queue),
            delay: own("OTEL_BSP_SCHEDULE_DELAY")?.map_or(Duration::from_secs(5), milliseconds),
        }))
    }

    /// The address, for a log.
    pub fn shown(&self) -> String {
        let authority = self.endpoint.authority().map_or("", |a| a.as_str());
        format!("{}://{authority}{}", self.endpoint.scheme_str().unwrap_or("http"), self.endpoint.path())
    }
}

fn address(name: &str, url: &str) -> Result<Uri, ConfigError> {
    let example = "give a collector's address for OTLP over HTTP, such as http://collector:4318/v1/traces";
    let uri: Uri =
        url.trim().parse().map_err(|error| wrong(name, format!("it is no URL ({error}); {example}")))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        let message = format!(
            "the URL must begin with http:// or https://, since OTLP by gRPC is not built; {example}"
        );
        return Err(wrong(name, message));
    }
    if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
        let message = "the URL must not hold a user and password; put them into OTEL_EXPORTER_OTLP_HEADERS";
        return Err(wrong(name, message));
    }
    Ok(uri)
}

/// The place for traces below a collector's address.
fn below(name: &str, base: &Uri) -> Result<Uri, ConfigError> {
    let mut parts = base.clone().into_parts();
    let path = format!("{}{PATH}", base.path().trim_end_matches('/'));
    parts.path_and_query = path.parse().ok();
    Uri::from_parts(parts).map_err(|error| wrong(name, format!("it is no URL: {error}")))
}

/// `name=value,name=value`, with values in percent-encoding.
fn pairs<'a>(name: &str, list: &'a str) -> Result<Vec<(&'a str, String)>, ConfigError> {
    let split = |pair: &'a str| {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| wrong(name, "each entry must be NAME=VALUE, and entries are parted by commas"))?;
        let value = percent_encoding::percent_decode_str(value.trim())
            .decode_utf8()
            .map_err(|_| wrong(name, format!("the value of `{}` is not UTF-8", key.trim())))?;
        Ok((key.trim(), value.into_owned()))
    };
    list.split(',').filter(|pair| !pair.trim().is_empty()).map(split).collect()
}

fn headers(name: &str, list: &str) -> Result<Vec<(HeaderName, HeaderValue)>, ConfigError> {
    let header = |(key, value): (&str, String)| {
        let header = key.to_ascii_lowercase().parse::<HeaderName>();
        let header = header.map_err(|_| wrong(name, format!("`{key}` is no name of a header")))?;
        // Not shown: it may be a key.
        let mut value = HeaderValue::from_str(&value).map_err(|_| {
            wrong(name, format!("the value of `{key}` has characters that no header may have"))
        })?;
        value.set_sensitive(true);
        Ok((header, value))
    };
    pairs(name, list)?.into_iter().map(header).collect()
}

fn resource(
    service: &str,
    named: Option<&str>,
    attributes: Option<&str>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let given = pairs("OTEL_RESOURCE_ATTRIBUTES", attributes.unwrap_or_default())?;
    let mut resource: Vec<(String, String)> = vec![
        ("telemetry.sdk.name".into(), "strata".into()),
        ("telemetry.sdk.language".into(), "rust".into()),
        ("telemetry.sdk.version".into(), env!("CARGO_PKG_VERSION").into()),
        ("service.version".into(), env!("CARGO_PKG_VERSION").into()),
        ("service.name".into(), service.into()),
    ];
    let named = named.map(|name| ("service.name", name.to_owned()));
    for (key, value) in given.into_iter().chain(named) {
        resource.retain(|(other, _)| other != key);
        resource.push((key.to_owned(), value));
    }
    Ok(resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flag: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<TraceConfig>, String> {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        TraceConfig::read(flag.map(|url| ("--otlp-traces-endpoint", url)), "engine", find)
            .map_err(|error| error.to_string())
    }

    fn endpoint(flag: Option<&str>, variables: &[(&str, &str)]) -> String {
        read(flag, variables).unwrap().unwrap().endpoint.to_string()
    }

    const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const OWN: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

    #[test]
    fn the_address_is_the_flags_or_a_variables() {
        assert_eq!(read(None, &[]), Ok(None));
        assert_eq!(read(None, &[(ALL, "")]), Ok(None));
        assert_eq!(read(Some("http://c:4318"), &[("OTEL_SDK_DISABLED", "true")]), Ok(None));
        assert_eq!(endpoint(Some("http://c:4318"), &[(ALL, "http://d")]), "http://c:4318/v1/traces");
        assert_eq!(endpoint(Some("https://c/in?key=1"), &[]), "https://c/in?key=1");
        assert_eq!(endpoint(None, &[(ALL, "http://d:1/base/")]), "http://d:1/base/v1/traces");
        assert_eq!(endpoint(None, &[(ALL, "http://d:1"), (OWN, "http://e:2")]), "http://e:2/");
    }

    #[test]
    fn variables_say_the_rest() {
        let config = read(
            Some("http://c:4318"),
            &[
                ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b, Other=c"),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
                ("OTEL_SERVICE_NAME", "mine"),
                ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,zone=a%2Cb"),
                ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
                ("OTEL_BSP_SCHEDULE_DELAY", "20"),
                ("OTEL_TRACES_SAMPLER", "always_off"),
            ],
        );
        let config = config.unwrap().unwrap();
        let headers: Vec<_> = config.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        assert_eq!(headers, [("x-key", "a b"), ("other", "c")]);
        assert_eq!(config.timeout, Duration::from_millis(1500));
        assert_eq!((config.queue, config.batch, config.delay), (8, 8, Duration::from_millis(20)));
        let said: Vec<_> = config.resource.iter().filter(|(n, _)| !n.starts_with("telemetry")).collect();
        assert_eq!(
            format!("{said:?}"),
            r#"[("service.version", "0.1.0"), ("zone", "a,b"), ("service.name", "mine")]"#
        );
        assert!(!format!("{config:?}").contains("a b"), "keys are not shown");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refusal = |flag, variables: &[(&str, &str)]| read(flag, variables).unwrap_err();
        insta::assert_snapshot!(refusal(Some("grpc://c:4317"), &[]), @"--otlp-traces-endpoint: the URL must begin with http:// or https://, since OTLP by gRPC is not built; give a collector's address for OTLP over HTTP, such as http://collector:4318/v1/traces");
        insta::assert_snapshot!(refusal(None, &[(OWN, "collector")]), @"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: the URL must begin with http:// or https://, since OTLP by gRPC is not built; give a collector's address for OTLP over HTTP, such as http://collector:4318/v1/traces");
        insta::assert_snapshot!(refusal(Some("http://u:secret@c"), &[]), @"--otlp-traces-endpoint: the URL must not hold a user and password; put them into OTEL_EXPORTER_OTLP_HEADERS");
        let with = |name, value| refusal(Some("http://c"), &[(name, value)]);
        insta::assert_snapshot!(with("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), @"OTEL_EXPORTER_OTLP_PROTOCOL: `grpc` is not built; set it to http/protobuf, and the endpoint to the collector's port for HTTP, most often 4318");
        insta::assert_snapshot!(with("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"), @"OTEL_EXPORTER_OTLP_COMPRESSION: `gzip` is not built; set it to none");
        insta::assert_snapshot!(with("OTEL_EXPORTER_OTLP_HEADERS", "key"), @"OTEL_EXPORTER_OTLP_HEADERS: each entry must be NAME=VALUE, and entries are parted by commas");
        insta::assert_snapshot!(with("OTEL_BSP_MAX_QUEUE_SIZE", "0"), @"OTEL_BSP_MAX_QUEUE_SIZE: `0` must be a whole number above 0");
        insta::assert_snapshot!(with("OTEL_TRACES_SAMPLER", "x"), @"OTEL_TRACES_SAMPLER: it must be always_on, always_off or traceidratio, each also after `parentbased_`");
    }
}
