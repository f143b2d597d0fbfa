//! GraphQL over WebSocket: the `graphql-transport-ws` protocol, connection limits, and the end of connections.

pub(crate) mod limit;
mod operation;
mod protocol;
mod stream;

use crate::support::server::TestServer;

/// Asserts that no connection and no stream is left.
async fn assert_nothing_is_left(server: &TestServer) {
    server
        .until_metric_is("gathering_websocket_connections", 0)
        .await;
    server
        .until_metric_is(r#"gathering_streams{transport="websocket"}"#, 0)
        .await;
}
