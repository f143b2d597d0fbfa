//! Accounts: registration, sign-in, sessions, tokens, roles, and the audit log.

pub(crate) mod audit;
mod credentials;
mod deletion;
mod email;
mod events;
mod guessing;
mod mails;
mod recent;
mod recovery;
mod sessions;
pub(crate) mod tokens;

use futures_util::future::join;
use gathering_entity::user::{self, UserRole};
use reqwest::StatusCode;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use serde_json::{Value, json};

use crate::support::account;
use crate::support::account::{ADA, SIGNED_IN, forbidden, unauthenticated};
use crate::support::actor::{ADMIN, code, faults};
use crate::support::database::{Database, PASSWORD};
use crate::support::server::TestServer;

/// The fields selected after an account change.
const CHANGED: &str = "user { id name role isActive } userErrors { field code message }";

#[tokio::test]
async fn registration_signs_the_user_in() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let input = json!({ "email": " Ada@Example.com ", "password": PASSWORD, "name": "  Ada L.\t" });
    let answer = visitor.mutate("register", SIGNED_IN, input).await;
    let payload = &answer["data"]["register"];
    let ada = account::tokens(payload);
    assert_eq!(payload["viewer"]["name"], "Ada L.");
    assert_eq!(payload["viewer"]["email"], "Ada@Example.com");
    assert_eq!(payload["viewer"]["role"], "USER");
    assert_eq!(
        visitor.with(&ada.access).who().await,
        account::user("Ada@Example.com")
    );

    let sessions = visitor.with(&ada.access).sessions().await;
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0]["isCurrent"], true);
    assert_eq!(sessions[0]["clientIp"], "127.0.0.1");
    assert_eq!(sessions[0]["userAgent"], "visitor/1.0");
    visitor.refresh(&ada.refresh).await;
    visitor.login(ADA, PASSWORD).await;
}

#[tokio::test]
async fn registration_errors_are_reported_per_field() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let long = "x".repeat(101);
    for (email, password, name, expected) in [
        (
            "",
            "",
            " ",
            vec!["REQUIRED email", "REQUIRED password", "REQUIRED name"],
        ),
        ("ada", PASSWORD, "Ada", vec!["INVALID email"]),
        ("ada@", PASSWORD, "Ada", vec!["INVALID email"]),
        ("a da@example.com", PASSWORD, "Ada", vec!["INVALID email"]),
        ("ada@one@two", PASSWORD, "Ada", vec!["INVALID email"]),
        // The full-width at sign folds to a second `@`.
        ("ada\u{ff20}one@two", PASSWORD, "Ada", vec!["INVALID email"]),
        ("ada\0@example.com", PASSWORD, "Ada", vec!["INVALID email"]),
        (ADA, PASSWORD, "Ada\nLovelace", vec!["INVALID name"]),
        (ADA, PASSWORD, &long, vec!["TOO_LONG name"]),
        (
            &format!("{}@example.com", "x".repeat(243)),
            "short",
            "Ada",
            vec!["TOO_LONG email", "TOO_SHORT password"],
        ),
    ] {
        let input = json!({ "email": email, "password": password, "name": name });
        let answer = visitor.mutate("register", SIGNED_IN, input).await;
        let payload = &answer["data"]["register"];
        assert_eq!(faults(payload), expected, "{email:?}");
        assert_eq!(payload["accessToken"], Value::Null);
        assert_eq!(payload["viewer"], Value::Null);
    }
}

#[tokio::test]
async fn registering_is_forbidden_when_registration_is_closed() {
    let server = TestServer::with(|config| config.auth.policy.registration = false).await;
    let visitor = server.anonymous();
    let answer = visitor.try_register(ADA, PASSWORD).await;
    assert_eq!(code(&answer), "FORBIDDEN");
    // The answer must not reveal whether an account exists.
    assert_eq!(visitor.try_register(ADMIN, PASSWORD).await, answer);
    visitor.login(ADMIN, PASSWORD).await;
}

#[tokio::test]
async fn fifty_concurrent_registrations_of_one_address_create_one_account() {
    let server = TestServer::on(Database::empty().await, |config| {
        config.graphql.limits.timeout = std::time::Duration::from_mins(10);
    })
    .await;
    let visitor = server.anonymous();
    let attempts = (0..50).map(async |n| {
        let email = if n % 2 == 0 { ADA } else { "ADA@EXAMPLE.COM" };
        let input = json!({ "email": email, "password": PASSWORD, "name": "Ada" });
        let query = format!(
            "mutation($input: RegisterInput!) {{ register(input: $input) {{ {SIGNED_IN} }} }}"
        );
        let response = visitor.send(&query, json!({ "input": input })).await;
        assert_eq!(response.status(), StatusCode::OK);
        let answer: Value = response.json().await.expect("JSON");
        answer["data"]["register"].clone()
    });
    let payloads = futures_util::future::join_all(attempts).await;
    let (made, taken): (Vec<_>, Vec<_>) = payloads
        .iter()
        .partition(|payload| payload["accessToken"].is_string());
    assert_eq!(made.len(), 1);
    for payload in taken {
        assert_eq!(faults(payload), ["TAKEN email"]);
    }
    let db = server.database().connect().await;
    let users = user::Entity::find().all(&db).await.expect("reads");
    assert_eq!(users.len(), 1);
}

#[tokio::test]
async fn a_password_change_ends_all_sessions_and_starts_a_new_one() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let elsewhere = visitor.register(ADA).await;
    let here = visitor.login(ADA, PASSWORD).await;
    let change = async |token: &str, current: &str, new: &str| {
        let input = json!({ "currentPassword": current, "newPassword": new });
        let answer = visitor
            .with(token)
            .mutate("changePassword", SIGNED_IN, input)
            .await;
        answer["data"]["changePassword"].clone()
    };

    let refused = change(&here.access, "not my password", "another password").await;
    assert_eq!(faults(&refused), ["INVALID currentPassword"]);
    let refused = change(&here.access, PASSWORD, "short").await;
    assert_eq!(faults(&refused), ["TOO_SHORT newPassword"]);
    assert_eq!(
        visitor.with(&elsewhere.access).who().await,
        account::user(ADA)
    );

    let now = account::tokens(&change(&here.access, PASSWORD, "another password").await);
    assert_eq!(visitor.with(&now.access).who().await, account::user(ADA));
    for old in [&here, &elsewhere] {
        assert_eq!(visitor.with(&old.access).who().await, unauthenticated());
        assert_eq!(
            code(&visitor.try_refresh(&old.refresh).await),
            "UNAUTHENTICATED"
        );
    }
    assert_eq!(visitor.with(&now.access).sessions().await.len(), 1);
    assert_eq!(
        code(&visitor.try_login(ADA, PASSWORD).await),
        "UNAUTHENTICATED"
    );
    visitor.login(ADA, "another password").await;
    visitor.refresh(&now.refresh).await;
}

#[tokio::test]
async fn the_first_of_two_concurrent_password_changes_wins() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let change = async |new: &str| {
        let input = json!({ "currentPassword": PASSWORD, "newPassword": new });
        visitor
            .with(&ada.access)
            .mutate("changePassword", SIGNED_IN, input)
            .await
    };
    // Both requests use the old password and the session that the first change ends.
    let answers = join(change("the first one's"), change("the second one's")).await;
    let (won, lost, password) = if answers.0["data"].is_null() {
        (answers.1, answers.0, "the second one's")
    } else {
        (answers.0, answers.1, "the first one's")
    };
    assert_eq!(code(&lost), "UNAUTHENTICATED", "{lost}");
    let won = account::tokens(&won["data"]["changePassword"]);
    assert_eq!(visitor.with(&won.access).who().await, account::user(ADA));
    visitor.login(ADA, password).await;
}

#[tokio::test]
async fn users_change_their_own_name() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let update = async |token: Option<&str>, name: Value| {
        let input = json!({ "name": name });
        visitor
            .as_caller(token)
            .mutate("updateProfile", CHANGED, input)
            .await
    };
    let token = Some(ada.access.as_str());
    for (name, fault) in [
        (" \t".to_owned(), "REQUIRED"),
        ("x".repeat(101), "TOO_LONG"),
        ("Ada\u{7}".to_owned(), "INVALID"),
    ] {
        let refused = update(token, json!(name)).await;
        let payload = &refused["data"]["updateProfile"];
        assert_eq!(faults(payload), [format!("{fault} name")]);
        assert_eq!(payload["user"]["name"], "Test User");
    }
    let name = format!(" {} ", "\u{1f642}".repeat(100));
    let changed = update(token, json!(name)).await;
    assert_eq!(
        changed["data"]["updateProfile"]["user"]["name"],
        name.trim()
    );
    let cleared = update(token, Value::Null).await;
    let payload = &cleared["data"]["updateProfile"];
    assert_eq!(faults(payload), ["REQUIRED name"]);
    assert_eq!(payload["user"]["name"], name.trim());
    let nothing = visitor
        .as_caller(token)
        .mutate("updateProfile", CHANGED, json!({}))
        .await;
    let payload = &nothing["data"]["updateProfile"];
    assert_eq!(payload["userErrors"], json!([]));
    assert_eq!(payload["user"]["name"], name.trim());
    assert_eq!(
        code(&update(None, json!("Nobody")).await),
        "UNAUTHENTICATED"
    );
}

#[tokio::test]
async fn only_administrators_list_and_change_other_users() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let admin = visitor.login(ADMIN, PASSWORD).await;
    let [ada_id, admin_id] = [
        visitor.with(&ada.access).id().await,
        visitor.with(&admin.access).id().await,
    ];
    let list = "{ users(filter: { search: \"ADA@\" }) { totalCount nodes { name email } } }";
    let update = async |token: Option<&str>, id: &Value| {
        let input = json!({ "userId": id, "name": "Eve", "role": "ADMIN", "isActive": false });
        visitor
            .as_caller(token)
            .mutate("updateUser", CHANGED, input)
            .await
    };

    for (token, refusal) in [
        (None, "UNAUTHENTICATED"),
        (Some(ada.access.as_str()), "FORBIDDEN"),
    ] {
        assert_eq!(
            code(&visitor.as_caller(token).answer(list, json!({})).await),
            refusal
        );
        for id in [&ada_id, &admin_id] {
            assert_eq!(code(&update(token, id).await), refusal);
        }
    }
    let token = Some(admin.access.as_str());
    let found = visitor.as_caller(token).answer(list, json!({})).await;
    let expected = json!({ "totalCount": 1, "nodes": [{ "name": "Test User", "email": ADA }] });
    assert_eq!(found["data"]["users"], expected);

    let oneself = update(token, &admin_id).await;
    assert_eq!(faults(&oneself["data"]["updateUser"]), ["PROTECTED userId"]);
    assert_eq!(oneself["data"]["updateUser"]["user"]["id"], admin_id);
    assert_eq!(
        visitor.with(&admin.access).who().await,
        account::user(ADMIN)
    );
    let unknown = json!("user_00000000000000000000000000");
    assert_eq!(code(&update(token, &unknown).await), "NOT_FOUND");
    let cleared = async |id: &Value| {
        let input = json!({ "userId": id, "name": null, "role": null, "isActive": null });
        visitor
            .as_caller(token)
            .mutate("updateUser", CHANGED, input)
            .await
    };
    assert_eq!(code(&cleared(&unknown).await), "NOT_FOUND");
    let refused = cleared(&ada_id).await;
    let payload = &refused["data"]["updateUser"];
    let expected = ["name", "role", "isActive"].map(|field| format!("REQUIRED {field}"));
    assert_eq!(faults(payload), expected);
    assert_eq!(payload["user"]["id"], ada_id);
    assert_eq!(payload["user"]["isActive"], true);
    let changed = update(token, &ada_id).await;
    let expected = json!({ "id": ada_id, "name": "Eve", "role": "ADMIN", "isActive": false });
    assert_eq!(changed["data"]["updateUser"]["user"], expected);
}

#[tokio::test]
async fn a_role_change_takes_effect_immediately() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let admin = visitor.login(ADMIN, PASSWORD).await;
    let id = visitor.with(&ada.access).id().await;
    let users = async |token: &str| {
        visitor
            .with(token)
            .answer("{ users { totalCount } }", json!({}))
            .await
    };
    assert_eq!(code(&users(&ada.access).await), "FORBIDDEN");

    let mut session = ada;
    for (role, is_admin) in [("ADMIN", true), ("USER", false)] {
        let input = json!({ "userId": id, "role": role });
        let changed = visitor
            .with(&admin.access)
            .mutate("updateUser", CHANGED, input)
            .await;
        assert_eq!(changed["data"]["updateUser"]["user"]["role"], role);
        assert_eq!(visitor.with(&session.access).who().await, unauthenticated());
        session = visitor.refresh(&session.refresh).await;
        let answer = users(&session.access).await;
        assert_eq!(
            answer["data"]["users"]["totalCount"].is_number(),
            is_admin,
            "{answer}"
        );
    }
    assert_eq!(code(&users(&session.access).await), "FORBIDDEN");
}

#[tokio::test]
async fn a_role_changed_in_the_database_applies_after_a_moment() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let admin = visitor.login(ADMIN, PASSWORD).await;
    let users = async || {
        let answer = visitor
            .with(&admin.access)
            .answer("{ users { totalCount } }", json!({}))
            .await;
        answer["data"]["users"]["totalCount"].is_number()
    };
    // A compiled query reads with the role of the previous request while the role is read.
    let circles = async || {
        let answer = visitor
            .with(&admin.access)
            .answer("{ circles { totalCount } }", json!({}))
            .await;
        answer["data"]["circles"]["totalCount"].as_u64()
    };
    assert!(users().await);
    assert!(circles().await > Some(0));
    let demote = user::Entity::update_many()
        .col_expr(user::Column::Role, Expr::value(UserRole::User))
        .filter(user::Column::EmailKey.eq(ADMIN));
    let db = server.database().connect().await;
    demote.exec(&db).await.expect("writes");
    // The credential was read a moment ago.
    server.jump(1);
    assert_eq!(circles().await, Some(0));
    assert!(!users().await);
}

#[tokio::test]
async fn deactivating_a_user_revokes_their_tokens() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let admin = visitor.login(ADMIN, PASSWORD).await;
    let id = visitor.with(&ada.access).id().await;
    let set_active = async |is_active: bool| {
        let input = json!({ "userId": id, "isActive": is_active });
        let answer = visitor
            .with(&admin.access)
            .mutate("updateUser", CHANGED, input)
            .await;
        assert_eq!(answer["data"]["updateUser"]["user"]["isActive"], is_active);
    };

    set_active(false).await;
    assert_eq!(visitor.with(&ada.access).who().await, forbidden());
    assert_eq!(
        code(&visitor.try_refresh(&ada.refresh).await),
        "UNAUTHENTICATED"
    );
    assert_eq!(code(&visitor.try_login(ADA, PASSWORD).await), "FORBIDDEN");
    assert_eq!(
        code(&visitor.try_login(ADA, "not the password").await),
        "UNAUTHENTICATED"
    );

    // Reactivation does not restore ended sessions.
    set_active(true).await;
    assert_eq!(visitor.with(&ada.access).who().await, unauthenticated());
    assert_eq!(
        code(&visitor.try_refresh(&ada.refresh).await),
        "UNAUTHENTICATED"
    );
    let again = visitor.login(ADA, PASSWORD).await;
    assert_eq!(visitor.with(&again.access).who().await, account::user(ADA));
}

#[tokio::test]
async fn deactivating_a_user_in_the_database_blocks_their_tokens() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let disable = user::Entity::update_many()
        .col_expr(user::Column::IsActive, Expr::value(false))
        .filter(user::Column::EmailKey.eq(ADA));
    let db = server.database().connect().await;
    disable.exec(&db).await.expect("writes");
    assert_eq!(visitor.with(&ada.access).who().await, forbidden());
    assert_eq!(code(&visitor.try_refresh(&ada.refresh).await), "FORBIDDEN");
}
