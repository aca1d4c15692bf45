//! Stored conversations and their items.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Map, Value, json};

use super::responses::page_of;
use super::{Store, StoreError};
use crate::identity::Owner;
use crate::page::{List, Page};
use crate::responses::item::Item;

fn shown(row: &Row<'_>) -> rusqlite::Result<(String, i64, String)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

fn object((id, created_at, metadata): (String, i64, String)) -> Result<Value, StoreError> {
    let metadata: Value = serde_json::from_str(&metadata)?;
    Ok(json!({"id": id, "object": "conversation", "created_at": created_at, "metadata": metadata}))
}

fn find(c: &Connection, owner: &Owner, id: &str) -> Result<Option<Value>, StoreError> {
    c.prepare_cached("SELECT id, created_at, metadata FROM conversations WHERE id = ?1 AND owner = ?2")?
        .query_row([id, owner.as_str()], shown)
        .optional()?
        .map(object)
        .transpose()
}

/// Where the next item of a conversation goes. `None` for one that is not this owner's.
pub(super) fn next_position(c: &Connection, owner: &Owner, id: &str) -> Result<Option<i64>, StoreError> {
    Ok(c.prepare_cached("SELECT next_position FROM conversations WHERE id = ?1 AND owner = ?2")?
        .query_row([id, owner.as_str()], |r| r.get(0))
        .optional()?)
}

/// Adds items at the end of a conversation.
pub(super) fn append<'i>(
    c: &Connection,
    id: &str,
    items: impl Iterator<Item = &'i Item>,
) -> Result<(), StoreError> {
    let mut statement = c.prepare_cached(
        "INSERT INTO conversation_items (conversation_id, position, id, body)
         SELECT id, next_position, ?2, ?3 FROM conversations WHERE id = ?1",
    )?;
    let mut advance =
        c.prepare_cached("UPDATE conversations SET next_position = next_position + 1 WHERE id = ?1")?;
    for item in items {
        statement.execute(params![id, item.id(), serde_json::to_string(item)?])?;
        advance.execute([id])?;
    }
    Ok(())
}

impl Store {
    /// Makes a conversation that starts with these items.
    pub(crate) async fn create_conversation(
        &self,
        owner: &Owner,
        id: String,
        created_at: i64,
        metadata: Map<String, Value>,
        items: Vec<Item>,
    ) -> Result<Value, StoreError> {
        let owner = owner.clone();
        self.write(move |c| {
            let metadata = Value::Object(metadata).to_string();
            c.prepare_cached(
                "INSERT INTO conversations (id, owner, created_at, metadata) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![id, owner.as_str(), created_at, metadata])?;
            append(c, &id, items.iter())?;
            object((id, created_at, metadata))
        })
        .await
    }

    /// A conversation. `None` for one that is not this owner's.
    pub(crate) async fn conversation(&self, owner: &Owner, id: &str) -> Result<Option<Value>, StoreError> {
        let (owner, id) = (owner.clone(), id.to_owned());
        self.read(move |c| find(c, &owner, &id)).await
    }

    /// Replaces a conversation's metadata.
    pub(crate) async fn update_conversation(
        &self,
        owner: &Owner,
        id: &str,
        metadata: Map<String, Value>,
    ) -> Result<Option<Value>, StoreError> {
        let (owner, id) = (owner.clone(), id.to_owned());
        self.write(move |c| {
            c.execute(
                "UPDATE conversations SET metadata = ?3 WHERE id = ?1 AND owner = ?2",
                params![id, owner.as_str(), Value::Object(metadata).to_string()],
            )?;
            find(c, &owner, &id)
        })
        .await
    }

    /// Deletes a conversation with its items. `false` for one that is not this owner's.
    pub(crate) async fn delete_conversation(&self, owner: &Owner, id: &str) -> Result<bool, StoreError> {
        let (owner, id) = (owner.clone(), id.to_owned());
        self.write(move |c| {
            let deleted =
                c.execute("DELETE FROM conversations WHERE id = ?1 AND owner = ?2", [&id, owner.as_str()])?;
            Ok(deleted > 0)
        })
        .await
    }

    /// Adds items at the end. `false` for a conversation that is not this owner's.
    pub(crate) async fn add_items(
        &self,
        owner: &Owner,
        id: &str,
        items: Vec<Item>,
    ) -> Result<bool, StoreError> {
        let (owner, id) = (owner.clone(), id.to_owned());
        self.write(move |c| {
            if next_position(c, &owner, &id)?.is_none() {
                return Ok(false);
            }
            append(c, &id, items.iter())?;
            Ok(true)
        })
        .await
    }

    /// A page of a conversation's items, as [`Store::input_items`] gives one.
    pub(crate) async fn conversation_items(
        &self,
        owner: &Owner,
        id: &str,
        page: Page,
    ) -> Result<Option<Option<List>>, StoreError> {
        let (owner, id) = (owner.clone(), id.to_owned());
        self.read(move |c| {
            if next_position(c, &owner, &id)?.is_none() {
                return Ok(None);
            }
            Ok(Some(page_of(c, "conversation_items WHERE conversation_id = ?1", &id, &page)?))
        })
        .await
    }

    /// One item of a conversation.
    pub(crate) async fn conversation_item(
        &self,
        owner: &Owner,
        id: &str,
        item: &str,
    ) -> Result<Option<Value>, StoreError> {
        let (owner, id, item) = (owner.clone(), id.to_owned(), item.to_owned());
        self.read(move |c| {
            if next_position(c, &owner, &id)?.is_none() {
                return Ok(None);
            }
            let body: Option<String> = c
                .prepare_cached("SELECT body FROM conversation_items WHERE conversation_id = ?1 AND id = ?2")?
                .query_row([&id, &item], |r| r.get(0))
                .optional()?;
            Ok(body.map(|b| serde_json::from_str(&b)).transpose()?)
        })
        .await
    }

    /// Deletes one item and returns the conversation. `None` when there is no such item.
    pub(crate) async fn delete_item(
        &self,
        owner: &Owner,
        id: &str,
        item: &str,
    ) -> Result<Option<Value>, StoreError> {
        let (owner, id, item) = (owner.clone(), id.to_owned(), item.to_owned());
        self.write(move |c| {
            let Some(conversation) = find(c, &owner, &id)? else {
                return Ok(None);
            };
            let deleted = c.execute(
                "DELETE FROM conversation_items WHERE conversation_id = ?1 AND id = ?2",
                [&id, &item],
            )?;
            Ok((deleted > 0).then_some(conversation))
        })
        .await
    }
}
