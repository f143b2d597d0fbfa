//! Tasks that are created in one circle at the same time. Those of one viewer are committed together.

use std::collections::HashMap;

use futures_util::future::join_all;
use sea_orm::ConnectionTrait;

use super::*;
use crate::support::actor::{GUEST, code};
use crate::support::counted::CountedGraph;
use crate::support::database::number;

/// Number of tasks that are created at the same time.
const TASKS: usize = 40;

impl Studio {
    fn new_task(&self, title: &str) -> Value {
        json!({ "circleId": id_of(Kind::Circle, self.circle), "title": title })
    }

    /// The number of tasks of each assignee.
    async fn loads(&self) -> HashMap<Option<Uuid>, usize> {
        let mut loads = HashMap::new();
        for task in self.tasks().await {
            *loads.entry(task.assignee_id).or_default() += 1;
        }
        loads
    }
}

#[tokio::test]
async fn tasks_created_together_are_routed_as_if_one_after_the_other() {
    let studio = Studio::routing(30).await;
    let mut team = Vec::new();
    for name in ["Ada", "Bob", "Cyd"] {
        team.push(studio.member(name).await);
    }
    let create = async |number| {
        let input = studio.new_task(&format!("Task {number}"));
        studio.owner.saved("createTask", input).await
    };
    let created = join_all((0..TASKS).map(create)).await;

    let loads = studio.loads().await;
    // An agent with five tasks has no availability; of equal agents, the first one gets the task.
    let expected = team.into_iter().map(Some).zip([20, 5, 5]);
    let mut expected: HashMap<_, _> = expected.collect();
    expected.insert(None, TASKS - 30);
    assert_eq!(loads, expected);
    // Each payload shows its own task in its last state, and each task has its own events in order.
    for task in studio.tasks().await {
        let of_task = created
            .iter()
            .find(|payload| payload["id"] == task_id(task.id));
        let payload = of_task.expect("a payload");
        assert_eq!(payload["title"], task.title);
        assert_eq!(payload["status"], task.status.to_value());
        assert_eq!(payload["version"], task.version);
        let types = studio.payloads(task.id).await;
        let types: Vec<_> = types.iter().map(|(kind, _)| kind.as_str()).collect();
        match task.assignee_id {
            Some(_) => assert_eq!(types, ["task.created", "task.assigned"]),
            None => assert_eq!(types, ["task.created"]),
        }
    }

    // A task of a higher priority that waits gets the place that becomes free, before tasks that are created then.
    let urgent = json!({ "priority": "CRITICAL", "circleId": id_of(Kind::Circle, studio.circle), "title": "Urgent" });
    let urgent = studio.owner.saved("createTask", urgent).await;
    assert_eq!(urgent["status"], "PENDING");
    studio
        .set_circle(circle::Column::MaxConcurrentTasks, 31)
        .await;
    let late = async |number| {
        let input = studio.new_task(&format!("Late {number}"));
        studio.owner.saved("createTask", input).await
    };
    let late = join_all((0..TASKS).map(late)).await;
    assert!(late.iter().all(|task| task["status"] == "PENDING"));
    let urgent: Uuid = Kind::Task
        .parse(&text(&urgent["id"]).into(), "id")
        .expect("an id");
    assert_eq!(studio.row(urgent).await.status, TaskStatus::Assigned);
}

#[tokio::test]
async fn tasks_created_together_take_the_statements_of_one() {
    let studio = Studio::routing(30).await;
    studio.member("Ada").await;
    let graph = CountedGraph::on(&studio.server).await;
    let query = "mutation ($input: CreateTaskInput!) { createTask(input: $input) { task { id } } }";
    // Within the limit of the tier WRITE.
    let count = 20;
    let inputs = (0..count).map(|number| {
        let input = studio.new_task(&format!("Task {number}"));
        json!({ "input": input })
    });
    let created = graph.cost_together(studio.owner.token(), query, inputs);
    let (_, statements) = created.await;
    assert_eq!(studio.tasks().await.len(), count);
    // Alone, a task takes two statements on PostgreSQL and three on SQLite. Requests that wait for their credential join
    // a second group.
    assert!(statements >= 2, "{statements}");
    assert!(statements < count as u64, "{statements}");
}

#[tokio::test]
async fn each_of_the_tasks_created_together_has_its_own_author_and_request() {
    let studio = Studio::open().await;
    studio.share(GUEST, CollaboratorRole::Editor).await;
    let create = async |number: usize| {
        let input = studio.new_task(&format!("Task {number}"));
        let actor = if number.is_multiple_of(2) {
            &studio.owner
        } else {
            &studio.guest
        };
        let query =
            "mutation ($input: CreateTaskInput!) { createTask(input: $input) { task { id } } }";
        let request = actor.request(query, &json!({ "input": input }));
        let request = request.header("X-Request-Id", format!("request-{number}"));
        let answer = request.send().await.expect("an answer");
        let answer: Value = answer.json().await.expect("JSON");
        text(&answer["data"]["createTask"]["task"]["id"])
    };
    let created = join_all((0..TASKS).map(create)).await;
    let guest = user(&studio.db, GUEST).await;
    for (number, id) in created.into_iter().enumerate() {
        let author = if number.is_multiple_of(2) {
            studio.owner_id
        } else {
            guest
        };
        let id = Kind::Task.parse(&id.into(), "id").expect("an id");
        let task = studio.row(id).await;
        assert_eq!(task.title, format!("Task {number}"));
        assert_eq!(task.created_by, Some(author));
        let events = event::Entity::find().filter(event::Column::SubjectId.eq(id));
        let events = events.all(&studio.db).await.expect("reads");
        let [event] = events.as_slice() else {
            panic!("{events:?}")
        };
        assert_eq!(event.actor_user_id, Some(author));
        assert_eq!(event.request_id, Some(format!("request-{number}")));
    }
}

#[tokio::test]
async fn a_task_that_cannot_be_created_does_not_prevent_others() {
    let studio = Studio::open().await;
    let parent = studio.owner.saved("createTask", studio.new_task("Good"));
    let parent = parent.await["id"].clone();
    // A fault of one row fails the statement.
    let is_postgres = studio.server.database().is_postgres();
    let refuse = if is_postgres {
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
            'BEGIN IF NEW.title = ''Bad'' THEN RAISE EXCEPTION ''bad''; END IF; RETURN NEW; END'; \
         CREATE TRIGGER refuse BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION refuse()"
    } else {
        "CREATE TRIGGER refuse BEFORE INSERT ON tasks WHEN NEW.title = 'Bad' \
            BEGIN SELECT RAISE(ABORT, 'bad'); END"
    };
    studio.db.execute_unprepared(refuse).await.expect("creates");
    let create = async |number: usize| {
        let input = match number % 8 {
            1 => studio.new_task(" "),
            3 => studio.new_task("Bad"),
            5 => {
                let mut input = studio.new_task("Part");
                input["parentId"] = parent.clone();
                input
            }
            _ => studio.new_task("Good"),
        };
        studio.owner.call("createTask", input).await
    };
    let answers = join_all((0..TASKS).map(create)).await;
    for (number, answer) in answers.iter().enumerate() {
        let payload = &answer["data"]["createTask"];
        match number % 8 {
            1 => assert_eq!(
                payload["userErrors"][0]["field"],
                json!(["title"]),
                "{answer}"
            ),
            3 if is_postgres => assert_eq!(code(answer), "INTERNAL"),
            3 => assert_eq!(code(answer), "CONFLICT"),
            _ => assert_eq!(payload["userErrors"], json!([]), "{answer}"),
        }
    }
    let mut titles = HashMap::new();
    for task in studio.tasks().await {
        *titles.entry(task.title).or_default() += 1;
    }
    assert_eq!(
        titles,
        HashMap::from([("Good".to_owned(), 26), ("Part".to_owned(), 5)])
    );
    let created = "SELECT count(*) FROM events WHERE type = 'task.created' AND circle_id IN \
        (SELECT circle_id FROM tasks WHERE title = 'Good')";
    assert_eq!(number(&studio.db, created).await, 31);
}
