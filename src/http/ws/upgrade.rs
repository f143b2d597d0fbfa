//! From an HTTP request to a WebSocket.

use std::sync::{Arc, Mutex, PoisonError};

use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::BoxFuture;
use gathering_schema::Client;
use hyper::ext::Protocol;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tracing::Instrument;

use super::connection::{Connection, close_with};
use super::outgoing::{FRAGMENT, GATHERED, Socket};
use super::protocol::{Close, End};
use crate::http::client_address::Peer;
use crate::http::outcome::Refusal;
use crate::http::state::Endpoint;

/// The supported sub-protocol.
const PROTOCOL: &str = "graphql-transport-ws";

/// The version of the WebSocket protocol.
const VERSION: &str = "13";

/// The WebSocket session to run after the upgrade of an HTTP/1.1 connection: set by the upgrade request, and run by the
/// task that served the connection.
#[derive(Clone, Default)]
pub(crate) struct UpgradeTask(Arc<Mutex<Option<BoxFuture<'static, ()>>>>);

impl UpgradeTask {
    fn set(&self, work: BoxFuture<'static, ()>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(work);
    }

    /// Takes the session, if the connection was upgraded.
    pub(crate) fn take(&self) -> Option<BoxFuture<'static, ()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Whether a request opens a WebSocket: by an upgrade of HTTP/1.1, or on a stream of HTTP/2.
pub(crate) fn is_upgrade(head: &Parts) -> bool {
    let upgrades = head.method == Method::GET
        && names(head, &UPGRADE, "websocket")
        && names(head, &CONNECTION, "upgrade");
    upgrades || is_stream(head)
}

/// Whether a request opens a WebSocket on a stream of HTTP/2 (RFC 8441).
fn is_stream(head: &Parts) -> bool {
    let protocol = head.extensions.get::<Protocol>();
    head.method == Method::CONNECT && protocol.is_some_and(|name| name.as_str() == "websocket")
}

/// Whether a list header contains this name.
fn names(head: &Parts, header: &HeaderName, name: &str) -> bool {
    let lines = head.headers.get_all(header).iter();
    let mut entries = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','));
    entries.any(|entry| entry.trim().eq_ignore_ascii_case(name))
}

/// Upgrades a connection to WebSocket.
///
/// A script in a browser cannot read the response of a failed upgrade. Therefore errors that a client can handle are
/// sent as a close code after the upgrade.
pub(crate) fn upgrade(
    endpoint: &Arc<Endpoint>,
    head: &Parts,
    client: Client,
    peer: &Peer,
) -> Result<Response, Refusal> {
    endpoint.may_connect(&head.headers)?;
    let accepted = if is_stream(head) {
        StatusCode::OK.into_response()
    } else {
        switching_protocols(head)?
    };
    let version = head.headers.get(SEC_WEBSOCKET_VERSION);
    let (Some(upgrade), true) = (
        head.extensions.get::<OnUpgrade>().cloned(),
        version.is_some_and(|version| version == VERSION),
    ) else {
        let refusal = Refusal::new(
            StatusCode::UPGRADE_REQUIRED,
            "WebSocket version 13 is required.",
        );
        return Ok(([(SEC_WEBSOCKET_VERSION, VERSION)], refusal).into_response());
    };

    let is_ours = names(head, &SEC_WEBSOCKET_PROTOCOL, PROTOCOL);
    let permit = if is_ours {
        endpoint.connections.acquire(&client).map_err(Close::full)
    } else {
        Err(Close::new(4406, "Subprotocol not acceptable"))
    };
    let sender = (client, endpoint.parent(&head.headers));
    let endpoint = Arc::clone(endpoint);
    let work = async move {
        // The client disconnected before the upgrade.
        let Ok(io) = upgrade.await else {
            return;
        };
        let socket = open(&endpoint, io).await;
        match permit {
            Ok(permit) => {
                Connection::new(endpoint, sender, permit, socket)
                    .run()
                    .await;
            }
            Err(close) => close_with(&endpoint, socket, End::Close(close)).await,
        }
    };
    let work = work.in_current_span();
    if is_stream(head) {
        #[expect(
            clippy::disallowed_methods,
            reason = "the session ends with its connection, which waits for its streams"
        )]
        tokio::spawn(work);
    } else {
        peer.upgrade_task.set(Box::pin(work));
    }

    let mut response = accepted;
    if is_ours {
        let protocol = HeaderValue::from_static(PROTOCOL);
        response
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(response)
}

/// The response to an upgrade of HTTP/1.1.
fn switching_protocols(head: &Parts) -> Result<Response, Refusal> {
    let key = head.headers.get(SEC_WEBSOCKET_KEY).filter(|key| {
        let key = BASE64_STANDARD.decode(key.as_bytes());
        key.is_ok_and(|key| key.len() == 16)
    });
    let key = key.ok_or_else(|| Refusal::bad("Sec-WebSocket-Key must be 16 bytes in base64."))?;
    let headers = [
        (CONNECTION, HeaderValue::from_static("upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
    ];
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, headers).into_response();
    if let Ok(accept) = HeaderValue::try_from(derive_accept_key(key.as_bytes())) {
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok(response)
}

async fn open(endpoint: &Endpoint, io: Upgraded) -> Socket {
    let longest = endpoint.config.subscriptions.message_bytes;
    let config = WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .write_buffer_size(GATHERED)
        .max_write_buffer_size(2 * FRAGMENT)
        .max_message_size(Some(longest))
        .max_frame_size(Some(longest));
    WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, Some(config)).await
}
