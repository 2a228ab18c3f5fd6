//! `/v1/probes`, `/v1/fleet` and `/v1/enrol`.

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use picket_wire::enrol::{EnrolRequest, EnrolResponse};
use serde::Deserialize;

use super::extract::{Body, Name, OptionalBody};
use super::problem::ApiError;
use super::{Api, Peer};
use crate::service::{Bearer, ServiceError};
use crate::view::{FleetSummary, Page, ProbeRequest, ProbeView};

pub(super) async fn enrol(
    State(api): State<Api>,
    Extension(Peer(peer)): Extension<Peer>,
    Body(request): Body<EnrolRequest>,
) -> Result<Json<EnrolResponse>, ApiError> {
    let probe = request.probe.clone();
    match api.service.enrol(request, peer.ip().to_canonical()).await {
        Ok(response) => {
            log::info!("{peer} enrolled as probe {probe}");
            Ok(Json(response))
        }
        Err(error) => {
            log::warn!("{peer} tried to enrol as probe {probe}: {error}");
            Err(error.into())
        }
    }
}

pub(super) async fn fleet(State(api): State<Api>) -> Result<Json<FleetSummary>, ApiError> {
    Ok(Json(api.service.fleet().await?))
}

pub(super) async fn list(State(api): State<Api>) -> Result<Json<Page<ProbeView>>, ApiError> {
    Ok(Json(Page { items: api.service.probes().await?, next: None }))
}

pub(super) async fn show(State(api): State<Api>, name: Name) -> Result<Json<ProbeView>, ApiError> {
    Ok(Json(api.service.probe(&name.parse()?).await?))
}

pub(super) async fn add(
    State(api): State<Api>,
    Extension(bearer): Extension<Bearer>,
    Body(request): Body<ProbeRequest>,
) -> Result<Response, ApiError> {
    let invited = api.service.probe_add(request).await?;
    log::info!("{} invited probe {}", bearer.name, invited.probe.id);
    let location = HeaderValue::from_str(&format!("/v1/probes/{}", invited.probe.id));
    let mut response = (StatusCode::CREATED, Json(invited)).into_response();
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Why a probe is revoked.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RevokeRequest {
    reason: Option<String>,
}

pub(super) async fn revoke(
    State(api): State<Api>,
    Extension(bearer): Extension<Bearer>,
    name: Name,
    OptionalBody(request): OptionalBody<RevokeRequest>,
) -> Result<Json<ProbeView>, ApiError> {
    let reason = request.reason.unwrap_or_else(|| format!("revoked by {}", bearer.name));
    let (id, why) = (name.parse()?, reason.clone());
    // In a task of its own: a client that hangs up must not leave a revocation half done.
    let revoked = tokio::spawn(async move { api.service.probe_revoke(&id, &why).await });
    let probe = revoked.await.map_err(|error| ServiceError::Internal { action: "revoke a probe", source: Box::new(error) })??;
    log::info!("{} revoked probe {}: {reason:?}", bearer.name, probe.id);
    Ok(Json(probe))
}
