//! The routes of the server, and what every request passes on the way to them.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::FutureExt;
use gathering_schema::{Client, Graph};
use tower::{ServiceBuilder, ServiceExt};
use tower_http::cors::CorsLayer;
use tracing::Instrument;

use super::body::discard;
use super::client_address::Peer;
use super::compression;
use super::cors::cors;
use super::endpoint::graphql;
use super::gate::{Gate, Route};
use super::outcome::Refusal;
use super::rate_headers;
use super::security_headers::harden;
use super::state::Endpoint;
use crate::config::Config;
use crate::connections::ConnectionLimit;
use crate::metrics::Metrics;
use crate::playground::{self, SignIn};
use crate::telemetry::RequestId;
use crate::trace::Traces;

/// The routes of the server.
///
/// Requests for the graph pass no boxed layer and no router: for a short query, these cost as much as its execution.
pub struct Routes {
    /// The graph at `/graphql`; `None` while the server starts.
    endpoint: Option<Arc<Endpoint>>,
    others: Router,
    cors: Option<CorsLayer>,
    /// The limit of the address, before the request is parsed.
    gate: Option<Gate>,
}

impl Routes {
    /// The routes while the server starts: health, and 503 for everything else.
    pub fn starting(health: Router) -> Self {
        Self {
            endpoint: None,
            others: health.fallback(is_starting),
            cors: None,
            gate: None,
        }
    }

    /// The routes of a started server: the graph at `/graphql`, the playground's assets below it, `/`, which redirects
    /// browsers there, and `others`.
    ///
    /// With `sign_in`, the playground signs its users in as that user.
    pub fn serving(
        graph: Graph,
        config: Config,
        sign_in: Option<&SignIn>,
        connections: ConnectionLimit,
        gate: Gate,
        (metrics, traces): (Metrics, Option<Traces>),
        others: Router,
    ) -> Self {
        let mut others = others.fallback(not_found);
        if config.server.playground {
            others = others
                .route("/", get(playground::home))
                .route("/graphql/assets/{name}", get(playground::asset));
        }
        let cors = cors(&config.server.cors_origins);
        let endpoint = Arc::new(Endpoint {
            graph,
            config,
            connections,
            gate: gate.clone(),
            metrics,
            traces,
            is_local: sign_in.is_some(),
            page: playground::page(sign_in),
        });
        Self {
            endpoint: Some(endpoint),
            others,
            cors,
            gate: Some(gate),
        }
    }

    /// Answers a request. A panic is answered with `INTERNAL` and the request id; its text is only logged.
    pub async fn answer(&self, request: Request, peer: &Peer) -> Response {
        let id = RequestId::of(&request);
        let span = id.span(&request);
        let answer = AssertUnwindSafe(self.encode(request, &id, peer)).catch_unwind();
        let answered = answer.instrument(span.clone()).await;
        let mut response =
            answered.unwrap_or_else(|_| Refusal::internal(id.as_str().to_owned()).into_response());
        span.in_scope(|| tracing::debug!(status = response.status().as_u16(), "answered"));
        harden(&mut response);
        id.write(&mut response);
        response
    }

    /// Compresses the response in a coding that the client accepts, and adds the headers of CORS.
    async fn encode(&self, mut request: Request, id: &RequestId, peer: &Peer) -> Response {
        let accepts_coding = request.headers().contains_key(ACCEPT_ENCODING);
        if !accepts_coding && self.cors.is_none() {
            return self.admit(request, id, peer).await;
        }
        compression::allow_identity(&mut request);
        let service = ServiceBuilder::new()
            .layer(compression::layer())
            // CORS comes before the gate: preflights are free, and a script can read a refusal of the gate.
            .option_layer(self.cors.clone())
            .service_fn(async |request| Ok::<_, Infallible>(self.admit(request, id, peer).await));
        match service.oneshot(request).await {
            Ok(response) => response.map(Body::new),
            Err(never) => match never {},
        }
    }

    /// Admits a request, or responds with 429.
    async fn admit(&self, request: Request, id: &RequestId, peer: &Peer) -> Response {
        let Some(gate) = &self.gate else {
            return self.route(request, Client::default(), peer).await;
        };
        let client = gate.client(&request, id, peer);
        match gate.check(client.address, Route::of(request.uri().path())) {
            Ok(entered) => {
                let mut response = self.route(request, client, peer).await;
                rate_headers::add(entered, &mut response);
                response
            }
            Err(status) => {
                let (head, body) = request.into_parts();
                discard(&head.headers, &mut body.into_data_stream()).await;
                let mut response = Refusal::rate_limited(status.clone()).into_response();
                rate_headers::write(&[status], response.headers_mut());
                response
            }
        }
    }

    async fn route(&self, request: Request, client: Client, peer: &Peer) -> Response {
        match &self.endpoint {
            Some(endpoint) if request.uri().path() == "/graphql" => {
                graphql(endpoint, request, client, peer).await
            }
            _ => match self.others.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
        }
    }
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
        let routes = Routes::starting(Router::new().route("/other", get(panics)));
        let request = Request::get("/other").header("x-request-id", "7f");
        let request = request.body(Body::empty()).expect("a request");
        let peer = Peer::new(([127, 0, 0, 1], 7).into(), true);
        let response = routes.answer(request, &peer).await;
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
