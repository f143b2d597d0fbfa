//! The metrics of operations, of the loader, of the relay and of the process, and those that the dashboard and the alerts
//! use.

use std::collections::BTreeSet;
use std::fs;
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

#[tokio::test]
async fn operations_are_measured_by_name_with_their_statements() {
    let server = TestServer::start().await;
    let query = "query Team { circles(first: 2) { nodes { id members { nodes { name } } } } }";
    for _ in 0..3 {
        server.graphql(query, json!({})).await;
    }
    server.graphql("query Broken { nonsense }", json!({})).await;
    let count = "gathering_graphql_named_operation_duration_seconds_count";
    let team = format!(r#"{count}{{operation="Team",outcome="ok"}}"#);
    assert_eq!(value(&server, &team).await, Some(3.0));
    let text = server.get("/metrics").await.text().await.expect("text");
    assert!(!text.contains("Broken"), "{text}");
    let statements = r#"gathering_graphql_operation_statements_count{kind="query"}"#;
    assert_eq!(value(&server, statements).await, Some(3.0));
    let most = r#"gathering_graphql_operation_statements_bucket{le="4.0",kind="query"}"#;
    assert_eq!(value(&server, most).await, Some(3.0));
    let none = r#"gathering_graphql_operation_statements_bucket{le="0.0",kind="query"}"#;
    assert_eq!(value(&server, none).await, Some(0.0));
}

#[tokio::test]
async fn the_process_reports_its_memory_and_files() {
    let server = TestServer::start().await;
    let metric = async |name: &str| {
        let name = format!("gathering_process_{name}");
        value(&server, &name).await.expect("a number")
    };
    assert!(metric("resident_memory_bytes").await > 1e6);
    let open = metric("open_fds").await;
    assert!(open > 3.0 && open < metric("max_fds").await, "{open}");
}

/// The metrics in a text, each with the labels between its braces: `("gathering_streams", "transport")`, or with an
/// empty label for the name itself.
fn used(text: &str) -> BTreeSet<(String, String)> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut used = BTreeSet::new();
    for (start, _) in text.match_indices("gathering_") {
        if text[..start].ends_with(is_word) {
            continue;
        }
        let rest = &text[start..];
        let (name, rest) = rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
        used.insert((name.to_owned(), String::new()));
        let selector = rest
            .strip_prefix('{')
            .and_then(|rest| rest.split_once('}'))
            .map_or("", |(selector, _)| selector);
        for matcher in selector.split(',').filter(|matcher| !matcher.is_empty()) {
            let label = matcher.split(|c| !is_word(c)).next().unwrap_or_default();
            // Prometheus adds this label.
            if label != "instance" {
                used.insert((name.to_owned(), label.to_owned()));
            }
        }
    }
    used
}

#[tokio::test]
async fn the_dashboard_and_the_alerts_use_only_exported_metrics() {
    let server = TestServer::start().await;
    // Some metrics appear with their first value.
    server
        .graphql("query Circles { circles { nodes { id } } }", json!({}))
        .await;
    let text = server.get("/metrics").await.text().await.expect("text");
    let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let exported = used(&samples.join("\n"));
    for file in ["ops/grafana.json", "ops/alerts.yml"] {
        let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
        let used = used(&fs::read_to_string(path).expect("is readable"));
        assert!(used.len() > 5, "{file}: {used:?}");
        let unknown: Vec<_> = used.difference(&exported).collect();
        assert!(unknown.is_empty(), "{file} uses {unknown:?}");
    }
}
