//! Statement counts of task mutations, which do not depend on the size of the circle.

use super::*;

/// The statements that authentication takes.
const AUTHENTICATION: u64 = 1;

impl Studio {
    /// The number of statements that the server has sent, once it is idle: after each commit with events, the relay
    /// numbers and reads them.
    async fn settled(&self) -> u64 {
        self.announced().await;
        let mut seen = self.server.statements();
        let mut quiet = 0;
        while quiet < 40 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let now = self.server.statements();
            quiet = if now == seen { quiet + 1 } else { 0 };
            seen = now;
        }
        seen
    }

    /// The response to a mutation and the number of its statements, without authentication and without the relay's
    /// statements for `events` events.
    async fn cost(&self, document: &str, input: Value, events: u64) -> (Value, u64) {
        // A change that takes three statements: the row, its event, and the response.
        let project = "mutation ($input: CreateProjectInput!) { createProject(input: $input) { project { id } } }";
        let before = self.settled().await;
        let name = json!({ "input": { "name": Uuid::now_v7().to_string() } });
        self.server.ask(Some(&self.token), project, name).await;
        let relay = self.settled().await - before - AUTHENTICATION - 3;
        // The relay reads 64 events at a time.
        let relay = relay + events / 64;
        let before = self.settled().await;
        let answer = self
            .server
            .ask(Some(&self.token), document, json!({ "input": input }))
            .await;
        assert_eq!(answer.get("errors"), None, "{answer}");
        let after = self.settled().await;
        (
            answer["data"].clone(),
            after - before - AUTHENTICATION - relay,
        )
    }
}

const APPROVE: &str = "mutation W2Approve($input: ApproveTaskInput!) { approveTask(input: $input) { \
    task { id status version completedAt } userErrors { field code message } } }";

const CREATE: &str = "mutation ($input: CreateTaskInput!) { createTask(input: $input) { \
    task { id status } userErrors { code } } }";

#[tokio::test]
async fn an_approval_takes_at_most_nine_statements_for_every_role() {
    let mut studio = Studio::routing(1).await;
    let [ada, bob] = [studio.member("Ada").await, studio.member("Bob").await];
    let guest = studio.share(GUEST, CollaboratorRole::Editor).await;
    let admin = studio.server.token(ADMIN).await;
    for token in [studio.token.clone(), guest, admin] {
        studio.token = token;
        for others in [0, 200] {
            for _ in 0..others {
                studio.task(TaskStatus::Pending, |_| ()).await;
            }
            let task = studio
                .task(TaskStatus::InReview, |task| task.assignee_id = Some(ada))
                .await;
            let input =
                json!({ "taskId": task_id(task), "reviewerId": agent_id(bob), "comment": "Fine." });
            let (data, statements) = studio.cost(APPROVE, input, 3).await;
            assert_eq!(data["approveTask"]["task"]["status"], "COMPLETED");
            assert!(statements <= 9, "with {others} pending tasks: {statements}");
            assert!(
                statements >= 6,
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
        let (data, statements) = studio.cost(CREATE, input, 1 + routed).await;
        let status = if waiting == 0 { "ASSIGNED" } else { "PENDING" };
        assert_eq!(data["createTask"]["task"]["status"], status);
        let assigned = task::Entity::find()
            .filter(task::Column::CircleId.eq(studio.circle))
            .filter(task::Column::Status.eq(TaskStatus::Assigned))
            .all(&studio.db)
            .await
            .expect("reads");
        assert_eq!(assigned.len() as u64, routed);
        // The circle, the task, the pending tasks, the team, the assignments, the events, and the response.
        assert_eq!(statements, 7, "{members} members, {waiting} waiting");
    }
}
