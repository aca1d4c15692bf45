//! `GET /v1/organization/usage/completions`: the caller's tenant's usage, in the shape of OpenAI's
//! usage API.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use serde_json::{Value, json};
use strata_hop::Fault;
use strata_wire::ErrorKind;
use uuid::Uuid;

use crate::gateway::Inner;
use crate::ledger::report::{BucketQuery, BucketSum};

const SECOND_MS: i64 = 1000;

/// A page of buckets, as asked for.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    start: i64,
    /// Where the last bucket of the whole question ends.
    end: i64,
    /// Seconds of a bucket.
    width: i64,
    limit: i64,
    by_model: bool,
    by_key: bool,
    models: Vec<String>,
    keys: Vec<String>,
}

impl Page {
    /// Reads the parameters. Times are seconds since 1970.
    fn read(pairs: &[(String, String)], now: i64) -> Result<Self, Fault> {
        let all = |name: &str| -> Vec<String> {
            pairs
                .iter()
                .filter(|(key, _)| key == name || key.strip_suffix("[]") == Some(name))
                .flat_map(|(_, value)| value.split(','))
                .filter(|value| !value.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let number = |name: &str| -> Result<Option<i64>, Fault> {
            let wrong =
                || Fault::invalid_param(name, format!("`{name}` must be a whole number, zero or more"));
            all(name)
                .first()
                .map(|text| text.parse::<i64>().ok().filter(|n| *n >= 0).ok_or_else(wrong))
                .transpose()
        };
        let (width, default, most) = match all("bucket_width").first().map(String::as_str) {
            None | Some("1d") => (86_400, 7, 31),
            Some("1h") => (3_600, 24, 168),
            Some("1m") => (60, 60, 1440),
            Some(_) => {
                return Err(Fault::invalid_param("bucket_width", "`bucket_width` must be 1m, 1h or 1d"));
            }
        };
        let limit = number("limit")?.unwrap_or(default);
        if !(1..=most).contains(&limit) {
            return Err(Fault::invalid_param(
                "limit",
                format!("`limit` must be 1 to {most} for this bucket width"),
            ));
        }
        let asked = number("start_time")?.ok_or_else(|| {
            Fault::invalid_param(
                "start_time",
                "`start_time` is missing: seconds since 1970 where the first bucket begins",
            )
        })?;
        let start = match all("page").first() {
            None => asked,
            Some(page) => {
                page.strip_prefix("page_").and_then(|n| n.parse().ok()).filter(|n| *n >= asked).ok_or_else(
                    || Fault::invalid_param("page", "`page` must be the `next_page` of the answer before"),
                )?
            }
        };
        let mut page = Self {
            start: start / width * width,
            end: number("end_time")?.unwrap_or(now).min(now.saturating_add(width)),
            width,
            limit,
            by_model: false,
            by_key: false,
            models: all("models"),
            keys: all("api_key_ids"),
        };
        for group in all("group_by") {
            match group.as_str() {
                "model" => page.by_model = true,
                "api_key_id" | "api_key_ids" => page.by_key = true,
                other => {
                    let message = format!("cannot group by {other:?}: use model or api_key_id");
                    return Err(Fault::invalid_param("group_by", message));
                }
            }
        }
        Ok(page)
    }

    /// Buckets on this page, and where the next page begins.
    fn extent(&self) -> (i64, Option<i64>) {
        let left = self.end.saturating_sub(self.start).max(0);
        let whole = left / self.width + i64::from(left % self.width > 0);
        let here = whole.min(self.limit);
        (here, (whole > here).then(|| self.start + here * self.width))
    }

    fn render(&self, sums: &[BucketSum]) -> Value {
        let (count, next) = self.extent();
        let bucket = |n: i64| {
            let start = self.start + n * self.width;
            let results: Vec<Value> =
                sums.iter().filter(|sum| sum.bucket == n.unsigned_abs()).map(result).collect();
            json!({
                "object": "bucket",
                "start_time": start,
                "end_time": (start + self.width).min(self.end.max(start)),
                "results": results,
            })
        };
        json!({
            "object": "page",
            "data": (0..count).map(bucket).collect::<Vec<_>>(),
            "has_more": next.is_some(),
            "next_page": next.map(|start| format!("page_{start}")),
        })
    }
}

fn result(sum: &BucketSum) -> Value {
    json!({
        "object": "organization.usage.completions.result",
        "input_tokens": sum.prompt_tokens,
        "input_cached_tokens": sum.cached_tokens,
        "output_tokens": sum.completion_tokens,
        "input_audio_tokens": 0,
        "output_audio_tokens": 0,
        "num_model_requests": sum.requests,
        "project_id": null,
        "user_id": null,
        "api_key_id": sum.key,
        "model": sum.model,
        "batch": null,
    })
}

/// The endpoint; for admins.
pub(crate) async fn completions(
    State(inner): State<Arc<Inner>>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    request: Request,
) -> Result<Json<Value>, Fault> {
    let session = inner.session(Uuid::now_v7(), request.headers(), request.extensions()).await?;
    session.require_admin(&inner)?;
    let Query(pairs) = query.map_err(|error| Fault::invalid(error.body_text()))?;
    let page = Page::read(&pairs, inner.clock.now_ms() / SECOND_MS)?;
    let (count, _) = page.extent();
    let end = (page.start + count * page.width).min(page.end);
    let question = BucketQuery {
        tenant: session.tenant.name.to_string(),
        start: page.start * SECOND_MS,
        end: end * SECOND_MS,
        width: page.width * SECOND_MS,
        by_model: page.by_model,
        by_key: page.by_key,
        models: page.models.clone(),
        keys: page.keys.clone(),
    };
    let ledger = inner.ledger.clone();
    let sums = tokio::task::spawn_blocking(move || ledger.buckets(&question)).await;
    match sums {
        Ok(Ok(sums)) => Ok(Json(page.render(&sums))),
        Ok(Err(error)) => {
            tracing::error!(%error, "could not read usage");
            Err(Fault::new(ErrorKind::Internal, "usage cannot be read just now"))
        }
        Err(_) => Err(Fault::new(ErrorKind::Internal, "usage cannot be read just now")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &[(&str, &str)]) -> Result<Page, String> {
        let pairs: Vec<(String, String)> =
            query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Page::read(&pairs, 1_000_000).map_err(|fault| fault.body.error.message)
    }

    #[test]
    fn pages_walk_the_buckets() {
        let page =
            read(&[("start_time", "100"), ("end_time", "310"), ("bucket_width", "1m"), ("limit", "2")])
                .unwrap();
        assert_eq!((page.start, page.extent()), (60, (2, Some(180))));
        let next = read(&[
            ("start_time", "100"),
            ("end_time", "310"),
            ("bucket_width", "1m"),
            ("limit", "9"),
            ("page", "page_180"),
        ])
        .unwrap();
        assert_eq!((next.start, next.extent()), (180, (3, None)));
        let rendered = page.render(&[BucketSum { bucket: 1, prompt_tokens: 5, ..BucketSum::default() }]);
        assert_eq!(rendered["data"][0]["results"], json!([]));
        assert_eq!(rendered["data"][1]["results"][0]["input_tokens"], 5);
        assert_eq!(rendered["next_page"], "page_180");
    }

    #[test]
    fn groups_come_in_every_spelling() {
        let page = read(&[("start_time", "0"), ("group_by[]", "model"), ("group_by", "api_key_id")]).unwrap();
        assert!(page.by_model && page.by_key);
        for bad in [
            &[("limit", "1")][..],
            &[("start_time", "-1")],
            &[("start_time", "0"), ("limit", "32")],
            &[("start_time", "0"), ("bucket_width", "1w")],
            &[("start_time", "0"), ("group_by", "user")],
            &[("start_time", "0"), ("page", "7")],
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
