//! Statement counts of task mutations, which do not depend on the size of the circle.

use super::*;
use crate::support::actor::GUEST;
use crate::support::counted::CountedGraph;

const APPROVE: &str = "mutation W2Approve($input: ApproveTaskInput!) { approveTask(input: $input) { \
    task { id status version completedAt } userErrors { field code message } } }";

const CREATE: &str = "mutation ($input: CreateTaskInput!) { createTask(input: $input) { \
    task { id status } userErrors { code } } }";

#[tokio::test]
async fn an_approval_takes_at_most_five_statements_for_every_role() {
    let studio = Studio::routing(1).await;
    let graph = CountedGraph::on(&studio.server).await;
    let [ada, bob] = [studio.member("Ada").await, studio.member("Bob").await];
    studio.share(GUEST, CollaboratorRole::Editor).await;
    for actor in [&studio.owner, &studio.guest, &studio.admin] {
        for others in [0, 200] {
            for _ in 0..others {
                studio.task(TaskStatus::Pending, |_| ()).await;
            }
            let task = studio
                .task(TaskStatus::InReview, |task| task.assignee_id = Some(ada))
                .await;
            let input =
                json!({ "taskId": task_id(task), "reviewerId": agent_id(bob), "comment": "Fine." });
            let variables = json!({ "input": input });
            let (answer, statements) = graph.cost(actor.token(), APPROVE, variables).await;
            assert_eq!(
                answer["data"]["approveTask"]["task"]["status"], "COMPLETED",
                "{answer}"
            );
            assert!(statements <= 5, "with {others} pending tasks: {statements}");
            assert!(
                statements >= 2,
                "{statements}: not all statements were counted"
            );
            task::Entity::update_many()
                .col_expr(task::Column::Status, Expr::value("CANCELLED"))
                .filter(task::Column::CircleId.eq(studio.circle))
                .exec(&studio.db)
                .await
                .expect("updates");
        }
    }
}

#[tokio::test]
async fn creating_a_task_takes_the_same_statements_in_circles_of_any_size() {
    for (members, waiting) in [(1, 0), (100, 0), (1, 200), (100, 200)] {
        let studio = Studio::routing(100).await;
        for n in 0..members {
            studio.member(&format!("Agent {n}")).await;
        }
        for _ in 0..waiting {
            studio.task(TaskStatus::Pending, |_| ()).await;
        }
        let input = json!({ "circleId": id_of(Kind::Circle, studio.circle), "title": "A task" });
        let routed = if waiting == 0 { 1 } else { 100 };
        let graph = CountedGraph::on(&studio.server).await;
        let variables = json!({ "input": input });
        let (answer, statements) = graph.cost(studio.owner.token(), CREATE, variables).await;
        let status = if waiting == 0 { "ASSIGNED" } else { "PENDING" };
        assert_eq!(
            answer["data"]["createTask"]["task"]["status"], status,
            "{answer}"
        );
        let assigned = task::Entity::find()
            .filter(task::Column::CircleId.eq(studio.circle))
            .filter(task::Column::Status.eq(TaskStatus::Assigned))
            .all(&studio.db)
            .await
            .expect("reads");
        assert_eq!(assigned.len() as u64, routed);
        // The read; the writes, which are one statement on PostgreSQL: the task, the events, and the assignments.
        let expected = match (studio.server.database().is_postgres(), waiting) {
            (true, _) => 2,
            (false, 0) => 3,
            (false, _) => 4,
        };
        assert_eq!(statements, expected, "{members} members, {waiting} waiting");
    }
}
