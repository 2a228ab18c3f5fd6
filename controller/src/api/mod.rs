//! The HTTP API: what people's programs, the command line and boxes that enrol speak to.
//!
//! [`routes`] is the list of everything that is offered, each with what a token must allow; the router is made from that list
//! alone, so a route without an access rule cannot exist. Handlers translate between HTTP and [`Service`] and decide nothing.
//!
//! Every error, also of the framework, leaves as `application/problem+json` (RFC 9457).
//!
//! **Invariant:** nothing but `/v1/health` and `/v1/enrol` is answered without a token that allows it.

mod admin;
mod auth;
mod captures;
mod extract;
mod idempotency;
mod jobs;
mod probes;
mod problem;
mod results;
mod server;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::Method;
use axum::middleware;
use axum::routing::{MethodRouter, delete, get, post};

use crate::service::Service;
use crate::view::Scope;
pub use auth::Access;
pub use server::{Limits, Server};

/// Longest body of a request in general; a job with thousands of targets has less.
const BODY_MAX: usize = 1024 * 1024;
/// Longest body of an enrolment: anybody may send one.
const ENROL_BODY_MAX: usize = 16 * 1024;

/// What handlers work with.
#[derive(Clone)]
pub struct Api {
    service: Service,
    replays: Arc<idempotency::Replays>,
}

/// Who is on the other end of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// One thing that is offered.
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, with `{name}` for its parameters.
    pub path: &'static str,
    /// What a token must allow.
    pub access: Access,
    handler: MethodRouter<Api>,
}

/// Everything that is offered.
pub fn routes() -> Vec<Route> {
    use Scope::{Admin, Operate, Read};
    let route = |method: Method, path, access, handler| Route { method, path, access, handler };
    let read = |path, handler| route(Method::GET, path, Access::Token(Read), handler);
    let admin = |method, path, handler| route(method, path, Access::Token(Admin), handler);
    vec![
        route(Method::GET, "/v1/health", Access::Anybody, get(admin::health)),
        route(Method::POST, "/v1/enrol", Access::Anybody, post(probes::enrol).layer(DefaultBodyLimit::max(ENROL_BODY_MAX))),
        route(Method::POST, "/v1/jobs", Access::Token(Operate), post(jobs::submit)),
        read("/v1/jobs", get(jobs::list)),
        read("/v1/jobs/{id}", get(jobs::show)),
        route(Method::POST, "/v1/jobs/{id}/cancel", Access::Token(Operate), post(jobs::cancel)),
        read("/v1/results", get(results::list)),
        read("/v1/hosts", get(results::hosts)),
        read("/v1/paths", get(results::paths)),
        route(Method::POST, "/v1/paths/accept", Access::Token(Operate), post(results::accept_paths)),
        read("/v1/captures", get(captures::list)),
        read("/v1/captures/{id}", get(captures::show)),
        route(Method::GET, "/v1/captures/{id}/file", Access::Token(Operate), get(captures::file)),
        route(Method::DELETE, "/v1/captures/{id}", Access::Token(Operate), delete(captures::remove)),
        read("/v1/fleet", get(probes::fleet)),
        read("/v1/probes", get(probes::list)),
        read("/v1/probes/{id}", get(probes::show)),
        admin(Method::POST, "/v1/probes", post(probes::add)),
        admin(Method::POST, "/v1/probes/{id}/revoke", post(probes::revoke)),
        admin(Method::POST, "/v1/tokens", post(admin::token_add)),
        admin(Method::GET, "/v1/tokens", get(admin::tokens)),
        admin(Method::DELETE, "/v1/tokens/{name}", delete(admin::token_revoke)),
        admin(Method::POST, "/v1/dashboard-users", post(admin::user_add)),
        admin(Method::GET, "/v1/dashboard-users", get(admin::users)),
        admin(Method::DELETE, "/v1/dashboard-users/{name}", delete(admin::user_remove)),
        admin(Method::POST, "/v1/db/rebuild", post(admin::rebuild)),
    ]
}

/// The whole API over one service.
pub fn router(service: Service) -> Router {
    let api = Api { service, replays: Arc::default() };
    let mut router = Router::new();
    for route in routes() {
        let rule = (api.clone(), route.access);
        router = router.route(route.path, route.handler.route_layer(middleware::from_fn_with_state(rule, auth::authorise)));
    }
    router
        .fallback(problem::no_such_route)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn(problem::guard))
        .with_state(api)
}
