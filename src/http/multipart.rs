//! Apollo's multipart subscriptions.

use axum::body::Bytes;
use serde::Serialize;

use super::outcome::Outcome;
use super::respond::json;

/// An event of a subscription, in the envelope of Apollo's protocol.
#[derive(Serialize)]
struct Part<'a> {
    payload: &'a Outcome,
}

/// The error that ends a subscription.
#[derive(Serialize)]
struct Failure<'a> {
    payload: (),
    #[serde(flatten)]
    error: &'a Outcome,
}

/// Formats a part followed by the boundary, which tells the client that the part is complete.
fn part(content: &impl Serialize) -> Bytes {
    let mut text = b"\r\nContent-Type: application/json\r\n\r\n".to_vec();
    text.extend(json(content));
    text.extend_from_slice(b"\r\n--graphql");
    text.into()
}

pub(super) fn beginning() -> Bytes {
    Bytes::from_static(b"\r\n--graphql")
}

pub(super) fn answer(outcome: &Outcome) -> Bytes {
    if outcome.ran() {
        part(&Part { payload: outcome })
    } else {
        // An error ends the stream.
        part(&Failure {
            payload: (),
            error: outcome,
        })
    }
}

pub(super) fn sign_of_life() -> Bytes {
    part(&serde_json::Map::new())
}

pub(super) fn end() -> Bytes {
    Bytes::from_static(b"--\r\n")
}
