//! Paging of lists: `limit`, `order` and `after`.

use serde::Serialize;
use serde_json::Value;
use strata_hop::Fault;

use crate::refusal::not_built;

/// Which part of a list is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// Items at most, 1 to 100.
    pub(crate) limit: usize,
    /// The newest first.
    pub(crate) descending: bool,
    /// Start behind the item of this id.
    pub(crate) after: Option<String>,
}

impl Page {
    /// Reads a query string.
    pub(crate) fn parse(pairs: &[(String, String)]) -> Result<Self, Fault> {
        let mut page = Self { limit: 20, descending: true, after: None };
        for (key, value) in pairs {
            match key.as_str() {
                "limit" => {
                    page.limit = value.parse().ok().filter(|n| (1..=100).contains(n)).ok_or_else(|| {
                        Fault::invalid_param("limit", "'limit' must be a whole number from 1 to 100")
                    })?;
                }
                "order" => {
                    page.descending = match value.as_str() {
                        "asc" => false,
                        "desc" => true,
                        _ => return Err(Fault::invalid_param("order", "'order' must be `asc` or `desc`")),
                    };
                }
                "after" => page.after = Some(value.clone()),
                other => return Err(unknown(other)),
            }
        }
        Ok(page)
    }
}

/// Refuses every query parameter, for routes that take none yet.
pub(crate) fn no_query(pairs: &[(String, String)]) -> Result<(), Fault> {
    pairs.first().map_or(Ok(()), |(key, _)| Err(unknown(key)))
}

fn unknown(key: &str) -> Fault {
    match key {
        "include" | "include[]" | "stream" | "starting_after" | "include_obfuscation" => {
            not_built(key, "this query parameter")
        }
        _ => Fault::invalid_param(key, format!("unknown query parameter: '{key}'")),
    }
}

/// OpenAI's list object.
#[derive(Debug, Serialize)]
pub(crate) struct List {
    object: &'static str,
    data: Vec<Value>,
    first_id: String,
    last_id: String,
    has_more: bool,
}

impl List {
    /// A list of these objects, each with an `id`.
    pub(crate) fn new(data: Vec<Value>, has_more: bool) -> Self {
        let id =
            |item: Option<&Value>| item.and_then(|i| i["id"].as_str()).map(str::to_owned).unwrap_or_default();
        Self { object: "list", first_id: id(data.first()), last_id: id(data.last()), data, has_more }
    }
}
