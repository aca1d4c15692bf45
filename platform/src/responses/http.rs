//! The routes of `/v1/responses`.

use axum::extract::{Request, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use strata_hop::Fault;
use strata_wire::ErrorKind;

use crate::app::App;
use crate::extract::{Pairs, Segments};
use crate::identity;
use crate::page::{List, Page, no_query};
use crate::refusal::{Refusal, not_found};
use crate::relay::explains;

/// The routes.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/responses", post(super::create::create))
        .route("/v1/responses/{id}", get(read).delete(delete))
        .route("/v1/responses/{id}/input_items", get(input_items))
        .route("/v1/responses/{id}/cancel", post(cancel))
}

async fn read(
    State(app): State<App>,
    Segments(id): Segments<String>,
    Pairs(pairs): Pairs,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let owner = identity::owner(&app, request.headers(), explains(&request)).await?;
    no_query(&pairs)?;
    let response = app.store.response(&owner, &id).await?;
    Ok(Json(response.ok_or_else(|| not_found("response", &id))?))
}

async fn delete(
    State(app): State<App>,
    Segments(id): Segments<String>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let owner = identity::owner(&app, request.headers(), explains(&request)).await?;
    if !app.store.delete_response(&owner, &id).await? {
        return Err(not_found("response", &id).into());
    }
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}

async fn input_items(
    State(app): State<App>,
    Segments(id): Segments<String>,
    Pairs(pairs): Pairs,
    request: Request,
) -> Result<Json<List>, Refusal> {
    let owner = identity::owner(&app, request.headers(), explains(&request)).await?;
    let page = Page::parse(&pairs)?;
    let after = page.after.clone();
    let list = app.store.input_items(&owner, &id, page).await?.ok_or_else(|| not_found("response", &id))?;
    Ok(Json(list.ok_or_else(|| unknown_after(after.as_deref()))?))
}

async fn cancel(Segments(_): Segments<String>) -> Fault {
    Fault::new(
        ErrorKind::InvalidRequest,
        "only background responses can be cancelled, and they are not built yet; close the connection instead",
    )
}

/// 400: the item that a page was to start behind is not in the list.
pub(crate) fn unknown_after(after: Option<&str>) -> Fault {
    Fault::invalid_param("after", format!("no item with id '{}' in this list", after.unwrap_or_default()))
}
