//! Repositories of the Hugging Face Hub, or of a mirror of it.

use http::{HeaderMap, Method, header};
use serde::Deserialize;
use strata_wire::model_uri::ModelUri;

use super::{Guard, Listing, RemoteFile, choice, encoded, encoded_path, shards};
use crate::checksum::Checksum;
use crate::client::{Ask, Http, Peer, host_of};
use crate::credentials::Credentials;
use crate::error::FetchError;
use crate::name;

const HUB: &str = "https://huggingface.co";
const LISTING_BYTES: usize = 32 << 20;

/// What the Hub tells of a repository.
#[derive(Deserialize)]
struct Repository {
    /// The commit.
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    /// Git's hash of the file, or of the pointer that stands for it.
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

pub(super) async fn list(
    http: &Http,
    uri: &ModelUri,
    credentials: &Credentials,
) -> Result<Listing, FetchError> {
    let ModelUri::Hf { owner, name, file, revision } = uri else {
        return Err(FetchError::NotFetched { uri: uri.to_string() });
    };
    let base = credentials.hf_endpoint.as_deref().unwrap_or(HUB).trim_end_matches('/');
    let auth = credentials.hf()?;
    let url = format!("{base}/api/models/{owner}/{name}/revision/{}?blobs=true", encoded(revision));
    let ask = Ask::get(&url, Peer::Hf, auth.clone(), format!("{owner}/{name} at {revision}"))?;
    let answer = http.small(&ask, LISTING_BYTES).await?;
    let repository: Repository = serde_json::from_slice(&answer).map_err(|e| FetchError::Answer {
        host: host_of(&ask.url),
        what: ask.what.clone(),
        problem: format!("what is no listing: {e}"),
    })?;

    let all: Vec<&str> = repository.siblings.iter().map(|s| s.rfilename.as_str()).collect();
    let unusable = |problem: String| FetchError::Unusable { uri: uri.to_string(), problem };
    let wanted: Vec<String> = match file {
        Some(file) => {
            let parts = shards(file);
            if let Some(missing) = parts.iter().find(|part| !all.contains(&part.as_str())) {
                return Err(unusable(format!("has no file {missing}: check its name in the repository")));
            }
            parts
        }
        None => choice::needed(&all).map_err(unusable)?.into_iter().map(str::to_owned).collect(),
    };

    // The commit, so that all files are of one revision even when the branch moves meanwhile.
    let commit = repository.sha.clone().unwrap_or_else(|| revision.clone());
    let mut files = Vec::with_capacity(wanted.len());
    for sibling in repository.siblings.iter().filter(|s| wanted.contains(&s.rfilename)) {
        let path = name::checked(&host_of(&ask.url), &sibling.rfilename)?;
        let url = format!("{base}/{owner}/{name}/resolve/{}/{}", encoded(&commit), encoded_path(&path));
        let ask = Ask::get(&url, Peer::Hf, auth.clone(), format!("{path} of {owner}/{name}"))?;
        let (size, checksum) = match told(sibling) {
            (Some(size), Some(checksum)) => (Some(size), Some(checksum)),
            _ => probed(http, &ask).await?,
        };
        let identity = match &checksum {
            Some(checksum) => Some(format!("{}:{}", checksum.algorithm(), checksum.hex())),
            None => repository.sha.as_ref().map(|commit| format!("commit:{commit}:{path}")),
        };
        files.push(RemoteFile { path, ask, size, identity, guard: Guard::Nothing, checksum, unpack: None });
    }
    Ok(Listing { revision: repository.sha, files })
}

fn told(sibling: &Sibling) -> (Option<u64>, Option<Checksum>) {
    match &sibling.lfs {
        Some(lfs) => (lfs.size.or(sibling.size), lfs.sha256.as_deref().and_then(sha256)),
        None => (sibling.size, sibling.blob_id.as_deref().and_then(git_sha1)),
    }
}

/// Asks for the file itself, where the listing leaves its size or checksum out, as some mirrors do.
async fn probed(http: &Http, ask: &Ask) -> Result<(Option<u64>, Option<Checksum>), FetchError> {
    let head = Ask { method: Method::HEAD, ..ask.clone() };
    let answer = http.opened(&head, &[]).await?;
    // A redirect's own headers speak of the file; those of the place that it leads to, of a copy.
    let first = answer.redirect.as_ref().unwrap_or(answer.headers());
    let number = |headers: &HeaderMap, name: &str| headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
    let size =
        number(first, "x-linked-size").or_else(|| number(answer.headers(), header::CONTENT_LENGTH.as_str()));
    let tag = |name: &str| {
        let tag = first.get(name)?.to_str().ok()?;
        Some(tag.trim_start_matches("W/").trim_matches('"').to_owned())
    };
    let checksum = match tag("x-linked-etag").or_else(|| tag("etag")) {
        Some(tag) => sha256(&tag).or_else(|| git_sha1(&tag)),
        None => None,
    };
    Ok((size, checksum))
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn sha256(text: &str) -> Option<Checksum> {
    is_hex(text, 64).then(|| Checksum::Sha256(text.to_ascii_lowercase()))
}

fn git_sha1(text: &str) -> Option<Checksum> {
    is_hex(text, 40).then(|| Checksum::GitSha1(text.to_ascii_lowercase()))
}
