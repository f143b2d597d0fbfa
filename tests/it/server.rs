//! A server in this process, asked over HTTP.

use std::time::Duration;

use gathering::config::Config;
use gathering::serve::Server;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::database::Database;

/// A running server with a database of its own. Dropping it ends both.
pub(crate) struct TestServer {
    server: Server,
    client: Client,
    _database: Database,
}

impl TestServer {
    /// Serves the demo data.
    pub(crate) async fn start() -> Self {
        Self::with(|_| ()).await
    }

    /// Serves the demo data, configured differently.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::on(Database::seeded().await, change).await
    }

    /// Serves this database, configured differently.
    pub(crate) async fn on(database: Database, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.server.listen.set_port(0);
        config.database.url = database.url().parse().expect("a database URL");
        change(&mut config);
        let server = Server::start(config, true).await.expect("starts");
        let client = Client::builder().no_proxy().build().expect("a client");
        Self {
            server,
            client,
            _database: database,
        }
    }

    /// The absolute address of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address())
    }

    /// A request to be completed and sent.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    /// The answer to a GET.
    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path)
            .send()
            .await
            .expect("an answer")
    }

    /// The whole response to an operation, whatever its status.
    pub(crate) async fn graphql(&self, query: &str, variables: Value) -> Value {
        let body = json!({ "query": query, "variables": variables });
        let response = self
            .request(Method::POST, "/graphql")
            .json(&body)
            .send()
            .await;
        response.expect("an answer").json().await.expect("JSON")
    }

    /// How many statements the server has sent so far.
    pub(crate) fn statements(&self) -> u64 {
        self.server.statements()
    }

    /// Ends the server as SIGTERM does.
    pub(crate) async fn shut_down(self, grace: Duration) {
        self.server.shut_down(grace).await;
    }
}
