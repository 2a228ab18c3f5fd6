//! `/v1/jobs`.

use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use picket_wire::ids::JobId;
use picket_wire::units::parse_duration;
use serde::Deserialize;

use super::Api;
use super::extract::{Body, Name, Parameters};
use super::idempotency;
use super::problem::ApiError;
use crate::service::{Bearer, JobFilter, ServiceError};
use crate::view::{JobRequest, JobState, JobView, Page, Submitted};

/// Longest time that a request waits for news; proxies in between often give up after a minute.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Jobs per page where nothing is asked for.
const PAGE: u32 = 100;
/// Most rows of any page.
pub(super) const PAGE_MAX: u32 = 1000;

pub(super) async fn submit(
    State(api): State<Api>,
    Extension(bearer): Extension<Bearer>,
    headers: HeaderMap,
    Body(request): Body<JobRequest>,
) -> Result<Response, ApiError> {
    let submitted = match idempotency::key(&headers)? {
        None => detached(api, request, bearer).await?,
        Some(key) => {
            let fingerprint = serde_json::to_vec(&request).unwrap_or_default();
            let cell = api.replays.entry(&bearer.name, &key, &fingerprint)?;
            // The whole of it in a task of its own: a client that hangs up and asks again must find the first answer.
            let kept = tokio::spawn(async move { cell.get_or_try_init(|| detached(api, request, bearer)).await.cloned() });
            kept.await.map_err(|error| ServiceError::Internal { action: "submit a job", source: Box::new(error) })??
        }
    };
    Ok(created(&submitted))
}

/// Submits in a task of its own: a client that hangs up must not leave a job that nobody has been told of half made.
async fn detached(api: Api, request: JobRequest, bearer: Bearer) -> Result<Submitted, ApiError> {
    let submitted = tokio::spawn(async move { api.service.submit(request, &bearer.name).await.map(|submitted| (submitted, bearer)) });
    let result = submitted.await.map_err(|error| ServiceError::Internal { action: "submit a job", source: Box::new(error) })?;
    let (submitted, bearer) = result?;
    if let Some(job) = &submitted.job {
        log::info!("{} submitted job {}: {} {}", bearer.name, job.id, job.technique.as_str(), job.summary);
    }
    Ok(submitted)
}

fn created(submitted: &Submitted) -> Response {
    let Some(job) = &submitted.job else { return Json(submitted).into_response() };
    let mut response = (StatusCode::CREATED, Json(submitted)).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/jobs/{}", job.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    state: Option<String>,
    cursor: Option<String>,
    limit: Option<String>,
}

pub(super) async fn list(State(api): State<Api>, Parameters(query): Parameters<ListQuery>) -> Result<Json<Page<JobView>>, ApiError> {
    let states = query.state.iter().flat_map(|text| text.split(',')).filter(|text| !text.is_empty());
    let filter = JobFilter { states: states.map(state).collect::<Result<_, _>>()? };
    let limit = limit(query.limit.as_deref(), PAGE)?;
    Ok(Json(api.service.jobs(&filter, query.cursor.as_deref(), limit).await?))
}

fn state(text: &str) -> Result<JobState, ApiError> {
    Ok(match text {
        "pending" => JobState::Pending,
        "running" => JobState::Running,
        "cancelling" => JobState::Cancelling,
        "done" => JobState::Done,
        "cancelled" => JobState::Cancelled,
        "failed" => JobState::Failed,
        _ => {
            let reason = format!("`{text}` is not a job's state: use pending, running, cancelling, done, cancelled or failed");
            return Err(ApiError::input("state", reason));
        }
    })
}

/// Rows per page.
pub(super) fn limit(text: Option<&str>, default: u32) -> Result<u32, ApiError> {
    let Some(text) = text else { return Ok(default) };
    let limit = text.parse().ok().filter(|limit| (1..=PAGE_MAX).contains(limit));
    limit.ok_or_else(|| ApiError::input("limit", format!("`{text}` is not a number of rows from 1 to {PAGE_MAX}")))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShowQuery {
    since: Option<String>,
    wait: Option<String>,
}

pub(super) async fn show(State(api): State<Api>, name: Name, Parameters(query): Parameters<ShowQuery>) -> Result<Json<JobView>, ApiError> {
    let id: JobId = name.parse()?;
    let since =
        query.since.as_deref().map(|text| text.parse::<u64>().map_err(|_| ApiError::input("since", format!("`{text}` is not a version"))));
    let wait = query.wait.as_deref().map(|text| parse_duration(text).map_err(|reason| ApiError::input("wait", reason))).transpose()?;
    let job = match since.transpose()? {
        Some(since) => api.service.wait_job(id, since, wait.unwrap_or_default().min(WAIT_MAX)).await?,
        None if wait.is_some() => return Err(ApiError::input("wait", "is only good together with `since`, the version that is known")),
        None => api.service.job(id).await?,
    };
    Ok(Json(job))
}

pub(super) async fn cancel(State(api): State<Api>, Extension(bearer): Extension<Bearer>, name: Name) -> Result<Json<JobView>, ApiError> {
    let (id, by) = (name.parse()?, bearer.name.clone());
    // In a task of its own: a client that hangs up must not leave it half done.
    let cancelled = tokio::spawn(async move { api.service.cancel(id, &by).await });
    let job = cancelled.await.map_err(|error| ServiceError::Internal { action: "cancel a job", source: Box::new(error) })??;
    log::info!("{} cancelled job {}", bearer.name, job.id);
    Ok(Json(job))
}
