//! Tenant isolation: no list, edge, filter, count or id reveals the data of other users.
//!
//! The tests traverse the schema as it is served: every root field, then every object that an administrator can see, by
//! its id and with all its edges, and from there one step further. New parts of the schema are traversed automatically.
//! The permitted data is computed from the tables, independently of the server's rules.

mod rights;
mod walk;

use std::collections::{BTreeMap, BTreeSet};

use gathering::config::Mode;
use gathering_entity::conversation::ConversationStatus;
use gathering_entity::task::TaskStatus;
use gathering_entity::{
    agent, api_key, circle, collaborator, conversation, event, member, message, model, persona,
    project, provider, refresh_token, task, transfer, user,
};
use gathering_schema::id::Kind;
use sea_orm::prelude::Uuid;
use sea_orm::{
    ColumnTrait, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder,
};
use serde_json::{Value, json};

use crate::accounts::audit::until_recorded;
use crate::support::actor::ADMIN;
use crate::support::database::PASSWORD;
use crate::support::schema::{Field, Schema};
use crate::support::server::TestServer;
use crate::support::world;
use rights::Rights;
use walk::{Seen, Walk, decoded};

/// Edges that are always null, and why.
const LEADS_NOWHERE: [(&str, &str); 7] = [
    // A change of the catalogue or of an account does not belong to a circle.
    ("CatalogueEvent", "circle"),
    ("CatalogueEvent", "project"),
    ("UserEvent", "circle"),
    ("UserEvent", "project"),
    // Nor does a transfer.
    ("TransferEvent", "circle"),
    ("TransferEvent", "project"),
    // A project can have many circles.
    ("ProjectEvent", "circle"),
];

/// The id prefixes of objects that every signed-in user can read.
const PUBLIC: [&str; 4] = ["user", "provider", "model", "persona"];

/// Fields that only the user or owner, and administrators, can read.
const PRIVATE: [(&str, &str); 4] = [
    ("User", "email"),
    ("User", "lastLoginAt"),
    ("User", "emailVerifiedAt"),
    ("Agent", "systemPrompt"),
];

/// The server and its schema.
struct Tenancy {
    server: TestServer,
    schema: Schema,
}

impl Tenancy {
    async fn new() -> Self {
        let server = TestServer::on(world::database().await, |config| {
            // A selection on many types needs many aliases.
            config.graphql.limits.aliases = 10_000;
            // Gives the fields about rate limits a value.
            config.limits.mode = Mode::Observe;
        })
        .await;
        let schema = Schema::of(&server).await;
        let anonymous = server.anonymous();
        anonymous.register("stranger@example.com").await;
        let admin = anonymous.login(ADMIN, PASSWORD).await;
        anonymous.refresh(&admin.refresh).await;
        let db = server.database().connect().await;
        until_recorded(&db, "auth.refreshed", 1).await;
        db.close().await.expect("closes");
        Self { server, schema }
    }

    async fn walk(&self, email: &str) -> Walk<'_> {
        Walk::of(email, &self.server, &self.schema).await
    }

    /// Everything that an administrator sees, following every edge.
    async fn seen_by_admin(&self) -> Seen {
        let mut walk = self.walk("admin@example.com").await;
        walk.roots(&BTreeMap::new()).await;
        let mut visited = BTreeSet::new();
        loop {
            let new = walk
                .seen
                .things
                .iter()
                .filter(|(id, ty)| self.schema.is_node(ty) && !visited.contains(*id));
            let new: BTreeMap<_, _> = new.map(|(id, ty)| (id.clone(), ty.clone())).collect();
            if new.is_empty() {
                break;
            }
            walk.visit(&new).await;
            visited.extend(new.into_keys());
        }
        walk.seen
    }

    /// Everything that a user sees who requests all that an administrator can see.
    async fn seen_by(&self, email: &str, world: &BTreeMap<String, String>) -> Seen {
        Self::seen_in(self.walk(email).await, &self.schema, world).await
    }

    async fn seen_in(
        mut walk: Walk<'_>,
        schema: &Schema,
        world: &BTreeMap<String, String>,
    ) -> Seen {
        let nodes = world.iter().filter(|(_, ty)| schema.is_node(ty));
        let nodes: BTreeMap<_, _> = nodes.map(|(id, ty)| (id.clone(), ty.clone())).collect();
        walk.roots(world).await;
        walk.look_up(&nodes).await;
        walk.visit(&nodes).await;
        walk.go_further().await;
        walk.seen
    }
}

/// The numbers in a response, by their path.
fn numbers(value: &Value, way: &str, found: &mut BTreeMap<String, u64>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(name, value)| {
            let way = if way.is_empty() {
                name.clone()
            } else {
                format!("{way}.{name}")
            };
            numbers(value, &way, found);
        }),
        Value::Number(number) => {
            found.insert(way.to_owned(), number.as_u64().expect("a count"));
        }
        _ => {}
    }
}

async fn dashboard(walk: &mut Walk<'_>) -> BTreeMap<String, u64> {
    let field = walk
        .schema
        .field("Query", "dashboard")
        .expect("a dashboard");
    let document = format!("{{ {} }}", walk.field(field, 0, 1));
    let (data, _) = walk
        .ask(&document, json!({}))
        .await
        .expect("is not too complex");
    let mut found = BTreeMap::new();
    numbers(&data["dashboard"], "", &mut found);
    found
}

/// The prefixes of the ids of objects, without those in `PUBLIC`.
fn prefixes(things: &BTreeMap<String, String>) -> BTreeSet<String> {
    let ids = things.keys().filter_map(|id| decoded(id));
    let prefixes = ids.map(|(prefix, _)| prefix);
    prefixes
        .filter(|prefix| !PUBLIC.contains(&&**prefix))
        .collect()
}

#[tokio::test]
async fn the_traversal_reaches_every_type_edge_and_row() {
    let world = Tenancy::new().await;
    let seen = world.seen_by_admin().await;
    assert_eq!(
        seen.codes,
        BTreeSet::new(),
        "an administrator can read everything"
    );
    let (mut unseen, mut blind) = (Vec::new(), Vec::new());
    for ty in world.schema.reachable() {
        // `EventsMissed` occurs only in subscriptions.
        if ["Query", "EventsMissed"].contains(&ty) {
            continue;
        }
        if !seen.types.contains(ty) {
            unseen.push(ty);
            continue;
        }
        for field in &world.schema.get(ty).fields {
            let name = &*field.name;
            let is_exempt = LEADS_NOWHERE.contains(&(ty, name));
            let is_edge = world.schema.is_composite(field.named());
            let is_seen = seen.fields.contains(&(ty.to_owned(), name.to_owned()));
            assert!(
                !(is_exempt && is_seen),
                "{ty}.{name} is listed as always null but has a value"
            );
            if is_edge && !is_seen && !is_exempt {
                blind.push(format!("{ty}.{name}"));
            }
        }
    }
    assert!(
        unseen.is_empty() && blind.is_empty(),
        "types never received: {unseen:?}, edges always null: {blind:?}"
    );
    assert!(
        seen.bare.is_empty(),
        "row ids of the database: {:?}",
        seen.bare
    );
    for (ty, name) in PRIVATE {
        let field = (ty.to_owned(), name.to_owned());
        assert!(
            seen.fields.contains(&field),
            "{ty}.{name} never has a value"
        );
    }

    // Every row was received, too.
    let db = world.server.database().connect().await;
    let count = |prefix: &str| {
        let start = format!("{prefix}_");
        seen.things
            .keys()
            .filter(|id| id.starts_with(&start))
            .count() as u64
    };
    let mut uncounted = prefixes(&seen.things);
    macro_rules! all {
        ($($entity:ident),*) => {$(
            let rows = $entity::Entity::find().count(&db).await.expect("counts");
            assert_eq!(count(stringify!($entity)), rows, stringify!($entity));
            uncounted.remove(stringify!($entity));
        )*};
    }
    all!(
        user,
        provider,
        model,
        persona,
        agent,
        project,
        circle,
        member,
        task,
        conversation,
        message,
        event,
        transfer
    );
    db.close().await.expect("closes");
    // The traversal itself adds sessions, which are rows of `refresh_tokens`, and entries of the audit log. It lists the
    // keys of its own user.
    let exempt = ["audit", "key", "signin"].map(str::to_owned);
    assert_eq!(uncounted, exempt.into(), "add the entities of these ids");
}

#[tokio::test]
async fn a_user_without_access_sees_no_data_of_others() {
    let world = Tenancy::new().await;
    let all = world.seen_by_admin().await.things;
    let email = "stranger@example.com";
    let db = world.server.database().connect().await;
    let rights = Rights::of(email, &db).await;
    db.close().await.expect("closes");
    for prefix in prefixes(&all) {
        let is_empty = rights.rows(&prefix).is_empty();
        // The user has own sessions, and reads the events of the catalogue.
        assert!(
            is_empty || ["event", "signin"].contains(&&*prefix),
            "{prefix}"
        );
    }
    let seen = world.seen_by(email, &all).await;
    rights.check(&seen);
    for (connection, total, _) in &seen.counts {
        let of = world.schema.node_of(connection).expect("a node");
        let is_public = ["Provider", "Model", "Persona", "Event", "Session"].contains(&of);
        assert!(is_public || *total == 0, "{connection} counts {total}");
    }
    let mut walk = world.walk(email).await;
    let dashboard = dashboard(&mut walk).await;
    assert!(
        dashboard.len() >= 12 && dashboard.values().all(|count| *count == 0),
        "{dashboard:?}"
    );
}

#[tokio::test]
async fn a_collaborator_sees_exactly_the_data_of_shared_circles() {
    let world = Tenancy::new().await;
    let all = world.seen_by_admin().await.things;
    let email = "guest@example.com";
    let db = world.server.database().connect().await;
    let rights = Rights::of(email, &db).await;
    db.close().await.expect("closes");
    assert_eq!(rights.circles.len(), 2);
    let seen = world.seen_by(email, &all).await;
    rights.check(&seen);
    // The user receives everything that is permitted.
    for prefix in prefixes(&all) {
        let shown = seen.things.keys().filter_map(|id| decoded(id));
        let shown: BTreeSet<_> = shown
            .filter(|(of, _)| *of == prefix)
            .map(|(_, row)| row)
            .collect();
        assert_eq!(shown, rights.rows(&prefix), "{prefix}");
    }

    let mut walk = world.walk(email).await;
    let dashboard = dashboard(&mut walk).await;
    let open = |status: TaskStatus| {
        use TaskStatus::{Assigned, Blocked, ChangesRequested, InProgress, Pending};
        matches!(
            status,
            Pending | Assigned | InProgress | ChangesRequested | Blocked
        )
    };
    let tasks =
        |is: &dyn Fn(&task::Model) -> bool| rights.tasks.iter().filter(|row| is(row)).count();
    let conversations = rights.conversations.iter();
    for (way, count) in [
        ("agents.total", rights.agents.len()),
        ("circles.total", rights.circles.len()),
        ("tasks.open", tasks(&|task| open(task.status))),
        (
            "tasks.inReview",
            tasks(&|task| task.status == TaskStatus::InReview),
        ),
        ("conversations.total", conversations.len()),
        (
            "conversations.active",
            conversations
                .filter(|row| row.status == ConversationStatus::Active)
                .count(),
        ),
    ] {
        assert_eq!(dashboard[way], count as u64, "{way}");
    }

    // An agent may also work in circles that are not shared; that activity does not count.
    let query = "query ($ids: [ID!]!) { nodes(ids: $ids) { ... on Agent { id recentActivity {
        totalMessages completedTasks activeTasks conversationsParticipated } } } }";
    let ids: Vec<_> = seen
        .things
        .iter()
        .filter(|(_, ty)| *ty == "Agent")
        .map(|(id, _)| id)
        .collect();
    let (data, _) = walk
        .ask(query, json!({ "ids": ids }))
        .await
        .expect("is not too complex");
    let agents = data["nodes"].as_array().expect("nodes");
    assert_eq!(agents.len(), rights.agents.len());
    for shown in agents {
        let (_, agent) = decoded(shown["id"].as_str().expect("an id")).expect("an id");
        let assigned =
            |status| tasks(&|task| task.assignee_id == Some(agent) && task.status == status);
        let said = rights
            .messages
            .iter()
            .filter(|row| row.agent_id == Some(agent));
        let said_in: BTreeSet<_> = said.clone().map(|row| row.conversation_id).collect();
        let expected = json!({
            "totalMessages": said.count(),
            "completedTasks": assigned(TaskStatus::Completed),
            "activeTasks": assigned(TaskStatus::InProgress),
            "conversationsParticipated": said_in.len(),
        });
        assert_eq!(shown["recentActivity"], expected, "{shown}");
    }
}

#[tokio::test]
async fn a_key_of_an_agent_sees_exactly_the_data_of_the_agents_circles() {
    let world = Tenancy::new().await;
    let all = world.seen_by_admin().await.things;
    let email = "demo@example.com";
    let db = world.server.database().connect().await;
    // The agent who is a member of a circle with rows of every kind, and not of all circles.
    let first = circle::Entity::find().order_by_asc(circle::Column::Id);
    let first = first.one(&db).await.expect("reads").expect("a circle").id;
    let agents = member::Entity::find()
        .filter(member::Column::CircleId.eq(first))
        .filter(member::Column::IsActive.eq(true))
        .order_by_asc(member::Column::Id);
    let agent = agents
        .one(&db)
        .await
        .expect("reads")
        .expect("a member")
        .agent_id;
    let rights = Rights::with(email, Some(agent), &db).await;
    let of_user = Rights::of(email, &db).await;
    db.close().await.expect("closes");
    assert!(!rights.circles.is_empty() && rights.circles.len() < of_user.circles.len());

    let owner = world.server.actor(email).await;
    let id = Kind::Agent.id(agent);
    let input = json!({ "name": "A", "scopes": ["READ"], "agentId": id.as_str() });
    let created = owner.mutate("createApiKey", "secret", input).await;
    let secret = created["data"]["createApiKey"]["secret"]
        .as_str()
        .expect("a secret");
    let walk = || Walk::with(secret.to_owned(), &world.server, &world.schema);
    let seen = Tenancy::seen_in(walk(), &world.schema, &all).await;
    rights.check(&seen);
    for prefix in prefixes(&all) {
        let shown = seen.things.keys().filter_map(|id| decoded(id));
        let shown: BTreeSet<_> = shown
            .filter(|(of, _)| *of == prefix)
            .map(|(_, row)| row)
            .collect();
        assert_eq!(shown, rights.rows(&prefix), "{prefix}");
    }
    let dashboard = dashboard(&mut walk()).await;
    for (way, count) in [
        ("agents.total", rights.agents.len()),
        ("circles.total", rights.circles.len()),
        ("conversations.total", rights.conversations.len()),
    ] {
        assert_eq!(dashboard[way], count as u64, "{way}");
    }
}
