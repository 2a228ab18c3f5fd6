//! `/v1/tokens`, `/v1/dashboard-users`, `/v1/db` and `/v1/health`.

use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Api;
use super::extract::{Body, Name};
use super::problem::ApiError;
use crate::service::Bearer;
use crate::view::Page;
use crate::view::{DashboardUser, Health, RebuildCounts, Scope, TokenView};

/// The body of `POST /v1/tokens`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenRequest {
    name: String,
    scope: Scope,
    #[serde(default)]
    life_seconds: Option<u64>,
}

/// The body of `POST /v1/dashboard-users`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UserRequest {
    name: String,
}

pub(super) async fn token_add(
    State(api): State<Api>,
    Extension(bearer): Extension<Bearer>,
    Body(request): Body<TokenRequest>,
) -> Result<Response, ApiError> {
    let made = api.service.token_add(&request.name, request.scope, request.life_seconds.map(Duration::from_secs)).await?;
    log::info!("{} made token {:?}, good for {}", bearer.name, made.view.name, made.view.scope.as_str());
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

pub(super) async fn tokens(State(api): State<Api>) -> Result<Json<Page<TokenView>>, ApiError> {
    Ok(Json(Page { items: api.service.tokens().await?, next: None }))
}

pub(super) async fn token_revoke(
    State(api): State<Api>,
    Extension(bearer): Extension<Bearer>,
    Name(name): Name,
) -> Result<StatusCode, ApiError> {
    api.service.token_revoke(&name).await?;
    log::info!("{} revoked token {name:?}", bearer.name);
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn user_add(
    State(api): State<Api>,
    Extension(bearer): Extension<Bearer>,
    Body(request): Body<UserRequest>,
) -> Result<Response, ApiError> {
    let made = api.service.dashboard_user_add(&request.name).await?;
    log::info!("{} made dashboard user {:?}", bearer.name, made.name);
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

pub(super) async fn users(State(api): State<Api>) -> Result<Json<Page<DashboardUser>>, ApiError> {
    Ok(Json(Page { items: api.service.dashboard_users().await?, next: None }))
}

pub(super) async fn user_remove(
    State(api): State<Api>,
    Extension(bearer): Extension<Bearer>,
    Name(name): Name,
) -> Result<StatusCode, ApiError> {
    api.service.dashboard_user_remove(&name).await?;
    log::info!("{} removed dashboard user {name:?}", bearer.name);
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn rebuild(State(api): State<Api>, Extension(bearer): Extension<Bearer>) -> Result<Json<RebuildCounts>, ApiError> {
    log::info!("{} asked for a rebuild of the tables", bearer.name);
    Ok(Json(api.service.rebuild().await?))
}

/// For whoever watches the controller: 200 or 503. What is wrong is in the log, not for everybody.
pub(super) async fn health(State(api): State<Api>) -> Response {
    let health = api.service.health().await;
    let status = if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let database = health.database.as_ref().map(|_| "unwell".to_owned());
    (status, Json(Health { database, ..health })).into_response()
}
