//! Ids and the clock: the only places where the platform asks for either.

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

/// A new id such as `resp_0199…`: the prefix, and a UUIDv7 in hexadecimal, so that ids sort by time.
pub(crate) fn id(prefix: &str) -> String {
    format!("{prefix}_{}", Uuid::now_v7().simple())
}

/// A new request id.
pub(crate) fn request_id() -> String {
    Uuid::now_v7().to_string()
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}
