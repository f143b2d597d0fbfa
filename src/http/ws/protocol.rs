//! The messages of `graphql-transport-ws`, and the codes that end a connection.

use std::borrow::Cow;
use std::io::ErrorKind;

use gathering_schema::Answer;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::error::ProtocolError;

use crate::connections::Full;
use crate::http::outcome::Outcome;
use crate::http::params::unmarked;
use crate::http::respond::json;

/// Maximum length of an operation's id, in characters.
const LONGEST_ID: usize = 100;

/// How a connection ends.
pub(super) enum End {
    /// The server closes it.
    Close(Close),
    /// The client closed it.
    Closed,
    /// It was lost, or the client stopped responding.
    Lost,
}

/// The close code and reason.
pub(super) struct Close {
    pub(super) code: u16,
    pub(super) reason: Cow<'static, str>,
}

impl Close {
    pub(super) fn new(code: u16, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }

    /// An invalid message.
    pub(super) fn invalid(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(4400, reason)
    }

    pub(super) fn full(full: Full) -> Self {
        let code = match full {
            Full::Client(_) | Full::Server => 1013,
            Full::Draining => 1012,
        };
        Self::new(code, full.reason())
    }

    /// The session was revoked or has ended.
    pub(super) fn revoked() -> Self {
        let (_, message) = errors(&Answer::session_ended().into());
        Self::new(4403, message)
    }

    pub(super) fn slow() -> Self {
        Self::new(1013, "Client too slow. Reconnect and resume.")
    }

    /// The close code for an error of the library; `None` if the connection was lost.
    pub(super) fn of(error: &Error, longest: usize) -> Option<Self> {
        match error {
            Error::Capacity(_) => Some(Self::new(
                1009,
                format!("A message must not be longer than {longest} bytes."),
            )),
            Error::Utf8(_) => Some(Self::new(1007, "A message must be valid UTF-8.")),
            // The client disconnected without a closing handshake.
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
            Error::Protocol(_) => Some(Self::new(1002, "WebSocket protocol error.")),
            // The operating system's write timeout expired before ours.
            Error::Io(error) if error.kind() == ErrorKind::TimedOut => Some(Self::slow()),
            _ => None,
        }
    }
}

impl From<Close> for End {
    fn from(close: Close) -> Self {
        Self::Close(close)
    }
}

/// A message from the client.
pub(super) enum Incoming {
    Init(Map<String, Value>),
    Ping(Option<Value>),
    Pong,
    Subscribe {
        id: String,
        payload: Map<String, Value>,
    },
    Complete {
        id: String,
    },
}

impl Incoming {
    pub(super) fn parse(text: &str) -> Result<Self, Close> {
        let message = serde_json::from_str(unmarked(text))
            .map_err(|_| Close::invalid("A message must be valid JSON."))?;
        let Value::Object(mut message) = message else {
            return Err(Close::invalid("A message must be a JSON object."));
        };
        let Some(Value::String(kind)) = message.remove("type") else {
            return Err(Close::invalid(
                "A message must have a `type` of type string.",
            ));
        };
        let payload = message.remove("payload");
        match kind.as_str() {
            "connection_init" => Ok(Self::Init(optional(payload)?.unwrap_or_default())),
            "ping" => {
                let is_given = payload.is_some();
                let payload = optional(payload)?;
                let echo = payload.map_or(Value::Null, Value::Object);
                Ok(Self::Ping(is_given.then_some(echo)))
            }
            "pong" => optional(payload).map(|_| Self::Pong),
            "subscribe" => match payload {
                Some(Value::Object(payload)) => Ok(Self::Subscribe {
                    id: id(&mut message)?,
                    payload,
                }),
                _ => Err(Close::invalid("`payload` must be an object.")),
            },
            "complete" => Ok(Self::Complete {
                id: id(&mut message)?,
            }),
            _ => Err(Close::invalid(
                "`type` must be one of connection_init, ping, pong, subscribe and complete.",
            )),
        }
    }
}

fn optional(payload: Option<Value>) -> Result<Option<Map<String, Value>>, Close> {
    match payload {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(payload)) => Ok(Some(payload)),
        Some(_) => Err(Close::invalid("`payload` must be an object, or absent.")),
    }
}

fn id(message: &mut Map<String, Value>) -> Result<String, Close> {
    match message.remove("id") {
        Some(Value::String(id)) if !id.is_empty() && id.chars().count() <= LONGEST_ID => Ok(id),
        _ => Err(Close::invalid(format!(
            "`id` must be a string of 1 to {LONGEST_ID} characters."
        ))),
    }
}

/// A message to the client, except `next`.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Outgoing<'a> {
    ConnectionAck,
    Pong {
        #[serde(skip_serializing_if = "Option::is_none")]
        payload: Option<Value>,
    },
    Error {
        id: &'a str,
        payload: Value,
    },
    Complete {
        id: &'a str,
    },
}

/// The message with an outcome that has data.
pub(super) fn next(id: &str, outcome: &Outcome) -> Vec<u8> {
    let mut text = br#"{"type":"next","id":"#.to_vec();
    text.extend(json(id));
    text.extend_from_slice(br#","payload":"#);
    outcome.write(&mut text);
    text.push(b'}');
    text
}

/// The errors of an outcome, and the message of the first one.
pub(super) fn errors(outcome: &Outcome) -> (Value, String) {
    let mut text = Vec::new();
    outcome.write(&mut text);
    let mut answer: Value = serde_json::from_slice(&text).unwrap_or_default();
    let errors = answer.get_mut("errors").map(Value::take);
    let errors = errors.unwrap_or_else(|| Value::Array(Vec::new()));
    let message = errors.pointer("/0/message").and_then(Value::as_str);
    let message = message.unwrap_or_default().to_owned();
    (errors, message)
}
