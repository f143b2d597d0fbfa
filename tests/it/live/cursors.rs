//! Where a subscriber resumes.

use super::*;

#[tokio::test]
async fn a_cursor_of_another_database_is_refused() {
    let server = TestServer::start().await;
    let mut listener = Listener::new(&server, "").await;
    create(&server, "One").await;
    let cursor = listener.next().await["cursor"].clone();

    // The same position in the history of another database.
    let stranger = Database::empty().await;
    let db = stranger.connect().await;
    gathering_demo::seed(&db, "gathering-demo")
        .await
        .expect("seeds");
    let stranger = TestServer::on(stranger, |_| ()).await;
    let foreign = format!("subscription {{ events(after: {cursor}) {{ id }} }}");
    create(&stranger, "One").await;
    let error = refused(&stranger, &foreign).await;
    assert_eq!(
        (&error["code"], &error["field"]),
        (&json!("BAD_USER_INPUT"), &json!("after"))
    );
    let page = format!("{{ events(after: {cursor}) {{ nodes {{ id }} }} }}");
    let answer = stranger.graphql(&page, json!({})).await;
    assert_eq!(answer["errors"][0]["extensions"]["code"], "BAD_USER_INPUT");

    // A position that this history has not reached, as after the restore of a backup.
    let db = server.database().connect().await;
    let newest = event::Entity::find().order_by_desc(event::Column::Position);
    let newest = newest.one(&db).await.expect("reads").expect("an event");
    event::Entity::delete_by_id(newest.id)
        .exec(&db)
        .await
        .expect("deletes");
    let server = TestServer::on(server.end().await, |_| ()).await;
    let future = format!("subscription {{ events(after: {cursor}) {{ id }} }}");
    let error = refused(&server, &future).await;
    assert_eq!(
        (&error["code"], &error["field"]),
        (&json!("BAD_USER_INPUT"), &json!("after"))
    );
    for garbage in ["", "garbage", "AAAA"] {
        let query = format!("subscription {{ events(after: \"{garbage}\") {{ id }} }}");
        assert_eq!(refused(&server, &query).await["code"], "BAD_USER_INPUT");
    }
}

#[tokio::test]
async fn resuming_too_late_reports_missed_events_and_delivers_the_rest() {
    let server = TestServer::start().await;
    let mut listener = Listener::new(&server, "").await;
    for name in ["One", "Two", "Three"] {
        create(&server, name).await;
    }
    let cursor = listener.next().await["cursor"].clone();
    let two = listener.next().await;
    let three = listener.next().await;
    drop(listener);
    let db = server.database().connect().await;
    let kept = event::Entity::find().order_by_desc(event::Column::Position);
    let kept = kept.one(&db).await.expect("reads").expect("an event");
    let old = event::Column::Position.lt(kept.position);
    event::Entity::delete_many()
        .filter(old)
        .exec(&db)
        .await
        .expect("deletes");
    let server = TestServer::on(server.end().await, |_| ()).await;

    let after = format!("(after: {cursor})");
    let mut late = Listener::new(&server, &after).await;
    let missed = late.next().await;
    assert_eq!(missed["__typename"], "EventsMissed");
    assert_eq!(missed["type"], "EVENTS_MISSED");
    assert_eq!(missed["oldestKept"], three["cursor"]);
    assert_eq!(late.names(1).await, ["Three"]);
    // After this cursor, and after the one before the oldest kept event, no more events are missed.
    for cursor in [&missed["cursor"], &two["cursor"]] {
        let mut again = Listener::new(&server, &format!("(after: {cursor})")).await;
        assert_eq!(again.names(1).await, ["Three"]);
    }
}

#[tokio::test]
async fn retention_deletes_old_events_and_positions_continue() {
    let retention = Duration::from_hours(3_650 * 24);
    let server = TestServer::with(|config| config.events.retention = retention).await;
    let db = server.database().connect().await;
    let count = || event::Entity::find().count(&db);
    let all = count().await.expect("counts");
    server.purge().await;
    assert_eq!(count().await, Ok(all));
    server.pass(3_650 * 86_400);
    server.purge().await;
    assert_eq!(count().await, Ok(1), "the newest event is kept");
    let mut listener = Listener::new(&server, "").await;
    create(&server, "One").await;
    listener.next().await;
    let newest = event::Entity::find().order_by_desc(event::Column::Position);
    let newest = newest.one(&db).await.expect("reads").expect("an event");
    assert_eq!(newest.position, i64::try_from(all + 1).ok());
}

#[tokio::test]
async fn last_event_id_takes_precedence_over_the_after_argument() {
    let server = TestServer::start().await;
    let mut listener = Listener::new(&server, "").await;
    for name in ["One", "Two", "Three"] {
        create(&server, name).await;
    }
    let one = listener.next().await["cursor"].clone();
    let two = listener.next().await["cursor"].clone();
    let query =
        format!("subscription {{ events(after: {one}) {{ ... on ProjectEvent {{ name }} }} }}");
    let token = server.token("demo@example.com").await;
    let request = server
        .request(reqwest::Method::POST, "/graphql")
        .bearer_auth(&token);
    let request = request
        .header("accept", "text/event-stream")
        .header("last-event-id", two.as_str().expect("a cursor"));
    let mut response = request
        .json(&json!({ "query": query }))
        .send()
        .await
        .expect("an answer");
    let text = read_until(&mut response, 1, "data: ").await;
    assert!(text.contains("Three") && !text.contains("Two"), "{text}");
}
