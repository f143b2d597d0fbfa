//! Accounts: signing in and out, and the responses to tokens.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::actor::{Actor, code};
use super::database::PASSWORD;

pub(crate) const ADA: &str = "ada@example.com";
pub(crate) const BOB: &str = "bob@example.com";

/// The fields selected after a sign-in.
pub(crate) const SIGNED_IN: &str = "accessToken accessTokenExpiresAt refreshToken refreshTokenExpiresAt \
    viewer { id name email role isActive } userErrors { field code message }";

pub(crate) const SESSIONS: &str = "query($user: ID) { sessions(userId: $user) { totalCount nodes \
    { id createdAt refreshedAt expiresAt clientIp userAgent isCurrent } } }";

/// The tokens of a session.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    pub(crate) access: String,
    pub(crate) refresh: String,
}

/// The e-mail address of a token's user, or the status and the code of the refusal.
pub(crate) type CallerResult = Result<String, (StatusCode, String)>;

impl Actor {
    /// The complete response to a registration.
    pub(crate) async fn try_register(&self, email: &str, password: &str) -> Value {
        let input = json!({ "email": email, "password": password, "name": "Test User" });
        self.mutate("register", SIGNED_IN, input).await
    }

    /// Creates an account with the password of the demo users.
    pub(crate) async fn register(&self, email: &str) -> Tokens {
        tokens(&self.try_register(email, PASSWORD).await["data"]["register"])
    }

    /// The complete response to a sign-in.
    pub(crate) async fn try_login(&self, email: &str, password: &str) -> Value {
        let input = json!({ "email": email, "password": password });
        self.mutate("login", SIGNED_IN, input).await
    }

    /// Signs in.
    pub(crate) async fn login(&self, email: &str, password: &str) -> Tokens {
        tokens(&self.try_login(email, password).await["data"]["login"])
    }

    /// The complete response to a refresh.
    pub(crate) async fn try_refresh(&self, token: &str) -> Value {
        let input = json!({ "refreshToken": token });
        self.mutate("refreshSession", SIGNED_IN, input).await
    }

    /// Refreshes a session and returns its new tokens.
    pub(crate) async fn refresh(&self, token: &str) -> Tokens {
        tokens(&self.try_refresh(token).await["data"]["refreshSession"])
    }

    /// The user that an access token authenticates.
    pub(crate) async fn who(&self) -> CallerResult {
        let response = self.send("{ viewer { email } }", json!({})).await;
        let status = response.status();
        let answer: Value = response.json().await.expect("JSON");
        if let Some(email) = answer["data"]["viewer"]["email"].as_str() {
            return Ok(email.to_owned());
        }
        assert_eq!(answer.get("data"), None, "{answer}");
        Err((status, code(&answer).to_owned()))
    }

    /// The sessions of a token's user, newest first.
    pub(crate) async fn sessions(&self) -> Vec<Value> {
        let answer = self.answer(SESSIONS, json!({})).await;
        let nodes = answer["data"]["sessions"]["nodes"].as_array();
        nodes.unwrap_or_else(|| panic!("{answer}")).clone()
    }

    /// The id of the session that a token belongs to.
    pub(crate) async fn session(&self) -> Value {
        let sessions = self.sessions().await;
        let current = sessions.iter().find(|session| session["isCurrent"] == true);
        current.expect("a current session")["id"].clone()
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

/// The expected result of an invalid token.
pub(crate) fn unauthenticated() -> CallerResult {
    Err((StatusCode::UNAUTHORIZED, "UNAUTHENTICATED".to_owned()))
}

/// The expected result of a token of a deactivated user.
pub(crate) fn forbidden() -> CallerResult {
    Err((StatusCode::FORBIDDEN, "FORBIDDEN".to_owned()))
}

/// The expected result of a valid token of this user.
#[expect(
    clippy::unnecessary_wraps,
    reason = "compared with results that can be errors"
)]
pub(crate) fn user(email: &str) -> CallerResult {
    Ok(email.to_owned())
}
