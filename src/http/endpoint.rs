//! The handler of `/graphql`.

use std::borrow::Cow;
use std::sync::Arc;

use async_graphql::parser::types::OperationType;
use axum::body::BodyDataStream;
use axum::extract::Request;
use axum::http::header::ALLOW;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::future::join_all;
use gathering_schema::{Caller, Client, Operation, Params};
use tracing::Instrument;

use super::accept::prefer;
use super::body::{self, discard};
use super::client_address::Peer;
use super::guards::{must_be_json, must_be_local, must_not_be_forged, must_not_contain_key};
use super::headers::{IDEMPOTENCY_KEY, LAST_EVENT_ID, USAGE, bearer, text};
use super::media::{Media, OFFERS, STREAMS};
use super::outcome::{Outcome, Refusal};
use super::params::{Members, Payload};
use super::rate_headers::Quotas;
use super::respond::{answered, respond};
use super::state::{Endpoint, Started};
use super::{stream, ws};
use crate::trace;

/// The allowed methods of `/graphql`.
const METHODS: &str = "GET, HEAD, POST, OPTIONS";

/// Answers a request to `/graphql`.
pub(super) async fn graphql(
    endpoint: &Arc<Endpoint>,
    request: Request,
    client: Client,
    peer: &Peer,
) -> Response {
    let (head, body) = request.into_parts();
    let mut body = body.into_data_stream();
    let served = if let Err(refusal) = must_not_contain_key(head.uri.query()) {
        Err(refusal)
    } else if ws::is_upgrade(&head) {
        ws::upgrade(endpoint, &head, client, peer)
    } else {
        let sender = Sender {
            head: &head,
            client,
            peer,
        };
        endpoint.serve(&sender, &mut body).await
    };
    match served {
        Ok(response) => response,
        Err(refusal) => {
            discard(&head.headers, &mut body).await;
            refusal.into_response()
        }
    }
}

/// The sender of an operation: the head of its request, its client and its connection.
struct Sender<'a> {
    head: &'a Parts,
    client: Client,
    peer: &'a Peer,
}

impl Endpoint {
    async fn serve(
        &self,
        sender: &Sender<'_>,
        body: &mut BodyDataStream,
    ) -> Result<Response, Refusal> {
        let head = sender.head;
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
                        self.single(params, sender, media).await
                    }
                }
            }
            Method::POST => {
                let media = prefer(&head.headers, &OFFERS)?;
                must_be_json(&head.headers)?;
                let body = body::read(&self.config.server, body).await?;
                match Payload::parse(&body)? {
                    Payload::One(one) => self.single(one.into_params("")?, sender, media).await,
                    Payload::Batch(entries) => self.batch(entries, sender, media).await,
                }
            }
            Method::OPTIONS => Ok((StatusCode::NO_CONTENT, [(ALLOW, METHODS)]).into_response()),
            _ => Err(Refusal::method(METHODS, "Use GET or POST.")),
        }
    }

    /// Runs one operation and responds in the client's preferred media type: with a single response or a stream.
    async fn single(
        &self,
        params: Params,
        sender: &Sender<'_>,
        media: Media,
    ) -> Result<Response, Refusal> {
        let operation = match self.prepare(params, sender.head) {
            Ok(operation) => operation,
            Err(outcome) => return Ok(self.reply(outcome, media)),
        };
        let has_many = operation.kind() == OperationType::Subscription;
        let media = if has_many {
            prefer(&sender.head.headers, &STREAMS).map_err(|_| Refusal::many_answers())?
        } else {
            media
        };
        let caller = self.caller(&operation, sender)?;
        let permit = if has_many {
            Some(
                self.connections
                    .acquire(&caller.client)
                    .map_err(Refusal::full)?,
            )
        } else {
            None
        };
        let parent = self.parent(&sender.head.headers);
        let is_root = parent.is_none();
        let span = self.span(&operation, &sender.client, parent);
        if let Some(span) = span.as_ref().filter(|_| is_root) {
            trace::log_request(span);
        }
        let mut response = match self.start(operation, caller, span.as_ref()).await {
            Started::One(outcome) => self.reply(outcome, media),
            Started::Many {
                answers,
                quotas,
                watch,
            } => {
                let session = watch.map(|watch| (watch, sender.peer.guard.clone()));
                stream::response(self, media, answers, quotas, (permit, session))
            }
        };
        if let Some(span) = span {
            trace::answered(&span, &mut response);
        }
        Ok(response)
    }

    /// The response for one outcome.
    fn reply(&self, outcome: Outcome, media: Media) -> Response {
        let is_stream = STREAMS.contains(&media) && outcome.status(media) == StatusCode::OK;
        match outcome {
            outcome if is_stream => {
                let quotas = outcome.quotas().to_vec();
                let answers = futures_util::stream::iter([outcome]).boxed();
                stream::response(self, media, answers, quotas, (None, None))
            }
            Outcome::Answered(answer) => answered(&answer, media),
            Outcome::Refused(refusal) => refusal.into_response(),
        }
    }

    /// Runs the operations of a batch concurrently, or none if one of them is malformed.
    async fn batch(
        &self,
        entries: Vec<Members>,
        sender: &Sender<'_>,
        media: Media,
    ) -> Result<Response, Refusal> {
        let media = if STREAMS.contains(&media) {
            prefer(&sender.head.headers, &[Media::Json, Media::Response])?
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
                .map(|(entry, params)| self.run(params, entry, sender)),
        )
        .await;
        // If no operation ran, the whole batch is refused with the status of its first entry.
        let status = match outcomes.first() {
            Some(first) if !outcomes.iter().any(Outcome::ran) => first.status(media),
            _ => StatusCode::OK,
        };
        let retry_after = outcomes.iter().filter_map(Outcome::retry_after).max();
        let retry_after = retry_after.filter(|_| status != StatusCode::OK);
        let quotas = outcomes.iter().flat_map(Outcome::quotas).cloned();
        let quotas = Quotas(quotas.collect());
        let mut body = vec![b'['];
        for (place, outcome) in outcomes.iter().enumerate() {
            if place > 0 {
                body.push(b',');
            }
            outcome.write(&mut body);
        }
        body.push(b']');
        let mut response = respond(status, media, retry_after, body);
        response.extensions_mut().insert(quotas);
        Ok(response)
    }

    /// Runs one operation of a batch.
    async fn run(&self, params: Params, entry: usize, sender: &Sender<'_>) -> Outcome {
        let operation = match self.prepare(params, sender.head) {
            Ok(operation) => operation,
            Err(outcome) => return outcome,
        };
        if operation.kind() == OperationType::Subscription {
            return Refusal::many_answers().into();
        }
        match self.caller(&operation, sender) {
            Ok(caller) => {
                let caller = Caller {
                    batch_entry: Some(entry),
                    ..caller
                };
                let parent = self.parent(&sender.head.headers);
                let span = self.span(&operation, &sender.client, parent);
                let outcome = self.answer(operation, caller, span.as_ref());
                let outcome = outcome.instrument(trace::log_span(span.as_ref())).await;
                if let Some(span) = span {
                    span.end();
                }
                outcome
            }
            Err(refusal) => refusal.into(),
        }
    }

    /// Prepares an operation, and checks that its type is allowed for the HTTP method.
    fn prepare(&self, params: Params, head: &Parts) -> Result<Operation, Outcome> {
        let operation = self.parse_operation(params)?;
        if operation.kind() == OperationType::Mutation && head.method != Method::POST {
            return Err(Refusal::method("POST", "Mutations require the method POST.").into());
        }
        Ok(operation)
    }

    /// The caller of an operation, from the headers of its request.
    fn caller<'a>(
        &self,
        operation: &Operation,
        sender: &Sender<'a>,
    ) -> Result<Caller<'a>, Refusal> {
        let headers = &sender.head.headers;
        let text = |name| text(headers, name);
        let token = match bearer(headers) {
            Ok(token) => token,
            Err(_) if operation.signs_in() => None,
            Err(refusal) => return Err(refusal),
        };
        Ok(Caller {
            token,
            client: sender.client.clone(),
            usage: self.usage(text(USAGE)?.as_deref()),
            after: text(LAST_EVENT_ID)?.map(Cow::into_owned),
            idempotency_key: text(IDEMPOTENCY_KEY)?.map(Cow::into_owned),
            batch_entry: None,
            is_always_polled: operation.kind() == OperationType::Query,
        })
    }
}
