//! GraphQL over HTTP at `/graphql`: from a request's bytes to the graph's answer and back.
//!
//! The rule: whatever is sent, what comes back is a GraphQL response whose wording is ours. An answer with status 200
//! has the media type that the client prefers; any other status goes as `application/graphql-response+json`, because
//! popular clients drop the body of a failed response that is plain `application/json`. What can be refused is refused
//! before it costs anything: first by headers, then by size, then by shape, and only then by the graph.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_graphql::parser::types::OperationType;
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST,
    ORIGIN, REFERRER_POLICY, RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt};
use gathering_schema::{Answer, Caller, Code, Graph, Params};
use percent_encoding::percent_decode_str;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::playground;

/// What the transport is told by the configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// Largest request body, in bytes.
    pub body_limit: usize,
    /// Most operations in one batch; 0 refuses every batch.
    pub batch: usize,
    /// Whether `X-Gathering-Usage: 1` is honoured.
    pub usage: bool,
}

/// The routes of the graph: `/graphql`, the playground's assets below it, and `/`, which leads a browser there.
pub fn routes(graph: Graph, options: Options) -> Router {
    Router::new()
        .route("/", get(playground::home))
        .route("/graphql", any(graphql))
        .route("/graphql/assets/{name}", get(playground::asset))
        .layer(map_response(harden))
        .with_state(Arc::new(Endpoint { graph, options }))
}

/// Gives a response the security headers it does not have: nothing is sniffed, framed, referred to or embedded.
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

struct Endpoint {
    graph: Graph,
    options: Options,
}

async fn graphql(State(endpoint): State<Arc<Endpoint>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    match endpoint.serve(&head, body).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

impl Endpoint {
    async fn serve(&self, head: &Parts, body: Body) -> Result<Response, Refusal> {
        match head.method {
            Method::GET | Method::HEAD => {
                match prefer(&head.headers, &[Media::Json, Media::Response, Media::Html])? {
                    Media::Html => Ok(playground::page()),
                    media => {
                        if forged(&head.headers) {
                            return Err(Refusal::forged());
                        }
                        let params = Members::from_url(head.uri.query().unwrap_or_default())?
                            .into_params("")?;
                        self.one(params, head, media).await
                    }
                }
            }
            Method::POST => {
                let media = prefer(&head.headers, &[Media::Json, Media::Response])?;
                must_be_json(&head.headers)?;
                let body = read(body, self.options.body_limit).await?;
                match Payload::parse(&body)? {
                    Payload::One(members) => self.one(members.into_params("")?, head, media).await,
                    Payload::Batch(entries) => self.batch(entries, head, media).await,
                }
            }
            Method::OPTIONS => Ok((StatusCode::NO_CONTENT, [(ALLOW, METHODS)]).into_response()),
            _ => Err(Refusal {
                allow: Some(METHODS),
                ..Refusal::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "Send queries by GET or POST and mutations by POST.",
                )
            }),
        }
    }

    async fn one(&self, params: Params, head: &Parts, media: Media) -> Result<Response, Refusal> {
        let answer = self.answer(params, head).await?;
        Ok(respond(
            status(&answer, media),
            media,
            answer.retry_after(),
            &answer,
        ))
    }

    /// Runs the operations of a batch side by side. Nothing runs unless each entry is well formed.
    async fn batch(
        &self,
        entries: Vec<Members>,
        head: &Parts,
        media: Media,
    ) -> Result<Response, Refusal> {
        let most = self.options.batch;
        if most == 0 {
            return Err(Refusal::bad("This server takes one operation per request."));
        }
        if entries.is_empty() || entries.len() > most {
            return Err(Refusal::bad(format!(
                "A batch holds 1 to {most} operations, not {}.",
                entries.len()
            )));
        }
        let operations = entries
            .into_iter()
            .enumerate()
            .map(|(index, members)| members.into_params(&format!("[{index}].")))
            .collect::<Result<Vec<_>, _>>()?;
        let answers =
            join_all(operations.into_iter().map(|params| async {
                self.answer(params, head).await.unwrap_or_else(Answer::from)
            }))
            .await;
        let refused = answers.iter().all(|answer| !answer.has_data());
        let first = answers.first().filter(|_| refused);
        Ok(respond(
            first.map_or(StatusCode::OK, |answer| status(answer, media)),
            media,
            first.and_then(Answer::retry_after),
            &answers,
        ))
    }

    /// Runs one operation if its method and transport allow it. A panic in it ends as `INTERNAL`.
    async fn answer(&self, params: Params, head: &Parts) -> Result<Answer, Refusal> {
        let operation = match self.graph.prepare(params) {
            Ok(operation) => operation,
            Err(answer) => return Ok(answer),
        };
        match operation.kind() {
            OperationType::Mutation if head.method != Method::POST => Err(Refusal {
                allow: Some("POST"),
                ..Refusal::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "A mutation must be sent by POST.",
                )
            }),
            OperationType::Subscription => Err(Refusal::new(
                StatusCode::NOT_ACCEPTABLE,
                "A subscription has no single answer.",
            )),
            _ => {
                let caller = Caller {
                    viewer: None,
                    usage: self.options.usage && head.headers.get(USAGE).is_some_and(|v| v == "1"),
                    request_id: String::new(),
                };
                let request_id = caller.request_id.clone();
                AssertUnwindSafe(self.graph.execute(operation, caller))
                    .catch_unwind()
                    .await
                    .map_err(|_| {
                        tracing::error!(request_id, "an operation panicked");
                        Refusal {
                            code: Code::Internal,
                            ..Refusal::new(
                                StatusCode::INTERNAL_SERVER_ERROR,
                                format!("Something went wrong (request {request_id})."),
                            )
                        }
                    })
            }
        }
    }
}

const METHODS: &str = "GET, HEAD, POST, OPTIONS";
const USAGE: &str = "x-gathering-usage";

/// A request that is turned away before the graph has seen it.
struct Refusal {
    status: StatusCode,
    code: Code,
    message: Cow<'static, str>,
    allow: Option<&'static str>,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            code: Code::BadUserInput,
            message: message.into(),
            allow: None,
        }
    }

    fn bad(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn forged() -> Self {
        Self {
            code: Code::Forbidden,
            ..Self::new(
                StatusCode::FORBIDDEN,
                "A request from another site must carry the header GraphQL-Require-Preflight.",
            )
        }
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::refusal(refusal.code, refusal.message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, allow, .. } = self;
        let mut response = respond(status, Media::Response, None, &Answer::from(self));
        if let Some(allow) = allow {
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

/// The status of an answer: what ran is 200; a request error says why to clients of
/// `application/graphql-response+json`, and to all where caches, proxies and retrying clients must know.
fn status(answer: &Answer, media: Media) -> StatusCode {
    if answer.has_data() {
        return StatusCode::OK;
    }
    match answer.code() {
        Some(Code::RateLimited) => StatusCode::TOO_MANY_REQUESTS,
        Some(Code::Unavailable) => StatusCode::SERVICE_UNAVAILABLE,
        Some(Code::Timeout) => StatusCode::GATEWAY_TIMEOUT,
        Some(Code::Internal) => StatusCode::INTERNAL_SERVER_ERROR,
        _ if media == Media::Json => StatusCode::OK,
        _ => StatusCode::BAD_REQUEST,
    }
}

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
            tracing::error!(%error, "an answer cannot be written as JSON");
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
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// The forms in which `/graphql` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Media {
    Json,
    Response,
    Html,
}

impl Media {
    fn essence(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Response => "application/graphql-response+json",
            Self::Html => "text/html",
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json; charset=utf-8",
            Self::Response => "application/graphql-response+json; charset=utf-8",
            Self::Html => "text/html; charset=utf-8",
        }
    }

    /// How exactly a media range names this type: 3 in full, 2 by its first half, 1 as `*/*`.
    fn matched_by(self, range: &str) -> Option<u8> {
        let essence = self.essence();
        if range.eq_ignore_ascii_case(essence) {
            return Some(3);
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

/// Picks the offer that `Accept` weighs highest; of equals the one it names more exactly, then the one it names first,
/// then the earlier offer.
fn prefer(headers: &HeaderMap, offers: &[Media]) -> Result<Media, Refusal> {
    let ranges: Vec<(&str, f32)> = headers
        .get_all(ACCEPT)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or("?").split(','))
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(|item| {
            let mut parts = item.split(';').map(str::trim);
            let range = parts.next().unwrap_or_default();
            let weight = parts
                .filter_map(|part| part.split_once('='))
                .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
                .map_or(1.0, |(_, q)| q.trim().parse().unwrap_or(0.0));
            (range, weight)
        })
        .collect();
    if ranges.is_empty()
        && let Some(&first) = offers.first()
    {
        return Ok(first);
    }
    offers
        .iter()
        .rev()
        .filter_map(|&offer| {
            ranges
                .iter()
                .enumerate()
                .filter_map(|(place, &(range, weight))| {
                    let exact = offer.matched_by(range)?;
                    Some((exact, Reverse(place), weight))
                })
                .max_by_key(|&(exact, place, _)| (exact, place))
                .filter(|&(.., weight)| weight > 0.0)
                .map(|(exact, place, weight)| (offer, weight, exact, place))
        })
        .max_by(|a, b| a.1.total_cmp(&b.1).then((a.2, a.3).cmp(&(b.2, b.3))))
        .map(|(offer, ..)| offer)
        .ok_or_else(|| {
            Refusal::new(
                StatusCode::NOT_ACCEPTABLE,
                "Accept application/graphql-response+json or application/json.",
            )
        })
}

/// Whether a browser may have sent this on behalf of another site without asking first (by a CORS preflight).
///
/// A POST needs no such check: it must be JSON, and JSON is never sent unasked. A GET runs queries only, so a forged one
/// changes nothing and its answer stays hidden from the other site, but it still spends the victim's work and budget.
/// Browsers say where a request comes from (`Sec-Fetch-Site`, older ones `Origin`), and other programs send neither:
/// those may use plain GET, as the GraphQL-over-HTTP specification lets them. A header that cannot be set without a
/// preflight shows that there was one.
fn forged(headers: &HeaderMap) -> bool {
    const PREFLIGHTED: [&str; 3] = [
        "graphql-require-preflight",
        "apollo-require-preflight",
        "x-apollo-operation-name",
    ];
    if PREFLIGHTED.iter().any(|name| headers.contains_key(*name)) || must_be_json(headers).is_ok() {
        return false;
    }
    if let Some(site) = headers.get("sec-fetch-site") {
        return site != "same-origin" && site != "none";
    }
    headers.get(ORIGIN).is_some_and(|origin| {
        let origin = origin.to_str().ok().and_then(|o| o.split_once("://"));
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        origin.map(|(_, authority)| authority) != host
    })
}

/// Refuses a body that is not JSON in UTF-8, sent as it is.
fn must_be_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let mut parts = content_type.split(';').map(str::trim);
    let json = parts
        .next()
        .is_some_and(|essence| essence.eq_ignore_ascii_case(Media::Json.essence()));
    let utf8 = parts
        .filter_map(|part| part.split_once('='))
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))
        .all(|(_, charset)| {
            charset
                .trim()
                .trim_matches('"')
                .eq_ignore_ascii_case("utf-8")
        });
    let plain = headers
        .get(CONTENT_ENCODING)
        .is_none_or(|coding| coding == "identity");
    if json && utf8 && plain {
        Ok(())
    } else {
        Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Send the operation as Content-Type: application/json, in UTF-8 and not compressed.",
        ))
    }
}

/// Reads a body that is no longer than it may be.
async fn read(body: Body, limit: usize) -> Result<Vec<u8>, Refusal> {
    let too_large = || {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("The body must not be longer than {limit} bytes."),
        )
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Refusal::bad("The body could not be read to its end."))?;
        if bytes.len() + chunk.len() > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// A body's JSON before its members are checked.
enum Payload {
    One(Members),
    Batch(Vec<Members>),
}

impl Payload {
    fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let text =
            str::from_utf8(body).map_err(|_| Refusal::bad("The body must be valid UTF-8."))?;
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
                "The body must be valid JSON; it is not at line {line}, column {column}."
            ))
        })
    }
}

/// What a request says, in its order and with repetitions.
struct Members(Vec<(String, Value)>);

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
    /// The parameters of a GET; an empty one counts as absent.
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
                _ if value.is_empty() => continue,
                "variables" | "extensions" => serde_json::from_str(&value)
                    .map_err(|_| Refusal::bad(format!("`{name}` must be valid JSON.")))?,
                _ => Value::String(value),
            };
            members.push((name, value));
        }
        Ok(Self(members))
    }

    /// Checks what the members hold; `place` stands before their names in errors. Unknown ones are passed over, as the
    /// specification keeps them for its future; a repeated one is refused, as two readers could disagree on it.
    fn into_params(self, place: &str) -> Result<Params, Refusal> {
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
                return Err(Refusal::bad(format!("`{place}{name}` is given twice.")));
            }
        }
        let text = |name, value| match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Refusal::bad(format!("`{place}{name}` must be a string."))),
        };
        let object = |name, value| match value {
            None | Some(Value::Null) => Ok(None),
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
