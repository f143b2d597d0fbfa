//! Accounts: registration, sign-in, sessions, tokens, roles, and the audit log.

pub(crate) mod audit;
mod credentials;
mod events;
mod guessing;
mod sessions;
pub(crate) mod tokens;

use futures_util::future::join;
use gathering_entity::user::{self, UserRole};
use reqwest::{Client, Response, StatusCode};
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use serde_json::{Value, json};

use crate::database::{Database, PASSWORD};
use crate::server::TestServer;

/// The fields selected after a sign-in.
pub(crate) const SIGNED_IN: &str = "accessToken accessTokenExpiresAt refreshToken refreshTokenExpiresAt \
    viewer { id name email role isActive } userErrors { field code message }";

/// The fields selected after an account change.
const CHANGED: &str = "user { id name role isActive } userErrors { field code message }";

const SESSIONS: &str = "query($user: ID) { sessions(userId: $user) { totalCount nodes \
    { id createdAt refreshedAt expiresAt clientIp userAgent isCurrent } } }";

/// A client with its own IP address and its own connections.
#[derive(Clone)]
pub(crate) struct Visitor {
    client: Client,
    url: String,
    request_id: Option<String>,
}

/// The tokens of a session.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    pub(crate) access: String,
    pub(crate) refresh: String,
}

/// The e-mail address of a token's user, or the status and the code of the refusal.
type Standing = Result<String, (StatusCode, String)>;

impl Visitor {
    /// A client at 127.0.0.1.
    pub(crate) fn new(server: &TestServer) -> Self {
        Self::at(server, 1)
    }

    /// A client at 127.0.0.`host`.
    pub(crate) fn at(server: &TestServer, host: u8) -> Self {
        Self::to(server.url("/graphql"), host)
    }

    /// A client at 127.0.0.`host` that sends its requests to this URL.
    pub(crate) fn to(url: String, host: u8) -> Self {
        let client = Client::builder()
            .no_proxy()
            .local_address(std::net::IpAddr::from([127, 0, 0, host]))
            .user_agent("visitor/1.0")
            .build()
            .expect("a client");
        Self {
            client,
            url,
            request_id: None,
        }
    }

    /// The same client, which sends this request id.
    pub(crate) fn named(&self, request_id: &str) -> Self {
        Self {
            request_id: Some(request_id.to_owned()),
            ..self.clone()
        }
    }

    /// The HTTP response to an operation.
    pub(crate) async fn send(
        &self,
        token: Option<&str>,
        query: &str,
        variables: Value,
    ) -> Response {
        let mut request = self.client.post(&self.url);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(id) = &self.request_id {
            request = request.header("x-request-id", id);
        }
        let body = json!({ "query": query, "variables": variables });
        request.json(&body).send().await.expect("an answer")
    }

    /// The complete response to an operation.
    pub(crate) async fn ask(&self, token: Option<&str>, query: &str, variables: Value) -> Value {
        let response = self.send(token, query, variables).await;
        response.json().await.expect("JSON")
    }

    /// The complete response to a mutation whose input type is named after it.
    pub(crate) async fn mutate(
        &self,
        token: Option<&str>,
        name: &str,
        selection: &str,
        input: Value,
    ) -> Value {
        let kind = format!("{}{}Input", name[..1].to_uppercase(), &name[1..]);
        let query =
            format!("mutation($input: {kind}!) {{ {name}(input: $input) {{ {selection} }} }}");
        self.ask(token, &query, json!({ "input": input })).await
    }

    /// The complete response to a registration.
    pub(crate) async fn try_register(&self, email: &str, password: &str) -> Value {
        let input = json!({ "email": email, "password": password, "name": "Somebody" });
        self.mutate(None, "register", SIGNED_IN, input).await
    }

    /// Creates an account with the password of the demo users.
    pub(crate) async fn register(&self, email: &str) -> Tokens {
        tokens(&self.try_register(email, PASSWORD).await["data"]["register"])
    }

    /// The complete response to a sign-in.
    pub(crate) async fn try_login(&self, email: &str, password: &str) -> Value {
        let input = json!({ "email": email, "password": password });
        self.mutate(None, "login", SIGNED_IN, input).await
    }

    /// Signs in.
    pub(crate) async fn login(&self, email: &str, password: &str) -> Tokens {
        tokens(&self.try_login(email, password).await["data"]["login"])
    }

    /// The complete response to a refresh.
    pub(crate) async fn try_refresh(&self, token: &str) -> Value {
        let input = json!({ "refreshToken": token });
        self.mutate(None, "refreshSession", SIGNED_IN, input).await
    }

    /// Refreshes a session and returns its new tokens.
    pub(crate) async fn refresh(&self, token: &str) -> Tokens {
        tokens(&self.try_refresh(token).await["data"]["refreshSession"])
    }

    /// The user that an access token authenticates.
    pub(crate) async fn who(&self, token: &str) -> Standing {
        let response = self
            .send(Some(token), "{ viewer { email } }", json!({}))
            .await;
        let status = response.status();
        let answer: Value = response.json().await.expect("JSON");
        if let Some(email) = answer["data"]["viewer"]["email"].as_str() {
            return Ok(email.to_owned());
        }
        assert_eq!(answer.get("data"), None, "{answer}");
        Err((status, code(&answer).to_owned()))
    }

    /// The sessions of a token's user, newest first.
    pub(crate) async fn sessions(&self, token: &str) -> Vec<Value> {
        let answer = self.ask(Some(token), SESSIONS, json!({})).await;
        let nodes = answer["data"]["sessions"]["nodes"].as_array();
        nodes.unwrap_or_else(|| panic!("{answer}")).clone()
    }

    /// The id of the session that a token belongs to.
    pub(crate) async fn session(&self, token: &str) -> Value {
        let sessions = self.sessions(token).await;
        let current = sessions.iter().find(|session| session["isCurrent"] == true);
        current.expect("a current session")["id"].clone()
    }

    /// The id of a token's user.
    pub(crate) async fn id(&self, token: &str) -> Value {
        let answer = self.ask(Some(token), "{ viewer { id } }", json!({})).await;
        answer["data"]["viewer"]["id"].clone()
    }
}

/// The tokens in a payload. Fails if the payload has user errors.
#[track_caller]
pub(crate) fn tokens(payload: &Value) -> Tokens {
    assert_eq!(payload["userErrors"], json!([]), "{payload}");
    let text = |name: &str| payload[name].as_str().expect("a token").to_owned();
    Tokens {
        access: text("accessToken"),
        refresh: text("refreshToken"),
    }
}

/// The code of the first error.
pub(crate) fn code(answer: &Value) -> &str {
    let code = &answer["errors"][0]["extensions"]["code"];
    code.as_str().unwrap_or_else(|| panic!("{answer}"))
}

/// The fields and codes of the user errors.
pub(crate) fn faults(payload: &Value) -> Vec<(&str, &str)> {
    let errors = payload["userErrors"].as_array();
    let errors = errors.unwrap_or_else(|| panic!("{payload}"));
    let text = |value: &'_ Value| value.as_str().expect("text").to_owned();
    errors
        .iter()
        .map(|error| {
            assert!(!text(&error["message"]).is_empty());
            let code = error["code"].as_str().expect("a code");
            (error["field"][0].as_str().expect("a field"), code)
        })
        .collect()
}

/// The expected result of an invalid token.
pub(crate) fn unauthenticated() -> Standing {
    Err((StatusCode::UNAUTHORIZED, "UNAUTHENTICATED".to_owned()))
}

/// The expected result of a token of a deactivated user.
pub(crate) fn forbidden() -> Standing {
    Err((StatusCode::FORBIDDEN, "FORBIDDEN".to_owned()))
}

/// The expected result of a valid token of this user.
#[expect(
    clippy::unnecessary_wraps,
    reason = "compared with results that can be errors"
)]
pub(crate) fn user(email: &str) -> Standing {
    Ok(email.to_owned())
}

pub(crate) const ADA: &str = "ada@example.com";
const BOB: &str = "bob@example.com";
pub(crate) const ADMIN: &str = "admin@example.com";

#[tokio::test]
async fn registration_signs_the_user_in() {
    let server = TestServer::start().await;
    let visitor = Visitor::new(&server);
    let input = json!({ "email": " Ada@Example.com ", "password": PASSWORD, "name": "  Ada L.\t" });
    let answer = visitor.mutate(None, "register", SIGNED_IN, input).await;
    let payload = &answer["data"]["register"];
    let ada = tokens(payload);
    assert_eq!(payload["viewer"]["name"], "Ada L.");
    assert_eq!(payload["viewer"]["email"], "Ada@Example.com");
    assert_eq!(payload["viewer"]["role"], "USER");
    assert_eq!(visitor.who(&ada.access).await, user("Ada@Example.com"));

    let sessions = visitor.sessions(&ada.access).await;
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
    let visitor = Visitor::new(&server);
    let long = "x".repeat(101);
    for (email, password, name, expected) in [
        (
            "",
            "",
            " ",
            vec![
                ("email", "REQUIRED"),
                ("password", "REQUIRED"),
                ("name", "REQUIRED"),
            ],
        ),
        ("ada", PASSWORD, "Ada", vec![("email", "INVALID")]),
        ("ada@", PASSWORD, "Ada", vec![("email", "INVALID")]),
        (
            "a da@example.com",
            PASSWORD,
            "Ada",
            vec![("email", "INVALID")],
        ),
        ("ada@one@two", PASSWORD, "Ada", vec![("email", "INVALID")]),
        // The full-width at sign folds to a second `@`.
        (
            "ada\u{ff20}one@two",
            PASSWORD,
            "Ada",
            vec![("email", "INVALID")],
        ),
        (
            "ada\0@example.com",
            PASSWORD,
            "Ada",
            vec![("email", "INVALID")],
        ),
        (ADA, PASSWORD, "Ada\nLovelace", vec![("name", "INVALID")]),
        (ADA, PASSWORD, &long, vec![("name", "TOO_LONG")]),
        (
            &format!("{}@example.com", "x".repeat(243)),
            "short",
            "Ada",
            vec![("email", "TOO_LONG"), ("password", "TOO_SHORT")],
        ),
    ] {
        let input = json!({ "email": email, "password": password, "name": name });
        let answer = visitor.mutate(None, "register", SIGNED_IN, input).await;
        let payload = &answer["data"]["register"];
        assert_eq!(faults(payload), expected, "{email:?}");
        assert_eq!(payload["accessToken"], Value::Null);
        assert_eq!(payload["viewer"], Value::Null);
    }
}

#[tokio::test]
async fn registering_is_forbidden_when_registration_is_closed() {
    let server = TestServer::with(|config| config.auth.registration = false).await;
    let visitor = Visitor::new(&server);
    let answer = visitor.try_register(ADA, PASSWORD).await;
    assert_eq!(code(&answer), "FORBIDDEN");
    // The answer must not reveal whether an account exists.
    assert_eq!(visitor.try_register(ADMIN, PASSWORD).await, answer);
    visitor.login(ADMIN, PASSWORD).await;
}

#[tokio::test]
async fn fifty_concurrent_registrations_of_one_address_create_one_account() {
    let server = TestServer::on(Database::empty().await, |config| {
        config.graphql.timeout = std::time::Duration::from_mins(10);
    })
    .await;
    let visitor = Visitor::new(&server);
    let attempts = (0..50).map(async |n| {
        let email = if n % 2 == 0 { ADA } else { "ADA@EXAMPLE.COM" };
        let input = json!({ "email": email, "password": PASSWORD, "name": "Ada" });
        let query = format!(
            "mutation($input: RegisterInput!) {{ register(input: $input) {{ {SIGNED_IN} }} }}"
        );
        let response = visitor.send(None, &query, json!({ "input": input })).await;
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
        assert_eq!(faults(payload), [("email", "TAKEN")]);
    }
    let db = server.database().connect().await;
    let users = user::Entity::find().all(&db).await.expect("reads");
    assert_eq!(users.len(), 1);
}

#[tokio::test]
async fn a_password_change_ends_all_sessions_and_starts_a_new_one() {
    let server = TestServer::start().await;
    let visitor = Visitor::new(&server);
    let elsewhere = visitor.register(ADA).await;
    let here = visitor.login(ADA, PASSWORD).await;
    let change = async |token: &str, current: &str, new: &str| {
        let input = json!({ "currentPassword": current, "newPassword": new });
        let answer = visitor
            .mutate(Some(token), "changePassword", SIGNED_IN, input)
            .await;
        answer["data"]["changePassword"].clone()
    };

    let refused = change(&here.access, "not my password", "another password").await;
    assert_eq!(faults(&refused), [("currentPassword", "INVALID")]);
    let refused = change(&here.access, PASSWORD, "short").await;
    assert_eq!(faults(&refused), [("newPassword", "TOO_SHORT")]);
    assert_eq!(visitor.who(&elsewhere.access).await, user(ADA));

    let now = tokens(&change(&here.access, PASSWORD, "another password").await);
    assert_eq!(visitor.who(&now.access).await, user(ADA));
    for old in [&here, &elsewhere] {
        assert_eq!(visitor.who(&old.access).await, unauthenticated());
        assert_eq!(
            code(&visitor.try_refresh(&old.refresh).await),
            "UNAUTHENTICATED"
        );
    }
    assert_eq!(visitor.sessions(&now.access).await.len(), 1);
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
    let visitor = Visitor::new(&server);
    let ada = visitor.register(ADA).await;
    let change = async |new: &str| {
        let input = json!({ "currentPassword": PASSWORD, "newPassword": new });
        visitor
            .mutate(Some(&ada.access), "changePassword", SIGNED_IN, input)
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
    let won = tokens(&won["data"]["changePassword"]);
    assert_eq!(visitor.who(&won.access).await, user(ADA));
    visitor.login(ADA, password).await;
}

#[tokio::test]
async fn users_change_their_own_name() {
    let server = TestServer::start().await;
    let visitor = Visitor::new(&server);
    let ada = visitor.register(ADA).await;
    let update = async |token: Option<&str>, name: Value| {
        let input = json!({ "name": name });
        visitor.mutate(token, "updateProfile", CHANGED, input).await
    };
    let token = Some(ada.access.as_str());
    for (name, fault) in [
        (" \t".to_owned(), "REQUIRED"),
        ("x".repeat(101), "TOO_LONG"),
        ("Ada\u{7}".to_owned(), "INVALID"),
    ] {
        let refused = update(token, json!(name)).await;
        let payload = &refused["data"]["updateProfile"];
        assert_eq!(faults(payload), [("name", fault)]);
        assert_eq!(payload["user"]["name"], "Somebody");
    }
    let name = format!(" {} ", "\u{1f642}".repeat(100));
    let changed = update(token, json!(name)).await;
    assert_eq!(
        changed["data"]["updateProfile"]["user"]["name"],
        name.trim()
    );
    let cleared = update(token, Value::Null).await;
    let payload = &cleared["data"]["updateProfile"];
    assert_eq!(faults(payload), [("name", "REQUIRED")]);
    assert_eq!(payload["user"]["name"], name.trim());
    let nothing = visitor
        .mutate(token, "updateProfile", CHANGED, json!({}))
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
    let visitor = Visitor::new(&server);
    let ada = visitor.register(ADA).await;
    let admin = visitor.login(ADMIN, PASSWORD).await;
    let [ada_id, admin_id] = [
        visitor.id(&ada.access).await,
        visitor.id(&admin.access).await,
    ];
    let list = "{ users(filter: { search: \"ADA@\" }) { totalCount nodes { name email } } }";
    let update = async |token: Option<&str>, id: &Value| {
        let input = json!({ "userId": id, "name": "Eve", "role": "ADMIN", "isActive": false });
        visitor.mutate(token, "updateUser", CHANGED, input).await
    };

    for (token, refusal) in [
        (None, "UNAUTHENTICATED"),
        (Some(ada.access.as_str()), "FORBIDDEN"),
    ] {
        assert_eq!(code(&visitor.ask(token, list, json!({})).await), refusal);
        for id in [&ada_id, &admin_id] {
            assert_eq!(code(&update(token, id).await), refusal);
        }
    }
    let token = Some(admin.access.as_str());
    let found = visitor.ask(token, list, json!({})).await;
    let expected = json!({ "totalCount": 1, "nodes": [{ "name": "Somebody", "email": ADA }] });
    assert_eq!(found["data"]["users"], expected);

    let oneself = update(token, &admin_id).await;
    assert_eq!(
        faults(&oneself["data"]["updateUser"]),
        [("userId", "PROTECTED")]
    );
    assert_eq!(oneself["data"]["updateUser"]["user"]["id"], admin_id);
    assert_eq!(visitor.who(&admin.access).await, user(ADMIN));
    let nobody = json!("user_00000000000000000000000000");
    assert_eq!(code(&update(token, &nobody).await), "NOT_FOUND");
    let cleared = async |id: &Value| {
        let input = json!({ "userId": id, "name": null, "role": null, "isActive": null });
        visitor.mutate(token, "updateUser", CHANGED, input).await
    };
    assert_eq!(code(&cleared(&nobody).await), "NOT_FOUND");
    let refused = cleared(&ada_id).await;
    let payload = &refused["data"]["updateUser"];
    let expected = ["name", "role", "isActive"].map(|field| (field, "REQUIRED"));
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
    let visitor = Visitor::new(&server);
    let ada = visitor.register(ADA).await;
    let admin = visitor.login(ADMIN, PASSWORD).await;
    let id = visitor.id(&ada.access).await;
    let users = async |token: &str| {
        visitor
            .ask(Some(token), "{ users { totalCount } }", json!({}))
            .await
    };
    assert_eq!(code(&users(&ada.access).await), "FORBIDDEN");

    let mut session = ada;
    for (role, is_admin) in [("ADMIN", true), ("USER", false)] {
        let input = json!({ "userId": id, "role": role });
        let changed = visitor
            .mutate(Some(&admin.access), "updateUser", CHANGED, input)
            .await;
        assert_eq!(changed["data"]["updateUser"]["user"]["role"], role);
        assert_eq!(visitor.who(&session.access).await, unauthenticated());
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
async fn a_role_changed_in_the_database_applies_to_the_next_request() {
    let server = TestServer::start().await;
    let visitor = Visitor::new(&server);
    let admin = visitor.login(ADMIN, PASSWORD).await;
    let users = async || {
        let answer = visitor
            .ask(Some(&admin.access), "{ users { totalCount } }", json!({}))
            .await;
        answer["data"]["users"]["totalCount"].is_number()
    };
    assert!(users().await);
    let demote = user::Entity::update_many()
        .col_expr(user::Column::Role, Expr::value(UserRole::User))
        .filter(user::Column::EmailKey.eq(ADMIN));
    let db = server.database().connect().await;
    demote.exec(&db).await.expect("writes");
    assert!(!users().await);
}

#[tokio::test]
async fn deactivating_a_user_revokes_their_tokens() {
    let server = TestServer::start().await;
    let visitor = Visitor::new(&server);
    let ada = visitor.register(ADA).await;
    let admin = visitor.login(ADMIN, PASSWORD).await;
    let id = visitor.id(&ada.access).await;
    let set_active = async |is_active: bool| {
        let input = json!({ "userId": id, "isActive": is_active });
        let answer = visitor
            .mutate(Some(&admin.access), "updateUser", CHANGED, input)
            .await;
        assert_eq!(answer["data"]["updateUser"]["user"]["isActive"], is_active);
    };

    set_active(false).await;
    assert_eq!(visitor.who(&ada.access).await, forbidden());
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
    assert_eq!(visitor.who(&ada.access).await, unauthenticated());
    assert_eq!(
        code(&visitor.try_refresh(&ada.refresh).await),
        "UNAUTHENTICATED"
    );
    let again = visitor.login(ADA, PASSWORD).await;
    assert_eq!(visitor.who(&again.access).await, user(ADA));
}

#[tokio::test]
async fn deactivating_a_user_in_the_database_blocks_their_tokens() {
    let server = TestServer::start().await;
    let visitor = Visitor::new(&server);
    let ada = visitor.register(ADA).await;
    let disable = user::Entity::update_many()
        .col_expr(user::Column::IsActive, Expr::value(false))
        .filter(user::Column::EmailKey.eq(ADA));
    let db = server.database().connect().await;
    disable.exec(&db).await.expect("writes");
    assert_eq!(visitor.who(&ada.access).await, forbidden());
    assert_eq!(code(&visitor.try_refresh(&ada.refresh).await), "FORBIDDEN");
}
