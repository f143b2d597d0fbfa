//! Streams of a session that ends: no event follows the response of the mutation that ends it, on any transport.

use std::time::Duration;

use reqwest::Response;
use reqwest::header::ACCEPT;
use serde_json::{Value, json};

use crate::support::account::{ADA, SIGNED_IN, Tokens, tokens};
use crate::support::actor::{ADMIN, Actor};
use crate::support::database::PASSWORD;
use crate::support::events::{Socket, flood};
use crate::support::server::TestServer;
use crate::support::wait::{until, within};

const EVENTS: &str = "subscription { events(filter: { types: [PROVIDER_CHANGED] }) { ... on CatalogueEvent { name } } }";

const SSE: &str = "text/event-stream";
const MULTIPART: &str = "multipart/mixed;subscriptionSpec=1.0";

/// A server that sends no keep-alives during a test.
async fn serve() -> TestServer {
    TestServer::with(|config| config.subscriptions.keep_alive = Duration::from_hours(1)).await
}

/// Creates an event that every signed-in user receives, named after `n`.
async fn publish(server: &TestServer, n: usize) {
    let admin = server.token(ADMIN).await;
    let create = "mutation ($input: CreateProviderInput!) { createProvider(input: $input) { provider { id } } }";
    let input = json!({ "name": format!("n{n}"), "displayName": "A provider" });
    let made = server
        .with_token(&admin)
        .answer(create, json!({ "input": input }))
        .await;
    assert!(
        made["data"]["createProvider"]["provider"].is_object(),
        "{made}"
    );
}

/// The streams of a session, one over each transport.
struct Streams {
    socket: Socket,
    events: Response,
    multipart: Response,
}

impl Streams {
    async fn open(server: &TestServer, token: &str) -> Self {
        let before = server.subscribers().await;
        let mut socket = Socket::greeted(server, Some(token)).await;
        socket.subscribe("1", EVENTS).await;
        let listen = async |accept: &str| {
            let request = server.request(reqwest::Method::POST, "/graphql");
            let request = request.bearer_auth(token).header(ACCEPT, accept);
            let body = json!({ "query": EVENTS });
            let response = request.json(&body).send().await.expect("an answer");
            assert_eq!(response.status(), 200);
            response
        };
        let (events, multipart) = (listen(SSE).await, listen(MULTIPART).await);
        server.until_subscribers_exceed(before + 2).await;
        Self {
            socket,
            events,
            multipart,
        }
    }

    /// Reads the streams until they end with `UNAUTHENTICATED` and the WebSocket closes with 4403, and returns the
    /// numbers of the events.
    async fn until_the_end(self) -> Vec<usize> {
        let Self {
            mut socket,
            events,
            multipart,
        } = self;
        let mut received = Vec::new();
        let over_socket = async {
            loop {
                let message = socket.next().await;
                if message["type"] != "next" {
                    break message;
                }
                received.push(message["payload"].clone());
            }
        };
        let ended = within("the end of the stream over WebSocket", over_socket).await;
        assert_eq!(ended["type"], "error", "{ended}");
        let code = &ended["payload"][0]["extensions"]["code"];
        assert_eq!(code, "UNAUTHENTICATED", "{ended}");
        let (code, reason) = socket.closed().await;
        assert_eq!(code, 4403);
        assert!(reason.contains("revoked"), "{reason}");

        for (response, end) in [
            (events, "event: complete\ndata:\n\n"),
            (multipart, "\r\n--graphql--\r\n"),
        ] {
            let text = within("the end of the stream over HTTP", response.text()).await;
            let text = text.expect("a whole body");
            assert!(text.ends_with(end), "{text}");
            let payloads = text.lines().filter_map(|line| {
                let line = line.strip_prefix("data: ").unwrap_or(line);
                serde_json::from_str::<Value>(line).ok()
            });
            let mut payloads: Vec<Value> = payloads.collect();
            let last = payloads.pop().expect("an answer");
            let code = &last["errors"][0]["extensions"]["code"];
            assert_eq!(code, "UNAUTHENTICATED", "{text}");
            received.extend(payloads.into_iter().map(|mut payload| {
                let wrapped = payload.get_mut("payload").map(Value::take);
                wrapped.unwrap_or(payload)
            }));
        }
        received.iter().map(number).collect()
    }

    /// Waits for this event on the WebSocket stream.
    async fn until(&mut self, n: usize) {
        let received = async {
            loop {
                let message = self.socket.next().await;
                assert_eq!(message["type"], "next", "{message}");
                if number(&message["payload"]) == n {
                    break;
                }
            }
        };
        within(format!("event {n}"), received).await;
    }
}

/// The number of the event in a response.
fn number(answer: &Value) -> usize {
    let name = answer["data"]["events"]["name"].as_str();
    let name = name.unwrap_or_else(|| panic!("{answer}"));
    name[1..].parse().expect("a number")
}

/// A mutation that ends one or more sessions.
#[derive(Clone, Copy, Debug)]
enum How {
    Logout,
    LogoutElsewhere,
    LogoutEverywhere,
    ChangePassword,
    RevokeSession,
    RevokeSessionAsAdmin,
    ReuseRefreshToken,
    Deactivate,
    ChangeRole,
}

const ALL: [How; 9] = [
    How::Logout,
    How::LogoutElsewhere,
    How::LogoutEverywhere,
    How::ChangePassword,
    How::RevokeSession,
    How::RevokeSessionAsAdmin,
    How::ReuseRefreshToken,
    How::Deactivate,
    How::ChangeRole,
];

impl How {
    /// Whether the user's other sessions end too.
    fn ends_all(self) -> bool {
        matches!(
            self,
            Self::LogoutEverywhere | Self::ChangePassword | Self::Deactivate | Self::ChangeRole
        )
    }

    /// Runs the mutation as the session to end, as another session of its user, or as an administrator, and waits for
    /// the response.
    async fn end(self, visitor: &Actor, ended: &Tokens, other: &Tokens, admin: &Tokens) {
        let session = visitor.with(&ended.access).session().await;
        let user = visitor.with(&ended.access).id().await;
        let (token, name, selection, input) = match self {
            Self::Logout => (ended, "logout", "revokedTokens", json!({})),
            Self::LogoutElsewhere => {
                let third = visitor.login(ADA, PASSWORD).await;
                let input = json!({ "refreshToken": ended.refresh });
                let answer = visitor
                    .with(&third.access)
                    .mutate("logout", "revokedTokens", input)
                    .await;
                assert_eq!(answer["data"]["logout"]["revokedTokens"], 3, "{answer}");
                return;
            }
            Self::LogoutEverywhere => (
                other,
                "logout",
                "revokedTokens",
                json!({ "everywhere": true }),
            ),
            Self::ChangePassword => {
                let input =
                    json!({ "currentPassword": PASSWORD, "newPassword": "another password" });
                let selection = SIGNED_IN;
                let answer = visitor
                    .with(&other.access)
                    .mutate("changePassword", selection, input)
                    .await;
                tokens(&answer["data"]["changePassword"]);
                return;
            }
            Self::RevokeSession => (
                other,
                "revokeSession",
                "revokedSessionId",
                json!({ "sessionId": session }),
            ),
            Self::RevokeSessionAsAdmin => (
                admin,
                "revokeSession",
                "revokedSessionId",
                json!({ "sessionId": session }),
            ),
            Self::ReuseRefreshToken => {
                visitor.refresh(&ended.refresh).await;
                let refused = visitor.try_refresh(&ended.refresh).await;
                assert!(refused["data"].is_null(), "{refused}");
                return;
            }
            Self::Deactivate => (
                admin,
                "updateUser",
                "user { isActive }",
                json!({ "userId": user, "isActive": false }),
            ),
            Self::ChangeRole => (
                admin,
                "updateUser",
                "user { role }",
                json!({ "userId": user, "role": "ADMIN" }),
            ),
        };
        let answer = visitor
            .with(&token.access)
            .mutate(name, selection, input)
            .await;
        assert!(answer["data"][name].is_object(), "{self:?}: {answer}");
    }
}

#[tokio::test]
async fn no_event_follows_the_response_that_ends_a_session() {
    for how in ALL {
        let server = serve().await;
        let visitor = server.anonymous();
        visitor.register(ADA).await;
        let sign_in = async || visitor.login(ADA, PASSWORD).await;
        let (ended, other) = (sign_in().await, sign_in().await);
        let admin = visitor.login(ADMIN, PASSWORD).await;
        let streams = Streams::open(&server, &ended.access).await;
        let mut others = Streams::open(&server, &other.access).await;
        publish(&server, 1).await;
        others.until(1).await;

        how.end(&visitor, &ended, &other, &admin).await;
        for n in 2..5 {
            publish(&server, n).await;
        }
        let received = streams.until_the_end().await;
        assert!(received.iter().all(|n| *n == 1), "{how:?}: {received:?}");
        if how.ends_all() {
            let received = others.until_the_end().await;
            assert!(received.iter().all(|n| *n == 1), "{how:?}: {received:?}");
        } else {
            others.until(4).await;
        }
    }
}

#[tokio::test]
async fn no_event_created_while_a_session_ends_follows_the_response() {
    let server = serve().await;
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    let mut first = 0;
    for _ in 0..5 {
        let ada = visitor.login(ADA, PASSWORD).await;
        let streams = Streams::open(&server, &ada.access).await;
        let begun = std::cell::Cell::new(first);
        let publishing = async {
            for n in first..first + 30 {
                begun.set(n);
                publish(&server, n).await;
            }
        };
        let ending = async {
            until("ten events", async || begun.get() >= first + 10).await;
            let answer = visitor
                .with(&ada.access)
                .mutate("logout", "revokedTokens", json!({}))
                .await;
            assert!(answer["data"]["logout"].is_object(), "{answer}");
            begun.get()
        };
        let ((), last) = tokio::join!(publishing, ending);
        let received = streams.until_the_end().await;
        assert!(received.len() > 3, "{received:?}");
        assert!(
            received.iter().all(|n| *n <= last),
            "{received:?} after {last}"
        );
        first += 30;
    }
}

#[tokio::test]
async fn a_websocket_that_signs_out_gets_its_response_and_is_closed() {
    let server = serve().await;
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    let logout = "mutation { logout(input: {}) { revokedTokens } }";
    for has_stream in [false, true] {
        let ada = visitor.login(ADA, PASSWORD).await;
        let mut socket = Socket::greeted(&server, Some(&ada.access)).await;
        if has_stream {
            let before = server.subscribers().await;
            socket.subscribe("1", EVENTS).await;
            server.until_subscribers_exceed(before).await;
        }
        socket.subscribe("2", logout).await;
        let mut kinds = Vec::new();
        while kinds.len() < if has_stream { 3 } else { 2 } {
            let message = socket.next().await;
            let (id, kind) = (&message["id"], &message["type"]);
            kinds.push(format!(
                "{} {}",
                id.as_str().expect("an id"),
                kind.as_str().expect("a type")
            ));
        }
        kinds.sort_unstable();
        let expected = ["1 error", "2 complete", "2 next"];
        assert_eq!(kinds, expected[usize::from(!has_stream)..]);
        assert_eq!(socket.closed().await.0, 4403);
    }
    // A connection without operations is closed as soon as its session is ended by another connection.
    let ada = visitor.login(ADA, PASSWORD).await;
    let mut socket = Socket::greeted(&server, Some(&ada.access)).await;
    let ended = visitor
        .with(&ada.access)
        .mutate("logout", "revokedTokens", json!({}))
        .await;
    assert!(ended["data"]["logout"].is_object(), "{ended}");
    assert_eq!(socket.closed().await.0, 4403);
    assert_eq!(
        server
            .metric(r#"gathering_streams{transport="websocket"}"#)
            .await,
        0
    );
}

#[tokio::test]
async fn a_session_ended_on_one_instance_ends_on_the_others() {
    for how in ALL {
        let one = serve().await;
        let two = one
            .beside(|config| {
                config.subscriptions.keep_alive = Duration::from_hours(1);
                config.events.poll = Duration::from_millis(100);
            })
            .await;
        let visitor = one.anonymous();
        visitor.register(ADA).await;
        let sign_in = async || visitor.login(ADA, PASSWORD).await;
        let (ended, other) = (sign_in().await, sign_in().await);
        let admin = visitor.login(ADMIN, PASSWORD).await;
        let streams = Streams::open(&two, &ended.access).await;
        let mut others = Streams::open(&two, &other.access).await;
        // A connection without operations. Ending all sessions is announced to every instance; ending one only where
        // the database can notify.
        let mut silent = Socket::greeted(&two, Some(&ended.access)).await;
        how.end(&visitor, &ended, &other, &admin).await;
        streams.until_the_end().await;
        assert_eq!(silent.closed().await.0, 4403, "{how:?}");
        if how.ends_all() {
            others.until_the_end().await;
        } else {
            publish(&two, 1).await;
            others.until(1).await;
        }
    }
}

/// Waits until no more events are delivered to a stream, because its client does not read.
async fn until_stuck(server: &TestServer) {
    let delivered = async || server.metric("gathering_events_delivered_total").await;
    let (mut last, mut times) = (0, 0);
    until("a client that is behind", async || {
        let now = delivered().await;
        times = if now > 0 && now == last { times + 1 } else { 0 };
        last = now;
        times == 20
    })
    .await;
}

#[tokio::test]
async fn buffered_events_of_an_ended_session_are_not_sent_to_a_slow_client() {
    let server = TestServer::with(|config| {
        config.subscriptions.keep_alive = Duration::from_hours(1);
        config.server.write_timeout = Duration::from_hours(1);
    })
    .await;
    let query = flood(&server).await;
    let logout = "mutation { logout(input: {}) { revokedTokens } }";
    let streams = |transport: &str| format!("gathering_streams{{transport=\"{transport}\"}}");

    let token = server.token("demo@example.com").await;
    let mut socket = Socket::narrow(&server, &token).await;
    socket.subscribe("1", &query).await;
    until_stuck(&server).await;
    server.with_token(&token).answer(logout, json!({})).await;
    server.until_metric_is(&streams("websocket"), 0).await;
    server
        .until_metric_is("gathering_websocket_connections", 0)
        .await;

    for (accept, transport) in [(SSE, "sse"), (MULTIPART, "multipart")] {
        let token = server.token("demo@example.com").await;
        let request = server.request(reqwest::Method::POST, "/graphql");
        let request = request.bearer_auth(&token).header(ACCEPT, accept);
        let response = request.json(&json!({ "query": query })).send().await;
        let response = response.expect("an answer");
        until_stuck(&server).await;
        assert_eq!(server.metric(&streams(transport)).await, 1);
        server.with_token(&token).answer(logout, json!({})).await;
        server.until_metric_is(&streams(transport), 0).await;
        // The connection is broken, so the rest of the body is lost.
        let body = within("the end of the body", response.text()).await;
        body.expect_err("no proper end");
    }
}
