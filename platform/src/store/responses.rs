//! Stored responses and the chains that they form.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;

use super::conversations::{self, append};
use super::{Store, StoreError};
use crate::identity::Owner;
use crate::page::{List, Page};
use crate::responses::item::Item;

/// Longest chain of responses that a new one may continue.
pub(crate) const MAX_CHAIN: i64 = 4096;
/// Largest context, in bytes of its items.
pub(crate) const MAX_CONTEXT_BYTES: usize = 32 * 1024 * 1024;

/// What a new response continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Nothing,
    Response(String),
    Conversation(String),
}

/// What the model is shown before the new input.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Context {
    pub(crate) items: Vec<Item>,
    /// How many responses stand before the new one.
    pub(crate) depth: i64,
    /// The conversation's next free position, where there is a conversation.
    pub(crate) before: Option<i64>,
}

/// Why a context cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoContext {
    /// The response or conversation that was asked for.
    Unknown(Origin),
    /// Something further back in the chain was deleted.
    Broken(Origin),
    TooLong,
    TooLarge,
}

/// A response to be stored.
#[derive(Debug)]
pub(crate) struct NewResponse {
    pub(crate) id: String,
    pub(crate) owner: Owner,
    pub(crate) created_at: i64,
    pub(crate) origin: Origin,
    pub(crate) depth: i64,
    pub(crate) before: Option<i64>,
    /// Whether its items go into its conversation.
    pub(crate) extends: bool,
    /// The response object, with an empty `output`.
    pub(crate) body: Value,
    pub(crate) input: Vec<Item>,
    pub(crate) output: Vec<Item>,
}

impl Store {
    /// What a response that continues `origin` starts from.
    pub(crate) async fn context(
        &self,
        owner: &Owner,
        origin: Origin,
    ) -> Result<Result<Context, NoContext>, StoreError> {
        let owner = owner.clone();
        match origin {
            Origin::Nothing => Ok(Ok(Context::default())),
            Origin::Response(id) => self.read(move |c| chain(c, &owner, &id)).await,
            Origin::Conversation(id) => {
                self.read(move |c| {
                    let Some(before) = conversations::next_position(c, &owner, &id)? else {
                        return Ok(Err(NoContext::Unknown(Origin::Conversation(id))));
                    };
                    let mut bodies = Bodies::default();
                    if !bodies.conversation(c, &id, before)? {
                        return Ok(Err(NoContext::TooLarge));
                    }
                    Ok(Ok(Context { items: bodies.items()?, depth: 0, before: Some(before) }))
                })
                .await
            }
        }
    }

    /// Stores a response, and adds its items to its conversation if they belong there and it still exists.
    pub(crate) async fn insert_response(&self, new: NewResponse) -> Result<(), StoreError> {
        self.write(move |c| insert(c, &new)).await
    }

    /// The response object. `None` for one that is not this owner's.
    pub(crate) async fn response(&self, owner: &Owner, id: &str) -> Result<Option<Value>, StoreError> {
        let (owner, id) = (owner.clone(), id.to_owned());
        self.read(move |c| {
            let body: Option<String> = c
                .prepare_cached("SELECT body FROM responses WHERE id = ?1 AND owner = ?2")?
                .query_row([&id, owner.as_str()], |r| r.get(0))
                .optional()?;
            let Some(body) = body else {
                return Ok(None);
            };
            let mut response: Value = serde_json::from_str(&body)?;
            let output = c
                .prepare_cached(
                    "SELECT body FROM response_items WHERE response_id = ?1 AND is_output = 1 ORDER BY position",
                )?
                .query_map([&id], |r| r.get::<_, String>(0))?
                .map(|body| Ok(serde_json::from_str(&body?)?))
                .collect::<Result<Vec<Value>, StoreError>>()?;
            response["output"] = Value::Array(output);
            Ok(Some(response))
        })
        .await
    }

    /// Deletes a response with its items. `false` for one that is not this owner's.
    pub(crate) async fn delete_response(&self, owner: &Owner, id: &str) -> Result<bool, StoreError> {
        let (owner, id) = (owner.clone(), id.to_owned());
        self.write(move |c| {
            let deleted =
                c.execute("DELETE FROM responses WHERE id = ?1 AND owner = ?2", [&id, owner.as_str()])?;
            Ok(deleted > 0)
        })
        .await
    }

    /// A page of a response's own input items. `None` for a response that is not this owner's; an
    /// unknown `after` is an inner `None`.
    pub(crate) async fn input_items(
        &self,
        owner: &Owner,
        id: &str,
        page: Page,
    ) -> Result<Option<Option<List>>, StoreError> {
        let (owner, id) = (owner.clone(), id.to_owned());
        self.read(move |c| {
            let known = c
                .prepare_cached("SELECT 1 FROM responses WHERE id = ?1 AND owner = ?2")?
                .exists([&id, owner.as_str()])?;
            if !known {
                return Ok(None);
            }
            let source = "response_items WHERE response_id = ?1 AND is_output = 0";
            Ok(Some(page_of(c, source, &id, &page)?))
        })
        .await
    }
}

/// A page of the items that `source`, a table with a condition on `?1`, selects. `None` when the page
/// starts behind an item that is not there.
pub(super) fn page_of(
    c: &Connection,
    source: &str,
    id: &str,
    page: &Page,
) -> Result<Option<List>, StoreError> {
    let start: Option<i64> = match &page.after {
        None => None,
        Some(after) => {
            let found = c
                .prepare_cached(&format!("SELECT position FROM {source} AND id = ?2"))?
                .query_row([id, after], |r| r.get(0))
                .optional()?;
            let Some(position) = found else {
                return Ok(None);
            };
            Some(position)
        }
    };
    let (beyond, order) = if page.descending { ("<", "DESC") } else { (">", "ASC") };
    let sql = format!(
        "SELECT body FROM {source} AND (?2 IS NULL OR position {beyond} ?2) ORDER BY position {order} LIMIT ?3"
    );
    let mut data = c
        .prepare_cached(&sql)?
        .query_map(params![id, start, page.limit as i64 + 1], |r| r.get::<_, String>(0))?
        .map(|body| Ok(serde_json::from_str(&body?)?))
        .collect::<Result<Vec<Value>, StoreError>>()?;
    let has_more = data.len() > page.limit;
    data.truncate(page.limit);
    Ok(Some(List::new(data, has_more)))
}

fn insert(c: &Connection, new: &NewResponse) -> Result<(), StoreError> {
    let (previous, conversation) = match &new.origin {
        Origin::Nothing => (None, None),
        Origin::Response(id) => (Some(id), None),
        Origin::Conversation(id) => (None, Some(id)),
    };
    c.prepare_cached(
        "INSERT INTO responses
         (id, owner, created_at, previous_id, depth, conversation_id, conversation_before, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        new.id,
        new.owner.as_str(),
        new.created_at,
        previous,
        new.depth,
        conversation,
        new.before,
        new.body.to_string()
    ])?;
    let mut statement = c.prepare_cached(
        "INSERT INTO response_items (response_id, position, is_output, id, body) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    let items = new.input.iter().map(|i| (false, i)).chain(new.output.iter().map(|i| (true, i)));
    for (position, (is_output, item)) in items.enumerate() {
        let body = serde_json::to_string(item)?;
        statement.execute(params![new.id, position as i64, is_output, item.id(), body])?;
    }
    if let Some(conversation) = conversation.filter(|_| new.extends)
        && conversations::next_position(c, &new.owner, conversation)?.is_some()
    {
        append(c, conversation, new.input.iter().chain(&new.output))?;
    }
    Ok(())
}

/// Bodies of items, the newest last, within the limit on their size.
#[derive(Default)]
struct Bodies {
    /// Runs of items, the newest run first.
    runs: Vec<Vec<String>>,
    bytes: usize,
}

impl Bodies {
    fn add(&mut self, run: Vec<String>) -> bool {
        self.bytes += run.iter().map(String::len).sum::<usize>();
        self.runs.push(run);
        self.bytes <= MAX_CONTEXT_BYTES
    }

    /// Adds what a conversation held at this point. `false` when that is too large.
    fn conversation(&mut self, c: &Connection, id: &str, before: i64) -> Result<bool, StoreError> {
        let run = c
            .prepare_cached(
                "SELECT body FROM conversation_items WHERE conversation_id = ?1 AND position < ?2
                 ORDER BY position",
            )?
            .query_map(params![id, before], |r| r.get(0))?
            .collect::<Result<Vec<String>, _>>()?;
        Ok(self.add(run))
    }

    fn items(self) -> Result<Vec<Item>, StoreError> {
        self.runs.iter().rev().flatten().map(|body| Ok(serde_json::from_str(body)?)).collect()
    }
}

struct Link {
    previous: Option<String>,
    depth: i64,
    conversation: Option<String>,
    before: Option<i64>,
}

fn link(row: &Row<'_>) -> rusqlite::Result<Link> {
    Ok(Link { previous: row.get(0)?, depth: row.get(1)?, conversation: row.get(2)?, before: row.get(3)? })
}

/// Walks from a response back to the first one.
fn chain(c: &Connection, owner: &Owner, id: &str) -> Result<Result<Context, NoContext>, StoreError> {
    let mut links = c.prepare_cached(
        "SELECT previous_id, depth, conversation_id, conversation_before FROM responses
         WHERE id = ?1 AND owner = ?2",
    )?;
    let mut items =
        c.prepare_cached("SELECT body FROM response_items WHERE response_id = ?1 ORDER BY position")?;
    let (mut bodies, mut depth, mut at) = (Bodies::default(), None, Some(id.to_owned()));
    while let Some(id) = at {
        let found = links.query_row([&id, owner.as_str()], link).optional()?;
        let Some(link) = found else {
            let origin = Origin::Response(id);
            return Ok(Err(if depth.is_none() {
                NoContext::Unknown(origin)
            } else {
                NoContext::Broken(origin)
            }));
        };
        if *depth.get_or_insert(link.depth + 1) > MAX_CHAIN {
            return Ok(Err(NoContext::TooLong));
        }
        let run = items.query_map([&id], |r| r.get(0))?.collect::<Result<Vec<String>, _>>()?;
        let mut fits = bodies.add(run);
        if let (Some(conversation), Some(before)) = (link.conversation, link.before) {
            if conversations::next_position(c, owner, &conversation)?.is_none() {
                return Ok(Err(NoContext::Broken(Origin::Conversation(conversation))));
            }
            fits = fits && bodies.conversation(c, &conversation, before)?;
        }
        if !fits {
            return Ok(Err(NoContext::TooLarge));
        }
        at = link.previous;
    }
    Ok(Ok(Context { items: bodies.items()?, depth: depth.unwrap_or(0), before: None }))
}
