//! Malformed input over HTTP and WebSocket: mutations of valid requests, from a seed.
//!
//! A request gets a well-formed response without internal text, and a message a well-formed answer or the close of its
//! connection. The suite sends a bounded number of inputs; to run for a longer time and with another seed:
//!
//! ```text
//! GATHERING_FUZZ_SECONDS=3600 GATHERING_FUZZ_SEED=7 cargo test --test it fuzz::
//! ```

use std::env;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::support::events::Socket;
use crate::support::server::TestServer;
use crate::support::wait::within;

/// The number of inputs without `GATHERING_FUZZ_SECONDS`.
const INPUTS: u32 = 500;

const OPERATIONS: &str = include_str!("acceptance.graphql");

const CIRCLE: &str = "circle_01ke6p4zk8e03r000000000001";

/// Texts that are inserted into inputs.
const WORDS: [&str; 40] = [
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ":",
    "!",
    "@",
    "$",
    "...",
    "\"",
    "\"\"\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "#",
    "&",
    "|",
    "null",
    "true",
    "-1",
    "1e999",
    "99999999999999999999",
    "0.1",
    "\u{0}",
    "\u{feff}",
    "é",
    "🜚",
    "\r\n",
    "\r\n\r\n",
    "__typename",
    "... on Query ",
    "@skip(if: $x)",
    "@include(if: false)",
    "query",
    "mutation",
    "subscription",
    "fragment f on Circle { ...f } ",
    "first: 2147483648",
];

/// Internal text that no response may contain.
const SECRETS: [&str; 8] = [
    "panicked",
    "src/",
    ".rs:",
    "sqlx",
    "SELECT ",
    "sqlite",
    "PgDatabaseError",
    "RUST_BACKTRACE",
];

/// A reproducible sequence of numbers (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).expect("small");
        usize::try_from(self.next() % bound).expect("small")
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// Changes the input in one to four places.
    fn mutate(&mut self, input: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let end = (at + self.below(24)).min(bytes.len());
            match self.below(6) {
                0 if !bytes.is_empty() => {
                    bytes[at] = u8::try_from(self.below(256)).expect("a byte");
                }
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let again = bytes[at..end].to_vec();
                    bytes.splice(at..at, again);
                }
                3 => {
                    let other = self.below(bytes.len());
                    bytes.truncate(other.max(at));
                }
                _ => {
                    let word = self.pick(&WORDS).as_bytes().to_vec();
                    bytes.splice(at..at, word);
                }
            }
        }
        bytes
    }

    /// Changes the input, and keeps it text.
    fn mutate_text(&mut self, input: &str) -> String {
        String::from_utf8_lossy(&self.mutate(input.as_bytes())).into_owned()
    }

    /// A request body whose document, variables or JSON text are changed.
    fn body(&mut self, operations: &[&str]) -> Vec<u8> {
        let query = *self.pick(operations);
        let variables = json!({ "id": CIRCLE });
        match self.below(4) {
            0 => {
                let query = self.mutate_text(query);
                json!({ "query": query, "variables": variables })
                    .to_string()
                    .into()
            }
            1 => {
                let values = [
                    json!(null),
                    json!(-1),
                    json!([[]]),
                    json!({ "id": { "id": 1 } }),
                    json!("\u{0}"),
                ];
                let variables = [
                    self.pick(&values).clone(),
                    json!({ "id": self.mutate_text(CIRCLE) }),
                ];
                let variables = self.pick(&variables);
                json!({ "query": query, "variables": variables })
                    .to_string()
                    .into()
            }
            2 => {
                let keys = [
                    "query",
                    "variables",
                    "operationName",
                    "extensions",
                    "documentId",
                ];
                let key = *self.pick(&keys);
                let mut body = json!({ "query": query, "variables": variables });
                body[key] = self
                    .pick(&[json!(1), json!([]), json!({}), json!("x"), json!(null)])
                    .clone();
                body.to_string().into()
            }
            _ => {
                let body = json!({ "query": query, "variables": variables }).to_string();
                self.mutate(body.as_bytes())
            }
        }
    }
}

/// Whether another input follows.
struct Budget(Option<Instant>, u32);

impl Budget {
    fn new() -> Self {
        let seconds = env::var("GATHERING_FUZZ_SECONDS").ok();
        let seconds = seconds.map(|text| text.parse().expect("a number of seconds"));
        Self(
            seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
            0,
        )
    }

    fn goes_on(&mut self) -> bool {
        self.1 += 1;
        self.0.map_or(self.1 <= INPUTS, |end| Instant::now() < end)
    }
}

fn numbers() -> Numbers {
    let seed = env::var("GATHERING_FUZZ_SEED").map_or(1, |text| text.parse().expect("a number"));
    Numbers(0x9E37_79B9_7F4A_7C15 ^ seed)
}

/// The operations of the acceptance tests, one text each.
fn operations() -> Vec<&'static str> {
    let all: Vec<_> = OPERATIONS
        .split("\n\n")
        .filter(|text| !text.trim().is_empty())
        .collect();
    assert!(all.len() > 5);
    all
}

#[track_caller]
fn reveals_nothing(response: &str, input: &[u8]) {
    let input = String::from_utf8_lossy(input);
    for secret in SECRETS {
        // The response may quote the input.
        assert!(
            !response.contains(secret) || input.contains(secret),
            "{response}\nfor {input}"
        );
    }
}

/// A GraphQL response: `data`, or errors with a message and a code.
#[track_caller]
fn is_well_formed(response: &Value, input: &[u8]) {
    let input = || String::from_utf8_lossy(input);
    if response.get("data").is_none() {
        let errors = response["errors"].as_array();
        let errors = errors.unwrap_or_else(|| panic!("{response} for {}", input()));
        assert!(!errors.is_empty(), "{response} for {}", input());
    }
    for error in response["errors"].as_array().into_iter().flatten() {
        assert!(error["message"].is_string(), "{error} for {}", input());
        let code = error["extensions"]["code"].as_str();
        assert!(
            code.is_some_and(|code| code != "INTERNAL"),
            "{error} for {}",
            input()
        );
    }
}

async fn is_alive(server: &TestServer) {
    let answer = server.graphql("{ __typename }", json!({})).await;
    assert_eq!(answer, json!({ "data": { "__typename": "Query" } }));
}

#[tokio::test]
async fn malformed_requests_get_well_formed_responses() {
    let server = TestServer::start().await;
    let token = format!("Bearer {}", server.token("demo@example.com").await);
    let operations = operations();
    let (mut numbers, mut budget) = (numbers(), Budget::new());
    let mut executed = 0;
    while budget.goes_on() {
        let body = numbers.body(&operations);
        let media = [
            "application/json",
            "application/json; charset=utf-8",
            "text/plain",
            "multipart/form-data",
        ];
        let accepts = [
            "application/graphql-response+json",
            "application/json",
            "text/event-stream",
            "*/*",
            "text/html;q=x",
        ];
        let mut request = server.request(Method::POST, "/graphql").body(body.clone());
        // Most requests are well-formed up to their document.
        let media = if numbers.below(8) > 0 {
            media[0]
        } else {
            numbers.pick(&media)
        };
        let accept = if numbers.below(8) > 0 {
            accepts[0]
        } else {
            numbers.pick(&accepts)
        };
        request = request
            .header("content-type", media)
            .header("accept", accept);
        if numbers.below(4) > 0 {
            request = request.header("authorization", &token);
        }
        let response = within("a response", request.send())
            .await
            .expect("a response");
        let status = response.status();
        assert!(
            status.is_success() || status.is_client_error(),
            "{status} for {}",
            String::from_utf8_lossy(&body)
        );
        let is_stream = response.headers()["content-type"]
            .to_str()
            .expect("text")
            .starts_with("text/");
        if is_stream {
            // A subscription that started does not end.
            continue;
        }
        let text = within("a body", response.text()).await.expect("a body");
        reveals_nothing(&text, &body);
        let response = serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}"));
        is_well_formed(&response, &body);
        executed += u32::from(status == StatusCode::OK && response.get("data").is_some());
    }
    assert!(executed > 3, "{executed} operations were executed");
    is_alive(&server).await;
}

#[tokio::test]
async fn malformed_http_ends_only_its_own_connection() {
    let server = TestServer::with(|config| {
        config.server.header_timeout = Duration::from_millis(500);
        config.server.body_timeout = Duration::from_millis(500);
    })
    .await;
    let query = json!({ "query": "{ __typename }" }).to_string();
    let valid = format!(
        "POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Accept: application/json\r\nContent-Length: {}\r\n\r\n{query}",
        query.len()
    );
    let (mut numbers, mut budget) = (numbers(), Budget::new());
    while budget.goes_on() {
        let request = numbers.mutate(valid.as_bytes());
        let mut stream = TcpStream::connect(server.address())
            .await
            .expect("connects");
        // The server may close the connection before it has read everything.
        let _ = stream.write_all(&request).await;
        let _ = stream.shutdown().await;
        let mut response = Vec::new();
        let _ = within(
            "the end of the connection",
            stream.read_to_end(&mut response),
        )
        .await;
        let response = String::from_utf8_lossy(&response);
        reveals_nothing(&response, &request);
        if let Some(status) = response.strip_prefix("HTTP/1.1 ") {
            assert!(
                !status.starts_with('5'),
                "{response}\nfor {}",
                String::from_utf8_lossy(&request)
            );
        } else {
            assert!(
                response.is_empty() || response.starts_with("HTTP/1.0 "),
                "{response}"
            );
        }
    }
    is_alive(&server).await;
}

#[tokio::test]
async fn malformed_messages_get_an_answer_or_the_close_of_their_connection() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let operations = operations();
    let (mut numbers, mut budget) = (numbers(), Budget::new());
    while budget.goes_on() {
        let mut socket = Socket::greeted(&server, Some(&token)).await;
        let query = *numbers.pick(&operations);
        let payload = json!({ "query": query, "variables": { "id": CIRCLE } });
        let valid = json!({ "id": "1", "type": "subscribe", "payload": payload }).to_string();
        let input = match numbers.below(3) {
            0 => {
                let query = numbers.mutate_text(query);
                let payload = json!({ "query": query, "variables": { "id": CIRCLE } });
                json!({ "id": "1", "type": "subscribe", "payload": payload }).to_string()
            }
            1 => numbers.mutate_text(&valid),
            _ => {
                let types = [
                    "connection_init",
                    "ping",
                    "pong",
                    "complete",
                    "next",
                    "",
                    "subscribe",
                ];
                json!({ "id": numbers.mutate_text("1"), "type": numbers.pick(&types), "payload": 1 }).to_string()
            }
        };
        let message = match numbers.below(10) {
            0 => Message::Binary(Bytes::from(input.clone())),
            _ => Message::text(input.clone()),
        };
        socket.raw(message).await;
        // Answered after the message, unless the message has closed the connection.
        socket.raw(Message::text(r#"{"type":"ping"}"#)).await;
        loop {
            match socket.frame().await {
                Some(Ok(Message::Text(text))) => {
                    reveals_nothing(&text, input.as_bytes());
                    let answer: Value = serde_json::from_str(&text).expect("JSON");
                    match answer["type"].as_str() {
                        Some("next") => is_well_formed(&answer["payload"], input.as_bytes()),
                        Some("error") => {
                            let errors = json!({ "errors": answer["payload"] });
                            is_well_formed(&errors, input.as_bytes());
                        }
                        Some("complete") => {}
                        Some("pong") => break,
                        _ => panic!("{answer} for {input}"),
                    }
                }
                Some(Ok(Message::Close(Some(frame)))) => {
                    let code = u16::from(frame.code);
                    assert!(
                        (4400..4500).contains(&code) || code == 1002 || code == 1007,
                        "{frame:?} for {input}"
                    );
                    break;
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{other:?} for {input}"),
            }
        }
    }
    is_alive(&server).await;
}
