//! Inputs of handlers: the framework's extractors, with errors that name the field and leave as problems.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::problem::ApiError;

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

/// A JSON body that may be left out.
pub(super) struct OptionalBody<T>(pub(super) T);

/// The query string.
pub(super) struct Parameters<T>(pub(super) T);

/// The one parameter of the path, percent-decoded.
pub(super) struct Name(pub(super) String);

impl Name {
    /// As an identifier.
    pub(super) fn parse<T: FromStr<Err: Display>>(&self) -> Result<T, ApiError> {
        self.0.parse().map_err(|error| ApiError::input("path", error))
    }
}

async fn in_time<T>(reading: impl Future<Output = T>) -> Result<T, ApiError> {
    tokio::time::timeout(BODY_TIMEOUT, reading).await.map_err(|_| {
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "The request came too slowly", "the body did not arrive in time")
    })
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match in_time(Json::<T>::from_request(request, state)).await? {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(body_error(&rejection)),
        }
    }
}

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalBody<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let headers = request.headers().clone();
        let bytes = in_time(Bytes::from_request(request, state)).await?.map_err(|rejection| bytes_error(&rejection))?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        let mut again = Request::new(bytes.into());
        *again.headers_mut() = headers;
        let Body(value) = Body::from_request(again, state).await?;
        Ok(Self(value))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::input("query", after_colon(&rejection.body_text()))),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(rejection) => Err(ApiError::input("path", rejection.body_text())),
        }
    }
}

/// The framework says first that it failed, then why.
fn after_colon(text: &str) -> &str {
    text.split_once(": ").map_or(text, |(_, reason)| reason)
}

fn body_error(rejection: &JsonRejection) -> ApiError {
    match rejection {
        JsonRejection::MissingJsonContentType(_) => ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not-json",
            "The body is not JSON",
            "the body must be JSON: send `Content-Type: application/json`",
        ),
        JsonRejection::BytesRejection(rejection) => bytes_error(rejection),
        JsonRejection::JsonDataError(error) => {
            let reason = error.body_text();
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-input", "An input is wrong", format!("body: {}", after_colon(&reason)))
        }
        other => {
            let reason = other.body_text();
            ApiError::new(StatusCode::BAD_REQUEST, "not-json", "The body is not JSON", format!("body: {}", after_colon(&reason)))
        }
    }
}

fn bytes_error(rejection: &BytesRejection) -> ApiError {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The body is too large", "the body is larger than this path takes")
        }
        _ => ApiError::new(StatusCode::BAD_REQUEST, "broken-body", "The body broke off", rejection.body_text()),
    }
}

/// One optional field of a query.
pub(super) fn field<T: FromStr<Err: Display>>(name: &str, value: Option<&str>) -> Result<Option<T>, ApiError> {
    value.map(|text| text.parse().map_err(|error| ApiError::input(name, error))).transpose()
}
