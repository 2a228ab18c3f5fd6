//! `/v1/results`: pages of rows, or all of them as one stream of lines.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;

use super::Api;
use super::extract::{Body, Parameters, field};
use super::jobs::{PAGE_MAX, limit};
use super::problem::ApiError;
use crate::errors::chain;
use crate::service::{Bearer, HostQuery, PathsQuery, ResultQuery, ServiceError};
use crate::view::{AcceptPaths, HostRow, Page, PathRow, PathsAccepted, ResultRow};

const STATES: [&str; 5] = ["up", "open", "closed", "filtered", "unfiltered"];
/// Pages of the service that one page of the API may look through for rows of several states.
const PAGES_MAX: usize = 20;
const NDJSON: &str = "application/x-ndjson";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResultsQuery {
    job: Option<String>,
    site: Option<String>,
    probe: Option<String>,
    addr: Option<String>,
    ports: Option<String>,
    state: Option<String>,
    cursor: Option<String>,
    limit: Option<String>,
}

pub(super) async fn list(
    State(api): State<Api>,
    headers: HeaderMap,
    Parameters(query): Parameters<ResultsQuery>,
) -> Result<Response, ApiError> {
    let selected = Selected::new(&query)?;
    if wants_lines(&headers) {
        return lines(api, selected).await;
    }
    Ok(Json(selected.page(&api).await?).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostsQuery {
    job: Option<String>,
    site: Option<String>,
    probe: Option<String>,
    addr: Option<String>,
    cursor: Option<String>,
    limit: Option<String>,
}

/// `/v1/hosts`: hosts seen on the links of probes.
pub(super) async fn hosts(State(api): State<Api>, Parameters(query): Parameters<HostsQuery>) -> Result<Json<Page<HostRow>>, ApiError> {
    let query = HostQuery {
        job: field("job", query.job.as_deref())?,
        site: field("site", query.site.as_deref())?,
        probe: field("probe", query.probe.as_deref())?,
        net: field("addr", query.addr.as_deref())?,
        cursor: query.cursor.clone(),
        limit: limit(query.limit.as_deref(), PAGE_MAX)?,
    };
    Ok(Json(api.service.link_hosts(&query).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PathsParameters {
    job: Option<String>,
    site: Option<String>,
    probe: Option<String>,
    addr: Option<String>,
    latest: Option<String>,
    changes: Option<String>,
    names: Option<String>,
    cursor: Option<String>,
    limit: Option<String>,
}

/// `/v1/paths`: paths that were traced.
pub(super) async fn paths(State(api): State<Api>, Parameters(query): Parameters<PathsParameters>) -> Result<Json<Page<PathRow>>, ApiError> {
    let query = PathsQuery {
        job: field("job", query.job.as_deref())?,
        site: field("site", query.site.as_deref())?,
        probe: field("probe", query.probe.as_deref())?,
        net: field("addr", query.addr.as_deref())?,
        latest: field("latest", query.latest.as_deref())?.unwrap_or_default(),
        changes: field("changes", query.changes.as_deref())?.unwrap_or_default(),
        names: field("names", query.names.as_deref())?.unwrap_or_default(),
        cursor: query.cursor.clone(),
        limit: limit(query.limit.as_deref(), PAGE_MAX)?,
    };
    Ok(Json(api.service.paths(&query).await?))
}

/// `/v1/paths/accept`: the latest paths are what is to be expected.
pub(super) async fn accept_paths(
    State(api): State<Api>,
    Extension(bearer): Extension<Bearer>,
    Body(request): Body<AcceptPaths>,
) -> Result<Json<PathsAccepted>, ApiError> {
    let (name, to) = (bearer.name.clone(), request.addr.clone());
    // In a task of its own: a client that hangs up must not leave it half done.
    let accepted = tokio::spawn(async move { api.service.accept_paths(&request, &bearer.name).await });
    let accepted = accepted.await.map_err(|error| ServiceError::Internal { action: "accept ways", source: Box::new(error) })??;
    log::info!("{name} accepted {} ways to {to}", accepted.accepted);
    Ok(Json(accepted))
}

/// Which rows: what the service can select by itself, and the states where there are several.
#[derive(Debug, Clone)]
struct Selected {
    query: ResultQuery,
    states: Vec<String>,
}

impl Selected {
    fn new(query: &ResultsQuery) -> Result<Self, ApiError> {
        let mut states: Vec<String> = Vec::new();
        for state in query.state.iter().flat_map(|text| text.split(',')).filter(|text| !text.is_empty()) {
            if !STATES.contains(&state) {
                return Err(ApiError::input(
                    "state",
                    format!("`{state}` is not a result's state: use up, open, closed, filtered or unfiltered"),
                ));
            }
            states.push(state.to_owned());
        }
        let single = match states.as_slice() {
            [state] => Some(state.clone()),
            _ => None,
        };
        let query = ResultQuery {
            job: field("job", query.job.as_deref())?,
            site: field("site", query.site.as_deref())?,
            probe: field("probe", query.probe.as_deref())?,
            net: field("addr", query.addr.as_deref())?,
            ports: field("ports", query.ports.as_deref())?,
            state: single,
            cursor: query.cursor.clone(),
            limit: limit(query.limit.as_deref(), PAGE_MAX)?,
        };
        Ok(Self { query, states })
    }

    /// The next page. It may be short, even empty, although `next` says that there is more.
    async fn page(&self, api: &Api) -> Result<Page<ResultRow>, ServiceError> {
        if self.states.len() < 2 {
            return api.service.results(&self.query).await;
        }
        let mut query = self.query.clone();
        let mut items: Vec<ResultRow> = Vec::new();
        for _ in 0..PAGES_MAX {
            // No more than are still wanted: a page of the service cannot be continued in its middle.
            query.limit = self.query.limit.saturating_sub(u32::try_from(items.len()).unwrap_or(u32::MAX)).max(1);
            let page = api.service.results(&query).await?;
            items.extend(page.items.into_iter().filter(|row| self.states.contains(&row.state)));
            query.cursor = page.next;
            if query.cursor.is_none() || items.len() >= self.query.limit as usize {
                break;
            }
        }
        Ok(Page { items, next: query.cursor })
    }
}

fn wants_lines(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted
        .flat_map(|value| value.split(','))
        .any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(NDJSON)))
}

/// All rows from the cursor on. The first page is read before the answer begins, so that a wrong query is still an error; a
/// failure later breaks the stream off, which every HTTP client notices.
async fn lines(api: Api, mut selected: Selected) -> Result<Response, ApiError> {
    selected.query.limit = PAGE_MAX;
    let first = selected.page(&api).await?;
    let rows = stream::try_unfold(Some(first), move |page| {
        let (api, mut selected) = (api.clone(), selected.clone());
        async move {
            let Some(page) = page else { return Ok(None) };
            let text = Bytes::from(ndjson(&page.items));
            let following = match page.next {
                None => None,
                next => {
                    selected.query.cursor = next;
                    let page = selected.page(&api).await;
                    Some(page.inspect_err(|error| log::error!("results broke off: {}", chain(error)))?)
                }
            };
            Ok::<_, ServiceError>(Some((text, following)))
        }
    });
    let mut response = Response::new(axum::body::Body::from_stream(rows));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    Ok(response)
}

fn ndjson(rows: &[ResultRow]) -> Vec<u8> {
    let mut text = Vec::with_capacity(rows.len() * 256);
    for row in rows {
        // Rows hold nothing that JSON cannot say.
        if serde_json::to_writer(&mut text, row).is_ok() {
            text.push(b'\n');
        }
    }
    text
}
