//! Server-Sent Events (GraphQL over SSE, distinct connections mode).

use axum::body::Bytes;

use super::outcome::Outcome;

/// How long a browser waits before it reconnects a lost stream, in milliseconds.
const RETRY: u64 = 2_000;

/// Appends an event, with the cursor for resuming as its id.
pub(super) fn event(outcome: &Outcome, out: &mut Vec<u8>) {
    // A line break would start another field.
    let cursor = outcome
        .cursor()
        .filter(|id| !id.contains(['\r', '\n', '\0']));
    if let Some(cursor) = cursor {
        out.extend_from_slice(format!("id: {cursor}\n").as_bytes());
    }
    out.extend_from_slice(b"event: next\ndata: ");
    outcome.write(out);
    out.extend_from_slice(b"\n\n");
}

pub(super) fn beginning() -> Bytes {
    format!("retry: {RETRY}\n\n").into()
}

pub(super) fn sign_of_life() -> Bytes {
    Bytes::from_static(b":\n\n")
}

pub(super) fn end() -> Bytes {
    Bytes::from_static(b"event: complete\ndata:\n\n")
}
