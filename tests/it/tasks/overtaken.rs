//! Changes that wait for a concurrent change, which PostgreSQL allows. Each one sees the change before it.

use std::time::Duration;

use futures_util::{future::join_all, join};
use reqwest::Response;
use sea_orm::{ConnectionTrait, DatabaseTransaction, TransactionTrait};

use super::*;
use crate::support::actor::{GUEST, code, refusal};
use crate::support::database::number;
use crate::support::skip::skip;
use crate::support::wait::{until, within};

impl Studio {
    /// A circle on PostgreSQL; on SQLite, where changes are serialized, the test is skipped.
    async fn contested() -> Option<Self> {
        let studio = Self::open().await;
        if studio.server.database().is_postgres() {
            return Some(studio);
        }
        skip("needs PostgreSQL: changes on SQLite are serialized");
        None
    }

    fn circle_id(&self) -> String {
        id_of(Kind::Circle, self.circle)
    }

    /// The number of changes that wait for a lock.
    async fn waiting(&self) -> i64 {
        const WAITING: &str = "SELECT count(*) FROM pg_stat_activity \
            WHERE datname = current_database() AND application_name = 'gathering' AND wait_event_type = 'Lock'";
        number(&self.db, WAITING).await
    }

    async fn until_waiting(&self, count: i64) {
        let what = format!("{count} waiting changes");
        until(what, async || self.waiting().await == count).await;
    }

    /// A transaction that has executed these statements.
    async fn holding(&self, statements: &str) -> DatabaseTransaction {
        let other = self.db.begin().await.expect("begins");
        other.execute_unprepared(statements).await.expect("is run");
        other
    }
}

#[tokio::test]
async fn a_change_that_waits_for_its_circle_sees_the_change_before_it() {
    let studio = Studio::open().await;
    if !studio.server.database().is_postgres() {
        return skip("needs PostgreSQL: changes on SQLite are serialized");
    }
    let input = json!({ "circleId": id_of(Kind::Circle, studio.circle), "title": "A task" });
    for (column, value, code) in [
        (circle::Column::RequireReview, false.into(), None),
        (
            circle::Column::Status,
            "ARCHIVED".into(),
            Some("BAD_TRANSITION"),
        ),
    ] {
        let other = studio.db.begin().await.expect("begins");
        let update = circle::Entity::update_many()
            .col_expr(column, Expr::value::<sea_orm::Value>(value))
            .filter(circle::Column::Id.eq(studio.circle));
        update.exec(&other).await.expect("updates");
        let commit = async {
            until("a waiting change", async || studio.waiting().await == 1).await;
            other.commit().await.expect("commits");
        };
        let (refused, ()) = join!(studio.decision("createTask", input.clone()), commit);
        assert_eq!(refused.as_deref(), code);
    }
    let rows = studio.tasks().await;
    let [row] = rows.as_slice() else {
        panic!("{rows:?}")
    };
    assert!(
        !row.requires_review,
        "the new setting of the circle applies"
    );
    assert_eq!(studio.payloads(row.id).await.len(), 1);
}

#[tokio::test]
async fn a_change_that_lost_does_not_make_the_next_changes_lose() {
    const TASKS: i64 = 12;
    let Some(studio) = Studio::contested().await else {
        return;
    };
    let count = "CREATE TABLE updates (n int); \
        CREATE FUNCTION count_update() RETURNS trigger LANGUAGE plpgsql \
            AS 'BEGIN INSERT INTO updates VALUES (1); RETURN NULL; END'; \
        CREATE TRIGGER updates AFTER UPDATE ON circles EXECUTE FUNCTION count_update()";
    studio
        .db
        .execute_unprepared(count)
        .await
        .expect("is created");
    let circle = studio.circle_id();
    let touch = format!(
        "UPDATE circles SET version = version WHERE id = '{}'",
        studio.circle
    );
    let other = studio.holding(&touch).await;
    let create = async |number| {
        let input = json!({ "circleId": circle, "title": format!("Task {number}") });
        studio.owner.done("createTask", input).await;
    };
    let commit = async {
        studio.until_waiting(1).await;
        other.commit().await.expect("commits");
    };
    join!(join_all((0..TASKS).map(create)), commit);
    // At least the first change of the test, the one that lost, and the one that commits all tasks together.
    let updates = number(&studio.db, "SELECT count(*) FROM updates").await;
    assert!((3..TASKS).contains(&updates), "{updates}");
}

/// On several threads, the drafts of a group that lost are not repeated in their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_names_an_agent_and_lost_with_a_group_does_not_block_the_others() {
    const OTHERS: usize = 8;
    let Some(studio) = Studio::contested().await else {
        return;
    };
    let ada = studio.member("Ada").await;
    let circle = studio.circle_id();
    let create = async |title: &str, assignee: Option<String>| {
        let input = json!({ "circleId": circle, "title": title, "assigneeId": assignee });
        studio.owner.done("createTask", input).await;
    };
    let reads = studio
        .holding("LOCK TABLE circle_members IN ACCESS EXCLUSIVE MODE")
        .await;
    let first = create("First", Some(agent_id(ada)));
    let others = async {
        studio.until_waiting(1).await;
        join_all((0..OTHERS).map(|_| create("Other", None))).await;
    };
    let control = async {
        studio.until_waiting(1).await;
        // The others reach the turn of the circle in the meantime.
        for _ in 0..20 {
            studio.owner.id().await;
        }
        let touch = format!(
            "UPDATE circles SET version = version WHERE id = '{}'",
            studio.circle
        );
        let change = studio.holding(&touch).await;
        reads.rollback().await.expect("rolls back");
        // The first one has read the circle, and its group waits for the change.
        let waiting = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) \
            WHERE datname = current_database() AND locktype = 'transactionid' AND NOT granted";
        until("a waiting group", async || {
            number(&studio.db, waiting).await == 1
        })
        .await;
        change.commit().await.expect("commits");
    };
    within("all changes", async { join!(first, others, control) }).await;
    assert_eq!(studio.tasks().await.len(), OTHERS + 1);
}

#[tokio::test]
async fn a_collaborator_who_loses_access_during_a_change_is_refused() {
    let Some(studio) = Studio::contested().await else {
        return;
    };
    studio.share(GUEST, CollaboratorRole::Editor).await;
    let guest = user(&studio.db, GUEST).await;
    let leaving = studio
        .holding(&format!(
            "SELECT FROM circle_collaborators WHERE circle_id = '{}' FOR UPDATE",
            studio.circle
        ))
        .await;
    let circle = studio.circle_id();
    let unshare = json!({ "circleId": circle, "userId": id_of(Kind::User, guest) });
    let unshare = studio.owner.done("unshareCircle", unshare);
    let create = async {
        studio.until_waiting(1).await;
        let input = json!({ "circleId": circle, "title": "A task" });
        studio.guest.refused("createTask", input).await
    };
    let leave = async {
        studio.until_waiting(2).await;
        leaving.rollback().await.expect("rolls back");
    };
    let (_, refused, ()) = join!(unshare, create, leave);
    assert_eq!(refused, "NOT_FOUND circleId");
    assert_eq!(studio.tasks().await, []);
}

#[tokio::test]
async fn a_change_that_waits_for_its_agent_sees_the_change_before_it() {
    let Some(studio) = Studio::contested().await else {
        return;
    };
    let ada = studio.member("Ada").await;
    let other = studio
        .holding(&format!(
            "UPDATE agents SET status = 'OFFLINE', version = 2 WHERE id = '{ada}'"
        ))
        .await;
    let task = studio.task(TaskStatus::Assigned, |task| task.assignee_id = Some(ada));
    let task = task.await;
    let input = json!({ "agentId": agent_id(ada), "expectedVersion": 1, "name": "Another" });
    let update = studio.decision("updateAgent", input);
    let start = studio.decision("startTask", json!({ "taskId": task_id(task) }));
    let commit = async {
        studio.until_waiting(2).await;
        other.commit().await.expect("commits");
    };
    let (updated, started, ()) = join!(update, start, commit);
    assert_eq!((updated.as_deref(), started), (Some("CONFLICT"), None));
    let agent = studio.agent_row(ada).await;
    assert_eq!(
        (agent.status, agent.name),
        (AgentStatus::Offline, "Ada".to_owned())
    );
    let payloads = studio.payloads(ada).await;
    assert_eq!(
        payloads,
        [],
        "the agent is offline before and after it starts"
    );
}

#[tokio::test]
async fn an_agent_is_idle_when_its_last_tasks_end_at_the_same_time_in_two_circles() {
    let Some(studio) = Studio::contested().await else {
        return;
    };
    let ada = studio
        .agent("Ada", |agent| agent.status = AgentStatus::Busy)
        .await;
    let other = studio.circle("Other", |_| ()).await;
    let mut tasks = Vec::new();
    for circle in [studio.circle, other] {
        studio.join(circle, ada, |_| ()).await;
        let task = studio.task(TaskStatus::InProgress, |task| {
            task.circle_id = circle;
            task.assignee_id = Some(ada);
        });
        tasks.push(task.await);
    }
    // The deletion of the circle waits for its task when it has locked the agent.
    let holding = studio
        .holding(&format!(
            "SELECT FROM tasks WHERE id = '{}' FOR UPDATE",
            tasks[0]
        ))
        .await;
    let delete = json!({ "id": studio.circle_id() });
    let delete = studio.owner.done("deleteCircle", delete);
    let block = async {
        studio.until_waiting(1).await;
        let input = json!({ "taskId": task_id(tasks[1]), "reason": "Why." });
        studio.owner.saved("blockTask", input).await
    };
    let release = async {
        studio.until_waiting(2).await;
        holding.rollback().await.expect("rolls back");
    };
    join!(delete, block, release);
    assert_eq!(studio.agent_row(ada).await.status, AgentStatus::Idle);
}

#[tokio::test]
async fn an_object_deleted_during_a_change_that_names_it_is_not_found() {
    let Some(studio) = Studio::contested().await else {
        return;
    };
    let input = json!({ "name": "Gone" });
    let project = studio.owner.saved("createProject", input).await["id"].clone();
    let input = json!({ "name": "gone", "displayName": "Gone", "role": "None" });
    let persona = studio.admin.saved("createPersona", input).await["id"].clone();
    let deletes =
        "DELETE FROM projects WHERE name = 'Gone'; DELETE FROM personas WHERE name = 'gone'";
    let deleting = studio.holding(deletes).await;
    let circle = studio.owner.refused(
        "createCircle",
        json!({ "name": "Late", "projectId": project }),
    );
    let agent = studio.owner.refused(
        "createAgent",
        json!({ "name": "Late", "personaId": persona }),
    );
    let commit = async {
        studio.until_waiting(2).await;
        deleting.commit().await.expect("commits");
    };
    let (circle, agent, ()) = join!(circle, agent, commit);
    assert_eq!(circle, "NOT_FOUND projectId");
    assert_eq!(agent, "NOT_FOUND personaId");
}

#[tokio::test]
async fn users_without_access_do_not_wait_for_the_changes_of_others() {
    let Some(studio) = Studio::contested().await else {
        return;
    };
    let ada = studio.member("Ada").await;
    let task = studio.task(TaskStatus::Assigned, |task| task.assignee_id = Some(ada));
    let task = task.await;
    let circle = studio.circle_id();
    let agents = [agent_id(ada), agent_id(studio.member("Bob").await)];
    let input = json!({ "topic": "A topic", "circleId": circle, "participantIds": agents });
    let conversation = studio.owner.saved("createConversation", input).await["id"].clone();
    let holding = studio
        .holding(
            "UPDATE circles SET version = version; UPDATE agents SET version = version; \
             UPDATE conversations SET version = version",
        )
        .await;
    for (name, kind, input, field) in [
        (
            "createTask",
            "CreateTaskInput",
            json!({ "circleId": circle, "title": "A task" }),
            "circleId",
        ),
        (
            "startTask",
            "TaskActionInput",
            json!({ "taskId": task_id(task) }),
            "taskId",
        ),
        (
            "postMessage",
            "PostMessageInput",
            json!({ "conversationId": conversation, "content": "A message." }),
            "conversationId",
        ),
        (
            "addCircleMembers",
            "AddCircleMembersInput",
            json!({ "circleId": circle, "members": [{ "agentId": agents[0] }] }),
            "circleId",
        ),
        (
            "updateAgent",
            "UpdateAgentInput",
            json!({ "agentId": agents[0], "name": "Other" }),
            "agentId",
        ),
    ] {
        let query = format!(
            "mutation ($input: {kind}!) {{ {name}(input: $input) {{ userErrors {{ code }} }} }}"
        );
        let request = studio.guest.request(&query, &json!({ "input": input }));
        // A change with a key locks its rows before it reads.
        let response = request.header("Idempotency-Key", name).send().await;
        let answer = response
            .map(Response::json::<Value>)
            .expect("an answer")
            .await;
        let answer = answer.expect("JSON");
        assert_eq!(refusal(&answer), format!("NOT_FOUND {field}"), "{name}");
    }
    holding.rollback().await.expect("rolls back");
}

#[tokio::test]
async fn a_change_that_times_out_is_applied_as_a_whole_or_not_at_all() {
    let Some(studio) = Studio::contested().await else {
        return;
    };
    let impatient = studio.server.beside(|config| {
        config.graphql.limits.timeout = Duration::from_secs(3);
    });
    let impatient = impatient.await;
    let owner = impatient.with_token(studio.owner.token());
    let circle = studio.circle;
    let holding = studio
        .holding(&format!(
            "UPDATE circles SET version = version WHERE id = '{circle}'"
        ))
        .await;
    let input = json!({ "circleId": studio.circle_id(), "title": "A task" });
    let late = owner.call("createTask", input.clone()).await;
    assert_eq!(code(&late), "TIMEOUT");
    assert_eq!(late["errors"][0]["extensions"]["outcome"], "UNKNOWN");
    studio.until_waiting(1).await;
    holding.rollback().await.expect("rolls back");
    // The abandoned change does not block the next one of the circle.
    owner.saved("createTask", input).await;
    studio.until_waiting(0).await;
    let half = format!(
        "SELECT count(*) FROM (SELECT id FROM tasks WHERE circle_id = '{circle}') AS tasks \
         FULL JOIN (SELECT id, subject_id FROM events WHERE circle_id = '{circle}') AS events \
         ON subject_id = tasks.id WHERE tasks.id IS NULL OR events.id IS NULL"
    );
    assert_eq!(number(&studio.db, &half).await, 0);
}
