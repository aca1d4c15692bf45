//! One file by URL, from a server that misbehaves in every way that servers do.
#![allow(clippy::unwrap_used)]

mod fake;

use std::time::{Duration, Instant};

use fake::{Fake, Fault, fetch, models, noise, options, sha256};
use http_body_util::BodyExt;
use strata_fetch::{FetchError, FetchOptions};
use strata_wire::download::{DownloadProgress, DownloadState};

const SIZE: usize = 1_500_000;

async fn server() -> (Fake, Vec<u8>, String) {
    let fake = Fake::start().await;
    let bytes = noise(SIZE, 1);
    fake.put("/m.gguf", bytes.clone());
    let uri = format!("{}/m.gguf", fake.url);
    (fake, bytes, uri)
}

#[tokio::test]
async fn a_file_comes_in_parts_to_the_path_that_was_foretold() {
    let (fake, bytes, uri) = server().await;
    let to = tempfile::tempdir().unwrap();
    let fetched = fetch(options(format!("{uri}#sha256={}", sha256(&bytes)), to.path())).await.unwrap();
    assert_eq!(std::fs::read(&fetched.path).unwrap(), bytes);
    assert!(fetched.path.ends_with("m.gguf"));
    assert!(!fetched.was_there);
    assert_eq!(fake.seen().len(), 1 + 6, "one to look and one a part");
    assert!(fake.sent() <= SIZE as u64 + 1);

    fake.forget();
    let again = fetch(options(format!("{uri}#sha256={}", sha256(&bytes)), to.path())).await.unwrap();
    assert!(again.was_there && again.path == fetched.path);
    assert_eq!(fake.seen().len(), 0, "a complete model is not even asked for");
}

#[tokio::test]
async fn what_was_cut_goes_on_where_it_broke() {
    let (fake, bytes, uri) = server().await;
    // After the first bytes of each part the connection breaks, once.
    fake.script(|seen| match seen.range() {
        Some((first, Some(_))) if first > 0 && first % (256 * 1024) == 0 => Some(Fault::Cut(128 * 1024)),
        _ => None,
    });
    let to = tempfile::tempdir().unwrap();
    let fetched = fetch(options(uri, to.path())).await.unwrap();
    assert_eq!(std::fs::read(fetched.path).unwrap(), bytes);
    assert_eq!(fake.sent(), SIZE as u64 + 1, "no byte comes twice, but for the first");
}

#[tokio::test]
async fn a_stalled_connection_is_given_up_and_tried_again() {
    let (fake, bytes, uri) = server().await;
    fake.script(|seen| {
        (seen.range() == Some((0, Some(256 * 1024 - 1))) && seen.nth == 1).then_some(Fault::Stall(64 * 1024))
    });
    let to = tempfile::tempdir().unwrap();
    let fetched = fetch(options(uri, to.path())).await.unwrap();
    assert_eq!(std::fs::read(fetched.path).unwrap(), bytes);
}

#[tokio::test]
async fn a_server_that_stays_silent_is_named_with_the_file() {
    let (fake, _, uri) = server().await;
    fake.script(|seen| (seen.nth > 0).then_some(Fault::Stall(0)));
    let to = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let error = fetch(options(uri, to.path())).await.unwrap_err().to_string();
    let host = format!("127.0.0.1:{}", fake.port);
    assert!(error.contains("m.gguf") && error.contains(&host) && error.contains("stalled"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(models(to.path()).is_empty(), "nothing that looks like a model is left");
}

#[tokio::test]
async fn a_busy_server_says_when_to_come_back() {
    let (fake, bytes, uri) = server().await;
    fake.script(|seen| {
        let status = match seen.nth {
            0 => 503,
            1 => 429,
            _ => return None,
        };
        Some(Fault::Answer(status, vec![("retry-after", "1".to_owned())], String::new()))
    });
    let to = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let fetched = fetch(options(uri, to.path())).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert_eq!(std::fs::read(fetched.path).unwrap(), bytes);
}

#[tokio::test]
async fn errors_that_last_come_at_once() {
    let (fake, _, uri) = server().await;
    for (status, said) in [(401, "HTTPS_TOKEN"), (403, "HTTPS_TOKEN"), (404, "check the URI"), (451, "451")] {
        fake.forget();
        fake.script(move |_| Some(Fault::Answer(status, vec![], "secret words".to_owned())));
        let to = tempfile::tempdir().unwrap();
        let error = fetch(options(uri.clone(), to.path())).await.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        assert_eq!(fake.seen().len(), 1, "{status} is not tried again");
    }
}

#[tokio::test]
async fn errors_that_pass_are_tried_a_few_times() {
    let (fake, _, uri) = server().await;
    fake.script(|_| Some(Fault::Answer(500, vec![], String::new())));
    let to = tempfile::tempdir().unwrap();
    let error = fetch(options(uri, to.path())).await.unwrap_err();
    assert!(matches!(error, FetchError::GaveUp { attempts: 4, .. }), "{error}");
    assert_eq!(fake.seen().len(), 4);
}

#[tokio::test]
async fn wrong_bytes_are_thrown_away_and_fetched_once_more() {
    let (fake, bytes, uri) = server().await;
    let uri = format!("{uri}#sha256={}", sha256(&bytes));
    fake.script(|seen| (seen.nth < 3).then_some(Fault::Flip));
    let to = tempfile::tempdir().unwrap();
    let fetched = fetch(options(uri.clone(), to.path())).await.unwrap();
    assert_eq!(std::fs::read(fetched.path).unwrap(), bytes);

    fake.script(|_| Some(Fault::Flip));
    let to = tempfile::tempdir().unwrap();
    let error = fetch(options(uri, to.path())).await.unwrap_err();
    assert!(matches!(error, FetchError::Mismatch { algorithm: "SHA-256", .. }), "{error}");
    assert!(models(to.path()).is_empty());
}

#[tokio::test]
async fn a_file_that_changed_after_an_interrupted_fetch_is_not_mixed() {
    let (fake, _, uri) = server().await;
    let to = tempfile::tempdir().unwrap();
    fake.script(|seen| seen.range().is_some_and(|(first, _)| first >= 512 * 1024).then_some(Fault::Cut(0)));
    fetch(options(uri.clone(), to.path())).await.unwrap_err();
    let fresh = noise(SIZE, 2);
    fake.put("/m.gguf", fresh.clone());
    fake.script(|_| None);
    let fetched = fetch(options(uri, to.path())).await.unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == fresh);
}

#[tokio::test]
async fn an_interrupted_fetch_goes_on_in_the_next_process() {
    let (fake, bytes, uri) = server().await;
    let to = tempfile::tempdir().unwrap();
    fake.script(|seen| seen.range().is_some_and(|(first, _)| first >= 512 * 1024).then_some(Fault::Cut(0)));
    fetch(FetchOptions { connections: 1, ..options(uri.clone(), to.path()) }).await.unwrap_err();
    let before = fake.sent();
    assert_eq!(before, 512 * 1024 + 1);
    fake.script(|_| None);
    let fetched = fetch(options(uri, to.path())).await.unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == bytes);
    assert_eq!(fake.sent(), SIZE as u64 + 2, "no byte comes twice, but for the first");
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_fetched_is_asked_for_anew() {
    let fake = Fake::start().await;
    let (old, new) = (noise(SIZE, 1), noise(SIZE, 2));
    fake.put("/m.gguf", old);
    let tag = |bytes: &[u8]| format!("\"{}\"", sha256(bytes));
    let (fresh, fresh_tag) = (new.clone(), tag(&new));
    // From the third request on the server has the new file: it answers If-Range with all of it.
    fake.script(move |seen| {
        let is_of_new = seen.header("if-range").is_none_or(|t| t == fresh_tag);
        (seen.nth >= 2 && !is_of_new)
            .then(|| Fault::Answer(200, vec![("etag", fresh_tag.clone())], "new".to_owned()))
    });
    let to = tempfile::tempdir().unwrap();
    let running = tokio::spawn(fetch(options(format!("{}/m.gguf", fake.url), to.path())));
    let deadline = Instant::now() + Duration::from_secs(30);
    while fake.seen().len() < 4 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    fake.put("/m.gguf", fresh.clone());
    let fetched = running.await.unwrap().unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == fresh);
}

#[tokio::test]
async fn a_file_that_never_stays_the_same_ends_with_an_error() {
    let (fake, _, uri) = server().await;
    fake.script(|seen| {
        seen.header("if-range")
            .map(|_| Fault::Answer(200, vec![("etag", format!("\"{}\"", seen.nth))], String::new()))
    });
    let to = tempfile::tempdir().unwrap();
    let error = fetch(options(uri, to.path())).await.unwrap_err();
    assert!(matches!(error, FetchError::Changing { .. }), "{error}");
}

#[tokio::test]
async fn servers_without_ranges_or_lengths() {
    for is_chunked in [false, true] {
        let (fake, bytes, uri) = server().await;
        fake.script(move |seen| {
            let is_first_get = seen.nth == 1;
            Some(match (is_chunked, is_first_get) {
                (_, true) => Fault::Cut(100_000),
                (true, _) => Fault::NoLength,
                (false, _) => Fault::NoRanges,
            })
        });
        let to = tempfile::tempdir().unwrap();
        let fetched = fetch(options(uri, to.path())).await.unwrap();
        assert!(std::fs::read(fetched.path).unwrap() == bytes);
    }
}

#[tokio::test]
async fn a_server_that_stops_sending_ranges_sends_the_whole() {
    let (fake, bytes, uri) = server().await;
    fake.script(|seen| (seen.nth > 0).then_some(Fault::NoRanges));
    let to = tempfile::tempdir().unwrap();
    let fetched = fetch(options(uri, to.path())).await.unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == bytes);
}

#[tokio::test]
async fn empty_and_tiny_files() {
    let fake = Fake::start().await;
    for (path, bytes) in [("/empty.gguf", &b""[..]), ("/one.gguf", b"x")] {
        fake.put(path, bytes);
        let to = tempfile::tempdir().unwrap();
        let fetched = fetch(options(format!("{}{path}", fake.url), to.path())).await.unwrap();
        assert_eq!(std::fs::read(fetched.path).unwrap(), bytes);
    }
}

#[tokio::test]
async fn a_model_too_large_for_the_disk_is_refused_before_it_comes() {
    let (fake, _, uri) = server().await;
    fake.script(|_| {
        Some(Fault::Answer(
            206,
            vec![("content-range", format!("bytes 0-0/{}", 1_u64 << 60))],
            "x".to_owned(),
        ))
    });
    let to = tempfile::tempdir().unwrap();
    let error = fetch(options(uri, to.path())).await.unwrap_err();
    assert!(matches!(error, FetchError::NoSpace { missing, .. } if missing == 1 << 60), "{error}");
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn plain_http_is_for_this_machine_alone() {
    let to = tempfile::tempdir().unwrap();
    let error = fetch(options("http://192.0.2.1/m.gguf", to.path())).await.unwrap_err();
    assert!(matches!(error, FetchError::Insecure { .. }), "{error}");
}

#[tokio::test]
async fn several_at_once_fetch_once() {
    let (fake, bytes, uri) = server().await;
    fake.script(|seen| (seen.nth > 0).then_some(Fault::Slow(Duration::from_millis(10))));
    let to = tempfile::tempdir().unwrap();
    let all = (0..4).map(|_| fetch(options(uri.clone(), to.path())));
    let fetched: Vec<_> = futures::future::join_all(all).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(fetched.iter().filter(|f| !f.was_there).count(), 1);
    assert!(fetched.iter().all(|f| f.path == fetched[0].path));
    assert!(std::fs::read(&fetched[0].path).unwrap() == bytes);
    assert_eq!(fake.seen().len(), 7);
}

#[tokio::test]
async fn one_that_waits_takes_over_from_one_that_failed() {
    let (fake, bytes, uri) = server().await;
    let uri = format!("{uri}#sha256={}", sha256(&bytes));
    let to = tempfile::tempdir().unwrap();
    fake.script(|seen| (1..=4).contains(&seen.nth).then_some(Fault::Cut(0)));
    let both =
        futures::future::join(fetch(options(uri.clone(), to.path())), fetch(options(uri, to.path()))).await;
    let results = [both.0, both.1];
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1, "{results:?}");
}

#[tokio::test]
async fn a_damaged_model_is_mended() {
    let (fake, bytes, uri) = server().await;
    let to = tempfile::tempdir().unwrap();
    let path = fetch(options(uri.clone(), to.path())).await.unwrap().path;
    let mut wrong = bytes.clone();
    wrong[77] ^= 1;
    std::fs::write(&path, &wrong).unwrap();
    // Its size is right, so that only --verify sees it.
    assert!(fetch(options(uri.clone(), to.path())).await.unwrap().was_there);
    let verified = fetch(FetchOptions { verify: true, ..options(uri.clone(), to.path()) }).await.unwrap();
    assert!(!verified.was_there);
    assert!(std::fs::read(&path).unwrap() == bytes);
    assert!(fetch(FetchOptions { verify: true, ..options(uri.clone(), to.path()) }).await.unwrap().was_there);

    fake.forget();
    std::fs::remove_file(&path).unwrap();
    assert!(!fetch(options(uri, to.path())).await.unwrap().was_there);
    assert!(std::fs::read(&path).unwrap() == bytes);
}

#[tokio::test]
async fn progress_is_served_while_it_lasts() {
    let (fake, _, uri) = server().await;
    fake.script(|seen| (seen.nth > 0).then_some(Fault::Slow(Duration::from_millis(100))));
    let to = tempfile::tempdir().unwrap();
    // A free port, found by binding it once.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = format!("127.0.0.1:{port}");
    let running = tokio::spawn(fetch(FetchOptions {
        listen: Some(listen.clone()),
        connections: 1,
        ..options(uri, to.path())
    }));
    let upstream = strata_hop::client::Upstream::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    let progress: DownloadProgress = loop {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let request =
            http::Request::get(format!("http://{listen}/progress")).body(axum::body::Body::empty()).unwrap();
        let Ok(response) = upstream.send(request, Duration::from_secs(5)).await else { continue };
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let progress: DownloadProgress = serde_json::from_slice(&body).unwrap();
        if progress.bytes_done > 0 {
            break progress;
        }
    };
    assert_eq!(progress.state, DownloadState::Fetching);
    assert_eq!(progress.bytes_total, Some(SIZE as u64));
    assert_eq!(progress.file, "m.gguf");
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn nothing_outlives_a_stop_but_what_came() {
    let (fake, bytes, uri) = server().await;
    fake.script(|seen| (seen.nth > 0).then_some(Fault::Slow(Duration::from_millis(20))));
    let to = tempfile::tempdir().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(strata_fetch::run(options(uri.clone(), to.path()), stop.clone()));
    let deadline = Instant::now() + Duration::from_secs(30);
    while fake.sent() < 300_000 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.cancel();
    assert!(matches!(running.await.unwrap(), Err(FetchError::Stopped)));
    assert!(models(to.path()).is_empty());
    fake.script(|_| None);
    let fetched = fetch(options(uri, to.path())).await.unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == bytes);
}
