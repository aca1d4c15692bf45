//! The forms of the URIs, one function a scheme.

use super::{ModelUri, ModelUriError, OciReference, PlainHttp};

const HF: &str = "hf://OWNER/NAME[/FILE][@REVISION]";
const OCI: &str = "oci://REGISTRY/NAME[:TAG][@sha256:DIGEST]";
const S3: &str = "s3://BUCKET/PATH";
const PVC: &str = "pvc://CLAIM[/PATH]";
const FILE: &str = "file:///PATH";
const HTTPS: &str = "https://HOST[:PORT]/PATH[?QUERY][#sha256=DIGEST]";

const DEFAULT_BRANCH: &str = "main";
const DEFAULT_TAG: &str = "latest";

/// What is being parsed, for messages.
struct Whole<'a>(&'a str);

impl Whole<'_> {
    fn malformed(&self, form: &'static str, problem: impl Into<String>) -> ModelUriError {
        ModelUriError::Malformed { uri: self.0.to_owned(), form, problem: problem.into() }
    }
}

pub(super) fn parse(uri: &str, revision: Option<&str>, http: PlainHttp) -> Result<ModelUri, ModelUriError> {
    if has_dot_segment(uri) {
        return Err(ModelUriError::DotSegment { uri: uri.to_owned() });
    }
    let whole = Whole(uri);
    let without = |scheme, parsed: Result<ModelUri, ModelUriError>| match revision {
        Some(revision) => {
            parsed.and(Err(ModelUriError::NoRevisions { scheme, revision: revision.to_owned() }))
        }
        None => parsed,
    };
    if uri.starts_with('/') {
        return without("file", file(&whole, uri));
    }
    match uri.split_once("://") {
        Some(("hf", rest)) => hf(&whole, rest, revision),
        Some(("oci", rest)) => oci(&whole, rest, revision),
        Some(("s3", rest)) => without("s3", s3(&whole, rest)),
        Some(("pvc", rest)) => without("pvc", pvc(&whole, rest)),
        Some(("file", rest)) => without("file", file(&whole, rest)),
        Some(("https", rest)) => without("https", https(&whole, rest)),
        Some(("http", rest)) if http == PlainHttp::Accepted => without("http", https(&whole, rest)),
        Some(("http", _)) => Err(ModelUriError::PlainHttp { uri: uri.to_owned() }),
        _ => Err(ModelUriError::UnknownScheme { uri: uri.to_owned() }),
    }
}

/// Whether any part between slashes is `.` or `..`; a revision, query or fragment ends a part.
fn has_dot_segment(uri: &str) -> bool {
    uri.split('/').skip(1).any(|part| {
        let name = part.split(['@', '?', '#']).next().unwrap_or_default();
        matches!(name, "." | "..")
    })
}

fn hf(whole: &Whole, rest: &str, revision: Option<&str>) -> Result<ModelUri, ModelUriError> {
    const REVISION: &str = "a branch, tag or commit: letters, digits, '.', '_', '/' and '-'";
    let (path, in_uri) = rest.split_once('@').map_or((rest, None), |(path, revision)| (path, Some(revision)));
    let mut parts = path.splitn(3, '/');
    let mut part = |what: &str| match parts.next() {
        Some(name) if is_hub_name(name) => Ok(name.to_owned()),
        Some(name) if !name.is_empty() => Err(whole.malformed(HF, format!("`{name}` is no {what}"))),
        _ => Err(whole.malformed(HF, format!("the {what} is missing"))),
    };
    let (owner, name) = (part("owner")?, part("name")?);
    let file = parts.next().map(str::to_owned);
    if let Some(file) = &file
        && !file.split('/').all(|s| all(s, |c| c.is_ascii_alphanumeric() || "._+=,~()-".contains(c)))
    {
        return Err(whole.malformed(HF, format!("`{file}` is no file of a repository")));
    }
    if let Some(in_uri) = in_uri
        && !is_branch(in_uri)
    {
        return Err(whole.malformed(HF, format!("the revision `{in_uri}` must be {REVISION}")));
    }
    if let Some(revision) = revision
        && !is_branch(revision)
    {
        let revision = revision.to_owned();
        return Err(ModelUriError::BadRevision { scheme: "hf", revision, form: REVISION });
    }
    let revision = one_of(in_uri, revision)?.unwrap_or(DEFAULT_BRANCH).to_owned();
    Ok(ModelUri::Hf { owner, name, file, revision })
}

fn oci(whole: &Whole, rest: &str, revision: Option<&str>) -> Result<ModelUri, ModelUriError> {
    let Some((registry, path)) = rest.split_once('/') else {
        return Err(whole.malformed(OCI, "the name is missing"));
    };
    if !is_authority(registry) {
        return Err(whole.malformed(OCI, format!("`{registry}` is no host")));
    }
    let (path, digest) = path.split_once('@').map_or((path, None), |(path, digest)| (path, Some(digest)));
    let (name, tag) = path.split_once(':').map_or((path, None), |(name, tag)| (name, Some(tag)));
    if !name.split('/').all(is_oci_name) {
        return Err(whole.malformed(OCI, format!("`{name}` is no name: use lower-case letters and digits")));
    }
    if let Some(tag) = tag
        && !is_tag(tag)
    {
        return Err(whole.malformed(OCI, format!("`{tag}` is no tag")));
    }
    if let Some(digest) = digest
        && !is_digest(digest)
    {
        return Err(whole.malformed(OCI, format!("`{digest}` must be sha256: and 64 hexadecimal digits")));
    }
    if let Some(revision) = revision
        && !is_tag(revision)
        && !is_digest(revision)
    {
        let form = "a tag, or sha256: and 64 hexadecimal digits";
        return Err(ModelUriError::BadRevision { scheme: "oci", revision: revision.to_owned(), form });
    }
    let reference = one_of(digest.or(tag), revision)?.unwrap_or(DEFAULT_TAG).to_owned();
    let reference =
        if is_digest(&reference) { OciReference::Digest(reference) } else { OciReference::Tag(reference) };
    Ok(ModelUri::Oci { registry: registry.to_owned(), name: name.to_owned(), reference })
}

fn s3(whole: &Whole, rest: &str) -> Result<ModelUri, ModelUriError> {
    let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_bucket = (3..=63).contains(&bucket.len())
        && all(bucket, |c| ends(c) || c == '.' || c == '-')
        && bucket.starts_with(ends)
        && bucket.ends_with(ends);
    if !is_bucket {
        return Err(whole.malformed(S3, format!("`{bucket}` is no bucket")));
    }
    let path = path.strip_suffix('/').unwrap_or(path);
    if !path.split('/').all(|s| all(s, |c| c.is_ascii_alphanumeric() || "!_.*()+=,:@~-".contains(c))) {
        return Err(whole.malformed(S3, format!("`{path}` is no key or prefix")));
    }
    Ok(ModelUri::S3 { bucket: bucket.to_owned(), path: path.to_owned() })
}

fn pvc(whole: &Whole, rest: &str) -> Result<ModelUri, ModelUriError> {
    let (claim, path) = rest.split_once('/').map_or((rest, None), |(claim, path)| (claim, Some(path)));
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_claim = claim.len() <= 253
        && all(claim, |c| ends(c) || c == '.' || c == '-')
        && claim.starts_with(ends)
        && claim.ends_with(ends);
    if !is_claim {
        return Err(whole.malformed(PVC, format!("`{claim}` is no name of a claim")));
    }
    let path = path.filter(|path| !path.is_empty()).map(|path| path.strip_suffix('/').unwrap_or(path));
    if let Some(path) = path
        && !path.split('/').all(|s| all(s, is_path_char))
    {
        return Err(whole.malformed(PVC, format!("`{path}` is no path in a volume")));
    }
    let path = path.unwrap_or_default();
    Ok(ModelUri::Pvc { claim: claim.to_owned(), path: path.to_owned() })
}

fn file(whole: &Whole, path: &str) -> Result<ModelUri, ModelUriError> {
    let is_absolute = path.starts_with('/') || path.strip_prefix("~/").is_some_and(|p| !p.is_empty());
    if !is_absolute {
        return Err(whole.malformed(FILE, "the path must begin with /, or with ~/ on a host"));
    }
    if !path.chars().all(is_path_char) {
        return Err(whole.malformed(FILE, "the path has a space or a control character"));
    }
    Ok(ModelUri::File { path: path.to_owned() })
}

fn https(whole: &Whole, rest: &str) -> Result<ModelUri, ModelUriError> {
    let is_path_char = |c: char| c.is_ascii_alphanumeric() || "._~!$&()*+,;=:@%-".contains(c);
    let (rest, fragment) = rest.split_once('#').map_or((rest, None), |(rest, f)| (rest, Some(f)));
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, q)| (rest, Some(q)));
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.contains('@') {
        return Err(ModelUriError::Credentials);
    }
    if !is_authority(host) {
        return Err(whole.malformed(HTTPS, format!("`{host}` is no host")));
    }
    let last = path.rsplit('/').next().unwrap_or_default();
    if last.is_empty() {
        return Err(whole.malformed(HTTPS, "the path must end with the name of a file"));
    }
    if !path.chars().all(|c| is_path_char(c) || c == '/') {
        return Err(whole.malformed(HTTPS, "the path has a character that must be written as %XX"));
    }
    if !query.unwrap_or_default().chars().all(|c| is_path_char(c) || c == '/' || c == '?') {
        return Err(whole.malformed(HTTPS, "the query has a character that must be written as %XX"));
    }
    let sha256 = match fragment.map(|f| f.strip_prefix("sha256=").filter(|digest| is_hex64(digest))) {
        Some(None) => {
            return Err(whole.malformed(HTTPS, "after # only sha256= and 64 hexadecimal digits may stand"));
        }
        found => found.flatten().map(str::to_owned),
    };
    let kept = |c: char| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '_' };
    Ok(ModelUri::Https {
        url: whole.0.split('#').next().unwrap_or_default().to_owned(),
        file: last.chars().map(kept).collect(),
        sha256,
    })
}

/// The one revision that is named, or the same one named twice.
fn one_of<'a>(in_uri: Option<&'a str>, revision: Option<&'a str>) -> Result<Option<&'a str>, ModelUriError> {
    match (in_uri, revision) {
        (Some(in_uri), Some(revision)) if in_uri != revision => {
            Err(ModelUriError::TwoRevisions { in_uri: in_uri.to_owned(), revision: revision.to_owned() })
        }
        (in_uri, revision) => Ok(in_uri.or(revision)),
    }
}

fn all(text: &str, allowed: impl Fn(char) -> bool) -> bool {
    !text.is_empty() && text.chars().all(allowed)
}

fn is_path_char(c: char) -> bool {
    c != ' ' && !c.is_ascii_control()
}

fn is_hub_name(name: &str) -> bool {
    name.len() <= 96
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && all(name, |c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn is_branch(name: &str) -> bool {
    name.len() <= 256
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && all(name, |c| c.is_ascii_alphanumeric() || "._/-".contains(c))
        && !has_dot_segment(name)
}

/// `host` or `host:port`.
fn is_authority(authority: &str) -> bool {
    let (host, port) = authority.split_once(':').map_or((authority, None), |(h, p)| (h, Some(p)));
    port.is_none_or(|p| (1..=5).contains(&p.len()) && all(p, |c| c.is_ascii_digit()))
        && host.len() <= 253
        && host.starts_with(|c: char| c.is_ascii_alphanumeric())
        && host.ends_with(|c: char| c.is_ascii_alphanumeric())
        && all(host, |c| c.is_ascii_alphanumeric() || ".-".contains(c))
}

fn is_oci_name(part: &str) -> bool {
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(ends) && part.ends_with(ends) && all(part, |c| ends(c) || "._-".contains(c))
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= 128
        && tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && all(tag, |c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn is_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(is_hex64)
}

fn is_hex64(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
