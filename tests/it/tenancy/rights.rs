//! The rights of a user, computed from the tables.

use super::*;

/// The rights of a user, computed from the tables.
pub(super) struct Rights {
    pub(super) user: Uuid,
    pub(super) circles: BTreeSet<Uuid>,
    pub(super) agents: BTreeSet<Uuid>,
    pub(super) own_agents: BTreeSet<Uuid>,
    pub(super) projects: BTreeSet<Uuid>,
    pub(super) members: BTreeSet<Uuid>,
    pub(super) tasks: Vec<task::Model>,
    pub(super) conversations: Vec<conversation::Model>,
    pub(super) messages: Vec<message::Model>,
    pub(super) events: Vec<event::Model>,
    pub(super) sessions: BTreeSet<Uuid>,
    pub(super) keys: BTreeSet<Uuid>,
    pub(super) transfers: BTreeSet<Uuid>,
    /// The agent of the API key.
    agent: Option<Uuid>,
}

impl Rights {
    pub(super) async fn of(email: &str, db: &DatabaseConnection) -> Self {
        Self::with(email, None, db).await
    }

    /// The rights of a user, or of a key of this agent of theirs.
    pub(super) async fn with(email: &str, agent: Option<Uuid>, db: &DatabaseConnection) -> Self {
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
        let mut mine: Vec<_> = all.iter().filter(is_mine).collect();
        let of_user: BTreeSet<_> = mine.iter().map(|row| row.id).collect();
        let members = member::Entity::find().all(db).await.expect("reads");
        if let Some(agent) = agent {
            mine.retain(|circle| {
                let is_member = |row: &member::Model| {
                    row.agent_id == agent && row.circle_id == circle.id && row.is_active
                };
                members.iter().any(is_member)
            });
        }
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
            .filter(|row| row.owner_id == user && agent.is_none_or(|agent| row.id == agent))
            .map(|row| row.id)
            .collect();
        let all = project::Entity::find().all(db).await.expect("reads");
        let own = all
            .iter()
            .filter(|row| row.owner_id == user && agent.is_none())
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
            in_circle(row.circle_id)
                || (row.circle_id.is_none() && row.owner_id == user && agent.is_none())
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
            let is_own = match agent {
                Some(agent) => {
                    let is_removal = row.kind == "member.removed" && row.agent_id == Some(agent);
                    is_removal && row.circle_id.is_some_and(|id| of_user.contains(&id))
                }
                None => row.owner_id == Some(user),
            };
            is_public || is_own || in_circle(row.circle_id)
        });
        let mut sessions = sessions_of(user, db).await;
        let mut keys = keys_of(user, db).await;
        let mut transfers = transfers_of(user, db).await;
        if agent.is_some() {
            transfers.clear();
            sessions.clear();
            keys.clear();
        }
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
            keys,
            transfers,
            agent,
            sessions,
            circles,
        }
    }

    /// The rows that the user may see, by the prefix of their ids.
    pub(super) fn rows(&self, prefix: &str) -> BTreeSet<Uuid> {
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
            "key" => self.keys.clone(),
            "transfer" => self.transfers.clone(),
            // For administrators only.
            "audit" => BTreeSet::new(),
            _ => panic!("add the rows with the prefix {prefix} here"),
        }
    }

    /// Whether the user may read an object.
    pub(super) fn allow(&self, id: &str) -> bool {
        let (prefix, row) = decoded(id).expect("an id");
        PUBLIC.contains(&&*prefix) || self.rows(&prefix).contains(&row)
    }

    /// Whether an id may appear in a response: that of a readable object, or of one that a readable event names.
    pub(super) fn allow_name(&self, id: &str) -> bool {
        let (_, row) = decoded(id).expect("an id");
        let tells = |event: &event::Model| event.subject_id == row || event.agent_id == Some(row);
        self.allow(id) || self.events.iter().any(tells)
    }

    pub(super) fn check(&self, seen: &Seen) {
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
            let is_own =
                (row == self.user && self.agent.is_none()) || self.own_agents.contains(&row);
            assert!(is_own, "{name} of {id} is private");
        }
        for (connection, total, all) in &seen.counts {
            assert!(
                all.is_none_or(|all| all == *total),
                "{connection} counts {total} and has {all:?}"
            );
        }
        for (list, counted) in &seen.lists {
            let prefix = match &**list {
                "sessions" => "signin",
                "apiKeys" => "key",
                list => list.strip_suffix('s').expect("a plural"),
            };
            if !PUBLIC.contains(&prefix) {
                let own = self.rows(prefix).len() as u64;
                assert_eq!(*counted, (own, own), "{list}");
            }
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

/// The API keys of a user.
async fn keys_of(user: Uuid, db: &DatabaseConnection) -> BTreeSet<Uuid> {
    let keys = api_key::Entity::find().filter(api_key::Column::UserId.eq(user));
    let keys = keys.all(db).await.expect("reads");
    keys.iter().map(|row| row.id).collect()
}

/// The sessions of a user.
async fn sessions_of(user: Uuid, db: &DatabaseConnection) -> BTreeSet<Uuid> {
    let tokens = refresh_token::Entity::find().filter(refresh_token::Column::UserId.eq(user));
    let tokens = tokens.all(db).await.expect("reads");
    tokens.iter().map(|row| row.family_id).collect()
}

/// The transfers from or to a user.
async fn transfers_of(user: Uuid, db: &DatabaseConnection) -> BTreeSet<Uuid> {
    let all = transfer::Entity::find().all(db).await.expect("reads");
    let own = all
        .iter()
        .filter(|row| [row.from_user_id, row.to_user_id].contains(&user));
    own.map(|row| row.id).collect()
}
