//! GraphQL over HTTP at `/graphql`: parses requests, runs operations and writes responses.
//!
//! Every response is a GraphQL response with our own messages. With status 200, it has the media type that the client
//! prefers. With any other status, it is `application/graphql-response+json`, because popular clients drop the body of
//! a failed response of type `application/json`. Invalid requests are refused as early as possible: first by header,
//! then by size, then by structure, and only then by the graph.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_graphql::parser::types::OperationType;
use axum::Router;
use axum::body::{BodyDataStream, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, EXPECT, HOST, ORIGIN, REFERRER_POLICY, RETRY_AFTER, VARY, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use gathering_schema::rate_limit::QuotaStatus;
use gathering_schema::{Answer, Caller, Client, Code, Graph, Operation, Params, Usage, Watch};
use percent_encoding::percent_decode_str;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use tokio::time::timeout;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::config::{self, Config};
use crate::guard::WriteGuard;
use crate::playground::{self, Page, SignIn};
use crate::rate::{self, Standings};
use crate::seat::{Full, Seats};
use crate::{stream, ws};

/// The routes of the graph: `/graphql`, the playground's assets below it, and `/`, which redirects browsers there.
///
/// With `sign_in`, the playground signs its users in as that user.
pub fn routes(graph: Graph, config: Config, sign_in: Option<&SignIn>, seats: Seats) -> Router {
    let mut routes = Router::new().route("/graphql", any(graphql));
    if config.server.playground {
        routes = routes
            .route("/", get(playground::home))
            .route("/graphql/assets/{name}", get(playground::asset));
    }
    routes.with_state(Arc::new(Endpoint {
        graph,
        config,
        seats,
        is_local: sign_in.is_some(),
        page: playground::page(sign_in),
    }))
}

/// Allows scripts of the configured origins to call the server. Tokens are sent in headers, never in cookies, so a
/// browser adds no credentials on its own.
pub fn cors(origins: &config::Origins) -> Option<CorsLayer> {
    let origins = match origins.0.as_slice() {
        [] => return None,
        [all] if all == "*" => AllowOrigin::any(),
        some => AllowOrigin::list(some.iter().filter_map(|origin| origin.parse().ok())),
    };
    Some(
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(ALLOWED.map(HeaderName::from_static))
            .expose_headers(
                [RETRY_AFTER, HeaderName::from_static("x-request-id")]
                    .into_iter()
                    .chain(rate::HEADERS)
                    .collect::<Vec<_>>(),
            )
            .max_age(PREFLIGHT_AGE),
    )
}

/// Adds missing security headers: no sniffing, no framing, no referrer, no embedding.
pub async fn harden(mut response: Response) -> Response {
    const HEADERS: [(HeaderName, &str); 4] = [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ];
    for (name, value) in HEADERS {
        response
            .headers_mut()
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    response
}

/// How long a browser may cache the result of a CORS preflight.
const PREFLIGHT_AGE: Duration = Duration::from_hours(1);

/// Headers that require a CORS preflight.
const PREFLIGHTED: [&str; 4] = [
    "graphql-require-preflight",
    "apollo-require-preflight",
    "x-apollo-operation-name",
    "authorization",
];

/// Headers that cross-origin scripts may send: those that the server reads, and those that GraphQL clients and tracing
/// libraries add. Headers of proxies, such as `X-Forwarded-For`, are not among them.
const ALLOWED: [&str; 31] = [
    "accept",
    "authorization",
    "cache-control",
    "content-type",
    IDEMPOTENCY_KEY,
    LAST_EVENT_ID,
    USAGE,
    "graphql-require-preflight",
    "apollo-require-preflight",
    "apollographql-client-name",
    "apollographql-client-version",
    "x-apollo-operation-id",
    "x-apollo-operation-name",
    "x-graphql-client-name",
    "x-graphql-client-version",
    "x-graphql-event-stream-token",
    "x-requested-with",
    "x-request-id",
    "x-correlation-id",
    "traceparent",
    "tracestate",
    "baggage",
    "sentry-trace",
    "b3",
    "x-b3-sampled",
    "x-b3-spanid",
    "x-b3-traceid",
    "x-datadog-origin",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "x-datadog-trace-id",
];

/// The idempotency key of a mutation.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The header with the id of the last event that the client of a stream received.
const LAST_EVENT_ID: &str = "last-event-id";

/// The header that requests the usage of an operation.
const USAGE: &str = "x-gathering-usage";

/// State shared by the transports of the graph.
pub(crate) struct Endpoint {
    pub(crate) graph: Graph,
    pub(crate) config: Config,
    pub(crate) seats: Seats,
    /// Whether the playground signs every visitor in, so that only requests to a local address are accepted.
    is_local: bool,
    page: Page,
}

/// The peer address of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// The access token, from the header only: URLs end up in logs and browser histories.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (given.next(), given.next()) else {
        return if headers.contains_key(AUTHORIZATION) {
            Err(Refusal::unauthenticated(
                "Send one Authorization header, not several.",
            ))
        } else {
            Ok(None)
        };
    };
    let token = value.to_str().ok().and_then(token_in);
    token
        .map(Some)
        .ok_or_else(|| Refusal::unauthenticated(NO_BEARER))
}

/// The value of a header that may occur once. Bytes that are not UTF-8 become replacement characters, so that the value
/// is refused as unknown instead of being treated as absent.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<Cow<'a, str>>, Refusal> {
    let mut given = headers.get_all(name).iter();
    match (given.next(), given.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => Ok(Some(String::from_utf8_lossy(value.as_bytes()))),
        _ => Err(Refusal::bad(format!("Send the header `{name}` only once."))),
    }
}

/// The error message for an authorization without a token.
pub(crate) const NO_BEARER: &str = "Authorization must be `Bearer` followed by an access token.";

/// The token of a `Bearer` authorization.
pub(crate) fn token_in(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

async fn graphql(State(endpoint): State<Arc<Endpoint>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let mut body = body.into_data_stream();
    let served = if ws::is_asked_for(&head) {
        ws::upgrade(&endpoint, &head)
    } else {
        endpoint.serve(&head, &mut body).await
    };
    match served {
        Ok(response) => response,
        Err(refusal) => {
            discard(&head.headers, &mut body).await;
            refusal.into_response()
        }
    }
}

/// Reads and discards a part of a refused request's body. Most clients send the whole body before they read the
/// response; closing the connection early would hide it from them. A client that sent `Expect` waits for permission to
/// send its body, so nothing is read.
async fn discard(headers: &HeaderMap, body: &mut BodyDataStream) {
    const MOST: usize = 8 << 20;
    const LONGEST: Duration = Duration::from_secs(1);
    let rest = async {
        let mut discarded = 0;
        while discarded < MOST
            && let Some(Ok(chunk)) = body.next().await
        {
            discarded += chunk.len();
        }
    };
    if !headers.contains_key(EXPECT) {
        let _ = timeout(LONGEST, rest).await;
    }
}

impl Endpoint {
    /// Refuses a WebSocket from a page that may not connect.
    ///
    /// # Errors
    /// The page is of another origin, or the request names a host that is not local although only local ones are
    /// accepted.
    pub(crate) fn may_connect(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.is_local {
            must_be_local(headers)?;
        }
        must_be_allowed(headers, &self.config.server.cors_origins)
    }

    async fn serve(&self, head: &Parts, body: &mut BodyDataStream) -> Result<Response, Refusal> {
        if self.is_local {
            must_be_local(&head.headers)?;
        }
        match head.method {
            Method::GET | Method::HEAD => {
                let offers: &[Media] = if self.config.server.playground {
                    &[
                        Media::Json,
                        Media::Response,
                        Media::Html,
                        Media::Events,
                        Media::Multipart,
                    ]
                } else {
                    &OFFERS
                };
                match prefer(&head.headers, offers)? {
                    Media::Html => Ok(self.page.response()),
                    media => {
                        must_not_be_forged(&head.headers)?;
                        let query = head.uri.query().unwrap_or_default();
                        let params = Members::from_url(query)?.into_params("")?;
                        self.single(params, head, media).await
                    }
                }
            }
            Method::POST => {
                let media = prefer(&head.headers, &OFFERS)?;
                must_be_json(&head.headers)?;
                let body = self.read(body).await?;
                match Payload::parse(&body)? {
                    Payload::One(one) => self.single(one.into_params("")?, head, media).await,
                    Payload::Batch(entries) => self.batch(entries, head, media).await,
                }
            }
            Method::OPTIONS => Ok((StatusCode::NO_CONTENT, [(ALLOW, METHODS)]).into_response()),
            _ => Err(Refusal::method(METHODS, "Use GET or POST.")),
        }
    }

    /// Reads a body within the limits of size and time.
    async fn read(&self, body: &mut BodyDataStream) -> Result<Vec<u8>, Refusal> {
        let limit = self.config.server.body_limit;
        let too_large = || {
            Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("The body must not be longer than {limit} bytes."),
            )
        };
        if body.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        let whole = async {
            let mut bytes = Vec::new();
            while let Some(chunk) = body.next().await {
                let chunk = chunk.map_err(|_| Refusal::bad("The body ended too early."))?;
                if bytes.len() + chunk.len() > limit {
                    return Err(too_large());
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes)
        };
        timeout(self.config.server.body_timeout, whole)
            .await
            .unwrap_or_else(|_| {
                Err(Refusal {
                    code: Code::Timeout,
                    ..Refusal::new(
                        StatusCode::REQUEST_TIMEOUT,
                        "The body was not received in time.",
                    )
                })
            })
    }

    /// Runs one operation and responds in the client's preferred media type: with a single response or a stream.
    async fn single(
        &self,
        params: Params,
        head: &Parts,
        media: Media,
    ) -> Result<Response, Refusal> {
        let operation = match self.prepare(params, head) {
            Ok(operation) => operation,
            Err(outcome) => return Ok(self.reply(outcome, media)),
        };
        let has_many = operation.kind() == OperationType::Subscription;
        let media = if has_many {
            prefer(&head.headers, &STREAMS).map_err(|_| Refusal::many_answers())?
        } else {
            media
        };
        let caller = self.caller(&operation, head)?;
        let seat = if has_many {
            Some(self.seats.take(&caller.client).map_err(Refusal::full)?)
        } else {
            None
        };
        Ok(match self.start(operation, caller).await {
            Started::One(outcome) => self.reply(outcome, media),
            Started::Many {
                answers,
                standings,
                watch,
            } => {
                let guard = head
                    .extensions
                    .get::<WriteGuard>()
                    .cloned()
                    .unwrap_or_default();
                let session = watch.map(|watch| (watch, guard));
                stream::response(self, media, answers, standings, (seat, session))
            }
        })
    }

    /// The response for one outcome.
    fn reply(&self, outcome: Outcome, media: Media) -> Response {
        let is_stream = STREAMS.contains(&media) && outcome.status(media) == StatusCode::OK;
        match outcome {
            outcome if is_stream => {
                let standings = outcome.standings().to_vec();
                let answers = futures_util::stream::iter([outcome]).boxed();
                stream::response(self, media, answers, standings, (None, None))
            }
            Outcome::Answered(answer) => answered(&answer, media),
            Outcome::Refused(refusal) => refusal.into_response(),
        }
    }

    /// Runs the operations of a batch concurrently, or none if one of them is malformed.
    async fn batch(
        &self,
        entries: Vec<Members>,
        head: &Parts,
        media: Media,
    ) -> Result<Response, Refusal> {
        let media = if STREAMS.contains(&media) {
            prefer(&head.headers, &[Media::Json, Media::Response])?
        } else {
            media
        };
        let (count, most) = (entries.len(), self.config.graphql.batch);
        if most == 0 {
            return Err(Refusal::bad(
                "This server accepts one operation per request, not a batch.",
            ));
        }
        if !(1..=most).contains(&count) {
            return Err(Refusal::bad(format!(
                "A batch must contain 1 to {most} operations, not {count}."
            )));
        }
        let mut operations = Vec::with_capacity(count);
        for (place, members) in entries.into_iter().enumerate() {
            operations.push(members.into_params(&format!("[{place}]."))?);
        }
        let outcomes: Vec<Outcome> = join_all(
            operations
                .into_iter()
                .enumerate()
                .map(|(entry, params)| self.run(params, entry, head)),
        )
        .await;
        // If no operation ran, the whole batch is refused with the status of its first entry.
        let status = match outcomes.first() {
            Some(first) if !outcomes.iter().any(Outcome::ran) => first.status(media),
            _ => StatusCode::OK,
        };
        let retry_after = outcomes.iter().filter_map(Outcome::retry_after).max();
        let retry_after = retry_after.filter(|_| status != StatusCode::OK);
        let standings = outcomes.iter().flat_map(Outcome::standings).cloned();
        let standings = Standings(standings.collect());
        let mut response = respond(status, media, retry_after, &outcomes);
        response.extensions_mut().insert(standings);
        Ok(response)
    }

    /// Runs one operation of a batch.
    async fn run(&self, params: Params, entry: usize, head: &Parts) -> Outcome {
        let operation = match self.prepare(params, head) {
            Ok(operation) => operation,
            Err(outcome) => return outcome,
        };
        if operation.kind() == OperationType::Subscription {
            return Refusal::many_answers().into();
        }
        match self.caller(&operation, head) {
            Ok(caller) => {
                let caller = Caller {
                    batch_entry: Some(entry),
                    ..caller
                };
                self.answer(operation, caller).await
            }
            Err(refusal) => refusal.into(),
        }
    }

    /// Prepares an operation, and checks that its type is allowed for the HTTP method.
    fn prepare(&self, params: Params, head: &Parts) -> Result<Operation, Outcome> {
        let operation = self.graph.prepare(params)?;
        if operation.kind() == OperationType::Mutation && head.method != Method::POST {
            return Err(Refusal::method("POST", "Mutations require the method POST.").into());
        }
        Ok(operation)
    }

    /// The caller of an operation, from the headers of its request.
    fn caller<'a>(&self, operation: &Operation, head: &'a Parts) -> Result<Caller<'a>, Refusal> {
        let text = |name| text(&head.headers, name);
        let token = match bearer(&head.headers) {
            Ok(token) => token,
            Err(_) if operation.signs_in() => None,
            Err(refusal) => return Err(refusal),
        };
        Ok(Caller {
            token,
            client: head.extensions.get::<Client>().cloned().unwrap_or_default(),
            usage: self.usage(text(USAGE)?.as_deref()),
            after: text(LAST_EVENT_ID)?.map(Cow::into_owned),
            idempotency_key: text(IDEMPOTENCY_KEY)?.map(Cow::into_owned),
            batch_entry: None,
        })
    }

    /// Whether the response contains the usage, given the value of the client's usage header.
    pub(crate) fn usage(&self, asked: Option<&str>) -> Usage {
        match self.config.graphql.usage {
            config::Usage::Everyone if asked == Some("1") => Usage::On,
            config::Usage::Admin if asked == Some("1") => Usage::Admin,
            _ => Usage::Off,
        }
    }

    /// Runs a query or a mutation, or starts a subscription.
    pub(crate) async fn start(&self, operation: Operation, caller: Caller<'_>) -> Started {
        if operation.kind() != OperationType::Subscription {
            return Started::One(self.answer(operation, caller).await);
        }
        let request_id = caller.client.request_id.clone();
        let started = guarded(self.graph.subscribe(operation, caller), request_id.clone()).await;
        match started {
            Ok(Ok(answers)) => {
                let standings = answers.standings().to_vec();
                let watch = answers.watch();
                let answers = AssertUnwindSafe(answers).catch_unwind();
                let outcome = move |answer: Result<Answer, _>| match answer {
                    Ok(answer) => answer.into(),
                    Err(_) => Refusal::internal(request_id.clone()).into(),
                };
                Started::Many {
                    answers: answers.map(outcome).boxed(),
                    standings,
                    watch,
                }
            }
            Ok(Err(answer)) => Started::One(answer.into()),
            Err(refusal) => Started::One(refusal.into()),
        }
    }

    async fn answer(&self, operation: Operation, caller: Caller<'_>) -> Outcome {
        let request_id = caller.client.request_id.clone();
        match guarded(self.graph.answer(operation, caller), request_id).await {
            Ok(answer) => answer.into(),
            Err(refusal) => refusal.into(),
        }
    }
}

/// A started operation.
pub(crate) enum Started {
    /// It has completed or was refused.
    One(Outcome),
    /// It continues until its stream ends.
    Many {
        answers: BoxStream<'static, Outcome>,
        /// The client's quotas.
        standings: Vec<QuotaStatus>,
        /// The session of the subscription.
        watch: Option<Watch>,
    },
}

/// Converts a panic into an `INTERNAL` error of its own request.
async fn guarded<T>(work: impl Future<Output = T>, request_id: String) -> Result<T, Refusal> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.map_err(|_| Refusal::internal(request_id))
}

/// The allowed methods of `/graphql`.
const METHODS: &str = "GET, HEAD, POST, OPTIONS";

/// An error of a request that did not reach the graph.
pub(crate) struct Refusal {
    status: StatusCode,
    code: Code,
    message: Cow<'static, str>,
    /// For 405: the allowed methods.
    allow: Option<&'static str>,
    /// Seconds after which the client may retry.
    retry_after: Option<u64>,
    /// For `INTERNAL`: the id to search for in the log.
    request_id: Option<String>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            code: Code::BadUserInput,
            message: message.into(),
            allow: None,
            retry_after: None,
            request_id: None,
        }
    }

    pub(crate) fn bad(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn unauthenticated(message: &'static str) -> Self {
        Self {
            code: Code::Unauthenticated,
            ..Self::new(StatusCode::UNAUTHORIZED, message)
        }
    }

    fn method(allow: &'static str, message: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::new(StatusCode::METHOD_NOT_ALLOWED, message)
        }
    }

    /// The client does not accept a stream for a subscription.
    fn many_answers() -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "A subscription returns a stream of responses: accept text/event-stream or multipart/mixed;subscriptionSpec=1.0, or connect by WebSocket (graphql-transport-ws).",
        )
    }

    /// The limit of connections is reached.
    fn full(full: Full) -> Self {
        Self {
            code: Code::Unavailable,
            retry_after: Some(FULL_RETRY),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, full.reason())
        }
    }

    /// The human-readable message.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    fn internal(request_id: String) -> Self {
        Self {
            code: Code::Internal,
            request_id: Some(request_id),
            ..Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Internal server error. Please report the request id.",
            )
        }
    }
}

/// Seconds after which a client should retry to open a connection; open connections last long.
const FULL_RETRY: u64 = 5;

impl Serialize for Refusal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Error<'a> {
            message: &'a str,
            extensions: Extensions<'a>,
        }

        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Extensions<'a> {
            code: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            retry_after: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            request_id: Option<&'a str>,
        }

        let error = Error {
            message: &self.message,
            extensions: Extensions {
                code: self.code.as_str(),
                retry_after: self.retry_after,
                request_id: self.request_id.as_deref(),
            },
        };
        serializer.collect_map([("errors", [error])])
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = respond(self.status, Media::Response, self.retry_after, &self);
        if let Some(allow) = self.allow {
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

/// The result of an operation, or one event of a subscription.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Outcome {
    Answered(Answer),
    Refused(Refusal),
}

impl From<Answer> for Outcome {
    fn from(answer: Answer) -> Self {
        Self::Answered(answer)
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Outcome {
    fn standings(&self) -> &[QuotaStatus] {
        match self {
            Self::Answered(answer) => answer.standings(),
            Self::Refused(_) => &[],
        }
    }

    /// The code of its first error.
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Answered(answer) => answer.code(),
            Self::Refused(refusal) => Some(refusal.code),
        }
    }

    /// The cursor after which the subscription can be resumed.
    pub(crate) fn cursor(&self) -> Option<&str> {
        match self {
            Self::Answered(answer) => answer.cursor(),
            Self::Refused(_) => None,
        }
    }

    /// Whether it has a `data` entry.
    pub(crate) fn ran(&self) -> bool {
        matches!(self, Self::Answered(answer) if answer.has_data())
    }

    fn status(&self, media: Media) -> StatusCode {
        match self {
            Self::Answered(answer) => status(answer, media),
            Self::Refused(refusal) => refusal.status,
        }
    }

    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Answered(answer) => answer.retry_after(),
            Self::Refused(_) => None,
        }
    }
}

fn answered(answer: &Answer, media: Media) -> Response {
    let retry_after = answer.retry_after().filter(|_| !answer.has_data());
    let mut response = respond(status(answer, media), media, retry_after, answer);
    if !answer.standings().is_empty() {
        let standings = Standings(answer.standings().to_vec());
        response.extensions_mut().insert(standings);
    }
    response
}

/// The response to a request that the rate limiter refused.
pub async fn refused(request: Request, answer: &Answer) -> Response {
    let (head, body) = request.into_parts();
    discard(&head.headers, &mut body.into_data_stream()).await;
    answered(answer, Media::Response)
}

/// The status of a response. With data, it is 200. A request error has its own status for clients of
/// `application/graphql-response+json`, and for all clients if caches, proxies or retries depend on it.
fn status(answer: &Answer, media: Media) -> StatusCode {
    if answer.has_data() {
        return StatusCode::OK;
    }
    match answer.code() {
        Some(Code::Unauthenticated) => StatusCode::UNAUTHORIZED,
        Some(Code::Forbidden) => StatusCode::FORBIDDEN,
        Some(Code::RateLimited) => StatusCode::TOO_MANY_REQUESTS,
        Some(Code::Unavailable) => StatusCode::SERVICE_UNAVAILABLE,
        Some(Code::Timeout) => StatusCode::GATEWAY_TIMEOUT,
        Some(Code::Internal) => StatusCode::INTERNAL_SERVER_ERROR,
        // In GraphQL over SSE, the stream also carries request errors.
        _ if matches!(media, Media::Json | Media::Events) => StatusCode::OK,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// The challenge for an invalid token (RFC 6750).
const CHALLENGE: &str = r#"Bearer realm="gathering", error="invalid_token""#;

fn respond(
    status: StatusCode,
    media: Media,
    retry_after: Option<u64>,
    answer: &impl Serialize,
) -> Response {
    let media = if status == StatusCode::OK {
        media
    } else {
        Media::Response
    };
    let body = match serde_json::to_vec(answer) {
        Ok(body) => body,
        Err(error) => {
            tracing::error!(%error, "a response cannot be serialized as JSON");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    let mut response = (
        status,
        [
            (CONTENT_TYPE, media.content_type()),
            (CACHE_CONTROL, "no-store"),
            (VARY, "Accept"),
        ],
        body,
    )
        .into_response();
    if status == StatusCode::UNAUTHORIZED {
        let headers = response.headers_mut();
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
    }
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// The media types of responses at `/graphql`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Media {
    Json,
    Response,
    Html,
    /// Server-Sent Events.
    Events,
    /// Parts of one response, as in Apollo's multipart subscriptions.
    Multipart,
}

/// Media types for a query or mutation.
const OFFERS: [Media; 4] = [
    Media::Json,
    Media::Response,
    Media::Events,
    Media::Multipart,
];

/// Media types for a subscription.
const STREAMS: [Media; 2] = [Media::Events, Media::Multipart];

impl Media {
    fn essence(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Response => "application/graphql-response+json",
            Self::Html => "text/html",
            Self::Events => "text/event-stream",
            Self::Multipart => "multipart/mixed",
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json; charset=utf-8",
            Self::Response => "application/graphql-response+json; charset=utf-8",
            Self::Html => "text/html; charset=utf-8",
            Self::Events => "text/event-stream; charset=utf-8",
            Self::Multipart => "multipart/mixed; boundary=\"graphql\"; subscriptionSpec=1.0",
        }
    }

    /// How precisely a media range matches this type: 3 for the full name, 2 for `type/*`, 1 for `*/*`. Streams match
    /// only by their full name: a client that accepts everything does not expect a stream.
    fn matched_by(self, range: &str, parameters: &str) -> Option<u8> {
        let essence = self.essence();
        if range.eq_ignore_ascii_case(essence) {
            // `multipart/mixed` has other uses.
            let fits =
                self != Self::Multipart || parameter(parameters, "subscriptionSpec") == Some("1.0");
            return fits.then_some(3);
        }
        if STREAMS.contains(&self) {
            return None;
        }
        match range.strip_suffix("/*")? {
            "*" => Some(1),
            kind => essence
                .split_once('/')
                .is_some_and(|(first, _)| first.eq_ignore_ascii_case(kind))
                .then_some(2),
        }
    }
}

/// Picks the offer with the highest weight in `Accept`. Ties are resolved by the more specific range, then by the
/// earlier range, then by the earlier offer.
fn prefer(headers: &HeaderMap, offers: &[Media]) -> Result<Media, Refusal> {
    // A value that is not text matches no type, but is not the same as a missing header.
    let lines: Vec<_> = headers
        .get_all(ACCEPT)
        .iter()
        .map(|line| String::from_utf8_lossy(line.as_bytes()))
        .collect();
    let accept = Some(lines.join(",")).filter(|accept| !accept.trim().is_empty());
    let ranges: Vec<(&str, &str, f32)> = accept
        .as_deref()
        .unwrap_or("*/*")
        .split(',')
        .map(weighed)
        .collect();
    let rank = |offer: Media| {
        let matches =
            ranges
                .iter()
                .enumerate()
                .filter_map(|(place, &(range, parameters, weight))| {
                    Some((offer.matched_by(range, parameters)?, Reverse(place), weight))
                });
        // The most specific range decides, even if it refuses the type.
        let (exact, place, weight) = matches.max_by_key(|&(exact, place, _)| (exact, place))?;
        (weight > 0.0).then_some((offer, weight, (exact, place)))
    };
    let best = offers.iter().rev().filter_map(|&offer| rank(offer));
    best.max_by(|a, b| a.1.total_cmp(&b.1).then(a.2.cmp(&b.2)))
        .map(|(offer, ..)| offer)
        .ok_or_else(|| {
            Refusal::new(
                StatusCode::NOT_ACCEPTABLE,
                "Accept application/graphql-response+json or application/json.",
            )
        })
}

/// A media range of `Accept`, with its parameters and its weight `q`.
fn weighed(item: &str) -> (&str, &str, f32) {
    let (range, parameters) = item.split_once(';').unwrap_or((item, ""));
    let weight = parameter(parameters, "q");
    let weight = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
    (range.trim(), parameters, weight)
}

/// A parameter of a media range.
fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = parameters
        .split(';')
        .filter_map(|pair| pair.split_once('='));
    pairs
        .find(|(known, _)| known.trim().eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim().trim_matches('"'))
}

/// Refuses a request that a browser may have sent for another origin without a CORS preflight (CSRF).
///
/// A POST is safe: it must be JSON, which requires a preflight. A GET only runs queries, so a forged one changes
/// nothing and its response stays hidden from the other origin; but it would use resources and the rate limit of its
/// victim. Browsers state the origin of a request in `Sec-Fetch-Site` or at least in `Origin`. Other programs send
/// neither and may use plain GET, as in the GraphQL-over-HTTP specification. A header that requires a preflight proves
/// that there was one.
fn must_not_be_forged(headers: &HeaderMap) -> Result<(), Refusal> {
    if is_own(headers)
        || PREFLIGHTED.iter().any(|name| headers.contains_key(*name))
        || must_be_json(headers).is_ok()
    {
        return Ok(());
    }
    Err(Refusal {
        code: Code::Forbidden,
        ..Refusal::new(
            StatusCode::FORBIDDEN,
            "A cross-site GET requires the header GraphQL-Require-Preflight.",
        )
    })
}

/// Whether a request comes from a page of this server, or from a client other than a browser.
fn is_own(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => origin.split_once("://").map(|(_, host)| host) == text("host"),
        (None, None) => true,
    }
}

/// Refuses a WebSocket from another origin, unless that origin is allowed by CORS.
///
/// The server reads no cookies, so such a page has no credentials of its visitor. But CORS does not apply to WebSocket
/// connections: the page could read responses, using the rate limit of its visitor and from behind the visitor's
/// firewall. Therefore an origin may connect exactly if it may send requests.
fn must_be_allowed(headers: &HeaderMap, allowed: &config::Origins) -> Result<(), Refusal> {
    let origin = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok());
    let is_listed = |listed: &String| listed == "*" || Some(listed.as_str()) == origin;
    if is_own(headers) || allowed.0.iter().any(is_listed) {
        return Ok(());
    }
    Err(Refusal {
        code: Code::Forbidden,
        ..Refusal::new(
            StatusCode::FORBIDDEN,
            "This origin is not allowed to call this server.",
        )
    })
}

/// Refuses a request to a host name other than `localhost` (DNS rebinding).
///
/// A server that signs its visitors in listens on a local address, but a browser on this machine also runs pages of
/// other sites. A page whose host name resolves to this machine would have the same origin as the server. Therefore
/// host names are refused; IP addresses cannot be rebound.
fn must_be_local(headers: &HeaderMap) -> Result<(), Refusal> {
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let name = host.rsplit_once(':').map_or(
        host,
        |(name, port)| if port.ends_with(']') { host } else { name },
    );
    let address = name.trim_start_matches('[').trim_end_matches(']');
    if name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err(Refusal {
        code: Code::Forbidden,
        ..Refusal::new(
            StatusCode::MISDIRECTED_REQUEST,
            "The host name must be localhost or an IP address.",
        )
    })
}

/// Refuses a body that is not JSON in UTF-8 without content encoding.
fn must_be_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let content_type = match (types.next(), types.next()) {
        (Some(one), None) => one.to_str().unwrap_or_default(),
        _ => "",
    };
    let mut parts = content_type.split(';').map(str::trim);
    let json = parts
        .next()
        .is_some_and(|essence| essence.eq_ignore_ascii_case(Media::Json.essence()));
    let utf8 = parts
        .filter_map(|part| part.split_once('='))
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))
        .all(|(_, charset)| {
            let charset = charset.trim().trim_matches('"');
            // `utf8` is not a registered name, but a label of the Encoding Standard, and common.
            ["utf-8", "utf8"]
                .iter()
                .any(|utf8| charset.eq_ignore_ascii_case(utf8))
        });
    let plain = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if json && utf8 && plain {
        Ok(())
    } else {
        Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Send the operation as Content-Type: application/json, in UTF-8 and not compressed.",
        ))
    }
}

/// The JSON of a body, before its members are checked.
enum Payload {
    One(Members),
    Batch(Vec<Members>),
}

impl Payload {
    fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let text =
            str::from_utf8(body).map_err(|_| Refusal::bad("The body must be valid UTF-8."))?;
        let text = unmarked(text);
        let parsed = match text.trim_ascii_start().as_bytes().first() {
            None => return Err(Refusal::bad("The body is empty; send a JSON object.")),
            Some(b'[') => serde_json::from_str(text).map(Self::Batch),
            Some(_) => serde_json::from_str(text).map(Self::One),
        };
        parsed.map_err(|error| {
            if error.is_data() {
                return Refusal::bad("An operation must be a JSON object.");
            }
            let (line, column) = (error.line(), error.column());
            Refusal::bad(format!(
                "The body is not valid JSON: syntax error at line {line}, column {column}."
            ))
        })
    }
}

/// A JSON text without its optional byte-order mark.
pub(crate) fn unmarked(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// The members of a request in order, including duplicates.
pub(crate) struct Members(pub(crate) Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

impl Members {
    /// The parameters of a GET.
    fn from_url(query: &str) -> Result<Self, Refusal> {
        let decode = |text: &str| {
            percent_decode_str(&text.replace('+', " "))
                .decode_utf8()
                .map(Cow::into_owned)
                .map_err(|_| Refusal::bad("The URL's parameters must be valid UTF-8."))
        };
        let mut members = Vec::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            let value = match name.as_str() {
                "variables" | "extensions" if !value.is_empty() => {
                    serde_json::from_str(unmarked(&value))
                        .map_err(|_| Refusal::bad(format!("`{name}` must be valid JSON.")))?
                }
                _ => Value::String(value),
            };
            members.push((name, value));
        }
        Ok(Self(members))
    }

    /// Validates the members; `place` is the prefix of their names in errors. Unknown members are ignored: the
    /// specification reserves them. A duplicate is refused, because parsers may disagree on which one counts. An empty
    /// string counts as absent on every transport, because a URL parameter cannot be null.
    pub(crate) fn into_params(self, place: &str) -> Result<Params, Refusal> {
        let [
            mut query,
            mut operation_name,
            mut variables,
            mut extensions,
            mut document_id,
        ] = [const { None }; 5];
        for (name, value) in self.0 {
            let slot = match name.as_str() {
                "query" => &mut query,
                "operationName" => &mut operation_name,
                "variables" => &mut variables,
                "extensions" => &mut extensions,
                "documentId" => &mut document_id,
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(Refusal::bad(format!(
                    "`{place}{name}` occurs more than once."
                )));
            }
        }
        let is_absent = |value: &Value| value.is_null() || value == "";
        let text = |name, value: Option<Value>| match value.filter(|value| !is_absent(value)) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Refusal::bad(format!("`{place}{name}` must be a string."))),
        };
        let object = |name, value: Option<Value>| match value.filter(|value| !is_absent(value)) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(Refusal::bad(format!("`{place}{name}` must be an object."))),
        };
        let params = Params {
            query: text("query", query)?,
            operation_name: text("operationName", operation_name)?,
            variables: object("variables", variables)?,
            extensions: object("extensions", extensions)?,
            document_id: text("documentId", document_id)?,
        };
        let named = params.document_id.is_some()
            || params
                .extensions
                .as_ref()
                .is_some_and(|extensions| extensions.contains_key("persistedQuery"));
        if params.query.is_none() && !named {
            return Err(Refusal::bad(format!("`{place}query` is missing.")));
        }
        Ok(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_shows_the_request_id_and_nothing_else() {
        let work = async { panic!("{}", "postgres://secret") };
        let refusal = guarded::<()>(work, "7f".to_owned())
            .await
            .expect_err("refused");
        assert_eq!(refusal.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(
            serde_json::to_string(&refusal).expect("JSON"),
            r#"{"errors":[{"message":"Internal server error. Please report the request id.","extensions":{"code":"INTERNAL","requestId":"7f"}}]}"#
        );
    }
}
