//! Answers one after another in one HTTP response: Server-Sent Events (GraphQL over SSE, distinct connections mode) and
//! Apollo's multipart subscriptions.
//!
//! The rule: nothing is read ahead. The body is asked for its next piece when the socket has taken the ones before, and
//! only then is the subscription asked for its next answer. A stream that came to its end says so; one that ends because
//! the server does stops without a word, so that clients connect again, and go on where they were.

use std::task::Poll;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderName;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, VARY};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, unfold};
use futures_util::{StreamExt, poll};
use gathering_schema::Watch;
use gathering_schema::rate_limit::QuotaStatus;
use serde::Serialize;
use tokio::time::sleep;

use crate::guard::WriteGuard;
use crate::http::{Endpoint, Media, Outcome};
use crate::rate::Standings;
use crate::seat::{Counted, Gauge, Seat};

/// How long a browser that lost its stream waits before it connects again, in milliseconds.
const RETRY: u64 = 2_000;

/// How much of what is ready at the same time is gathered before the socket is given it, in bytes.
const GATHERED: usize = 8 << 10;

struct Stream {
    form: Form,
    answers: BoxStream<'static, Outcome>,
    stage: Stage,
    keep_alive: Duration,
    draining: BoxFuture<'static, ()>,
    /// The session that the answers belong to, and what keeps them when it has ended.
    session: Option<(Watch, WriteGuard)>,
    _seat: Option<Seat>,
    _counted: Counted,
}

#[derive(Clone, Copy)]
enum Form {
    Events,
    Multipart,
}

#[derive(Clone, Copy)]
enum Stage {
    Begins,
    Goes,
    Ended,
}

/// The response whose body is these answers. The seat is kept as long as the body is; when the session has ended, no event
/// is sent any more.
pub(crate) fn response(
    endpoint: &Endpoint,
    media: Media,
    answers: BoxStream<'static, Outcome>,
    standings: Vec<QuotaStatus>,
    (seat, session): (Option<Seat>, Option<(Watch, WriteGuard)>),
) -> Response {
    let (form, gauge) = match media {
        Media::Multipart => (Form::Multipart, Gauge::Multipart),
        _ => (Form::Events, Gauge::Events),
    };
    let stream = Stream {
        form,
        answers,
        stage: Stage::Begins,
        keep_alive: endpoint.config.subscriptions.keep_alive,
        draining: Box::pin(endpoint.seats.draining()),
        session,
        _seat: seat,
        _counted: endpoint.seats.count(gauge),
    };
    let pieces = unfold(stream, |mut stream| async {
        let piece = stream.next().await?;
        Some((piece, stream))
    });
    let headers = [
        (CONTENT_TYPE, media.content_type()),
        (CACHE_CONTROL, "no-store"),
        (VARY, "Accept"),
        // Proxies that collect a response before they pass it on are asked not to.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    let body = Body::from_stream(pieces.map(Ok::<_, axum::Error>));
    let mut response = (headers, body).into_response();
    if !standings.is_empty() {
        response.extensions_mut().insert(Standings(standings));
    }
    response
}

impl Stream {
    /// The next piece of the body.
    async fn next(&mut self) -> Option<Bytes> {
        match self.stage {
            Stage::Begins => {
                self.stage = Stage::Goes;
                Some(self.form.beginning())
            }
            Stage::Goes => {
                tokio::select! {
                    biased;
                    () = &mut self.draining => None,
                    piece = gather(&mut self.answers, self.form, &mut self.stage, self.session.as_ref()) => {
                        Some(piece)
                    }
                    () = sleep(self.keep_alive) => Some(self.form.sign_of_life()),
                }
            }
            Stage::Ended => None,
        }
    }
}

/// Waits for an answer, and takes what is ready with it.
async fn gather(
    answers: &mut BoxStream<'static, Outcome>,
    form: Form,
    stage: &mut Stage,
    session: Option<&(Watch, WriteGuard)>,
) -> Bytes {
    if let Some((_, guard)) = session {
        guard.written().await;
    }
    loop {
        let (mut piece, mut last) = (Vec::new(), Vec::new());
        let mut next = answers.next().await;
        loop {
            match &next {
                Some(outcome) if outcome.ran() => piece.extend(form.answer(outcome)),
                Some(outcome) => last.extend(form.answer(outcome)),
                None => {
                    *stage = Stage::Ended;
                    last.extend(form.end());
                    break;
                }
            }
            if piece.len() >= GATHERED {
                break;
            }
            next = match poll!(answers.next()) {
                Poll::Ready(next) => next,
                Poll::Pending => break,
            };
        }
        if let Some((watch, guard)) = session.filter(|_| !piece.is_empty()) {
            if watch.has_ended() {
                // What comes behind these events says that the session has ended.
                piece.clear();
            } else {
                guard.hold(watch);
            }
        }
        piece.extend(last);
        if !piece.is_empty() {
            return piece.into();
        }
    }
}

impl Form {
    fn beginning(self) -> Bytes {
        match self {
            Self::Events => format!("retry: {RETRY}\n\n").into(),
            Self::Multipart => "\r\n--graphql".into(),
        }
    }

    fn answer(self, outcome: &Outcome) -> Bytes {
        match self {
            Self::Events => event(outcome),
            Self::Multipart if outcome.ran() => part(&Part { payload: outcome }),
            // What is no event of the subscription ends it.
            Self::Multipart => part(&Failure {
                payload: (),
                error: outcome,
            }),
        }
    }

    fn sign_of_life(self) -> Bytes {
        match self {
            Self::Events => ":\n\n".into(),
            Self::Multipart => part(&serde_json::Map::new()),
        }
    }

    fn end(self) -> Bytes {
        match self {
            Self::Events => "event: complete\ndata:\n\n".into(),
            Self::Multipart => "--\r\n".into(),
        }
    }
}

/// An answer of a subscription, as Apollo's protocol wraps it.
#[derive(Serialize)]
struct Part<'a> {
    payload: &'a Outcome,
}

/// Why a subscription cannot go on.
#[derive(Serialize)]
struct Failure<'a> {
    payload: (),
    #[serde(flatten)]
    error: &'a Outcome,
}

/// An event, named by the cursor from which a client can go on.
fn event(outcome: &Outcome) -> Bytes {
    let mut text = Vec::new();
    // A line break would begin another field.
    let cursor = outcome
        .cursor()
        .filter(|id| !id.contains(['\r', '\n', '\0']));
    if let Some(cursor) = cursor {
        text.extend_from_slice(format!("id: {cursor}\n").as_bytes());
    }
    text.extend_from_slice(b"event: next\ndata: ");
    text.extend(json(outcome));
    text.extend_from_slice(b"\n\n");
    text.into()
}

/// A part, with the boundary behind it: only that tells a reader that the part is complete.
fn part(content: &impl Serialize) -> Bytes {
    let mut text = b"\r\nContent-Type: application/json\r\n\r\n".to_vec();
    text.extend(json(content));
    text.extend_from_slice(b"\r\n--graphql");
    text.into()
}

fn json(content: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(content).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer cannot be written as JSON");
        b"{}".to_vec()
    })
}
