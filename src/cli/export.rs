//! `export`: all data, or those of one circle, as JSON lines.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use async_graphql::ID;
use gathering::StartError;
use gathering::db::Database;
use gathering::server::Options;
use gathering_entity::{
    agent, api_key, api_key_circle, audit, circle, collaborator, conversation, event, member,
    message, model, participant, persona, project, provider, revoked_token, task, transfer, user,
};
use gathering_schema::id;
use sea_orm::sea_query::{Expr, ExprTrait, SelectStatement};
use sea_orm::{
    AccessMode, ColumnTrait, Condition, ConnectionTrait, DatabaseTransaction, DbBackend,
    EntityTrait, IsolationLevel, Iterable, ModelTrait, PrimaryKeyToColumn, QueryFilter, QueryOrder,
    QuerySelect, QueryTrait, Select, Statement, TransactionOptions, TransactionTrait,
};
use serde::Serialize;
use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::output::print;
use super::rows::{FORMAT, Header, Line, column, encode, for_each_table, links};

/// Rows in one statement.
const PAGE: u64 = 500;

/// What is exported.
#[derive(Clone, Copy)]
pub(super) struct Scope {
    circle: Option<Uuid>,
    credentials: bool,
}

impl Scope {
    /// # Errors
    /// The text is not the id of a circle.
    pub(super) fn new(circle: Option<&str>, without_credentials: bool) -> Result<Self, StartError> {
        let circle = circle.map(|text| {
            let parsed = id::parse(&ID::from(text)).filter(|(kind, _)| kind.prefix() == "circle");
            let parsed = parsed.map(|(_, id)| id);
            parsed.ok_or_else(|| StartError::new(format!("{text:?} is not the id of a circle")))
        });
        let circle = circle.transpose()?;
        Ok(Self {
            circle,
            credentials: circle.is_none() && !without_credentials,
        })
    }
}

/// Writes the export to a new file, or to standard output if the name is `-`.
pub(super) async fn export(
    database: &Database,
    scope: Scope,
    path: &Path,
) -> Result<(), StartError> {
    if path == Path::new("-") {
        let out = io::stdout();
        write(database, scope, out).await?;
        return Ok(());
    }
    let unusable = |error: io::Error| {
        StartError::new(format!(
            "the export {} cannot be written ({error}): choose another file",
            path.display()
        ))
    };
    if path.exists() {
        return Err(unusable(io::ErrorKind::AlreadyExists.into()));
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder).map_err(unusable)?;
    // Before the first byte: the file contains hashes of passwords.
    let mode = Permissions::from_mode(0o600);
    file.as_file().set_permissions(mode).map_err(unusable)?;
    let rows = write(database, scope, file.as_file()).await?;
    file.as_file().sync_all().map_err(unusable)?;
    file.persist_noclobber(path)
        .map_err(|error| unusable(error.error))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(unusable)?;
    print(&format!("exported rows: {rows}\n"));
    if scope.credentials {
        print("the file contains password hashes and the hashes of API keys: keep it secret\n");
    }
    Ok(())
}

/// Writes all lines. Returns the number of rows.
async fn write(database: &Database, scope: Scope, out: impl Write) -> Result<u64, StartError> {
    let connection = database.connection();
    if gathering_migration::pending(connection).await? > 0 {
        return Err(StartError::new(
            "the database is not up to date: run `gathering migrate` first",
        ));
    }
    let migration = latest_migration(connection).await?;
    // One snapshot for all statements; SQLite has it in every transaction.
    let options = TransactionOptions {
        isolation_level: (connection.get_database_backend() == DbBackend::Postgres)
            .then_some(IsolationLevel::RepeatableRead),
        access_mode: (connection.get_database_backend() == DbBackend::Postgres)
            .then_some(AccessMode::ReadOnly),
        ..TransactionOptions::default()
    };
    let transaction = connection.begin_with_options(options).await?;
    if transaction.get_database_backend() == DbBackend::Postgres {
        let unlimited =
            "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";
        transaction.execute_unprepared(unlimited).await?;
    }
    let mut export = Export {
        transaction: &transaction,
        scope,
        out: BufWriter::new(out),
        counts: BTreeMap::new(),
    };
    export.line(&Header {
        gathering_export: FORMAT,
        migration,
        circle: scope.circle,
        credentials: scope.credentials,
        source: format!("{:?}", transaction.get_database_backend()).to_lowercase(),
        created_at: (Options::default().clock)(),
    })?;
    export.tables().await?;
    let end = std::mem::take(&mut export.counts);
    let rows = end.values().sum();
    export.line(&Line::End { end })?;
    export.out.flush().map_err(broken)?;
    drop(export);
    transaction.commit().await?;
    Ok(rows)
}

/// The name of the latest migration of a database.
pub(super) async fn latest_migration(db: &impl ConnectionTrait) -> Result<String, StartError> {
    let latest = "SELECT max(version) AS version FROM seaql_migrations";
    let statement = Statement::from_string(db.get_database_backend(), latest);
    let row = db.query_one_raw(statement).await?;
    let row = row.ok_or_else(|| StartError::new("the database has no migrations"))?;
    Ok(row.try_get("", "version")?)
}

fn broken(error: impl std::fmt::Display) -> StartError {
    StartError::new(format!("the export cannot be written: {error}"))
}

struct Export<'a, W: Write> {
    transaction: &'a DatabaseTransaction,
    scope: Scope,
    out: BufWriter<W>,
    /// The number of rows and links of each table.
    counts: BTreeMap<String, u64>,
}

impl<W: Write> Export<'_, W> {
    fn line(&mut self, line: &impl Serialize) -> Result<(), StartError> {
        serde_json::to_writer(&mut self.out, line).map_err(broken)?;
        self.out.write_all(b"\n").map_err(broken)
    }

    /// Writes the rows of all tables.
    async fn tables(&mut self) -> Result<(), StartError> {
        if let Some(circle) = self.scope.circle {
            let found = circle::Entity::find_by_id(circle).one(self.transaction);
            if found.await?.is_none() {
                return Err(StartError::new("there is no circle with this id"));
            }
        }
        macro_rules! write {
            ($module:ident, $table:literal) => {
                if let Some(rows) = $module::Entity::of(self.scope) {
                    self.table::<$module::Entity>($table, rows).await?;
                }
            };
        }
        for_each_table!(write);
        Ok(())
    }

    /// Writes the rows of a table, and then the links among them.
    async fn table<E: EntityTrait>(
        &mut self,
        table: &str,
        rows: Select<E>,
    ) -> Result<(), StartError> {
        let links = links(table);
        self.pages(rows.clone(), table, |mut row| {
            for link in links {
                row.insert((*link).to_owned(), Json::Null);
            }
            Some(Line::Row {
                table: table.to_owned(),
                row,
            })
        })
        .await?;
        // The references of a circle's users do not matter.
        if links.is_empty() || (table == "users" && self.scope.circle.is_some()) {
            return Ok(());
        }
        let linked = links.iter().filter_map(|link| column::<E>(link));
        let linked = linked.fold(Condition::any(), |any, link| any.add(link.is_not_null()));
        self.pages(rows.filter(linked), table, |mut row| {
            let id = row.get("id")?.as_str()?.parse().ok()?;
            let link = links.iter().filter_map(|link| row.remove_entry(*link));
            let link = link.filter(|(_, value)| !value.is_null()).collect();
            Some(Line::Link {
                table: table.to_owned(),
                id,
                link,
            })
        })
        .await
    }

    /// Writes a line for each row, in pages in the order of the primary key.
    async fn pages<E: EntityTrait>(
        &mut self,
        rows: Select<E>,
        table: &str,
        line: impl Fn(serde_json::Map<String, Json>) -> Option<Line>,
    ) -> Result<(), StartError> {
        let keys: Vec<E::Column> = E::PrimaryKey::iter()
            .map(PrimaryKeyToColumn::into_column)
            .collect();
        let mut rows = rows;
        for key in &keys {
            rows = rows.order_by_asc(*key);
        }
        let mut after: Option<E::Model> = None;
        loop {
            let mut page = rows.clone().limit(PAGE);
            if let Some(last) = &after {
                page = page.filter(follows::<E>(&keys, last));
            }
            let page = page.all(self.transaction).await?;
            for model in &page {
                let mut row = encode(model).map_err(StartError::new)?;
                self.redact(table, &mut row);
                let line = line(row).ok_or_else(|| broken("a row has no id"))?;
                self.line(&line)?;
                *self.counts.entry(table.to_owned()).or_default() += 1;
            }
            let is_last = (page.len() as u64) < PAGE;
            match page.into_iter().last() {
                Some(last) if !is_last => after = Some(last),
                _ => return Ok(()),
            }
        }
    }

    /// Removes what may not leave the installation in this scope.
    fn redact(&self, table: &str, row: &mut serde_json::Map<String, Json>) {
        if table != "users" {
            return;
        }
        if !self.scope.credentials {
            row.insert("password_hash".to_owned(), json!(""));
        }
        if self.scope.circle.is_some() {
            // The destination needs these to recognise its own user.
            row.retain(|name, _| ["id", "email_key", "kind"].contains(&name.as_str()));
        }
    }
}

/// Condition: the row is after another one in the order of the primary key.
fn follows<E: EntityTrait>(keys: &[E::Column], last: &E::Model) -> Condition {
    let mut any = Condition::any();
    for (place, key) in keys.iter().enumerate() {
        let mut all = Condition::all();
        for equal in &keys[..place] {
            all = all.add(Expr::col(equal.as_column_ref()).eq(last.get(*equal)));
        }
        any = any.add(all.add(Expr::col(key.as_column_ref()).gt(last.get(*key))));
    }
    any
}

/// The exported rows of a table.
trait Exported: EntityTrait {
    /// `None` if the scope does not contain the table.
    fn of(scope: Scope) -> Option<Select<Self>>;
}

/// Tables that only a whole export contains.
macro_rules! whole {
    ($($module:ident),*) => {
        $(impl Exported for $module::Entity {
            fn of(scope: Scope) -> Option<Select<Self>> {
                scope.circle.is_none().then(Self::find)
            }
        })*
    };
}
whole!(revoked_token, transfer, event, audit);

/// Tables that only an export with credentials contains.
macro_rules! secret {
    ($($module:ident),*) => {
        $(impl Exported for $module::Entity {
            fn of(scope: Scope) -> Option<Select<Self>> {
                scope.credentials.then(Self::find)
            }
        })*
    };
}
secret!(api_key, api_key_circle);

/// Tables of which the export of a circle contains the rows that match a condition on the id of the circle.
macro_rules! of_circle {
    ($module:ident, $circle:ident => $condition:expr) => {
        impl Exported for $module::Entity {
            fn of(scope: Scope) -> Option<Select<Self>> {
                let rows = Self::find();
                Some(match scope.circle {
                    Some($circle) => rows.filter($condition),
                    None => rows,
                })
            }
        }
    };
}

/// The values of a column in the rows that match a condition.
fn among<E: EntityTrait>(column: E::Column, condition: Condition) -> SelectStatement {
    let rows = E::find().select_only().column(column).filter(condition);
    rows.into_query()
}

fn all(condition: Expr) -> Condition {
    Condition::all().add(condition)
}

/// The rows whose id is in one of these lists.
fn listed(id: impl ColumnTrait, lists: Vec<SelectStatement>) -> Condition {
    let any = Condition::any();
    lists
        .into_iter()
        .fold(any, |any, list| any.add(id.in_subquery(list)))
}

fn tasks(circle: Uuid) -> Condition {
    all(task::Column::CircleId.eq(circle))
}

fn conversations(circle: Uuid) -> Condition {
    all(conversation::Column::CircleId.eq(circle))
}

/// The rows of the conversations of a circle.
fn said(conversation: impl ColumnTrait, circle: Uuid) -> Condition {
    let talks = among::<conversation::Entity>(conversation::Column::Id, conversations(circle));
    all(conversation.in_subquery(talks))
}

fn agents(circle: Uuid) -> Condition {
    use conversation::Column::{FacilitatorId, NextSpeakerId};
    use task::Column::{AssigneeId, ReviewerId};
    let in_talks = |column| among::<conversation::Entity>(column, conversations(circle));
    let of_tasks = |column| among::<task::Entity>(column, tasks(circle));
    let parts = said(participant::Column::ConversationId, circle);
    let messages = said(message::Column::ConversationId, circle);
    let members = all(member::Column::CircleId.eq(circle));
    listed(
        agent::Column::Id,
        vec![
            among::<member::Entity>(member::Column::AgentId, members),
            of_tasks(AssigneeId),
            of_tasks(ReviewerId),
            in_talks(FacilitatorId),
            in_talks(NextSpeakerId),
            among::<participant::Entity>(participant::Column::AgentId, parts),
            among::<message::Entity>(message::Column::AgentId, messages),
        ],
    )
}

fn personas(circle: Uuid) -> Condition {
    let of_agents = among::<agent::Entity>(agent::Column::PersonaId, agents(circle));
    listed(persona::Column::Id, vec![of_agents])
}

fn models(circle: Uuid) -> Condition {
    let of_personas = persona::Column::DefaultModelId;
    let messages = said(message::Column::ConversationId, circle);
    listed(
        model::Column::Id,
        vec![
            among::<agent::Entity>(agent::Column::ModelId, agents(circle)),
            among::<persona::Entity>(of_personas, personas(circle)),
            among::<message::Entity>(message::Column::ModelId, messages),
        ],
    )
}

fn projects(circle: Uuid) -> Condition {
    let this = all(circle::Column::Id.eq(circle));
    let of_circle = among::<circle::Entity>(circle::Column::ProjectId, this);
    listed(project::Column::Id, vec![of_circle])
}

fn users(circle: Uuid) -> Condition {
    use collaborator::Column::{AddedBy, CircleId, UserId};
    let this = all(circle::Column::Id.eq(circle));
    let shares = |column| among::<collaborator::Entity>(column, all(CircleId.eq(circle)));
    let messages = said(message::Column::ConversationId, circle);
    listed(
        user::Column::Id,
        vec![
            among::<circle::Entity>(circle::Column::OwnerId, this),
            among::<project::Entity>(project::Column::OwnerId, projects(circle)),
            among::<agent::Entity>(agent::Column::OwnerId, agents(circle)),
            shares(UserId),
            shares(AddedBy),
            among::<task::Entity>(task::Column::CreatedBy, tasks(circle)),
            among::<conversation::Entity>(conversation::Column::OwnerId, conversations(circle)),
            among::<message::Entity>(message::Column::UserId, messages),
        ],
    )
}

of_circle!(user, circle => users(circle));
of_circle!(provider, circle => {
    let of_models = among::<model::Entity>(model::Column::ProviderId, models(circle));
    listed(provider::Column::Id, vec![of_models])
});
of_circle!(model, circle => models(circle));
of_circle!(persona, circle => personas(circle));
of_circle!(agent, circle => agents(circle));
of_circle!(project, circle => projects(circle));
of_circle!(circle, id => all(circle::Column::Id.eq(id)));
of_circle!(collaborator, circle => all(collaborator::Column::CircleId.eq(circle)));
of_circle!(member, circle => all(member::Column::CircleId.eq(circle)));
of_circle!(task, circle => tasks(circle));
of_circle!(conversation, circle => conversations(circle));
of_circle!(participant, circle => said(participant::Column::ConversationId, circle));
of_circle!(message, circle => said(message::Column::ConversationId, circle));
