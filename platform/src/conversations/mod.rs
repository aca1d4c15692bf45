//! `/v1/conversations`: items that outlive a chain of responses.

use axum::extract::{Request, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use strata_hop::{Fault, spool};

use crate::app::App;
use crate::extract::{Pairs, Segments};
use crate::fields::{Fields, metadata};
use crate::identity::{self, Owner};
use crate::mint;
use crate::page::{List, Page, no_query};
use crate::refusal::{Refusal, not_found};
use crate::relay::explains;
use crate::responses::{intake, json_body, unknown_after};

/// The routes.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/conversations", post(create))
        .route("/v1/conversations/{id}", get(read).post(update).delete(delete))
        .route("/v1/conversations/{id}/items", get(list).post(add))
        .route("/v1/conversations/{id}/items/{item}", get(read_item).delete(delete_item))
}

/// The caller, and the members of the body. An empty body counts as an empty object.
async fn read_body(app: &App, request: Request) -> Result<(Owner, Fields), Refusal> {
    let explain = explains(&request);
    let (parts, body) = request.into_parts();
    let owner = identity::owner(app, &parts.headers, explain).await?;
    let body = spool::read(body, app.options.max_body_bytes).await?;
    let value = if body.is_empty() { Value::Object(Map::new()) } else { json_body(&body)? };
    Ok((owner, Fields::new("", value)?))
}

fn unknown(id: &str) -> Fault {
    not_found("conversation", id)
}

async fn create(State(app): State<App>, request: Request) -> Result<Json<Value>, Refusal> {
    let (owner, mut fields) = read_body(&app, request).await?;
    let metadata = metadata("metadata", fields.take("metadata"))?;
    let items = match fields.take("items") {
        Some(value) => intake::items("items", value)?,
        None => Vec::new(),
    };
    fields.finish()?;
    let made = app.store.create_conversation(&owner, mint::id("conv"), mint::now(), metadata, items).await?;
    Ok(Json(made))
}

async fn read(
    State(app): State<App>,
    Segments(id): Segments<String>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let owner = identity::owner(&app, request.headers(), explains(&request)).await?;
    Ok(Json(app.store.conversation(&owner, &id).await?.ok_or_else(|| unknown(&id))?))
}

async fn update(
    State(app): State<App>,
    Segments(id): Segments<String>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let (owner, mut fields) = read_body(&app, request).await?;
    let metadata = metadata("metadata", fields.take("metadata"))?;
    fields.finish()?;
    Ok(Json(app.store.update_conversation(&owner, &id, metadata).await?.ok_or_else(|| unknown(&id))?))
}

async fn delete(
    State(app): State<App>,
    Segments(id): Segments<String>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let owner = identity::owner(&app, request.headers(), explains(&request)).await?;
    if !app.store.delete_conversation(&owner, &id).await? {
        return Err(unknown(&id).into());
    }
    Ok(Json(json!({"id": id, "object": "conversation.deleted", "deleted": true})))
}

async fn list(
    State(app): State<App>,
    Segments(id): Segments<String>,
    Pairs(pairs): Pairs,
    request: Request,
) -> Result<Json<List>, Refusal> {
    let owner = identity::owner(&app, request.headers(), explains(&request)).await?;
    let page = Page::parse(&pairs)?;
    let after = page.after.clone();
    let list = app.store.conversation_items(&owner, &id, page).await?.ok_or_else(|| unknown(&id))?;
    Ok(Json(list.ok_or_else(|| unknown_after(after.as_deref()))?))
}

async fn add(
    State(app): State<App>,
    Segments(id): Segments<String>,
    Pairs(pairs): Pairs,
    request: Request,
) -> Result<Json<List>, Refusal> {
    let (owner, mut fields) = read_body(&app, request).await?;
    no_query(&pairs)?;
    let items = intake::items("items", fields.required("items")?)?;
    fields.finish()?;
    let shown = items
        .iter()
        .map(serde_json::to_value)
        .collect::<Result<Vec<_>, _>>()
        .map_err(crate::store::StoreError::from)?;
    if !app.store.add_items(&owner, &id, items).await? {
        return Err(unknown(&id).into());
    }
    Ok(Json(List::new(shown, false)))
}

async fn read_item(
    State(app): State<App>,
    Segments((id, item)): Segments<(String, String)>,
    Pairs(pairs): Pairs,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let owner = identity::owner(&app, request.headers(), explains(&request)).await?;
    no_query(&pairs)?;
    let found = app.store.conversation_item(&owner, &id, &item).await?;
    Ok(Json(found.ok_or_else(|| not_found("item", &item))?))
}

async fn delete_item(
    State(app): State<App>,
    Segments((id, item)): Segments<(String, String)>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let owner = identity::owner(&app, request.headers(), explains(&request)).await?;
    let conversation = app.store.delete_item(&owner, &id, &item).await?;
    Ok(Json(conversation.ok_or_else(|| not_found("item", &item))?))
}
