//! `/v1/captures`: what was captured, and the files, also while they grow.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::stream;
use picket_wire::ids::LeaseId;
use serde::Deserialize;

use super::Api;
use super::extract::{Name, Parameters, field};
use super::jobs::{PAGE_MAX, limit};
use super::problem::ApiError;
use crate::errors::chain;
use crate::service::{Bearer, CapturesQuery, ServiceError};
use crate::view::{CaptureState, CaptureView, Page};

/// How often it is looked whether a file that is followed has grown.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A file that does not grow for so long is followed no longer: a client that is still there asks again.
const FOLLOW_MOST: Duration = Duration::from_secs(600);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    job: Option<String>,
    site: Option<String>,
    probe: Option<String>,
    cursor: Option<String>,
    limit: Option<String>,
}

pub(super) async fn list(State(api): State<Api>, Parameters(query): Parameters<ListQuery>) -> Result<Json<Page<CaptureView>>, ApiError> {
    let query = CapturesQuery {
        job: field("job", query.job.as_deref())?,
        site: field("site", query.site.as_deref())?,
        probe: field("probe", query.probe.as_deref())?,
        cursor: query.cursor.clone(),
        limit: limit(query.limit.as_deref(), PAGE_MAX)?,
    };
    Ok(Json(api.service.captures(&query).await?))
}

pub(super) async fn show(State(api): State<Api>, name: Name) -> Result<Json<CaptureView>, ApiError> {
    Ok(Json(api.service.capture(name.parse()?).await?))
}

pub(super) async fn remove(State(api): State<Api>, Extension(bearer): Extension<Bearer>, name: Name) -> Result<StatusCode, ApiError> {
    api.service.remove_capture(name.parse()?, &bearer.name).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileQuery {
    from: Option<String>,
    follow: Option<String>,
}

/// The file from a byte on, as far as it is here; or, where it is followed, until all of it is.
pub(super) async fn file(
    State(api): State<Api>,
    Extension(bearer): Extension<Bearer>,
    name: Name,
    Parameters(query): Parameters<FileQuery>,
) -> Result<Response, ApiError> {
    let lease: LeaseId = name.parse()?;
    let from = field::<u64>("from", query.from.as_deref())?.unwrap_or_default();
    let follow = field::<bool>("follow", query.follow.as_deref())?.unwrap_or_default();
    let view = api.service.begin_download(lease, from, &bearer.name).await?;
    let pieces = stream::try_unfold(from, move |at| {
        let api = api.clone();
        async move {
            let piece = next(&api, lease, at, follow).await.inspect_err(|error| log::error!("a download broke off: {}", chain(error)))?;
            Ok::<_, ServiceError>(piece.map(|piece| {
                let end = at + piece.len() as u64;
                (piece, end)
            }))
        }
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-pcapng"));
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{}-{lease}.pcapng\"", view.probe)) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

/// The next bytes; none at the end.
async fn next(api: &Api, lease: LeaseId, at: u64, follow: bool) -> Result<Option<Bytes>, ServiceError> {
    let looks = FOLLOW_MOST.as_millis() / LOOK_EVERY.as_millis();
    for _ in 0..looks {
        let (bytes, state) = api.service.capture_bytes(lease, at).await?;
        if !bytes.is_empty() {
            return Ok(Some(Bytes::from(bytes)));
        }
        let more = match state {
            CaptureState::Arriving => true,
            // Of a job that is over although its probe was not heard, nothing is waited for.
            CaptureState::Running => !api.service.job(lease.job).await?.state.is_final(),
            CaptureState::Whole | CaptureState::Removed => false,
        };
        if !follow || !more {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(None)
}
