//! Follows the endpoints file.

use std::path::Path;
use std::time::Duration;

use strata_wire::replicas::{Endpoint, Endpoints};

use crate::options::base_url;
use crate::scheduler::Scheduler;

/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Follows the file of the options, until the scheduler stops. The last good content stays in force
/// while the file is missing or cannot be read.
pub fn follow(scheduler: &Scheduler) {
    let scheduler = scheduler.clone();
    let Some(path) = scheduler.options.endpoints.clone() else { return };
    tokio::spawn(async move {
        let mut seen = None;
        let mut complaint = None;
        loop {
            let found = read(&path).await;
            if seen.as_ref() != Some(&found) {
                match found.as_deref().map_err(Clone::clone).and_then(parse) {
                    Ok(endpoints) => {
                        tracing::info!(file = %path.display(), models = endpoints.models.len(), "endpoints read");
                        scheduler.list(&endpoints, &[]);
                        complaint = None;
                    }
                    Err(error) if complaint.as_ref() != Some(&error) => {
                        tracing::warn!(file = %path.display(), %error, "endpoints file not used; the last good one stays in force");
                        complaint = Some(error);
                    }
                    Err(_) => {}
                }
                seen = Some(found);
            }
            tokio::select! {
                () = scheduler.stop.cancelled() => return,
                () = tokio::time::sleep(POLL) => {}
            }
        }
    });
}

async fn read(path: &Path) -> Result<Vec<u8>, String> {
    tokio::fs::read(path).await.map_err(|error| error.to_string())
}

/// Reads the file's content. Each replica must have a name and an address that can be called.
pub fn parse(content: &[u8]) -> Result<Endpoints, String> {
    let mut endpoints: Endpoints = serde_json::from_slice(content).map_err(|e| format!("not valid: {e}"))?;
    for (model, listed) in &mut endpoints.models {
        for replica in &mut listed.replicas {
            check(replica).map_err(|error| format!("model {model}, replica {}: {error}", replica.name))?;
        }
    }
    Ok(endpoints)
}

fn check(replica: &mut Endpoint) -> Result<(), String> {
    replica.url = base_url(&replica.url)?;
    let printable = replica.name.bytes().all(|b| b.is_ascii_graphic());
    if replica.name.is_empty() || !printable {
        return Err("its name must be printable ASCII without spaces".to_owned());
    }
    if let Some(events) = &replica.kv_events {
        crate::vllm::check(events)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_and_sane_list_is_taken() {
        let good = br#"{"models":{"m":{"replicas":[{"name":"m-0","url":"http://127.0.0.1:4000/"}],"weights":{"prefix":1}},"n":{"replicas":[]}}}"#;
        let parsed = parse(good).unwrap();
        assert_eq!(parsed.models["m"].replicas[0].url, "http://127.0.0.1:4000");
        let message = |text: &str| parse(text.as_bytes()).unwrap_err();
        insta::assert_snapshot!(message(r#"{"models":{"m":{"replicas":["#), @"not valid: EOF while parsing a list at line 1 column 28");
        insta::assert_snapshot!(message(""), @"not valid: EOF while parsing a value at line 1 column 0");
        insta::assert_snapshot!(message(r#"{"models":{"m":{"replicas":[{"name":"m-0","url":"nowhere"}]}}}"#), @"model m, replica m-0: `nowhere` is no replica's address: it has no http:// in front; write http://HOST:PORT");
        insta::assert_snapshot!(message(r#"{"models":{"m":{"replicas":[{"name":"m-0","url":"http://h:1","kv_events":{"publish":"tcp://*:5557"}}]}}}"#), @"model m, replica m-0: kv_events: `publish` is `tcp://*:5557`; write tcp://HOST:PORT, as this scheduler reaches it");
        insta::assert_snapshot!(message("{\"models\":{\"m\":{\"replicas\":[{\"name\":\"a\\nb\",\"url\":\"http://h:1\"}]}}}"), @"
        model m, replica a
        b: its name must be printable ASCII without spaces
        ");
    }
}
