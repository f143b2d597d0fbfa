//! A server in the test process, with an HTTP client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use gathering::config::{Config, Mode};
use gathering::playground::SignIn;
use gathering::server::{Options, Server};
use gathering_schema::Graph;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::actor::{Actor, client};
use super::database::{Database, PASSWORD};
use super::wait::until;

/// The key that signs access tokens in tests.
pub(crate) const SIGNING_KEY: &str = "a key of the tests: 0123456789 ABCDEFGHIJ";

/// A running server with its own database. Dropping it ends both.
pub(crate) struct TestServer {
    server: Server,
    client: Client,
    caller: Actor,
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
    monotonic: Arc<AtomicI64>,
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
        let [ahead, passed] = [&clocks.wall, &clocks.monotonic].map(Arc::clone);
        let options = Options {
            migrate: true,
            sign_in,
            logs_mails: false,
            clock: Arc::new(move || Utc::now() + TimeDelta::seconds(ahead.load(Ordering::Relaxed))),
            monotonic: Arc::new(move || passed.load(Ordering::Relaxed) * 1_000_000),
        };
        let server = start(&database, change, options).await;
        let caller = Actor::new(&format!("http://{}", server.address()));
        Self {
            server,
            client: client(),
            caller,
            clocks,
            demo: OnceCell::new(),
            database,
        }
    }

    /// Advances both clocks. Rate limits use the monotonic clock, which does not advance otherwise.
    pub(crate) fn pass(&self, seconds: i64) {
        self.jump(seconds);
        self.clocks.monotonic.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Sets only the wall clock forward or back.
    pub(crate) fn jump(&self, seconds: i64) {
        self.clocks.wall.fetch_add(seconds, Ordering::Relaxed);
    }

    /// The graph that the server serves.
    pub(crate) fn graph(&self) -> &Graph {
        self.server.graph()
    }

    /// The database of the server.
    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// An access token that is issued without a sign-in.
    pub(crate) async fn token(&self, email: &str) -> String {
        let ticket = self
            .server
            .operator_token(email, Duration::from_hours(1))
            .await;
        ticket.expect("a user")
    }

    /// An actor who has this token.
    pub(crate) fn with_token(&self, token: &str) -> Actor {
        self.caller.with(token)
    }

    /// An actor with this token, or without one.
    pub(crate) fn caller(&self, token: Option<&str>) -> Actor {
        self.caller.as_caller(token)
    }

    /// An actor from 127.0.0.`host` who is not signed in.
    pub(crate) fn at_host(&self, host: u8) -> Actor {
        Actor::at(&self.url(""), host)
    }

    /// A user as an actor, with a token that was given out without a sign-in.
    pub(crate) async fn actor(&self, email: &str) -> Actor {
        self.with_token(&self.token(email).await)
    }

    /// An actor who is not signed in.
    pub(crate) fn anonymous(&self) -> Actor {
        self.caller.clone()
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
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

    /// The complete response to the demo user's operation, with any status.
    pub(crate) async fn graphql(&self, query: &str, variables: Value) -> Value {
        let token = self.demo.get_or_init(|| self.token("demo@example.com"));
        self.with_token(token.await).answer(query, variables).await
    }

    /// The number of open subscriptions.
    pub(crate) async fn subscribers(&self) -> i64 {
        let admin = self.actor("admin@example.com").await;
        let query = "{ eventBusStats { subscribers } }";
        let data = admin.ask(query, json!({})).await;
        let subscribers = data["eventBusStats"]["subscribers"].as_i64();
        subscribers.expect("a number")
    }

    /// Waits until more subscriptions are open.
    pub(crate) async fn until_subscribers_exceed(&self, before: i64) {
        let what = format!("more than {before} open subscriptions");
        until(what, async || self.subscribers().await > before).await;
    }

    /// Waits until no subscription is open.
    pub(crate) async fn until_no_subscriber_is_left(&self) {
        until("the end of all subscriptions", async || {
            self.subscribers().await == 0
        })
        .await;
    }

    /// The value of a metric in `/metrics`.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").await.text().await.expect("text");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let number = line.unwrap_or_else(|| panic!("no {name}: {text}"));
        number.parse().expect("a number")
    }

    /// Waits until a number of `/metrics` is this.
    pub(crate) async fn until_metric_is(&self, name: &str, number: u64) {
        let what = format!("{name} {number} in /metrics");
        until(what, async || self.metric(name).await == number).await;
    }

    /// Deletes expired rows, as the server does every hour.
    pub(crate) async fn purge(&self) {
        self.server.purge().await.expect("purges");
    }

    /// The number of statements that the server has sent.
    pub(crate) fn statements(&self) -> u64 {
        self.server.statements()
    }

    /// The number of statements that the server has sent, once it has sent none for a while. Includes the statements of
    /// background tasks.
    pub(crate) async fn settled(&self) -> u64 {
        const QUIET: Duration = Duration::from_millis(100);
        let mut last = (self.statements(), Instant::now());
        until("an end of the statements", async || {
            let now = self.statements();
            if now != last.0 {
                last = (now, Instant::now());
            }
            last.1.elapsed() >= QUIET
        })
        .await;
        last.0
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
    // A loaded machine must not exceed a limit on time that a test is not about.
    config.server.header_timeout = Duration::from_hours(1);
    config.server.body_timeout = Duration::from_hours(1);
    config.server.write_timeout = Duration::from_hours(1);
    config.database.acquire_timeout = Duration::from_mins(1);
    config.database.statement_timeout = Duration::from_mins(10);
    config.graphql.limits.timeout = Duration::from_mins(10);
    config.subscriptions.init_timeout = Duration::from_hours(1);
    config.subscriptions.keep_alive = Duration::from_hours(1);
    change(&mut config);
    Server::start(config, options).await.expect("starts")
}

/// Polls the URL until it answers with this status.
pub(crate) async fn until_ready_is(url: &str, status: StatusCode) {
    let client = client();
    until(format!("{status} from {url}"), async || {
        client.get(url).send().await.expect("an answer").status() == status
    })
    .await;
}
