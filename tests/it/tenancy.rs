//! Tenant isolation: no list, edge, filter, count or id reveals the data of other users.
//!
//! The tests traverse the schema as it is served: every root field, then every object that an administrator can see, by
//! its id and with all its edges, and from there one step further. New parts of the schema are traversed automatically.
//! The permitted data is computed from the tables, independently of the server's rules.

use std::collections::{BTreeMap, BTreeSet};

use gathering::config::Mode;
use gathering_entity::conversation::ConversationStatus;
use gathering_entity::task::TaskStatus;
use gathering_entity::{
    agent, circle, collaborator, conversation, event, member, message, model, persona, project,
    provider, refresh_token, task, user,
};
use sea_orm::prelude::Uuid;
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter};
use serde_json::{Value, json};

use crate::accounts::audit::until_recorded;
use crate::database::PASSWORD;
use crate::furnish::furnished;
use crate::introspection::{Field, Schema};
use crate::server::TestServer;

/// Edges that are always null, and why.
const LEADS_NOWHERE: [(&str, &str); 5] = [
    // A change of the catalogue or of an account does not belong to a circle.
    ("CatalogueEvent", "circle"),
    ("CatalogueEvent", "project"),
    ("UserEvent", "circle"),
    ("UserEvent", "project"),
    // A project can have many circles.
    ("ProjectEvent", "circle"),
];

/// The id prefixes of objects that every signed-in user can read.
const PUBLIC: [&str; 4] = ["user", "provider", "model", "persona"];

/// Fields that only the user or owner, and administrators, can read.
const PRIVATE: [(&str, &str); 3] = [
    ("User", "email"),
    ("User", "lastLoginAt"),
    ("Agent", "systemPrompt"),
];

/// The maximum number of ids of one `nodes` field, and of entries of one page.
const MOST: usize = 100;

/// The maximum number of root fields of one document.
const ROOTS: usize = 20;

/// The data that a user has received.
#[derive(Default)]
struct Seen {
    /// The types of objects.
    types: BTreeSet<String>,
    /// Fields that had a value.
    fields: BTreeSet<(String, String)>,
    /// The objects, each with its type.
    things: BTreeMap<String, String>,
    /// All ids, in any field.
    ids: BTreeSet<String>,
    /// Private fields that had a value, with the id of the object.
    private: BTreeSet<(String, String)>,
    /// Row ids in the form that the database uses.
    bare: BTreeSet<String>,
    /// The total count of each connection, and the number of its entries if they fit on one page.
    counts: Vec<(String, u64, Option<u64>)>,
    /// The total count of each root list, and the number of its entries.
    lists: BTreeMap<String, (u64, u64)>,
    /// Lists with further pages: the object, the field, and the cursor.
    unfinished: Vec<(String, String, Value)>,
    /// The codes of errors.
    codes: BTreeSet<String>,
}

impl Seen {
    fn note(&mut self, value: &Value) {
        match value {
            Value::Object(object) => {
                let ty = object.get("__typename").and_then(Value::as_str);
                if let Some(ty) = ty {
                    self.note_object(ty, value);
                }
                object.values().for_each(|value| self.note(value));
            }
            Value::Array(list) => list.iter().for_each(|value| self.note(value)),
            Value::String(text) => self.note_text(text),
            _ => {}
        }
    }

    fn note_object(&mut self, ty: &str, value: &Value) {
        self.types.insert(ty.to_owned());
        let mut fields = BTreeMap::new();
        for (key, value) in value.as_object().into_iter().flatten() {
            let name = key.split_once("__").filter(|(of, _)| *of == ty);
            let name = name.map_or(&**key, |(_, name)| name);
            if !value.is_null() {
                self.fields.insert((ty.to_owned(), name.to_owned()));
                fields.insert(name, value);
            }
        }
        if let Some(Value::String(id)) = fields.get("id") {
            self.things.insert(id.clone(), ty.to_owned());
            for (name, value) in &fields {
                let page = &value["pageInfo"];
                if page["hasNextPage"] == true {
                    let at = page["endCursor"].clone();
                    self.unfinished.push((id.clone(), (*name).to_owned(), at));
                }
            }
            for (of, name) in PRIVATE {
                if of == ty && fields.contains_key(name) {
                    self.private.insert((id.clone(), name.to_owned()));
                }
            }
        }
        if let (Some(total), Some(Value::Array(edges))) =
            (fields.get("totalCount"), fields.get("edges"))
        {
            let page = &value["pageInfo"];
            let is_all = page["hasNextPage"] == false && page["hasPreviousPage"] == false;
            let all = is_all.then_some(edges.len() as u64);
            let total = total.as_u64().expect("a count");
            self.counts.push((ty.to_owned(), total, all));
        }
    }

    fn note_text(&mut self, text: &str) {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        for word in text.split(|c| !is_part(c)) {
            if decoded(word).is_some() {
                self.ids.insert(word.to_owned());
            }
            if word.len() == 36 && Uuid::parse_str(word).is_ok() {
                self.bare.insert(word.to_owned());
            }
        }
    }
}

/// The prefix and the row id of a public id.
fn decoded(id: &str) -> Option<(String, Uuid)> {
    const DIGITS: &str = "0123456789abcdefghjkmnpqrstvwxyz";
    let (prefix, digits) = id.rsplit_once('_')?;
    if digits.len() != 26 || !digits.starts_with(|digit: char| digit <= '7') {
        return None;
    }
    let row = digits.chars().try_fold(0_u128, |row, digit| {
        Some(row << 5 | DIGITS.find(digit)? as u128)
    })?;
    Some((prefix.to_owned(), Uuid::from_u128(row)))
}

/// The traversal of the schema by one user.
struct Walk<'a> {
    server: &'a TestServer,
    schema: &'a Schema,
    token: String,
    seen: Seen,
}

impl<'a> Walk<'a> {
    async fn of(email: &str, server: &'a TestServer, schema: &'a Schema) -> Self {
        Self {
            server,
            schema,
            token: server.token(email).await,
            seen: Seen::default(),
        }
    }

    /// The data and the codes of the errors; `None` if the document is too complex.
    async fn ask(&mut self, document: &str, variables: Value) -> Option<(Value, Vec<String>)> {
        let answer = self
            .server
            .ask(Some(&self.token), document, variables)
            .await;
        let errors = answer["errors"].as_array().into_iter().flatten();
        let codes: Vec<String> = errors
            .map(|error| {
                error["extensions"]["code"]
                    .as_str()
                    .expect("a code")
                    .to_owned()
            })
            .collect();
        if codes == ["QUERY_TOO_COMPLEX"] {
            return None;
        }
        assert!(answer.get("data").is_some(), "{document}: {answer}");
        self.seen.codes.extend(codes.iter().cloned());
        self.seen.note(&answer["data"]);
        Some((answer["data"].clone(), codes))
    }

    /// A field with everything that can be selected below it, up to `steps` objects beyond the next one.
    fn field(&self, field: &Field, steps: usize, page: usize) -> String {
        let (name, ty) = (&field.name, field.named());
        if !self.schema.is_composite(ty) {
            return name.clone();
        }
        let selection = match steps {
            0 if self.schema.is_node(ty) => self.leaf(ty),
            _ if self.schema.is_node(ty) => self.selection(ty, steps - 1, page),
            _ => self.selection(ty, steps, page),
        };
        let mut arguments = self.widest(field);
        if field.argument("first").is_some() {
            arguments.push(format!("first: {page}"));
        }
        assert_eq!(
            field.required().count(),
            0,
            "add the arguments of {name} here"
        );
        format!("{name}{} {selection}", listed(&arguments))
    }

    /// The filter that includes the most entries of a list.
    fn widest(&self, field: &Field) -> Vec<String> {
        let filter = field.argument("filter").into_iter();
        let filter = filter.flat_map(|filter| &self.schema.get(filter.named()).inputs);
        let including: Vec<_> = filter
            .filter(|input| input.name.starts_with("include"))
            .map(|input| format!("{}: true", input.name))
            .collect();
        match *including {
            [] => Vec::new(),
            _ => vec![format!("filter: {{{}}}", including.join(", "))],
        }
    }

    fn leaf(&self, ty: &str) -> String {
        assert!(self.schema.field(ty, "id").is_some(), "{ty} has no id");
        "{ __typename id }".to_owned()
    }

    fn selection(&self, ty: &str, steps: usize, page: usize) -> String {
        if !self.schema.is_abstract(ty) {
            return format!("{{ __typename {} }}", self.fields(ty, "", steps, page));
        }
        let possible = self.schema.get(ty).possible.iter();
        // Fields of the same name may have different types, so they need aliases.
        let possible = possible.map(|ty| {
            let fields = self.fields(ty, &format!("{ty}__"), steps, page);
            format!("... on {ty} {{ {fields} }}")
        });
        format!(
            "{{ __typename {} }}",
            possible.collect::<Vec<_>>().join(" ")
        )
    }

    fn fields(&self, ty: &str, alias: &str, steps: usize, page: usize) -> String {
        let fields = self.schema.get(ty).fields.iter();
        let fields = fields.map(|field| {
            let selected = self.field(field, steps, page);
            match alias {
                "" => selected,
                alias => format!("{alias}{}: {selected}", field.name),
            }
        });
        fields.collect::<Vec<_>>().join(" ")
    }

    /// Requests objects of a type by their ids, with ever smaller pages until the document is not too complex.
    async fn nodes(&mut self, ty: &str, ids: &[String], fields: impl Fn(&Self, usize) -> String) {
        for ids in ids.chunks(MOST) {
            let mut page = MOST;
            loop {
                let fields = fields(self, page);
                let document = format!(
                    "query ($ids: [ID!]!) {{ nodes(ids: $ids) {{ __typename ... on {ty} {{ id {fields} }} }} }}"
                );
                if self.ask(&document, json!({ "ids": ids })).await.is_some() {
                    break;
                }
                assert_ne!(page, 1, "too complex: {document}");
                page = page.div_ceil(2);
            }
        }
    }

    /// Reads every root field without required arguments, and also each list filtered by objects of `world`.
    async fn roots(&mut self, world: &BTreeMap<String, String>) {
        let schema = self.schema;
        for field in &schema.get("Query").fields {
            if field.required().next().is_some() {
                continue;
            }
            if schema.node_of(field.named()).is_none() {
                let document = format!("{{ {} }}", self.field(field, 1, 5));
                self.ask(&document, json!({}))
                    .await
                    .expect("is not too complex");
                continue;
            }
            self.list(field, &self.widest(field), Some(&field.name))
                .await;
            for narrowed in self.narrowings(field, world) {
                self.list(field, &[narrowed], None).await;
            }
            // The first objects of the list, with their edges.
            let document = |page| format!("{{ {} }}", self.field(field, 1, page));
            let documents: Vec<_> = [5, 2, 1].map(document).into();
            let mut asked = None;
            for document in documents {
                asked = asked.or(self.ask(&document, json!({})).await);
            }
            assert!(asked.is_some(), "{} is too complex", field.name);
        }
    }

    /// Reads a list from its beginning to its end.
    async fn list(&mut self, field: &Field, arguments: &[String], name: Option<&str>) {
        let arguments = [
            arguments,
            &["first: 100".to_owned(), "after: $after".to_owned()],
        ]
        .concat();
        let selection = self.selection(field.named(), 0, MOST);
        let document = format!(
            "query ($after: String) {{ list: {}{} {selection} }}",
            field.name,
            listed(&arguments)
        );
        let (mut after, mut entries) = (Value::Null, 0);
        loop {
            let asked = self.ask(&document, json!({ "after": after })).await;
            let (data, codes) = asked.expect("is not too complex");
            let list = &data["list"];
            if list.is_null() {
                assert_eq!(codes.len(), 1, "{document}");
                return;
            }
            entries += list["edges"].as_array().expect("edges").len() as u64;
            if list["pageInfo"]["hasNextPage"] == false {
                let total = list["totalCount"].as_u64().expect("a count");
                if let Some(name) = name {
                    self.seen.lists.insert(name.to_owned(), (total, entries));
                }
                return;
            }
            after = list["pageInfo"]["endCursor"].clone();
        }
    }

    /// The arguments that filter a list by the id of an object of `world`, if there is one.
    fn narrowings(&self, field: &Field, world: &BTreeMap<String, String>) -> Vec<String> {
        const EACH: usize = 3;
        let ids = |name: &str| {
            let prefix = match name {
                "assigneeId" | "reviewerId" => "agent",
                "actorId" => "user",
                "subjectId" | "targetId" => "task",
                name => name.strip_suffix("Id").expect("an id"),
            };
            let start = format!("{prefix}_");
            let ids: Vec<_> = world
                .keys()
                .filter(|id| id.starts_with(&start))
                .take(EACH)
                .collect();
            assert!(
                !ids.is_empty(),
                "no id has the prefix {prefix}, which {name} needs"
            );
            ids
        };
        let mut narrowings = Vec::new();
        if world.is_empty() {
            return narrowings;
        }
        for argument in &field.arguments {
            if argument.named() == "ID" {
                let ids = ids(&argument.name).into_iter();
                narrowings.extend(ids.map(|id| format!("{}: \"{id}\"", argument.name)));
            }
            if argument.name != "filter" {
                continue;
            }
            for input in &self.schema.get(argument.named()).inputs {
                if input.named() == "ID" {
                    let ids = ids(&input.name).into_iter();
                    narrowings
                        .extend(ids.map(|id| format!("filter: {{{}: \"{id}\"}}", input.name)));
                }
            }
        }
        narrowings
    }

    /// Requests each object by its id. An object that is not returned must be `NOT_FOUND`.
    async fn look_up(&mut self, world: &BTreeMap<String, String>) {
        let schema = self.schema;
        for field in &schema.get("Query").fields {
            let required: Vec<_> = field.required().map(|argument| &*argument.name).collect();
            if required != ["id"] {
                assert!(
                    required.is_empty() || required == ["ids"],
                    "add the arguments of {} here",
                    field.name
                );
                continue;
            }
            let ty = field.named();
            let of_type = |of: &str| {
                of == ty
                    || schema
                        .get(ty)
                        .possible
                        .iter()
                        .any(|possible| possible == of)
            };
            let ids: Vec<_> = world
                .iter()
                .filter(|(_, of)| of_type(of))
                .map(|(id, _)| id)
                .collect();
            assert!(!ids.is_empty(), "no object has an id for {}", field.name);
            for ids in ids.chunks(ROOTS) {
                let lookups = ids.iter().enumerate();
                let lookups = lookups.map(|(n, id)| {
                    format!("a{n}: {}(id: \"{id}\") {{ __typename id }} ", field.name)
                });
                let document = format!("{{ {} }}", lookups.collect::<String>());
                let asked = self.ask(&document, json!({})).await;
                let (data, codes) = asked.expect("is not too complex");
                let absent = data
                    .as_object()
                    .expect("data")
                    .values()
                    .filter(|value| value.is_null());
                assert_eq!(codes, vec!["NOT_FOUND"; absent.count()], "{document}");
            }
        }
    }

    /// Reads all fields of these objects, and their lists to the end.
    async fn visit(&mut self, world: &BTreeMap<String, String>) {
        let schema = self.schema;
        for (ty, ids) in by_type(world) {
            self.seen.unfinished.clear();
            self.nodes(&ty, &ids, |walk, page| walk.fields(&ty, "", 0, page))
                .await;
            while let Some((id, name, at)) = self.seen.unfinished.pop() {
                let field = schema.field(&ty, &name).expect("a field");
                let after = format!("after: {at}, first: ");
                let rest = |walk: &Self, page: usize| {
                    walk.field(field, 0, page).replacen("first: ", &after, 1)
                };
                self.nodes(&ty, &[id], rest).await;
            }
        }
    }

    /// Follows each edge of a few received objects per type, and reads all fields of its target.
    async fn go_further(&mut self) {
        const EACH: usize = 8;
        let schema = self.schema;
        for (ty, mut ids) in by_type(&self.seen.things) {
            if !schema.is_node(&ty) {
                continue;
            }
            // The first and the last ids, because those objects differ most.
            if ids.len() > EACH {
                ids.drain(EACH / 2..ids.len() - EACH / 2);
            }
            for field in &schema.get(&ty).fields {
                if schema.is_composite(field.named()) {
                    let selected = |walk: &Self, page: usize| walk.field(field, 1, page.min(10));
                    self.nodes(&ty, &ids, selected).await;
                }
            }
        }
    }
}

fn listed(arguments: &[String]) -> String {
    match arguments {
        [] => String::new(),
        some => format!("({})", some.join(", ")),
    }
}

fn by_type(world: &BTreeMap<String, String>) -> BTreeMap<String, Vec<String>> {
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (id, ty) in world {
        types.entry(ty.clone()).or_default().push(id.clone());
    }
    types
}

/// The server and its schema.
struct World {
    server: TestServer,
    schema: Schema,
}

impl World {
    async fn new() -> Self {
        let server = TestServer::on(furnished().await, |config| {
            // A selection on many types needs many aliases.
            config.graphql.aliases = 10_000;
            // Gives the fields about rate limits a value.
            config.limits.mode = Mode::Observe;
        })
        .await;
        let schema = Schema::of(&server).await;
        let ask = async |mutation: &str, email: &str, token: &Value| {
            let given = json!({ "email": email, "password": PASSWORD, "token": token });
            let answer = server.ask(None, mutation, given).await;
            assert_eq!(answer.get("errors"), None, "{answer}");
            answer["data"]["done"]["refreshToken"].clone()
        };
        let register = "mutation ($email: String!, $password: String!) {
            done: register(input: {email: $email, password: $password, name: \"Somebody\"}) { refreshToken } }";
        ask(register, "stranger@example.com", &Value::Null).await;
        let login = "mutation ($email: String!, $password: String!) {
            done: login(input: {email: $email, password: $password}) { refreshToken } }";
        let token = ask(login, "admin@example.com", &Value::Null).await;
        let refresh = "mutation ($token: String!) { done: refreshSession(input: {refreshToken: $token}) { refreshToken } }";
        ask(refresh, "admin@example.com", &token).await;
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
        let mut walk = self.walk(email).await;
        let nodes = world.iter().filter(|(_, ty)| self.schema.is_node(ty));
        let nodes: BTreeMap<_, _> = nodes.map(|(id, ty)| (id.clone(), ty.clone())).collect();
        walk.roots(world).await;
        walk.look_up(&nodes).await;
        walk.visit(&nodes).await;
        walk.go_further().await;
        walk.seen
    }
}

/// What a user may see, computed from the tables.
struct Rights {
    user: Uuid,
    circles: BTreeSet<Uuid>,
    agents: BTreeSet<Uuid>,
    own_agents: BTreeSet<Uuid>,
    projects: BTreeSet<Uuid>,
    members: BTreeSet<Uuid>,
    tasks: Vec<task::Model>,
    conversations: Vec<conversation::Model>,
    messages: Vec<message::Model>,
    events: Vec<event::Model>,
    sessions: BTreeSet<Uuid>,
}

impl Rights {
    async fn of(email: &str, db: &DatabaseConnection) -> Self {
        let user = user::Entity::find().filter(user::Column::Email.eq(email));
        let user = user.one(db).await.expect("reads").expect("a user").id;
        let all = collaborator::Entity::find().all(db).await.expect("reads");
        let shared: BTreeSet<_> = all
            .iter()
            .filter(|row| row.user_id == user)
            .map(|row| row.circle_id)
            .collect();
        let all = circle::Entity::find().all(db).await.expect("reads");
        let is_mine = |row: &&circle::Model| row.owner_id == user || shared.contains(&row.id);
        let mine: Vec<_> = all.iter().filter(is_mine).collect();
        let circles: BTreeSet<_> = mine.iter().map(|row| row.id).collect();
        let in_circle =
            |circle: Option<Uuid>| circle.is_some_and(|circle| circles.contains(&circle));

        let all = member::Entity::find().all(db).await.expect("reads");
        let members: Vec<_> = all
            .iter()
            .filter(|row| circles.contains(&row.circle_id))
            .collect();
        let active = members
            .iter()
            .filter(|row| row.is_active)
            .map(|row| row.agent_id);
        let all = agent::Entity::find().all(db).await.expect("reads");
        let own_agents: BTreeSet<_> = all
            .iter()
            .filter(|row| row.owner_id == user)
            .map(|row| row.id)
            .collect();
        let all = project::Entity::find().all(db).await.expect("reads");
        let own = all
            .iter()
            .filter(|row| row.owner_id == user)
            .map(|row| row.id);
        let projects = mine
            .iter()
            .filter_map(|row| row.project_id)
            .chain(own)
            .collect();

        let mut tasks = task::Entity::find().all(db).await.expect("reads");
        tasks.retain(|row| circles.contains(&row.circle_id));
        let mut conversations = conversation::Entity::find().all(db).await.expect("reads");
        conversations.retain(|row| {
            in_circle(row.circle_id) || (row.circle_id.is_none() && row.owner_id == user)
        });
        let readable: BTreeSet<_> = conversations.iter().map(|row| row.id).collect();
        let mut messages = message::Entity::find().all(db).await.expect("reads");
        messages.retain(|row| readable.contains(&row.conversation_id));
        let mut events = event::Entity::find().all(db).await.expect("reads");
        events.retain(|row| {
            let is_public = matches!(
                &*row.kind,
                "provider.changed" | "model.changed" | "persona.changed"
            );
            is_public || row.owner_id == Some(user) || in_circle(row.circle_id)
        });
        let sessions = refresh_token::Entity::find().filter(refresh_token::Column::UserId.eq(user));
        let sessions = sessions.all(db).await.expect("reads");
        Self {
            user,
            agents: active.chain(own_agents.iter().copied()).collect(),
            own_agents,
            projects,
            members: members.iter().map(|row| row.id).collect(),
            tasks,
            conversations,
            messages,
            events,
            sessions: sessions.iter().map(|row| row.family_id).collect(),
            circles,
        }
    }

    /// The rows that the user may see, by the prefix of their ids.
    fn rows(&self, prefix: &str) -> BTreeSet<Uuid> {
        match prefix {
            "agent" => self.agents.clone(),
            "project" => self.projects.clone(),
            "circle" => self.circles.clone(),
            "member" => self.members.clone(),
            "task" => self.tasks.iter().map(|row| row.id).collect(),
            "conversation" => self.conversations.iter().map(|row| row.id).collect(),
            "message" => self.messages.iter().map(|row| row.id).collect(),
            "event" => self.events.iter().map(|row| row.id).collect(),
            "signin" => self.sessions.clone(),
            _ => BTreeSet::new(),
        }
    }

    /// Whether the user may read an object.
    fn allow(&self, id: &str) -> bool {
        let (prefix, row) = decoded(id).expect("an id");
        PUBLIC.contains(&&*prefix) || self.rows(&prefix).contains(&row)
    }

    /// Whether an id may appear in a response: that of a readable object, or of one that a readable event names.
    fn allow_name(&self, id: &str) -> bool {
        let (_, row) = decoded(id).expect("an id");
        let tells = |event: &event::Model| event.subject_id == row || event.agent_id == Some(row);
        self.allow(id) || self.events.iter().any(tells)
    }

    fn check(&self, seen: &Seen) {
        let prefixes: BTreeSet<_> = seen
            .things
            .keys()
            .filter_map(|id| decoded(id))
            .map(|(prefix, _)| prefix)
            .collect();
        assert!(prefixes.contains("user"), "{prefixes:?}");
        let foreign: Vec<_> = seen
            .things
            .iter()
            .filter(|(id, _)| !self.allow(id))
            .collect();
        assert!(
            foreign.is_empty(),
            "readable without permission: {foreign:?}"
        );
        let foreign: Vec<_> = seen.ids.iter().filter(|id| !self.allow_name(id)).collect();
        assert!(
            foreign.is_empty(),
            "ids shown without permission: {foreign:?}"
        );
        for (id, name) in &seen.private {
            let (_, row) = decoded(id).expect("an id");
            let is_own = row == self.user || self.own_agents.contains(&row);
            assert!(is_own, "{name} of {id} is private");
        }
        for (connection, total, all) in &seen.counts {
            assert!(
                all.is_none_or(|all| all == *total),
                "{connection} counts {total} and has {all:?}"
            );
        }
        for (list, prefix) in [
            ("agents", "agent"),
            ("projects", "project"),
            ("circles", "circle"),
            ("tasks", "task"),
            ("conversations", "conversation"),
            ("events", "event"),
            ("sessions", "signin"),
        ] {
            let own = self.rows(prefix).len() as u64;
            assert_eq!(seen.lists[list], (own, own), "{list}");
        }
        let refused: BTreeSet<_> = ["FORBIDDEN", "NOT_FOUND"].map(str::to_owned).into();
        assert_eq!(seen.codes, refused);
        assert!(
            seen.bare.is_empty(),
            "row ids of the database: {:?}",
            seen.bare
        );
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

#[tokio::test]
async fn the_traversal_reaches_every_type_edge_and_row() {
    let world = World::new().await;
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
    macro_rules! all {
        ($($entity:ident),*) => {$(
            let rows = $entity::Entity::find().count(&db).await.expect("counts");
            assert_eq!(count(stringify!($entity)), rows, stringify!($entity));
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
        event
    );
    db.close().await.expect("closes");
}

#[tokio::test]
async fn a_user_without_access_sees_no_data_of_others() {
    let world = World::new().await;
    let all = world.seen_by_admin().await.things;
    let email = "stranger@example.com";
    let db = world.server.database().connect().await;
    let rights = Rights::of(email, &db).await;
    db.close().await.expect("closes");
    for prefix in [
        "agent",
        "project",
        "circle",
        "member",
        "task",
        "conversation",
        "message",
    ] {
        assert_eq!(rights.rows(prefix).len(), 0, "{prefix}");
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
    let world = World::new().await;
    let all = world.seen_by_admin().await.things;
    let email = "guest@example.com";
    let db = world.server.database().connect().await;
    let rights = Rights::of(email, &db).await;
    db.close().await.expect("closes");
    assert_eq!(rights.circles.len(), 2);
    let seen = world.seen_by(email, &all).await;
    rights.check(&seen);
    // The user receives everything that is permitted.
    for prefix in [
        "agent",
        "project",
        "circle",
        "member",
        "task",
        "conversation",
        "message",
        "event",
    ] {
        let shown = seen.things.keys().filter_map(|id| decoded(id));
        let shown: BTreeSet<_> = shown
            .filter(|(of, _)| of == prefix)
            .map(|(_, row)| row)
            .collect();
        assert_eq!(shown, rights.rows(prefix), "{prefix}");
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
