//! Concurrent changes of tasks, on several connections and for many rounds.

use futures_util::future::join_all;

use super::*;
use crate::support::actor::text;

/// How often each race is run.
const ROUNDS: usize = 25;

impl Studio {
    /// The code of the only user error of a payload, if there is one.
    pub(super) async fn decision(&self, name: &str, input: Value) -> Option<String> {
        let payload = self.owner.payload(name, input).await;
        let errors = payload["userErrors"].as_array().expect("a list");
        assert!(errors.len() < 2);
        errors.first().map(|error| text(&error["code"]))
    }
}

#[tokio::test]
async fn concurrent_starts_of_a_task_succeed_once() {
    let studio = Studio::open().await;
    let ada = studio.member("Ada").await;
    for _ in 0..ROUNDS {
        let task = studio.task(TaskStatus::Assigned, |task| task.assignee_id = Some(ada));
        let task = task.await;
        let input = json!({ "taskId": task_id(task) });
        let all = join_all((0..4).map(|_| studio.decision("startTask", input.clone()))).await;
        let (won, lost): (Vec<_>, Vec<_>) = all.into_iter().partition(Option::is_none);
        assert_eq!(won.len(), 1);
        assert_eq!(lost, vec![Some("BAD_TRANSITION".to_owned()); 3]);
        assert_eq!(studio.row(task).await.version, 2);
        let received = studio.payloads(task).await;
        assert_eq!(received.len(), 1, "{received:?}");
    }
}

#[tokio::test]
async fn concurrent_updates_of_one_version_succeed_once() {
    let studio = Studio::open().await;
    for _ in 0..ROUNDS {
        let task = studio.task(TaskStatus::Pending, |_| ()).await;
        let input = |n: usize| json!({ "taskId": task_id(task), "expectedVersion": 1, "title": format!("Title {n}") });
        let all = join_all((0..4).map(|n| studio.decision("updateTask", input(n)))).await;
        let lost = all.iter().flatten().filter(|code| *code == "CONFLICT");
        assert_eq!(lost.count(), 3);
        assert_eq!(studio.row(task).await.version, 2);
    }
}

#[tokio::test]
async fn events_of_concurrent_updates_are_in_the_order_of_the_versions() {
    let studio = Studio::open().await;
    let other = studio.server.beside(|_| ()).await;
    let other = other.with_token(studio.owner.token());
    let task = studio.task(TaskStatus::Pending, |_| ()).await;
    for round in 0..ROUNDS {
        let input =
            |n: usize| json!({ "taskId": task_id(task), "title": format!("Title {round}.{n}") });
        let actors = [&studio.owner, &other];
        join_all((0..6).map(|n| actors[n % 2].saved("updateTask", input(n)))).await;
    }
    let payloads = studio.payloads(task).await;
    let versions = payloads
        .iter()
        .map(|(_, payload)| payload["version"].clone());
    let expected = (2..).take(6 * ROUNDS).map(Value::from);
    assert!(versions.eq(expected), "{payloads:?}");
    assert_eq!(
        studio.row(task).await.title,
        payloads[6 * ROUNDS - 1].1["title"]
    );
}

#[tokio::test]
async fn the_status_of_an_agent_is_correct_under_concurrent_work_in_circles() {
    let studio = Studio::open().await;
    let ada = studio.member("Ada").await;
    let mut circles = vec![studio.circle];
    for name in ["Upstairs", "Downstairs"] {
        let circle = studio.circle(name, |circle| circle.status = CircleStatus::Stopped);
        let circle = circle.await;
        studio.join(circle, ada, |_| ()).await;
        circles.push(circle);
    }
    let mut tasks = Vec::new();
    for circle in circles {
        let task = studio.task(TaskStatus::Assigned, |task| {
            task.assignee_id = Some(ada);
            task.circle_id = circle;
        });
        let input = json!({ "taskId": task_id(task.await), "reason": "Why." });
        tasks.push(input);
    }
    let without_reason = |input: &Value| json!({ "taskId": input["taskId"] });
    join_all(
        tasks
            .iter()
            .map(|task| studio.owner.saved("startTask", without_reason(task))),
    )
    .await;
    for _ in 0..ROUNDS {
        join_all(
            tasks
                .iter()
                .map(|task| studio.owner.saved("blockTask", task.clone())),
        )
        .await;
        assert_eq!(studio.agent_row(ada).await.status, AgentStatus::Idle);
        let unblock = |task| studio.owner.saved("unblockTask", without_reason(task));
        join_all(tasks.iter().map(unblock)).await;
        assert_eq!(studio.agent_row(ada).await.status, AgentStatus::Busy);
        // One task is resumed while the other is blocked.
        join_all(
            tasks[..2]
                .iter()
                .map(|task| studio.owner.saved("blockTask", task.clone())),
        )
        .await;
        let one = studio.owner.saved("unblockTask", without_reason(&tasks[0]));
        let other = studio.owner.saved("blockTask", tasks[2].clone());
        futures_util::join!(one, other);
        assert_eq!(studio.agent_row(ada).await.status, AgentStatus::Busy);
        studio.owner.saved("blockTask", tasks[0].clone()).await;
        assert_eq!(studio.agent_row(ada).await.status, AgentStatus::Idle);
        join_all(
            tasks
                .iter()
                .map(|task| studio.owner.saved("unblockTask", without_reason(task))),
        )
        .await;
    }
    let received = studio.payloads(ada).await;
    let ends = |payload: &Value, name: &str| text(&payload[name]);
    for pair in received.windows(2) {
        let (to, from) = (ends(&pair[0].1, "toStatus"), ends(&pair[1].1, "fromStatus"));
        assert_eq!(
            to, from,
            "each status change starts from the previous status"
        );
    }
}

#[tokio::test]
async fn concurrently_created_tasks_are_routed_within_the_limits() {
    for _ in 0..3 {
        let studio = Studio::routing(5).await;
        for name in ["Ada", "Bob", "Cleo"] {
            studio.member(name).await;
        }
        let input = json!({ "circleId": id_of(Kind::Circle, studio.circle), "title": "A task" });
        let other = studio.server.beside(|_| ()).await;
        let other = other.with_token(studio.owner.token());
        let actors = [&studio.owner, &other];
        let make = |n: usize| actors[n % 2].saved("createTask", input.clone());
        join_all((0..12).map(make)).await;
        let rows = task::Entity::find().filter(task::Column::CircleId.eq(studio.circle));
        let rows = rows.all(&studio.db).await.expect("reads");
        let assigned: Vec<_> = rows.iter().filter_map(|row| row.assignee_id).collect();
        assert_eq!((rows.len(), assigned.len()), (12, 5));
        let most = |agent| assigned.iter().filter(|one| **one == agent).count();
        assert!(
            assigned.iter().all(|agent| most(*agent) <= 2),
            "the load of each agent is considered"
        );
        let types = studio.event_types().await;
        let routed = types.iter().filter(|kind| *kind == "TASK_ASSIGNED");
        assert_eq!(routed.count(), 5);
    }
}
