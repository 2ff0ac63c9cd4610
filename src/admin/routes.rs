//! Which path does what, and what it takes to be allowed: the one table.
//!
//! `openapi` must describe every row (a test compares them); design section 5 is where the rows come from.

use super::{Admin, Problem, events, gate, openapi, operate, page, probes, read, write};
use crate::config::TokenRole;
use axum::{
    Router,
    handler::Handler,
    middleware,
    routing::{MethodFilter, MethodRouter, on},
};
use http::{Method, StatusCode};

/// What it takes to use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing.
    Open,
    /// The role viewer, or to sit on loopback.
    Read,
    /// A token with this role (a body may ask for more), for this verb.
    Write {
        /// The lowest role.
        role: TokenRole,
        /// As the audit calls it.
        verb: &'static str,
    },
}

/// One row.
#[derive(Clone)]
pub(super) struct Route {
    #[cfg(test)]
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) access: Access,
    /// Whether the telemetry address has it too.
    pub(super) telemetry: bool,
    handler: MethodRouter<Admin>,
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "the row keeps it where tests compare it with the document"
)]
fn row<H: Handler<T, Admin>, T: 'static>(
    method: Method,
    path: &'static str,
    access: Access,
    handler: H,
) -> Route {
    // Every method of the table is one that axum knows.
    let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
    Route {
        #[cfg(test)]
        method,
        path,
        access,
        telemetry: false,
        handler: on(filter, handler),
    }
}

fn read<H: Handler<T, Admin>, T: 'static>(path: &'static str, handler: H) -> Route {
    row(Method::GET, path, Access::Read, handler)
}

/// Open to all, on the telemetry address too.
fn told<H: Handler<T, Admin>, T: 'static>(path: &'static str, handler: H) -> Route {
    Route {
        telemetry: true,
        ..row(Method::GET, path, Access::Open, handler)
    }
}

/// A verb, the lowest role that may use it, and its path.
fn verb<H: Handler<T, Admin>, T: 'static>(
    method: Method,
    verb: &'static str,
    role: TokenRole,
    path: &'static str,
    handler: H,
) -> Route {
    row(method, path, Access::Write { role, verb }, handler)
}

/// Every route.
#[rustfmt::skip]
pub(super) fn table() -> Vec<Route> {
    use TokenRole::{Admin as Administrator, Approver, Deployer};
    let (post, put) = (|| Method::POST, || Method::PUT);
    vec![
        read("/v1/services", read::list),
        read("/v1/services/{service}", read::status),
        read("/v1/services/{service}/metrics", read::metrics_window),
        read("/v1/services/{service}/analysis", read::analysis),
        read("/v1/services/{service}/history", read::history),
        read("/v1/services/{service}/stable", read::stable),
        read("/v1/services/{service}/judges", read::judges),
        read("/v1/services/{service}/rollouts/{rollout}/recordings", read::recordings),
        verb(post(), "deploy", Deployer, "/v1/services/{service}/deploy", write::deploy),
        verb(put(), "endpoints", Deployer, "/v1/services/{service}/versions/{version}/endpoints", write::endpoints),
        verb(post(), "promote", Approver, "/v1/services/{service}/promote", write::promote),
        verb(post(), "abort", Deployer, "/v1/services/{service}/abort", write::abort),
        verb(post(), "retry", Deployer, "/v1/services/{service}/retry", write::retry),
        verb(post(), "undo", Approver, "/v1/services/{service}/undo", write::undo),
        verb(post(), "pause", Deployer, "/v1/services/{service}/pause", write::pause),
        verb(post(), "resume", Approver, "/v1/services/{service}/resume", write::resume),
        verb(put(), "set-weight", Administrator, "/v1/services/{service}/weight", write::weight),
        read("/v1/events", events::follow),
        read("/v1/config", operate::show),
        verb(post(), "check", Administrator, "/v1/config/check", operate::check),
        verb(post(), "reload", Administrator, "/v1/config/reload", operate::reload),
        verb(post(), "test-notification", Administrator, "/v1/notifications/{notification}/test", operate::test_notification),
        told("/livez", probes::livez),
        told("/readyz", probes::readyz),
        told("/startupz", probes::startupz),
        told("/metrics", probes::metrics),
        told("/metrics/compat", probes::metrics_compat),
        row(Method::GET, "/openapi.json", Access::Open, openapi::serve),
        read("/", page::show),
    ]
}

/// A router over these rows, each behind its gate. `checks_host` is off where everything may be read under any name, and over
/// TLS.
pub(super) fn router(admin: &Admin, table: &[Route], checks_host: bool) -> Router {
    let mut router = Router::new();
    for route in table {
        let gate = gate::Gate {
            admin: admin.clone(),
            access: route.access,
            checks_host,
        };
        let guarded = route
            .handler
            .clone()
            .layer(middleware::from_fn_with_state(gate, gate::pass));
        router = router.route(route.path, guarded);
    }
    router
        .fallback(async |uri: http::Uri| {
            Problem::new(
                StatusCode::NOT_FOUND,
                "unknownPath",
                format!("there is nothing at `{}`", uri.path()),
            )
            .hint("GET /openapi.json lists every path")
        })
        .method_not_allowed_fallback(async |method: Method, uri: http::Uri| {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "methodNotAllowed",
                format!("`{}` does not take {method}", uri.path()),
            )
            .hint("GET /openapi.json lists every path with its methods")
        })
        .with_state(admin.clone())
}
