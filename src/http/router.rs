//! The routes of the server, and the layers around them.

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_request, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use gathering_schema::Graph;
use tower::{ServiceBuilder, ServiceExt};
use tower_http::catch_panic::{CatchPanic, ResponseForPanic};
use tower_http::cors::CorsLayer;

use super::compression;
use super::cors::cors;
use super::endpoint::graphql;
use super::gate::{self, Gate};
use super::outcome::Refusal;
use super::security_headers::harden;
use super::state::Endpoint;
use crate::config::Config;
use crate::connections::ConnectionLimit;
use crate::metrics::Metrics;
use crate::playground::{self, SignIn};
use crate::telemetry::{self, RequestId};

/// The routes while the server starts: health, and 503 for everything else.
pub fn starting(health: Router) -> Router {
    layered(health.fallback(is_starting), None, None)
}

/// The routes of a started server: the graph, and `others`.
pub fn serving(
    graph: Graph,
    config: Config,
    sign_in: Option<&SignIn>,
    connections: ConnectionLimit,
    gate: Gate,
    metrics: Metrics,
    others: Router,
) -> Router {
    let cors = cors(&config.server.cors_origins);
    let routes = graph_routes(graph, config, sign_in, connections, gate.clone(), metrics)
        .merge(others)
        .fallback(not_found);
    layered(routes, cors, Some(gate))
}

/// The layers around every route, the outermost first.
fn layered(routes: Router, cors: Option<CorsLayer>, gate: Option<Gate>) -> Router {
    routes.layer(
        ServiceBuilder::new()
            // Request id, span and log line. It comes first, because the layers below use the id.
            .layer(from_fn(telemetry::observe))
            // Security headers, also on the response to a panic.
            .layer(map_response(harden))
            // 500 with the request id, for a panic in any layer or handler below.
            .layer(from_fn(catch_panics))
            // Compression of every response from here on that is neither short nor a stream.
            .layer(map_request(compression::allow_identity))
            .layer(compression::layer())
            // CORS comes before the gate: preflights are free, and a script can read a refusal of the gate.
            .option_layer(cors)
            // The limit of the address, before the request is parsed.
            .option_layer(gate.map(|gate| from_fn_with_state(gate, gate::admit))),
    )
}

/// The answer to the request with this id, if its handler panics.
#[derive(Clone)]
struct Panicked(String);

impl ResponseForPanic for Panicked {
    type ResponseBody = Body;

    fn response_for_panic(&mut self, _: Box<dyn Any + Send>) -> Response {
        Refusal::internal(self.0.clone()).into_response()
    }
}

/// Answers a panic with `INTERNAL` and the request id; the text of the panic is only logged.
async fn catch_panics(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>();
    let id = id.map(RequestId::as_str).unwrap_or_default().to_owned();
    match CatchPanic::custom(next, Panicked(id))
        .oneshot(request)
        .await
    {
        Ok(response) => response.into_response(),
        Err(never) => match never {},
    }
}

/// The routes of the graph: `/graphql`, the playground's assets below it, and `/`, which redirects browsers there.
///
/// With `sign_in`, the playground signs its users in as that user.
fn graph_routes(
    graph: Graph,
    config: Config,
    sign_in: Option<&SignIn>,
    connections: ConnectionLimit,
    gate: Gate,
    metrics: Metrics,
) -> Router {
    let mut routes = Router::new().route("/graphql", any(graphql));
    if config.server.playground {
        routes = routes
            .route("/", get(playground::home))
            .route("/graphql/assets/{name}", get(playground::asset));
    }
    routes.with_state(Arc::new(Endpoint {
        graph,
        config,
        connections,
        gate,
        metrics,
        is_local: sign_in.is_some(),
        page: playground::page(sign_in),
    }))
}

async fn is_starting() -> Response {
    let body = r#"{"errors":[{"message":"The server is starting.","extensions":{"code":"UNAVAILABLE","retryAfter":1}}]}"#;
    let headers = [
        (
            CONTENT_TYPE,
            "application/graphql-response+json; charset=utf-8",
        ),
        (RETRY_AFTER, "1"),
    ];
    (StatusCode::SERVICE_UNAVAILABLE, headers, body).into_response()
}

async fn not_found() -> Response {
    (
        StatusCode::NOT_FOUND,
        "Not found. The API is at /graphql.\n",
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use axum::http::header::CONTENT_TYPE;

    use super::*;

    async fn panics() -> Response {
        panic!("{}", "postgres://secret")
    }

    #[tokio::test]
    async fn a_panic_of_any_route_reveals_only_the_request_id() {
        let routes = layered(Router::new().route("/other", get(panics)), None, None);
        let request = Request::get("/other").header("x-request-id", "7f");
        let request = request.body(Body::empty()).expect("a request");
        let Ok(response) = routes.oneshot(request).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers();
        assert_eq!(headers["x-request-id"], "7f");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(
            headers[CONTENT_TYPE],
            "application/graphql-response+json; charset=utf-8"
        );
        let body = to_bytes(response.into_body(), 1 << 10)
            .await
            .expect("bytes");
        assert_eq!(
            str::from_utf8(&body).expect("text"),
            serde_json::to_string(&Refusal::internal("7f".to_owned())).expect("JSON")
        );
    }
}
