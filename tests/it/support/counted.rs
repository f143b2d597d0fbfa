//! A graph that counts the statements of its operations.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use futures_util::future::join_all;
use gathering::config::Config;
use gathering::health::Health;
use gathering::server;
use gathering_schema::auth::Keys;
use gathering_schema::{
    BackgroundTasks, Caller, Client, Clock, Graph, Params, Pool, PoolMonitor, Usage,
};
use sea_orm::DatabaseConnection;
use sea_orm::metric::Info;
use serde_json::Value;

use super::server::{SIGNING_KEY, TestServer};

/// The statements that authentication takes, unless the credential was read a moment ago.
const AUTHENTICATION: u64 = 1;

/// Counts the statements of a pool.
#[derive(Default)]
pub(crate) struct Statements(AtomicU64);

impl PoolMonitor for Statements {
    fn ended(&self, _: &Info<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn is_usable(&self, _: Duration) -> bool {
        true
    }
}

/// A graph on the database of a server. Its background tasks do not run, so only the statements of operations are
/// counted.
pub(crate) struct CountedGraph {
    graph: Graph,
    statements: Arc<Statements>,
    /// By how many seconds its clock is ahead. Each operation is a second later, so that its credential is read again.
    ahead: Arc<AtomicI64>,
    _background: BackgroundTasks,
}

impl CountedGraph {
    pub(crate) async fn on(server: &TestServer) -> Self {
        Self::over(server.database().connect().await).await
    }

    /// A graph over this connection.
    pub(crate) async fn over(db: DatabaseConnection) -> Self {
        Self::with(db, &Config::default()).await
    }

    /// A graph over this connection with this configuration.
    pub(crate) async fn with(db: DatabaseConnection, config: &Config) -> Self {
        let statements = Arc::<Statements>::default();
        let pool = Pool::new(db, Arc::clone(&statements));
        let keys = Keys::new(SIGNING_KEY.as_bytes(), &[""; 0]).expect("is strong");
        let monotonic = server::Options::default().monotonic;
        let ahead = Arc::new(AtomicI64::new(0));
        let seconds = Arc::clone(&ahead);
        let clock: Clock =
            Arc::new(move || Utc::now() + TimeDelta::seconds(seconds.load(Ordering::Relaxed)));
        let health = Health::new(Arc::clone(&clock));
        let settings = server::settings(config, keys, clock, monotonic, &health);
        let graph = Graph::new(pool, settings.expect("is read")).await;
        let (graph, background) = graph.expect("starts");
        Self {
            graph,
            statements,
            ahead,
            _background: background,
        }
    }

    /// The whole answer to an operation, and how many statements it took beside the authentication.
    pub(crate) async fn cost(&self, token: &str, query: &str, variables: Value) -> (Value, u64) {
        let (answers, statements) = self.cost_together(token, query, [variables]).await;
        let answer = answers.into_iter().next().expect("an answer");
        (answer, statements)
    }

    /// As [`CountedGraph::cost`], for operations that are executed at the same time.
    pub(crate) async fn cost_together(
        &self,
        token: &str,
        query: &str,
        variables: impl IntoIterator<Item = Value>,
    ) -> (Vec<Value>, u64) {
        self.ahead.fetch_add(1, Ordering::Relaxed);
        let before = self.statements.0.load(Ordering::Relaxed);
        let answers = variables.into_iter();
        let answers = answers.map(|variables| self.answer(token, query, variables));
        let answers = join_all(answers).await;
        let sent = self.statements.0.load(Ordering::Relaxed) - before - AUTHENTICATION;
        (answers, sent)
    }

    async fn answer(&self, token: &str, query: &str, variables: Value) -> Value {
        let params = Params {
            query: Some(query.to_owned()),
            variables: variables.as_object().cloned(),
            ..Params::default()
        };
        let operation = self.graph.prepare(params).expect("is well formed");
        let caller = Caller {
            token: Some(token),
            client: Client::default(),
            usage: Usage::Off,
            after: None,
            idempotency_key: None,
            batch_entry: None,
            is_always_polled: false,
        };
        let answer = self.graph.answer(operation, caller).await;
        let mut text = Vec::new();
        answer.write(&mut text);
        serde_json::from_slice(&text).expect("JSON")
    }
}
