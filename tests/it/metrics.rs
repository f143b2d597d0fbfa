//! The metrics of the loader and of the relay.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::json;

use crate::live;
use crate::support::server::TestServer;
use crate::support::wait::until;

/// The value of a metric of this name and these labels.
async fn value(server: &TestServer, name: &str) -> Option<f64> {
    let text = server.get("/metrics").await.text().await.expect("text");
    let mut lines = text.lines();
    let number = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(number.parse().expect("a number"))
}

#[tokio::test]
async fn the_loader_reports_the_sizes_of_its_batches() {
    let server = TestServer::start().await;
    let metric = async |suffix: &str, bound: &str| {
        let labels = format!("{{{bound}loader=\"agents by id\"}}");
        value(
            &server,
            &format!("gathering_loader_batch_keys_{suffix}{labels}"),
        )
        .await
    };
    assert_eq!(metric("count", "").await, None);
    let query = "query ($id: ID!) { circle(id: $id) { members(first: 100) { nodes { id competencies } } } }";
    let id = "circle_01ke6p4zk8e03r000000000001";
    for batches in [1.0, 2.0] {
        let answer = server.graphql(query, json!({ "id": id })).await;
        let members = answer["data"]["circle"]["members"]["nodes"].as_array();
        assert_eq!(members.map(Vec::len), Some(20), "{answer}");
        assert_eq!(metric("count", "").await, Some(batches));
        assert_eq!(metric("sum", "").await, Some(20.0 * batches));
        assert_eq!(metric("bucket", "le=\"10.0\",").await, Some(0.0));
        assert_eq!(metric("bucket", "le=\"50.0\",").await, Some(batches));
        assert_eq!(metric("bucket", "le=\"+Inf\",").await, Some(batches));
    }
}

#[tokio::test]
async fn the_relay_reports_the_age_of_the_oldest_event_that_it_publishes() {
    let server = TestServer::with(|config| {
        config.events.poll = Duration::from_millis(20);
    })
    .await;
    let lag = async || value(&server, "gathering_event_relay_lag_seconds").await;
    assert_eq!(lag().await, Some(0.0));
    let db = server.database().connect().await;
    let now = live::now();
    let rows = [0, 5000].map(|age| live::row(1, 1, now - TimeDelta::seconds(age)));
    live::insert(&db, rows.into()).await;
    until("a lag of the older event", async || {
        lag().await.is_some_and(|lag| lag >= 5000.0)
    })
    .await;
    live::insert(&db, vec![live::row(2, 2, live::now())]).await;
    until("a lag of the next event", async || {
        lag().await.is_some_and(|lag| lag < 5000.0)
    })
    .await;
    db.close().await.expect("closes");
}
