//! Accounts: who gets in, how far, for how long, and what is known about it afterwards.

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

/// What a sign-in answers.
pub(crate) const SIGNED_IN: &str = "accessToken accessTokenExpiresAt refreshToken refreshTokenExpiresAt \
    viewer { id name email role isActive } userErrors { field code message }";

/// What a change of an account answers.
const CHANGED: &str = "user { id name role isActive } userErrors { field code message }";

const SESSIONS: &str = "query($user: ID) { sessions(userId: $user) { totalCount nodes \
    { id createdAt refreshedAt expiresAt clientIp userAgent isCurrent } } }";

/// Somebody with an address and connections of their own.
#[derive(Clone)]
pub(crate) struct Visitor {
    client: Client,
    url: String,
    request_id: Option<String>,
}

/// What a sign-in gives out.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    pub(crate) access: String,
    pub(crate) refresh: String,
}

/// The e-mail address of a token's user, or status and code of what refuses it.
type Standing = Result<String, (StatusCode, String)>;

impl Visitor {
    /// From 127.0.0.1.
    pub(crate) fn new(server: &TestServer) -> Self {
        Self::at(server, 1)
    }

    /// From 127.0.0.`host`.
    pub(crate) fn at(server: &TestServer, host: u8) -> Self {
        Self::to(server.url("/graphql"), host)
    }

    /// From 127.0.0.`host` to an address.
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

    /// The same one, whose requests have this id.
    pub(crate) fn named(&self, request_id: &str) -> Self {
        Self {
            request_id: Some(request_id.to_owned()),
            ..self.clone()
        }
    }

    /// The response to an operation, whatever it is.
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

    /// The whole answer to an operation.
    pub(crate) async fn ask(&self, token: Option<&str>, query: &str, variables: Value) -> Value {
        let response = self.send(token, query, variables).await;
        response.json().await.expect("JSON")
    }

    /// The whole answer to a mutation, whose input type is named after it.
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

    /// The whole answer to a registration.
    pub(crate) async fn try_register(&self, email: &str, password: &str) -> Value {
        let input = json!({ "email": email, "password": password, "name": "Somebody" });
        self.mutate(None, "register", SIGNED_IN, input).await
    }

    /// Makes an account with the password of the demo users.
    pub(crate) async fn register(&self, email: &str) -> Tokens {
        tokens(&self.try_register(email, PASSWORD).await["data"]["register"])
    }

    /// The whole answer to a sign-in.
    pub(crate) async fn try_login(&self, email: &str, password: &str) -> Value {
        let input = json!({ "email": email, "password": password });
        self.mutate(None, "login", SIGNED_IN, input).await
    }

    /// Signs in.
    pub(crate) async fn login(&self, email: &str, password: &str) -> Tokens {
        tokens(&self.try_login(email, password).await["data"]["login"])
    }

    /// The whole answer to a refresh.
    pub(crate) async fn try_refresh(&self, token: &str) -> Value {
        let input = json!({ "refreshToken": token });
        self.mutate(None, "refreshSession", SIGNED_IN, input).await
    }

    /// The next tokens of a session.
    pub(crate) async fn refresh(&self, token: &str) -> Tokens {
        tokens(&self.try_refresh(token).await["data"]["refreshSession"])
    }

    /// Whose an access token is.
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

/// What a payload gives out, if nothing is wrong with the input.
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

/// Fields and codes of what is wrong with the input.
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

/// How a token that is not believed is answered.
pub(crate) fn unauthenticated() -> Standing {
    Err((StatusCode::UNAUTHORIZED, "UNAUTHENTICATED".to_owned()))
}

/// How the token of a deactivated user is answered.
pub(crate) fn forbidden() -> Standing {
    Err((StatusCode::FORBIDDEN, "FORBIDDEN".to_owned()))
}

/// How a good token of this user is answered.
#[expect(
    clippy::unnecessary_wraps,
    reason = "it is compared with what may be a refusal"
)]
pub(crate) fn user(email: &str) -> Standing {
    Ok(email.to_owned())
}

pub(crate) const ADA: &str = "ada@example.com";
const BOB: &str = "bob@example.com";
pub(crate) const ADMIN: &str = "admin@example.com";

#[tokio::test]
async fn who_registers_is_signed_in_at_once() {
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
async fn what_is_wrong_with_a_registration_is_told_field_by_field() {
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
        // Folded, this has two at signs.
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
async fn a_closed_registration_is_forbidden() {
    let server = TestServer::with(|config| config.auth.registration = false).await;
    let visitor = Visitor::new(&server);
    let answer = visitor.try_register(ADA, PASSWORD).await;
    assert_eq!(code(&answer), "FORBIDDEN");
    // Nobody learns who has an account.
    assert_eq!(visitor.try_register(ADMIN, PASSWORD).await, answer);
    visitor.login(ADMIN, PASSWORD).await;
}

#[tokio::test]
async fn an_address_that_is_registered_fifty_times_at_once_is_registered_once() {
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
async fn a_new_password_ends_every_session_but_its_own() {
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
async fn of_two_new_passwords_at_once_the_first_stays() {
    let server = TestServer::start().await;
    let visitor = Visitor::new(&server);
    let ada = visitor.register(ADA).await;
    let change = async |new: &str| {
        let input = json!({ "currentPassword": PASSWORD, "newPassword": new });
        visitor
            .mutate(Some(&ada.access), "changePassword", SIGNED_IN, input)
            .await
    };
    // Both know the password and the session that the first of them ends.
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
async fn only_administrators_list_and_change_others() {
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
async fn a_new_role_counts_at_once() {
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
async fn a_role_that_was_changed_in_the_database_counts_for_the_next_request() {
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
async fn a_disabled_user_is_out_in_mid_session() {
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

    // What was ended stays so.
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
async fn who_is_disabled_in_the_database_alone_is_out_too() {
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
