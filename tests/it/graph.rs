//! The GraphQL API: statement counts, pagination, errors, permissions, and validation.

mod documents;
mod little;
mod pages;
mod round_trips;
mod statements;

use std::fs;

use gathering_schema::Graph;
use serde_json::{Value, json};

use crate::support::actor::Actor;
use crate::support::server::TestServer;

const ATELIER: &str = "circle_01ke6p4zk8e03r000000000001";

const ASSEMBLY: &str = "circle_01ke6p50jge03r000000000002";

/// The operations of typical client screens.
const OPERATIONS: &str = include_str!("acceptance.graphql");

const TEAM: &str = "query ($id: ID!) { circle(id: $id) { members(first: 100) { nodes { id model { id provider { id } } } } } }";

/// The statements that authentication takes, unless the credential was read a moment ago.
const AUTHENTICATION: u64 = 1;

/// The seconds after which a credential is read again.
const READ_AGAIN: i64 = 1;

/// A server and the token of its caller.
struct Caller {
    server: TestServer,
    actor: Actor,
}

impl Caller {
    async fn graphql(&self, query: &str, variables: Value) -> Value {
        self.actor.answer(query, variables).await
    }

    fn statements(&self) -> u64 {
        self.server.statements()
    }
}

/// Serves the demo data to the user with this e-mail address.
async fn serve(email: &str) -> Caller {
    let server = TestServer::start().await;
    let actor = server.actor(email).await;
    Caller { server, actor }
}

/// The data of an operation, which must not fail, and the number of its statements without authentication.
async fn ask(caller: &Caller, query: &str, variables: Value) -> (Value, u64) {
    caller.server.jump(READ_AGAIN);
    let before = caller.statements();
    let answer = caller.graphql(query, variables).await;
    assert_eq!(answer.get("errors"), None, "{query}");
    let statements = caller.statements() - before - AUTHENTICATION;
    (answer["data"].clone(), statements)
}

/// The first error.
async fn refused(caller: &Caller, query: &str, variables: Value) -> Value {
    let answer = caller.graphql(query, variables).await;
    answer["errors"][0].clone()
}
