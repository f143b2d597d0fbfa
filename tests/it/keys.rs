//! API keys and service accounts.

mod circles;
mod lifetime;
mod limits;
mod services;

use reqwest::StatusCode;
use sea_orm::EntityTrait;
use serde_json::{Value, json};

use crate::support::account::{CallerResult, unauthenticated, user};
use crate::support::actor::{ADMIN, Actor, OWNER, text};
use crate::support::counted::CountedGraph;
use crate::support::events::{EVENTS, PROTOCOL, Socket, connect};
use crate::support::server::TestServer;

/// The fields selected of a new key.
const CREATED: &str =
    "apiKey { id name prefix scopes circleIds quotaClass expiresAt lastUsedAt revokedAt
    user { id } agent { id } } secret userErrors { field code message }";

/// A key and its secret.
struct Key {
    id: Value,
    secret: String,
}

/// Creates a key with this input.
async fn create(actor: &Actor, input: Value) -> Key {
    let answer = actor.mutate("createApiKey", CREATED, input).await;
    let payload = &answer["data"]["createApiKey"];
    assert_eq!(payload["userErrors"], json!([]), "{answer}");
    Key {
        id: payload["apiKey"]["id"].clone(),
        secret: text(&payload["secret"]),
    }
}

/// Creates a key of a user with these scopes.
async fn key_of(server: &TestServer, email: &str, scopes: &[&str]) -> Key {
    let input = json!({ "name": "A key", "scopes": scopes });
    create(&server.actor(email).await, input).await
}

async fn revoke(actor: &Actor, key: &Key) -> Value {
    let selection = "apiKey { id revokedAt } userErrors { code }";
    let input = json!({ "id": key.id });
    let answer = actor.mutate("revokeApiKey", selection, input).await;
    assert_eq!(answer.get("errors"), None, "{answer}");
    answer["data"]["revokeApiKey"].clone()
}

/// The status of a caller's query, and the code of its error.
async fn outcome(actor: &Actor, query: &str) -> (StatusCode, Option<String>) {
    let response = actor.send(query, json!({})).await;
    let status = response.status();
    let answer: Value = response.json().await.expect("JSON");
    let code = answer["errors"][0]["extensions"]["code"].as_str();
    (status, code.map(str::to_owned))
}

/// The outcome of a refusal with this code.
fn refused(status: u16, code: &str) -> (StatusCode, Option<String>) {
    let status = StatusCode::from_u16(status).expect("a status");
    (status, Some(code.to_owned()))
}

const WHO: &str = "{ viewer { id } }";

#[tokio::test]
async fn a_key_authenticates_its_user_on_every_transport() {
    let server = TestServer::start().await;
    let key = key_of(&server, OWNER, &["READ", "WRITE"]).await;
    let caller = server.with_token(&key.secret);
    assert_eq!(caller.who().await, user(OWNER));
    let url = "/graphql?query=%7B%20viewer%20%7B%20email%20%7D%20%7D";
    let request = server.request(reqwest::Method::GET, url);
    let answer = request.bearer_auth(&key.secret).send().await;
    let answer: Value = answer.expect("an answer").json().await.expect("JSON");
    assert_eq!(answer["data"]["viewer"]["email"], OWNER, "{answer}");
    let mut streams = Vec::new();
    for accept in ["text/event-stream", "multipart/mixed;subscriptionSpec=1.0"] {
        let before = server.subscribers().await;
        let request = caller.request(EVENTS, &json!({}));
        let stream = request.header("accept", accept).send().await;
        let stream = stream.expect("an answer");
        assert_eq!(stream.status(), StatusCode::OK);
        server.until_subscribers_exceed(before).await;
        streams.push(stream);
    }
    let mut socket = Socket::subscribed(&server, &key.secret, EVENTS).await;
    caller
        .saved("createProject", json!({ "name": "By a program" }))
        .await;
    assert_eq!(socket.value("events").await["type"], "PROJECT_CREATED");
}

#[tokio::test]
async fn a_secret_is_shown_once_and_stored_as_a_hash() {
    let server = TestServer::start().await;
    let owner = server.actor(OWNER).await;
    let mutation = format!(
        "mutation ($input: CreateApiKeyInput!) {{ createApiKey(input: $input) {{ {CREATED} }} }}"
    );
    let input = json!({ "input": { "name": "Worker", "scopes": ["WRITE", "READ", "READ"] } });
    let send = async || {
        let request = owner.request(&mutation, &input);
        let request = request.header("idempotency-key", "a-key-for-the-worker");
        let answer: Value = request
            .send()
            .await
            .expect("an answer")
            .json()
            .await
            .expect("JSON");
        assert_eq!(
            answer["data"]["createApiKey"]["userErrors"],
            json!([]),
            "{answer}"
        );
        answer["data"]["createApiKey"].clone()
    };
    let (first, again) = (send().await, send().await);
    let secret = text(&first["secret"]);
    assert_eq!(secret.len(), 40);
    assert_eq!(again["secret"], Value::Null);
    assert_eq!(again["apiKey"], first["apiKey"]);
    let key = &first["apiKey"];
    assert_eq!(key["scopes"], json!(["READ", "WRITE"]));
    assert_eq!(key["prefix"], secret[..10]);
    assert_eq!(key["quotaClass"], Value::Null);
    assert_eq!(key["user"]["id"], owner.id().await);
    let list = "{ apiKeys { totalCount nodes { id name } } }";
    let list = owner.ask(list, json!({})).await;
    assert_eq!(list["apiKeys"]["totalCount"], 1);
    assert_eq!(list["apiKeys"]["nodes"][0]["id"], key["id"]);
    let node = "query ($id: ID!) { node(id: $id) { ... on ApiKey { name } } }";
    let node = owner.ask(node, json!({ "id": key["id"] })).await;
    assert_eq!(node["node"]["name"], "Worker");

    let db = server.database().connect().await;
    let rows = gathering_entity::api_key::Entity::find()
        .all(&db)
        .await
        .expect("reads");
    assert_eq!(rows.len(), 1);
    assert!(!format!("{rows:?}").contains(&secret[10..]));
    let stored = gathering_entity::idempotency::Entity::find().all(&db).await;
    assert!(!format!("{:?}", stored.expect("reads")).contains(&secret));
    db.close().await.expect("closes");
}

#[tokio::test]
async fn the_input_of_a_key_is_validated() {
    let server = TestServer::start().await;
    let owner = server.actor(OWNER).await;
    for (input, faults) in [
        (
            json!({ "name": "", "scopes": [] }),
            vec!["REQUIRED name", "REQUIRED scopes"],
        ),
        (
            json!({ "name": "x".repeat(101), "scopes": ["READ"], "quotaClass": "No such thing" }),
            vec!["TOO_LONG name", "INVALID quotaClass"],
        ),
        (
            json!({ "name": "A", "scopes": ["READ"], "circleIds": [], "expiresAt": "2020-01-01T00:00:00Z" }),
            vec!["REQUIRED circleIds", "OUT_OF_RANGE expiresAt"],
        ),
        (
            json!({ "name": "A", "scopes": ["ADMIN"] }),
            vec!["INVALID scopes"],
        ),
    ] {
        let answer = owner.mutate("createApiKey", CREATED, input.clone()).await;
        let payload = &answer["data"]["createApiKey"];
        assert_eq!(crate::support::actor::faults(payload), faults, "{input}");
        assert_eq!(payload["secret"], Value::Null);
    }
    let admin = server.actor(ADMIN).await;
    let circle = "circle_01ke6p4zk8e03r000000000001";
    let input = json!({ "name": "A", "scopes": ["READ", "ADMIN"], "circleIds": [circle] });
    let answer = admin.mutate("createApiKey", CREATED, input).await;
    let payload = &answer["data"]["createApiKey"];
    assert_eq!(crate::support::actor::faults(payload), ["INVALID scopes"]);
    // Even an administrator cannot create a key of another person.
    let other = json!({ "name": "A", "scopes": ["READ"], "userId": owner.id().await });
    let answer = admin.mutate("createApiKey", CREATED, other).await;
    assert_eq!(crate::support::actor::refusal(&answer), "FORBIDDEN userId");
}

#[tokio::test]
async fn forged_and_malformed_keys_are_refused() {
    let server = TestServer::start().await;
    let key = key_of(&server, OWNER, &["READ"]).await;
    // A key of another server has a valid checksum.
    let elsewhere = TestServer::start().await;
    let forged = key_of(&elsewhere, OWNER, &["READ"]).await.secret;
    let wrong_sum = format!(
        "{}{}",
        &key.secret[..39],
        if key.secret.ends_with('0') { "1" } else { "0" }
    );
    for token in [
        &forged,
        &wrong_sum,
        "gth_",
        &key.secret[..39],
        &format!("{}0", key.secret),
    ] {
        let result: CallerResult = server.with_token(token).who().await;
        assert_eq!(result, unauthenticated(), "{token}");
    }
    assert_eq!(server.with_token(&key.secret).who().await, user(OWNER));
    let mut socket = Socket::open(&server).await;
    let payload = json!({ "authorization": format!("Bearer {forged}") });
    socket
        .send(json!({ "type": "connection_init", "payload": payload }))
        .await;
    let (code, reason) = socket.closed().await;
    assert_eq!((code, &*reason), (4403, "The API key is not valid."));
}

#[tokio::test]
async fn a_key_in_a_url_is_refused() {
    let server = TestServer::start().await;
    let key = key_of(&server, OWNER, &["READ"]).await.secret;
    let query = "query=%7B%20viewer%20%7B%20email%20%7D%20%7D";
    let says = "The URL contains an API key.";
    for parameter in [
        format!("token={key}"),
        format!("x={key}"),
        format!("access_token=Bearer%20{key}"),
        format!("a=1&key=%67th_{}", &key[4..]),
    ] {
        for method in [reqwest::Method::GET, reqwest::Method::POST] {
            let url = format!("/graphql?{query}&{parameter}");
            let request = server
                .request(method, &url)
                .json(&json!({ "query": "{ viewer { id } }" }));
            let response = request.send().await.expect("an answer");
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{parameter}");
            let answer: Value = response.json().await.expect("JSON");
            let message = text(&answer["errors"][0]["message"]);
            assert!(message.starts_with(says), "{message}");
        }
    }
    let url = format!("/graphql?{query}&token=something");
    assert_eq!(server.get(&url).await.status(), StatusCode::OK);
    // The WebSocket upgrade, too.
    let url = format!("/graphql?token={key}");
    let request = server.request(reqwest::Method::GET, &url);
    let request = request
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header(PROTOCOL.0, PROTOCOL.1)
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    assert_eq!(
        request.send().await.expect("an answer").status(),
        StatusCode::BAD_REQUEST
    );
    drop(connect(&server, &[PROTOCOL]).await.expect("a WebSocket"));
}

#[tokio::test]
async fn sign_in_sessions_and_keys_are_not_open_to_keys() {
    let server = TestServer::start().await;
    let key = key_of(&server, ADMIN, &["READ", "WRITE", "ADMIN"]).await;
    let caller = server.with_token(&key.secret);
    for query in [
        "mutation { login(input: { email: \"demo@example.com\", password: \"gathering-demo\" }) { accessToken } }",
        "mutation { refreshSession(input: { refreshToken: \"x\" }) { accessToken } }",
        "mutation { logout(input: { everywhere: true }) { revokedTokens } }",
        "mutation { changePassword(input: { currentPassword: \"x\", newPassword: \"another one\" }) { accessToken } }",
        "mutation { createApiKey(input: { name: \"A\", scopes: [READ] }) { secret } }",
        "{ apiKeys { totalCount } }",
        "{ sessions { totalCount } viewer { id } }",
    ] {
        assert_eq!(
            outcome(&caller, query).await,
            refused(403, "FORBIDDEN"),
            "{query}"
        );
    }
    let id = text(&key.id);
    let own = format!("{{ node(id: \"{id}\") {{ id }} }}");
    assert_eq!(outcome(&caller, &own).await.1.as_deref(), Some("NOT_FOUND"));
    let revoke =
        format!("mutation {{ revokeApiKey(input: {{ id: \"{id}\" }}) {{ apiKey {{ id }} }} }}");
    assert_eq!(outcome(&caller, &revoke).await, refused(403, "FORBIDDEN"));
    assert_eq!(outcome(&caller, WHO).await, (StatusCode::OK, None));
}

#[tokio::test]
async fn authentication_with_a_key_takes_one_statement() {
    let server = TestServer::start().await;
    let key = key_of(&server, OWNER, &["READ", "WRITE"]).await;
    let graph = CountedGraph::on(&server).await;
    let circles = "{ circles(first: 5) { nodes { name } } }";
    // The first request looks the key up before it is charged to the user.
    let (answer, first) = graph.cost(&key.secret, circles, json!({})).await;
    assert_eq!(answer.get("errors"), None, "{answer}");
    let (answer, second) = graph.cost(&key.secret, circles, json!({})).await;
    assert_eq!(answer.get("errors"), None, "{answer}");
    let token = server.token(OWNER).await;
    let (_, with_token) = graph.cost(&token, circles, json!({})).await;
    assert_eq!((first, second), (with_token + 1, with_token));
    let (answer, own) = graph.cost(&key.secret, WHO, json!({})).await;
    assert_eq!(
        answer["data"]["viewer"]["id"],
        server.actor(OWNER).await.id().await
    );
    assert_eq!(own, 0);
}
