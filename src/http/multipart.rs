//! Apollo's multipart subscriptions. A boundary follows each part, which tells the client that the part is complete.

use axum::body::Bytes;

use super::outcome::Outcome;

pub(super) fn beginning() -> Bytes {
    Bytes::from_static(b"\r\n--graphql")
}

/// Appends an event of a subscription, in the envelope of Apollo's protocol.
pub(super) fn answer(outcome: &Outcome, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\nContent-Type: application/json\r\n\r\n{\"payload\":");
    if outcome.ran() {
        outcome.write(out);
        out.push(b'}');
    } else {
        // An error ends the stream: its members, of which `errors` is one, follow the payload in the envelope.
        out.extend_from_slice(b"null");
        let brace = out.len();
        outcome.write(out);
        out[brace] = b',';
    }
    out.extend_from_slice(b"\r\n--graphql");
}

pub(super) fn sign_of_life() -> Bytes {
    Bytes::from_static(b"\r\nContent-Type: application/json\r\n\r\n{}\r\n--graphql")
}

pub(super) fn end() -> Bytes {
    Bytes::from_static(b"--\r\n")
}
