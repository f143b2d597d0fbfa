//! Response streams over HTTP: Server-Sent Events (GraphQL over SSE, distinct connections mode) and Apollo's multipart
//! subscriptions.
//!
//! Nothing is read ahead: the body is polled for its next chunk when the socket has accepted the previous ones, and
//! only then is the subscription polled for its next response. A stream that completes sends a final message; a stream
//! that ends because of a shutdown does not, so that clients reconnect and resume.

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
use tokio::time::sleep;

use super::media::Media;
use super::outcome::Outcome;
use super::rate_headers::Quotas;
use super::state::Endpoint;
use super::write_guard::WriteGuard;
use super::{multipart, sse};
use crate::connections::{ConnectionPermit, Counted, Gauge};

/// Size up to which data that is ready is combined into one write, in bytes.
const GATHERED: usize = 8 << 10;

struct Stream {
    form: Form,
    answers: BoxStream<'static, Outcome>,
    stage: Stage,
    keep_alive: Duration,
    draining: BoxFuture<'static, ()>,
    /// The session of the stream, and the guard that holds back its events once the session has ended.
    session: Option<(Watch, Option<WriteGuard>)>,
    _permit: Option<ConnectionPermit>,
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

/// Builds the response whose body streams these answers. The permit is held as long as the body; after the session has
/// ended, no event is sent.
pub(crate) fn response(
    endpoint: &Endpoint,
    media: Media,
    answers: BoxStream<'static, Outcome>,
    quotas: Vec<QuotaStatus>,
    (permit, session): (
        Option<ConnectionPermit>,
        Option<(Watch, Option<WriteGuard>)>,
    ),
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
        draining: Box::pin(endpoint.connections.draining()),
        session,
        _permit: permit,
        _counted: endpoint.connections.count(gauge),
    };
    let pieces = unfold(stream, |mut stream| async {
        let piece = stream.next().await?;
        Some((piece, stream))
    });
    let headers = [
        (CONTENT_TYPE, media.content_type()),
        (CACHE_CONTROL, "no-store"),
        (VARY, "Accept"),
        // Disables the response buffering of proxies.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    let body = Body::from_stream(pieces.map(Ok::<_, axum::Error>));
    let mut response = (headers, body).into_response();
    if !quotas.is_empty() {
        response.extensions_mut().insert(Quotas(quotas));
    }
    response
}

impl Stream {
    /// The next chunk of the body.
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

/// Waits for an answer, and adds all answers that are ready.
async fn gather(
    answers: &mut BoxStream<'static, Outcome>,
    form: Form,
    stage: &mut Stage,
    session: Option<&(Watch, Option<WriteGuard>)>,
) -> Bytes {
    if let Some((_, Some(guard))) = session {
        guard.written().await;
    }
    loop {
        let (mut piece, mut last) = (Vec::new(), Vec::new());
        let mut next = answers.next().await;
        loop {
            match &next {
                Some(outcome) if outcome.ran() => form.answer(outcome, &mut piece),
                Some(outcome) => form.answer(outcome, &mut last),
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
                // The last message, after these events, reports the end of the session.
                piece.clear();
            } else if let Some(guard) = guard {
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
            Self::Events => sse::beginning(),
            Self::Multipart => multipart::beginning(),
        }
    }

    fn answer(self, outcome: &Outcome, out: &mut Vec<u8>) {
        match self {
            Self::Events => sse::event(outcome, out),
            Self::Multipart => multipart::answer(outcome, out),
        }
    }

    fn sign_of_life(self) -> Bytes {
        match self {
            Self::Events => sse::sign_of_life(),
            Self::Multipart => multipart::sign_of_life(),
        }
    }

    fn end(self) -> Bytes {
        match self {
            Self::Events => sse::end(),
            Self::Multipart => multipart::end(),
        }
    }
}
