//! Errors as they leave: `application/problem+json`, one kind each, and a detail that names the input.
//!
//! **Invariant:** what only an operator of the controller may know goes to the log, never into an answer.

use std::panic::AssertUnwindSafe;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;

use crate::errors::chain;
use crate::service::ServiceError;
use crate::view::Problem;

/// An error on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    detail: String,
    retry_after: Option<u64>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, title, detail: detail.into(), retry_after: None }
    }

    /// A wrong value in a path, query or header.
    pub(super) fn input(field: &str, reason: impl core::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-input", "An input is wrong", format!("{field}: {reason}"))
    }

    pub(super) fn unauthenticated(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "A valid token is needed", detail)
    }

    pub(super) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "The token does not allow this", detail)
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let detail = error.to_string();
        match error {
            ServiceError::InvalidInput { field, .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-input", "An input is wrong", format!("{field}: {detail}"))
            }
            ServiceError::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, "not-found", "There is no such thing", detail),
            ServiceError::Conflict(_) => Self::new(StatusCode::CONFLICT, "conflict", "It contradicts what is there", detail),
            ServiceError::Forbidden(_) => Self::forbidden(detail),
            ServiceError::RateLimited { retry_after } => {
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-failures", "Too many failed attempts", detail);
                Self { retry_after: Some(retry_after.as_secs().max(1)), ..error }
            }
            ServiceError::Unavailable(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "It cannot be done now", detail),
            ServiceError::Internal { action, source } => {
                log::error!("{action}: {}", chain(source.as_ref()));
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The controller failed", format!("{detail}; its log says why"))
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem =
            Problem { kind: self.kind.to_owned(), title: self.title.to_owned(), status: self.status.as_u16(), detail: self.detail };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"picket\""));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

pub(super) async fn no_such_route(uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not-found", "There is no such thing", format!("the API has no path {}", uri.path()))
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let detail = format!("{} does not take the method {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "The path does not take this method", detail)
}

const SECURITY_HEADERS: [(HeaderName, &str); 4] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
];

/// The outermost layer: a panic becomes an answer, and every answer carries the headers that browsers need to behave.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
        log::error!("{method} {path}: the handler panicked");
        let detail = "the controller failed to answer; its log says why";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The controller failed", detail).into_response()
    });
    for (name, value) in SECURITY_HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    log::debug!("{method} {path}: {}", response.status().as_u16());
    response
}
