//! How far the fetching of a model is: `GET /progress` of `strata fetch`, read by the operator.

use serde::{Deserialize, Serialize};

/// The path of the route.
pub const PATH: &str = "/progress";

/// What a fetch is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DownloadState {
    /// Another process fetches the same model to the same place; its progress is shown.
    Waiting,
    /// Asking the server what there is.
    #[default]
    Resolving,
    /// Bytes arrive.
    Fetching,
    /// All bytes are there and their checksums are computed.
    Verifying,
    /// The model is complete.
    Done,
    /// It cannot go on; `message` says why.
    Failed,
}

/// How far a fetch is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownloadProgress {
    /// What it is doing.
    pub state: DownloadState,
    /// Bytes that are on disk, those of an earlier, interrupted run included.
    pub bytes_done: u64,
    /// Bytes of the whole model; absent while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Bytes a second over the last seconds.
    pub bytes_per_s: u64,
    /// Seconds that the rest takes at this rate; absent while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_s: Option<u64>,
    /// The file that was last written to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// What a person should know: why it waits, tries again, or failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_members_are_frozen() {
        let progress = DownloadProgress {
            state: DownloadState::Fetching,
            bytes_done: 1,
            bytes_total: Some(4),
            bytes_per_s: 1,
            remaining_s: Some(3),
            file: "model.safetensors".to_owned(),
            message: String::new(),
        };
        let json = serde_json::to_string(&progress).unwrap();
        assert_eq!(
            json,
            r#"{"state":"fetching","bytes_done":1,"bytes_total":4,"bytes_per_s":1,"remaining_s":3,"file":"model.safetensors"}"#
        );
        assert_eq!(serde_json::from_str::<DownloadProgress>(&json).unwrap(), progress);
    }
}
