//! Sessions: sign-in, refresh, and revocation.

use futures_util::future::{join, join_all};
use serde_json::{Value, json};

use crate::accounts::audit::entries_of;
use crate::accounts::tokens::claims;
use crate::support::account;
use crate::support::account::{ADA, BOB, SESSIONS, Tokens, unauthenticated};
use crate::support::actor::{ADMIN, Actor, code};
use crate::support::database::PASSWORD;
use crate::support::server::TestServer;

#[tokio::test]
async fn a_refresh_gives_new_tokens_for_the_same_session() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let first = visitor.register(ADA).await;
    let session = visitor.with(&first.access).session().await;
    let second = visitor.refresh(&first.refresh).await;
    let third = visitor.refresh(&second.refresh).await;
    assert_ne!(first.refresh, second.refresh);
    assert_ne!(second.refresh, third.refresh);
    for tokens in [&first, &second, &third] {
        assert_eq!(visitor.with(&tokens.access).who().await, account::user(ADA));
    }
    assert_eq!(visitor.with(&third.access).session().await, session);
    assert_eq!(visitor.with(&third.access).sessions().await.len(), 1);
}

#[tokio::test]
async fn a_session_without_refresh_expires() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let idle = visitor.login(ADA, PASSWORD).await;
    server.pass(29 * 24 * 3600);
    let ada = visitor.refresh(&ada.refresh).await;
    server.pass(2 * 24 * 3600);
    assert_eq!(
        code(&visitor.try_refresh(&idle.refresh).await),
        "UNAUTHENTICATED"
    );
    let ada = visitor.refresh(&ada.refresh).await;
    assert_eq!(visitor.with(&ada.access).sessions().await.len(), 1);
}

#[tokio::test]
async fn invalid_refresh_tokens_are_refused() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let mut other = ada.refresh.clone();
    other.pop();
    for token in [
        "",
        "\0",
        &other,
        &ada.access,
        &ada.refresh.to_uppercase(),
        &"x".repeat(900_000),
    ] {
        assert_eq!(code(&visitor.try_refresh(token).await), "UNAUTHENTICATED");
    }
    assert_eq!(visitor.with(&ada.refresh).who().await, unauthenticated());
    visitor.refresh(&ada.refresh).await;
}

#[tokio::test]
async fn reusing_a_refresh_token_ends_only_its_session() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let stolen = visitor.register(ADA).await;
    let other = visitor.login(ADA, PASSWORD).await;
    let second = visitor.refresh(&stolen.refresh).await;
    let third = visitor.refresh(&second.refresh).await;
    assert_eq!(
        code(&visitor.try_refresh(&stolen.refresh).await),
        "UNAUTHENTICATED"
    );
    for tokens in [&stolen, &second, &third] {
        assert_eq!(visitor.with(&tokens.access).who().await, unauthenticated());
        assert_eq!(
            code(&visitor.try_refresh(&tokens.refresh).await),
            "UNAUTHENTICATED"
        );
    }
    assert_eq!(visitor.with(&other.access).who().await, account::user(ADA));
    visitor.refresh(&other.refresh).await;

    // Reuse is reported once, however often the token is tried.
    let reused = entries_of(&server.end().await, "auth.refresh_reused").await;
    assert_eq!(reused.len(), 1);
    assert_eq!(reused[0].client_ip.as_deref(), Some("127.0.0.1"));
}

#[tokio::test]
async fn concurrent_refreshes_with_one_token_succeed_once_and_end_the_session() {
    for racers in [2, 10] {
        let server = TestServer::start().await;
        let visitor = server.anonymous();
        let ada = visitor.register(ADA).await;
        let race = (0..racers).map(async |_| {
            // Each request uses its own connection.
            server.anonymous().try_refresh(&ada.refresh).await
        });
        let answers = join_all(race).await;
        let (won, lost): (Vec<_>, Vec<_>) = answers
            .iter()
            .partition(|answer| answer["data"].is_object());
        assert_eq!(won.len(), 1, "{answers:?}");
        for answer in lost {
            assert_eq!(code(answer), "UNAUTHENTICATED");
        }
        let winner = account::tokens(&won[0]["data"]["refreshSession"]);
        assert_eq!(visitor.with(&winner.access).who().await, unauthenticated());
        assert_eq!(visitor.with(&ada.access).who().await, unauthenticated());
        assert_eq!(
            code(&visitor.try_refresh(&winner.refresh).await),
            "UNAUTHENTICATED"
        );
        let reused = entries_of(&server.end().await, "auth.refresh_reused").await;
        assert_eq!(reused.len(), 1);
    }
}

#[tokio::test]
async fn two_sign_ins_in_the_same_second_create_two_sessions() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    let mut pair = None;
    for _ in 0..20 {
        let (one, two) = join(visitor.login(ADA, PASSWORD), visitor.login(ADA, PASSWORD)).await;
        if claims(&one.access)["iat"] == claims(&two.access)["iat"] {
            pair = Some((one, two));
            break;
        }
    }
    let (one, two) = pair.expect("two in the same second");
    assert_ne!(one.access, two.access);
    assert_ne!(one.refresh, two.refresh);
    let session = visitor.with(&one.access).session().await;
    assert_ne!(session, visitor.with(&two.access).session().await);
    let input = json!({ "sessionId": session });
    visitor
        .with(&two.access)
        .mutate("revokeSession", "revokedSessionId", input)
        .await;
    assert_eq!(visitor.with(&one.access).who().await, unauthenticated());
    assert_eq!(visitor.with(&two.access).who().await, account::user(ADA));
    visitor.refresh(&two.refresh).await;
}

async fn logout(visitor: &Actor, token: &str, input: Value) -> Value {
    let answer = visitor
        .with(token)
        .mutate("logout", "revokedTokens userErrors { code }", input)
        .await;
    answer["data"]["logout"]["revokedTokens"].clone()
}

#[tokio::test]
async fn a_sign_out_ends_its_session_a_second_one_or_all() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let bob = visitor.register(BOB).await;
    visitor.register(ADA).await;
    let sign_in = async || visitor.login(ADA, PASSWORD).await;
    let is_over = async |tokens: &Tokens| {
        let is_over = visitor.with(&tokens.access).who().await == unauthenticated();
        let refreshed = visitor.try_refresh(&tokens.refresh).await;
        assert_eq!(refreshed["data"].is_null(), is_over, "{refreshed}");
        is_over
    };

    let [here, there] = [sign_in().await, sign_in().await];
    assert_eq!(logout(&visitor, &here.access, json!({})).await, 2);
    assert!(is_over(&here).await);
    assert!(!is_over(&there).await);

    let [here, there] = [sign_in().await, sign_in().await];
    let both = json!({ "refreshToken": there.refresh });
    assert_eq!(logout(&visitor, &here.access, both).await, 3);
    assert!(is_over(&here).await && is_over(&there).await);

    // A user cannot end another user's session.
    let here = sign_in().await;
    let foreign = json!({ "refreshToken": bob.refresh });
    assert_eq!(logout(&visitor, &here.access, foreign).await, 2);

    let [here, there] = [sign_in().await, sign_in().await];
    logout(&visitor, &here.access, json!({ "everywhere": true })).await;
    assert!(is_over(&here).await && is_over(&there).await);
    assert!(!is_over(&bob).await);
    let answer = visitor
        .mutate("logout", "revokedTokens", json!({ "everywhere": true }))
        .await;
    assert_eq!(code(&answer), "UNAUTHENTICATED");
}

#[tokio::test]
async fn sessions_are_listed_and_ended_by_their_owner_and_administrators() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let elsewhere = server.at_host(2).login(ADA, PASSWORD).await;
    let bob = visitor.register(BOB).await;
    let admin = visitor.login(ADMIN, PASSWORD).await;
    let revoke = async |token: &str, session: &Value| {
        let selection = "revokedSessionId userErrors { code }";
        let input = json!({ "sessionId": session });
        visitor
            .with(token)
            .mutate("revokeSession", selection, input)
            .await
    };

    let listed = visitor.with(&ada.access).sessions().await;
    let addresses: Vec<_> = listed.iter().map(|session| &session["clientIp"]).collect();
    assert_eq!(addresses, ["127.0.0.2", "127.0.0.1"]);
    let sessions = [&ada, &elsewhere].map(|tokens| tokens.access.as_str());
    let [first, second] = [
        visitor.with(sessions[0]).session().await,
        visitor.with(sessions[1]).session().await,
    ];

    for stranger in [
        json!("signin_00000000000000000000000000"),
        first.clone(),
        second.clone(),
    ] {
        let refused = revoke(&bob.access, &stranger).await;
        assert_eq!(code(&refused), "NOT_FOUND");
    }
    assert_eq!(
        code(&revoke(&bob.access, &visitor.with(&ada.access).id().await).await),
        "BAD_USER_INPUT"
    );
    assert_eq!(
        visitor.with(&elsewhere.access).who().await,
        account::user(ADA)
    );

    let ended = revoke(&ada.access, &second).await;
    assert_eq!(ended["data"]["revokeSession"]["revokedSessionId"], second);
    assert_eq!(
        visitor.with(&elsewhere.access).who().await,
        unauthenticated()
    );
    assert_eq!(
        code(&visitor.try_refresh(&elsewhere.refresh).await),
        "UNAUTHENTICATED"
    );
    assert_eq!(code(&revoke(&ada.access, &second).await), "NOT_FOUND");
    assert_eq!(visitor.with(&ada.access).sessions().await.len(), 1);

    let of_ada = json!({ "user": visitor.with(&ada.access).id().await });
    let refused = visitor
        .with(&bob.access)
        .answer(SESSIONS, of_ada.clone())
        .await;
    assert_eq!(code(&refused), "FORBIDDEN");
    let own = visitor
        .with(&ada.access)
        .answer(SESSIONS, of_ada.clone())
        .await;
    assert_eq!(own["data"]["sessions"]["nodes"][0]["id"], first);
    let listed = visitor.with(&admin.access).answer(SESSIONS, of_ada).await;
    assert_eq!(listed["data"]["sessions"]["nodes"][0]["id"], first);
    let ended = revoke(&admin.access, &first).await;
    assert_eq!(ended["data"]["revokeSession"]["revokedSessionId"], first);
    assert_eq!(visitor.with(&ada.access).who().await, unauthenticated());
    assert_eq!(visitor.with(&bob.access).who().await, account::user(BOB));
}

#[tokio::test]
async fn ended_sessions_stay_ended_on_all_instances_and_after_a_restart() {
    let one = TestServer::start().await;
    let two = one.beside(|_| ()).await;
    let (here, there) = (one.anonymous(), two.anonymous());
    let bob = here.register(BOB).await;
    here.register(ADA).await;

    let mut ended = Vec::new();
    for input in [json!({}), json!({ "everywhere": true })] {
        let ada = here.login(ADA, PASSWORD).await;
        let other = there.login(ADA, PASSWORD).await;
        for visitor in [&here, &there] {
            assert_eq!(visitor.with(&ada.access).who().await, account::user(ADA));
        }
        logout(&here, &ada.access, input).await;
        for visitor in [&there, &here, &one.anonymous()] {
            assert_eq!(visitor.with(&ada.access).who().await, unauthenticated());
            assert_eq!(
                code(&visitor.try_refresh(&ada.refresh).await),
                "UNAUTHENTICATED"
            );
        }
        ended.extend([ada, other]);
    }
    assert_eq!(there.with(&ended[3].access).who().await, unauthenticated());

    // A refresh token used on one instance counts as used on the other.
    let ada = there.login(ADA, PASSWORD).await;
    let next = here.refresh(&ada.refresh).await;
    assert_eq!(
        code(&there.try_refresh(&ada.refresh).await),
        "UNAUTHENTICATED"
    );
    assert_eq!(here.with(&next.access).who().await, unauthenticated());
    ended.extend([ada, next]);

    drop(two);
    let restarted = TestServer::on(one.end().await, |_| ()).await;
    let visitor = restarted.anonymous();
    for tokens in ended {
        assert_eq!(visitor.with(&tokens.access).who().await, unauthenticated());
        assert_eq!(
            code(&visitor.try_refresh(&tokens.refresh).await),
            "UNAUTHENTICATED"
        );
    }
    assert_eq!(visitor.with(&bob.access).who().await, account::user(BOB));
    visitor.refresh(&bob.refresh).await;
}
