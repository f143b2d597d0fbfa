//! The body of a request: read within bounds, or thrown away.

use std::time::Duration;

use axum::body::{BodyDataStream, HttpBody};
use axum::http::header::EXPECT;
use axum::http::{HeaderMap, StatusCode};
use futures_util::StreamExt;
use gathering_schema::Code;
use tokio::time::timeout;

use super::outcome::Refusal;
use crate::config;

/// Reads a body within the limits of size and time.
pub(super) async fn read(
    settings: &config::Server,
    body: &mut BodyDataStream,
) -> Result<Vec<u8>, Refusal> {
    let limit = settings.body_limit;
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
    timeout(settings.body_timeout, whole)
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

/// Reads and discards a part of a refused request's body. Most clients send the whole body before they read the
/// response; closing the connection early would hide it from them. A client that sent `Expect` waits for permission to
/// send its body, so nothing is read.
pub(super) async fn discard(headers: &HeaderMap, body: &mut BodyDataStream) {
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
