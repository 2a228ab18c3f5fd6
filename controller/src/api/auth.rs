//! Who may do what: bearer tokens and their scopes.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::problem::ApiError;
use crate::service::{Bearer, ServiceError};
use crate::view::Scope;

/// What a route asks of the one who calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Anybody,
    /// A token with this scope or a wider one.
    Token(Scope),
}

/// Longest token that is looked at, in bytes.
const TOKEN_MAX: usize = 256;

/// Lets a request through when its token allows it; handlers find the [`Bearer`] among the extensions.
pub(super) async fn authorise(State((api, access)): State<(Api, Access)>, mut request: Request, next: Next) -> Response {
    let Access::Token(needed) = access else { return next.run(request).await };
    match bearer(&api, request.headers(), needed).await {
        Ok(bearer) => {
            request.extensions_mut().insert(bearer);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

async fn bearer(api: &Api, headers: &HeaderMap, needed: Scope) -> Result<Bearer, ApiError> {
    let token = token(headers)?;
    let bearer = match api.service.token_verify(token).await {
        Ok(bearer) => bearer,
        Err(ServiceError::Forbidden(_) | ServiceError::NotFound { .. } | ServiceError::InvalidInput { .. }) => {
            return Err(ApiError::unauthenticated(
                "the token is not known here: it is mistyped, revoked, expired or of another controller",
            ));
        }
        Err(error) => return Err(error.into()),
    };
    if bearer.scope < needed {
        let detail = format!("token `{}` is good for {}, this needs {}", bearer.name, bearer.scope.as_str(), needed.as_str());
        return Err(ApiError::forbidden(detail));
    }
    Ok(bearer)
}

/// RFC 6750, section 2.1.
fn token(headers: &HeaderMap) -> Result<&str, ApiError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Err(ApiError::unauthenticated("there is no token: send it as `Authorization: Bearer TOKEN`"));
    };
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > TOKEN_MAX {
        return Err(ApiError::unauthenticated("the Authorization header holds no token: send `Authorization: Bearer TOKEN`"));
    }
    Ok(token)
}
