//! Rate limits: the quotas of clients, how they are reported, and how several instances share them.
//!
//! The server's clocks advance only when a test advances them, so the results do not depend on the speed of the
//! machine. Only Redis uses its own clock.

mod class;
mod client;
mod cost;
mod header;
mod operation;
mod setting;
mod shared;
mod tier;

use gathering::config::{Config, Mode, Networks};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::server::TestServer;

/// The addresses of two clients.
const HERE: &str = "192.0.2.1";
const THERE: &str = "192.0.2.2";

/// A quota that no test reaches.
const PLENTY: u32 = 1_000_000;

const VIEWER: &str = "{ viewer { id } }";

/// Serves the demo data with rate limits, and trusts the client address in the headers of the tests.
async fn serve(change: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::with(|config| {
        config.limits.mode = Mode::Enforce;
        let local = "127.0.0.0/8".parse().expect("a network");
        config.server.trusted_proxies = Networks(vec![local]);
        change(config);
    })
    .await
}

/// A response.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    /// Null if the body is not JSON.
    body: Value,
}

impl Answer {
    async fn to(request: RequestBuilder) -> Self {
        let response = request.send().await.expect("an answer");
        Self {
            status: response.status(),
            headers: response.headers().clone(),
            body: response.json().await.unwrap_or_default(),
        }
    }

    /// The code of each error.
    fn codes(&self) -> Vec<&str> {
        let errors = self.body["errors"].as_array().into_iter().flatten();
        errors
            .map(|error| error["extensions"]["code"].as_str().expect("a code"))
            .collect()
    }

    /// Whether the whole request was refused.
    fn is_refused(&self) -> bool {
        let is_refused = self.status == StatusCode::TOO_MANY_REQUESTS;
        assert_eq!(
            is_refused,
            self.body["errors"][0]["extensions"]["code"] == "RATE_LIMITED"
                && self.body.get("data").is_none(),
            "{}",
            self.body
        );
        is_refused
    }

    /// The value of a header, which must be present.
    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        let value = value.unwrap_or_else(|| panic!("no {name}: {}", self.body));
        value.to_str().expect("text")
    }

    fn number(&self, name: &str) -> i64 {
        self.header(name).parse().expect("a whole number")
    }

    /// The reported quota of a root field.
    fn quota(&self, field: &str) -> &Value {
        let quotas = &self.body["extensions"]["rateLimit"];
        let mut known = quotas.as_array().expect("quotas").iter();
        known
            .find(|quota| quota["field"] == field)
            .unwrap_or_else(|| panic!("no quota of {field} in {quotas}"))
    }
}

/// A request to `/graphql` from this address.
fn from(server: &TestServer, address: &str) -> RequestBuilder {
    let request = server.request(Method::POST, "/graphql");
    request.header("X-Forwarded-For", address)
}

/// The response to an operation from this address.
async fn ask(server: &TestServer, address: &str, token: Option<&str>, query: &str) -> Answer {
    let mut request = from(server, address).json(&json!({ "query": query }));
    if query.starts_with("subscription") {
        request = request.header("accept", "text/event-stream");
    }
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    Answer::to(request).await
}

/// How many of these operations are allowed, one after the other.
async fn let_in(
    server: &TestServer,
    address: &str,
    token: Option<&str>,
    query: &str,
    times: u32,
) -> u32 {
    let mut let_in = 0;
    for _ in 0..times {
        let_in += u32::from(!ask(server, address, token, query).await.is_refused());
    }
    let_in
}

/// A sign-in field with a wrong password.
fn attempt(email: &str) -> String {
    format!(r#"login(input: {{email: "{email}", password: "not this one"}}) {{ accessToken }}"#)
}

/// A selection of the same field under different aliases.
fn aliases(field: &str, times: usize) -> String {
    let field = |place| format!("a{place}: {field} ");
    format!("{{ {}}}", (0..times).map(field).collect::<String>())
}

/// Asserts that an error refuses for this many seconds and has all the extensions.
fn assert_refusal(error: &Value, tier: &str, limit: u32, wait: u64) {
    let extensions = error["extensions"].as_object().expect("extensions");
    let expected = [
        ("code", json!("RATE_LIMITED")),
        ("tier", json!(tier)),
        ("limit", json!(limit)),
        ("windowSeconds", json!(60)),
        ("remaining", json!(0)),
        ("retryAfter", json!(wait)),
        ("retryAfterMs", json!(wait * 1_000)),
    ];
    for (name, value) in expected {
        assert_eq!(extensions[name], value, "{name}: {error}");
    }
    assert_eq!(extensions.len(), 8, "{error}");
}
