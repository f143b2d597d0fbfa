//! A server in the test process, with an HTTP client.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use gathering::config::{Config, Mode};
use gathering::playground::SignIn;
use gathering::serve::{Options, Server};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::database::{Database, PASSWORD};

/// The key that signs access tokens in tests.
pub(crate) const SIGNING_KEY: &str = "a key of the tests: 0123456789 ABCDEFGHIJ";

/// A running server with its own database. Dropping it ends both.
pub(crate) struct TestServer {
    server: Server,
    client: Client,
    clocks: Clocks,
    demo: OnceCell<String>,
    database: Arc<Database>,
}

/// The clocks of a server.
#[derive(Clone, Default)]
struct Clocks {
    /// The seconds by which the wall clock is ahead.
    wall: Arc<AtomicI64>,
    /// The seconds that have passed on the monotonic clock.
    steady: Arc<AtomicI64>,
}

impl TestServer {
    /// Serves the demo data.
    pub(crate) async fn start() -> Self {
        Self::with(|_| ()).await
    }

    /// Serves the demo data with a changed configuration.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::on(Database::seeded().await, change).await
    }

    /// Serves the demo data as `gathering demo` does: the playground signs every visitor in.
    pub(crate) async fn demo() -> Self {
        let sign_in = SignIn {
            email: "demo@example.com".to_owned(),
            password: PASSWORD.to_owned(),
        };
        let database = Arc::new(Database::seeded().await);
        Self::with_all(database, |_| (), Clocks::default(), Some(sign_in)).await
    }

    /// Serves this database with a changed configuration.
    pub(crate) async fn on(
        database: impl Into<Arc<Database>>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        Self::with_all(database.into(), change, Clocks::default(), None).await
    }

    /// Another server on the same database, with the same clocks.
    pub(crate) async fn beside(&self, change: impl FnOnce(&mut Config)) -> Self {
        let (database, clocks) = (Arc::clone(&self.database), self.clocks.clone());
        Self::with_all(database, change, clocks, None).await
    }

    async fn with_all(
        database: Arc<Database>,
        change: impl FnOnce(&mut Config),
        clocks: Clocks,
        sign_in: Option<SignIn>,
    ) -> Self {
        let [ahead, passed] = [&clocks.wall, &clocks.steady].map(Arc::clone);
        let options = Options {
            migrate: true,
            sign_in,
            clock: Arc::new(move || Utc::now() + TimeDelta::seconds(ahead.load(Ordering::Relaxed))),
            steady: Arc::new(move || passed.load(Ordering::Relaxed) * 1_000_000),
        };
        let server = start(&database, change, options).await;
        let client = Client::builder().no_proxy().build().expect("a client");
        Self {
            server,
            client,
            clocks,
            demo: OnceCell::new(),
            database,
        }
    }

    /// Advances both clocks. Rate limits use the monotonic clock, which does not advance otherwise.
    pub(crate) fn pass(&self, seconds: i64) {
        self.jump(seconds);
        self.clocks.steady.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Sets only the wall clock forward or back.
    pub(crate) fn jump(&self, seconds: i64) {
        self.clocks.wall.fetch_add(seconds, Ordering::Relaxed);
    }

    /// The database of the server.
    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// An access token that is issued without a sign-in.
    pub(crate) async fn token(&self, email: &str) -> String {
        let ticket = self.server.ticket(email, Duration::from_hours(1)).await;
        ticket.expect("a user")
    }

    /// The absolute URL of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address())
    }

    /// A request, to be completed and sent by the test.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    /// The response to a GET request.
    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path)
            .send()
            .await
            .expect("an answer")
    }

    /// The complete response to the demo user's operation, whatever its status.
    pub(crate) async fn graphql(&self, query: &str, variables: Value) -> Value {
        let token = self.demo.get_or_init(|| self.token("demo@example.com"));
        self.ask(Some(token.await), query, variables).await
    }

    /// The complete response to an operation with this token, whatever its status.
    pub(crate) async fn ask(&self, token: Option<&str>, query: &str, variables: Value) -> Value {
        let response = self.send(token, query, variables).await;
        response.json().await.expect("JSON")
    }

    /// Like [`TestServer::ask`], with status and headers.
    pub(crate) async fn send(
        &self,
        token: Option<&str>,
        query: &str,
        variables: Value,
    ) -> Response {
        let mut request = self.request(Method::POST, "/graphql");
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let body = json!({ "query": query, "variables": variables });
        request.json(&body).send().await.expect("an answer")
    }

    /// The response to a subscription over Server-Sent Events, with an unread body.
    pub(crate) async fn listen(
        &self,
        token: Option<&str>,
        query: &str,
        variables: Value,
    ) -> Response {
        let mut request = self.request(Method::POST, "/graphql");
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let body = json!({ "query": query, "variables": variables });
        let request = request.header("accept", "text/event-stream").json(&body);
        request.send().await.expect("an answer")
    }

    /// The number of open subscriptions.
    pub(crate) async fn subscribers(&self) -> i64 {
        let admin = self.token("admin@example.com").await;
        let query = "{ eventBusStats { subscribers } }";
        let answer = self.ask(Some(&admin), query, json!({})).await;
        let subscribers = answer["data"]["eventBusStats"]["subscribers"].as_i64();
        subscribers.expect("a number")
    }

    /// Deletes expired rows, as the server does every hour.
    pub(crate) async fn purge(&self) {
        self.server.purge().await.expect("purges");
    }

    /// The number of statements that the server has sent.
    pub(crate) fn statements(&self) -> u64 {
        self.server.statements()
    }

    /// Shuts the server down as SIGTERM does.
    pub(crate) async fn shut_down(self, grace: Duration) {
        self.server.shut_down(grace).await;
    }

    /// Shuts the server down as SIGTERM does, and returns its database.
    pub(crate) async fn end(self) -> Arc<Database> {
        self.server.shut_down(Duration::ZERO).await;
        self.database
    }
}

async fn start(database: &Database, change: impl FnOnce(&mut Config), options: Options) -> Server {
    let mut config = Config::default();
    config.server.listen.set_port(0);
    config.database.url = database.url().parse().expect("a database URL");
    config.auth.signing_key = SIGNING_KEY.to_owned().into();
    // The requests of tests exceed the default rate limits.
    config.limits.mode = Mode::Off;
    // Polling for events would change the statement counts of tests.
    config.events.poll = Duration::from_hours(1);
    change(&mut config);
    Server::start(config, options).await.expect("starts")
}
