//! Credentials that were read a moment ago: requests use them, and no request after a change does.

use futures_util::future::{Either, select};

use super::*;
use crate::support::actor::Actor;

/// Two instances on one database, without limits.
async fn instances() -> (TestServer, TestServer) {
    let unlimited = |config: &mut gathering::config::Config| {
        config.limits.auth = 10_000;
        config.limits.read = 1_000_000;
        config.limits.write = 10_000;
        config.limits.address = 1_000_000;
    };
    let server = TestServer::with(unlimited).await;
    let other = server.beside(unlimited).await;
    (server, other)
}

const VIEWER: &str = "{ viewer { name role } }";

/// The name and role of a caller, or the code of the error.
async fn viewer(caller: &Actor) -> (String, String) {
    let answer = caller.answer(VIEWER, json!({})).await;
    let viewer = &answer["data"]["viewer"];
    match viewer["name"].as_str() {
        Some(name) => (name.to_owned(), viewer["role"].to_string()),
        None => (code(&answer).to_owned(), String::new()),
    }
}

/// Makes a change while a caller sends requests to another instance without a pause. Returns the outcome of the first
/// request that is sent after the answer.
async fn after(caller: &Actor, change: impl Future<Output = Value>) -> (String, String) {
    let before = viewer(caller).await;
    let requests = async {
        loop {
            viewer(caller).await;
        }
    };
    match select(Box::pin(requests), Box::pin(change)).await {
        Either::Left(((), _)) => unreachable!("the requests have no end"),
        Either::Right((answer, _)) => assert_eq!(answer.get("errors"), None, "{answer}"),
    }
    let after = viewer(caller).await;
    assert_ne!(after, before);
    after
}

#[tokio::test]
async fn a_credential_is_read_once_for_requests_in_a_row() {
    let server = TestServer::start().await;
    let demo = server.actor("demo@example.com").await;
    crate::support::wait::until("a request without a statement", async || {
        let before = server.statements();
        viewer(&demo).await;
        server.statements() == before
    })
    .await;
    // The clock of the server shows that the credential must be read again.
    server.jump(1);
    let before = server.statements();
    viewer(&demo).await;
    assert!(server.statements() > before);
}

#[tokio::test]
async fn no_request_after_the_end_of_a_session_is_accepted() {
    let (here, there) = instances().await;
    let visitor = here.anonymous();
    visitor.register(ADA).await;
    let refused = ("UNAUTHENTICATED".to_owned(), String::new());
    for everywhere in [false, true] {
        let ada = visitor.login(ADA, PASSWORD).await.access;
        let input = json!({ "everywhere": everywhere });
        let actor = visitor.with(&ada);
        let leave = actor.mutate("logout", "revokedTokens", input);
        assert_eq!(after(&there.with_token(&ada), leave).await, refused);
    }
    let ada = visitor.login(ADA, PASSWORD).await.access;
    let session = visitor.with(&ada).session().await;
    let other = visitor.with(&visitor.login(ADA, PASSWORD).await.access);
    let input = json!({ "sessionId": session });
    let end = other.mutate("revokeSession", "revokedSessionId", input);
    assert_eq!(after(&there.with_token(&ada), end).await, refused);
    let ada = visitor.login(ADA, PASSWORD).await.access;
    let input = json!({ "currentPassword": PASSWORD, "newPassword": "another long password" });
    let change = other.mutate("changePassword", "accessToken", input);
    assert_eq!(after(&there.with_token(&ada), change).await, refused);
}

#[tokio::test]
async fn no_request_after_a_change_of_an_account_sees_the_former_account() {
    let (here, there) = instances().await;
    let visitor = here.anonymous();
    let ada = visitor.register(ADA).await.access;
    let caller = there.with_token(&ada);
    let own = visitor.with(&ada);
    for name in ["Ada L.", "Ada Lovelace"] {
        let rename = own.mutate("updateProfile", CHANGED, json!({ "name": name }));
        assert_eq!(after(&caller, rename).await.0, name);
    }
    let id = own.id().await;
    let admin = visitor.with(&visitor.login(ADMIN, PASSWORD).await.access);
    for (input, code) in [
        (json!({ "userId": id, "role": "ADMIN" }), "UNAUTHENTICATED"),
        (json!({ "userId": id, "isActive": false }), "FORBIDDEN"),
    ] {
        let ada = visitor.login(ADA, PASSWORD).await.access;
        let update = admin.mutate("updateUser", CHANGED, input);
        assert_eq!(after(&there.with_token(&ada), update).await.0, code);
    }
}

#[tokio::test]
async fn no_request_after_the_end_of_a_key_is_accepted() {
    let (here, there) = instances().await;
    let demo = here.actor("demo@example.com").await;
    let input = json!({ "name": "A key", "scopes": ["READ"] });
    let selection = "secret apiKey { id }";
    let answer = demo.mutate("createApiKey", selection, input).await;
    let created = &answer["data"]["createApiKey"];
    let secret = created["secret"].as_str().expect("a secret");
    let input = json!({ "id": created["apiKey"]["id"] });
    let revoke = demo.mutate("revokeApiKey", "apiKey { id }", input);
    let outcome = after(&there.with_token(secret), revoke).await;
    assert_eq!(outcome.0, "UNAUTHENTICATED");
}
