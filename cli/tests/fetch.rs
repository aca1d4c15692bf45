//! `strata fetch` as a process: killed, doubled, and asked to trust.
#![allow(clippy::unwrap_used)]

mod origin;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use origin::Origin;
use sha2::Digest;

const MIB: usize = 1 << 20;
/// Of a part, as the command cuts files.
const PART: u64 = 32 << 20;

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn fetch(uri: &str, to: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
    command.args(["fetch", "--uri", uri, "--to"]).arg(to).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in [
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ] {
        command.env_remove(name);
    }
    command
}

/// Waits for the process; the path that it prints, or what it says on stderr.
fn ended(mut child: Child) -> Result<PathBuf, String> {
    let (mut path, mut errors) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut path).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    if child.wait().unwrap().success() { Ok(path.trim().into()) } else { Err(errors) }
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn uri(origin: &Origin, bytes: &[u8]) -> String {
    let digest: Vec<String> = sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("http://127.0.0.1:{}/m.gguf#sha256={}", origin.port, digest.concat())
}

#[test]
fn killed_it_goes_on_where_it_was() {
    let bytes = noise(96 * MIB);
    let origin = Origin::start(bytes.clone(), None);
    let to = tempfile::tempdir().unwrap();
    let uri = uri(&origin, &bytes);
    origin.slow(Duration::from_millis(20));
    for wanted in [24, 60] {
        let mut child = fetch(&uri, to.path()).spawn().unwrap();
        wait_for("a good part of the file", || origin.sent() > wanted * MIB as u64);
        child.kill().unwrap();
        child.wait().unwrap();
        let left: Vec<_> = std::fs::read_dir(to.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [".fetch"], "nothing that looks like a model");
    }
    origin.slow(Duration::ZERO);
    let path = ended(fetch(&uri, to.path()).spawn().unwrap()).unwrap();
    assert!(std::fs::read(path).unwrap() == bytes);
    let again = origin.sent() - bytes.len() as u64;
    println!("after two kills {:.1} MiB came twice", again as f64 / MIB as f64);
    assert!(again <= 2 * PART, "{again} bytes came twice");
}

#[test]
fn two_processes_fetch_once() {
    let bytes = noise(8 * MIB);
    let origin = Origin::start(bytes.clone(), None);
    origin.slow(Duration::from_millis(50));
    let to = tempfile::tempdir().unwrap();
    let uri = uri(&origin, &bytes);
    let children: Vec<Child> = (0..3).map(|_| fetch(&uri, to.path()).spawn().unwrap()).collect();
    let paths: Vec<PathBuf> = children.into_iter().map(|child| ended(child).unwrap()).collect();
    assert!(paths.iter().all(|path| *path == paths[0]));
    assert!(std::fs::read(&paths[0]).unwrap() == bytes);
    assert_eq!((origin.requests(), origin.sent()), (2, bytes.len() as u64 + 1));
}

#[test]
fn one_that_waits_takes_over_from_one_that_is_killed() {
    let bytes = noise(16 * MIB);
    let origin = Origin::start(bytes.clone(), None);
    origin.slow(Duration::from_millis(50));
    let to = tempfile::tempdir().unwrap();
    let uri = uri(&origin, &bytes);
    let mut first = fetch(&uri, to.path()).spawn().unwrap();
    wait_for("the first bytes", || origin.sent() > 2 * MIB as u64);
    let second = fetch(&uri, to.path()).spawn().unwrap();
    wait_for("more bytes", || origin.sent() > 6 * MIB as u64);
    first.kill().unwrap();
    first.wait().unwrap();
    let path = ended(second).unwrap();
    assert!(std::fs::read(path).unwrap() == bytes);
    assert!(origin.sent() - bytes.len() as u64 <= PART);
}

/// A server of 1000 bytes with a certificate that nobody knows, and that certificate as PEM.
fn private() -> (Origin, String) {
    let authority = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(authority.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![authority.cert.der().clone()], key)
        .unwrap();
    (Origin::start(noise(1000), Some(Arc::new(tls))), authority.cert.pem())
}

#[test]
fn a_private_authority_is_trusted_when_it_is_named() {
    let (origin, pem) = private();
    let to = tempfile::tempdir().unwrap();
    let uri = format!("https://localhost:{}/m.gguf", origin.port);

    let said =
        ended(fetch(&uri, to.path()).env("SSL_CERT_FILE", "/nonexistent").spawn().unwrap()).unwrap_err();
    assert!(said.contains("SSL_CERT_FILE names no certificate"), "{said}");
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let file = to.path().join("authority.pem");
    std::fs::write(&file, other.cert.pem()).unwrap();
    let said = ended(fetch(&uri, to.path()).env("SSL_CERT_FILE", &file).spawn().unwrap()).unwrap_err();
    assert!(said.contains("shows a certificate that is not trusted"), "{said}");
    assert_eq!(origin.requests(), 0);

    let beside = tempfile::tempdir().unwrap();
    let mut by_text = fetch(&uri, beside.path());
    by_text.env("SSL_CERT_FILE", &file).env("CA_CERTIFICATES", &pem);
    assert!(ended(by_text.spawn().unwrap()).is_ok());
    let mut by_nonsense = fetch(&uri, to.path());
    let said = ended(by_nonsense.env("CA_CERTIFICATES", "nonsense").spawn().unwrap()).unwrap_err();
    assert!(said.contains("CA_CERTIFICATES has no certificate"), "{said}");

    std::fs::write(&file, &pem).unwrap();
    let path = ended(fetch(&uri, to.path()).env("SSL_CERT_FILE", &file).spawn().unwrap()).unwrap();
    assert!(std::fs::read(path).unwrap() == noise(1000));
}

#[test]
fn through_a_proxy_where_one_is_set() {
    let (origin, pem) = private();
    let (proxy, heads) = origin::proxy();
    let to = tempfile::tempdir().unwrap();
    let mut command = fetch(&format!("https://localhost:{}/m.gguf", origin.port), to.path());
    command.env("HTTPS_PROXY", format!("http://ada:secret@127.0.0.1:{proxy}")).env("CA_CERTIFICATES", &pem);
    let path = ended(command.spawn().unwrap()).unwrap();
    assert!(std::fs::read(path).unwrap() == noise(1000));
    let head = heads.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(head.starts_with(&format!("connect localhost:{} http/1.1", origin.port)), "{head}");
    assert!(head.contains("proxy-authorization: basic "), "{head}");

    let other = tempfile::tempdir().unwrap();
    let mut command = fetch(&format!("https://localhost:{}/m.gguf", origin.port), other.path());
    command
        .env("HTTPS_PROXY", "http://127.0.0.1:1")
        .env("NO_PROXY", "localhost")
        .env("CA_CERTIFICATES", &pem);
    assert!(ended(command.spawn().unwrap()).is_ok());
}

#[test]
fn what_is_not_fetched_is_said_so() {
    let to = tempfile::tempdir().unwrap();
    for (uri, wanted) in [
        ("file:///m.gguf", "is read where it is"),
        ("pvc://claim/m.gguf", "is read where it is"),
        ("m.gguf", "must be file://PATH"),
        ("http://192.0.2.1/m.gguf", "--allow-http"),
    ] {
        let said = ended(fetch(uri, to.path()).spawn().unwrap()).unwrap_err();
        assert!(said.contains(wanted), "{uri}: {said}");
    }
}
