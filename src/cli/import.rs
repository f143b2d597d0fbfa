//! `import`: the rows of an export into a migrated database.
//!
//! A row whose primary key exists is left as it is, so an interrupted import is repeated with the same command.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use gathering::StartError;
use gathering::db::Database;
use gathering_entity::{
    agent, api_key, api_key_circle, audit, circle, collaborator, conversation, event, member,
    message, model, participant, persona, project, provider, revoked_token, task, transfer, user,
};
use gathering_schema::text;
use sea_orm::sea_query::{ColumnType, Expr, ExprTrait, OnConflict};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DatabaseTransaction, EntityTrait, IdenStatic,
    Iterable, PrimaryKeyToColumn, QueryFilter, QuerySelect, SqliteTransactionMode,
    TransactionOptions, TransactionTrait,
};
use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::export::latest_migration;
use super::output::print;
use super::rows::{FORMAT, Header, Line, column, decode, for_each_table, links};

/// Lines in one transaction.
const BATCH: usize = 500;

/// Maximum length of a line: a row has at most a few long texts.
const LONGEST: u64 = 64 * 1024 * 1024;

/// How rows are imported.
pub(super) struct Options {
    /// The e-mail address of the user who replaces the users of a circle that the database does not have.
    pub(super) owner: Option<String>,
    /// From which the new ids of a circle are derived; `None` keeps the ids.
    pub(super) map_ids: Option<String>,
    /// Leaves the events out.
    pub(super) without_events: bool,
}

/// A new key for [`Options::map_ids`].
pub(super) fn random_key() -> String {
    Uuid::new_v4().simple().to_string()
}

/// Imports a file, or standard input if the name is `-`.
pub(super) async fn import(
    database: &Database,
    options: Options,
    path: &Path,
) -> Result<(), StartError> {
    if gathering_migration::pending(database.connection()).await? > 0 {
        return Err(StartError::new(
            "the database is not up to date: run `gathering migrate` first",
        ));
    }
    if path == Path::new("-") {
        return read(database, options, BufReader::new(io::stdin())).await;
    }
    let unreadable =
        |error: io::Error| StartError::new(format!("{} cannot be read: {error}", path.display()));
    let mut file = File::open(path).map_err(unreadable)?;
    if !is_complete(&mut file).map_err(unreadable)? {
        return Err(StartError::new(format!(
            "{} is incomplete: its last line is missing; nothing is imported",
            path.display()
        )));
    }
    read(database, options, BufReader::new(file)).await
}

/// Whether the last line of a file is the end of an export.
fn is_complete(file: &mut File) -> io::Result<bool> {
    /// More than the counts of all tables.
    const END: u64 = 64 * 1024;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(END)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    file.rewind()?;
    let Some(end) = end.strip_suffix(b"\n") else {
        return Ok(false);
    };
    let last = end.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(matches!(serde_json::from_slice(last), Ok(Line::End { .. })))
}

/// The lines of an export, with their numbers.
struct Lines<R> {
    reader: R,
    number: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// The next line; `None` at the end.
    fn read(&mut self) -> Result<Option<&[u8]>, StartError> {
        self.buffer.clear();
        self.number += 1;
        let mut limited = self.reader.by_ref().take(LONGEST);
        let read = limited.read_until(b'\n', &mut self.buffer);
        let read = read.map_err(|error| self.fault(format!("it cannot be read: {error}")))?;
        if read == 0 {
            return Ok(None);
        }
        match self.buffer.strip_suffix(b"\n") {
            Some(line) => Ok(Some(line)),
            None => Err(self.fault("it is incomplete or too long")),
        }
    }

    fn fault(&self, reason: impl std::fmt::Display) -> StartError {
        StartError::new(format!(
            "line {}: {reason}; the lines of earlier transactions are imported",
            self.number
        ))
    }
}

async fn read(
    database: &Database,
    options: Options,
    reader: impl BufRead,
) -> Result<(), StartError> {
    let connection = database.connection();
    let mut lines = Lines {
        reader,
        number: 0,
        buffer: Vec::new(),
    };
    let header = match lines.read()? {
        Some(line) => serde_json::from_slice::<Header>(line),
        None => return Err(StartError::new("the export is empty")),
    };
    let header = header.map_err(|_| StartError::new("the file is not an export of Gathering"))?;
    if header.gathering_export != FORMAT {
        return Err(StartError::new(format!(
            "the export has the format {}, and this program reads {FORMAT}: use the version that wrote it",
            header.gathering_export
        )));
    }
    let migration = latest_migration(connection).await?;
    if header.migration != migration {
        return Err(StartError::new(format!(
            "the export is of a database at {}, and this one is at {migration}: use the same version of Gathering for both",
            header.migration
        )));
    }
    let is_circle = header.circle.is_some();
    if !is_circle && (options.map_ids.is_some() || options.owner.is_some()) {
        return Err(StartError::new(
            "only the ids and users of the export of a circle can be mapped",
        ));
    }
    let owner = match &options.owner {
        Some(email) => Some(user_of(connection, email).await?),
        None => None,
    };
    let mut import = Import {
        is_circle,
        owner,
        options,
        known: HashMap::new(),
        replaced: HashSet::new(),
        counts: BTreeMap::new(),
    };
    let mut committed = BTreeMap::new();
    let end = import_all(database, &mut import, &mut lines, &mut committed).await;
    for (table, (read, added)) in &committed {
        print(&format!("{table}: {read} lines, {added} rows added\n"));
    }
    let read = committed
        .into_iter()
        .map(|(table, (read, _))| (table, read));
    match end? {
        Some(counts) if counts == read.collect() => Ok(()),
        Some(_) => Err(StartError::new(
            "the export is damaged: it does not have the number of rows in its last line",
        )),
        None => Err(StartError::new(
            "the export is incomplete: its last line is missing",
        )),
    }
}

/// Imports the lines after the first one. Returns the counts in the last line; `None` without it.
async fn import_all(
    database: &Database,
    import: &mut Import,
    lines: &mut Lines<impl BufRead>,
    committed: &mut Counts,
) -> Result<Option<BTreeMap<String, u64>>, StartError> {
    loop {
        let transaction = begin(database).await?;
        let mut end = None;
        for _ in 0..BATCH {
            let Some(line) = lines.read()? else { break };
            let line = serde_json::from_slice(line);
            let line = match line.map_err(|_| lines.fault("it is not a row of an export"))? {
                Line::End { end: counts } => {
                    end = Some(counts);
                    break;
                }
                line => line,
            };
            let applied = import.apply(&transaction, line).await;
            applied.map_err(|reason| lines.fault(reason))?;
        }
        transaction.commit().await?;
        committed.clone_from(&import.counts);
        if end.is_some() || lines.buffer.is_empty() {
            return Ok(end);
        }
    }
}

/// Begins a transaction, without the limits of time that requests have.
async fn begin(database: &Database) -> Result<DatabaseTransaction, StartError> {
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    Ok(database.connection().begin_with_options(options).await?)
}

/// The active user with an e-mail address.
async fn user_of(db: &impl ConnectionTrait, email: &str) -> Result<Uuid, StartError> {
    let found = user::Entity::find()
        .filter(user::Column::EmailKey.is_in(text::account_keys(email)))
        .filter(user::Column::IsActive.eq(true))
        .one(db)
        .await?;
    let none = || StartError::new("there is no active account with this e-mail address");
    Ok(found.ok_or_else(none)?.id)
}

struct Import {
    is_circle: bool,
    owner: Option<Uuid>,
    options: Options,
    /// The ids of users and of the catalogue that differ in this database. As many as a circle refers to.
    known: HashMap<Uuid, Uuid>,
    /// The users who are replaced by the owner.
    replaced: HashSet<Uuid>,
    counts: Counts,
}

/// For each table the number of its lines in the file, and of the rows that were added.
type Counts = BTreeMap<String, (u64, u64)>;

impl Import {
    /// Applies a line. The error is why it cannot be applied.
    async fn apply(&mut self, transaction: &DatabaseTransaction, line: Line) -> Result<(), String> {
        let name = match &line {
            Line::Row { table, .. } | Line::Link { table, .. } => table.clone(),
            Line::End { .. } => return Ok(()),
        };
        self.counts.entry(name.clone()).or_default().0 += 1;
        macro_rules! apply {
            ($module:ident, $table:literal) => {
                if name == $table {
                    let added = match line {
                        Line::Row { row, .. } => {
                            self.row::<$module::Entity>(transaction, $table, row)
                                .await?
                        }
                        Line::Link { id, link, .. } => {
                            let table = $table;
                            self.link::<$module::Entity>(transaction, table, id, link)
                                .await?;
                            false
                        }
                        Line::End { .. } => false,
                    };
                    self.counts.entry(name).or_default().1 += u64::from(added);
                    return Ok(());
                }
            };
        }
        for_each_table!(apply);
        Err(format!("the table {name:?} is unknown"))
    }

    /// Inserts a row, unless it exists. Returns whether it was added.
    async fn row<E: EntityTrait>(
        &mut self,
        transaction: &DatabaseTransaction,
        table: &str,
        mut row: Map<String, Json>,
    ) -> Result<bool, String> {
        if table == "events" && self.options.without_events {
            return Ok(false);
        }
        if self.is_circle {
            let is_left_out = table == "circle_collaborators"
                && self.is_owner_or_replaced(transaction, &row).await?;
            if is_left_out || self.is_known(transaction, table, &row).await? {
                return Ok(false);
            }
            self.map_row::<E>(table, &mut row)?;
            self.rename::<E>(transaction, table, &mut row).await?;
        }
        let model = decode::<E>(row)?;
        let keys = E::PrimaryKey::iter().map(PrimaryKeyToColumn::into_column);
        let insert = E::insert(model)
            .on_conflict(OnConflict::columns(keys).do_nothing().to_owned())
            .exec_without_returning(transaction)
            .await;
        match insert {
            Ok(rows) => Ok(rows > 0),
            Err(error) if table == "events" => Err(format!(
                "{error}; the database has events of its own: repeat the import with --without-events"
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Adds references to a row, unless it has them.
    async fn link<E: EntityTrait>(
        &self,
        transaction: &DatabaseTransaction,
        table: &str,
        id: Uuid,
        link: Map<String, Json>,
    ) -> Result<(), String> {
        let key = column::<E>("id").ok_or("the table has no ids")?;
        for (name, value) in link {
            let known = links(table).contains(&name.as_str());
            let column = column::<E>(&name).filter(|_| known);
            let column = column.ok_or_else(|| format!("the column {name} is unknown"))?;
            let to = value.as_str().and_then(|text| text.parse().ok());
            let to = to.ok_or_else(|| format!("the value of {name} is invalid"))?;
            E::update_many()
                .col_expr(column, Expr::value(self.mapped(to)))
                .filter(key.eq(self.mapped(id)))
                .filter(column.is_null())
                .exec(transaction)
                .await
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// The id of a row in this database.
    fn mapped(&self, id: Uuid) -> Uuid {
        if let Some(known) = self.known.get(&id) {
            return *known;
        }
        match &self.options.map_ids {
            Some(key) => derived(key, id),
            None => id,
        }
    }

    /// Maps the ids in a row.
    fn map_row<E: EntityTrait>(
        &self,
        table: &str,
        row: &mut Map<String, Json>,
    ) -> Result<(), String> {
        // A row of the catalogue keeps its id.
        let is_shared = ["providers", "models", "personas"].contains(&table);
        for column in E::Column::iter() {
            let name = column.as_str();
            if is_shared && name == "id" {
                continue;
            }
            let is_id = matches!(column.def().get_column_type(), ColumnType::Uuid);
            let Some(value) = row.get_mut(name).filter(|_| is_id || name == "mentions") else {
                continue;
            };
            let ids = match value {
                Json::Array(ids) => ids.iter_mut().collect(),
                Json::Null => Vec::new(),
                id => vec![id],
            };
            for id in ids {
                let old = id.as_str().and_then(|text| text.parse().ok());
                let old = old.ok_or_else(|| format!("the value of {name} is invalid"))?;
                *id = json!(self.mapped(old));
            }
        }
        Ok(())
    }

    /// Finds a user or a row of the catalogue that this database has, and remembers its id. False for a row that must be
    /// inserted.
    async fn is_known(
        &mut self,
        transaction: &DatabaseTransaction,
        table: &str,
        row: &Map<String, Json>,
    ) -> Result<bool, String> {
        let text = |name: &str| row.get(name).and_then(Json::as_str).unwrap_or_default();
        let id = text("id").parse::<Uuid>();
        let condition = match table {
            "users" => user::Column::EmailKey.eq(text("email_key")),
            "providers" => provider::Column::Name.eq(text("name")),
            "personas" => persona::Column::NameKey.eq(text("name_key")),
            "models" => {
                let provider = text("provider_id")
                    .parse()
                    .map_err(|_| "invalid provider")?;
                let provider = self.known.get(&provider).copied().unwrap_or(provider);
                let name = model::Column::Name.eq(text("name"));
                name.and(model::Column::ProviderId.eq(provider))
            }
            _ => return Ok(false),
        };
        let id = id.map_err(|_| "the value of id is invalid")?;
        let found = match table {
            "users" => find::<user::Entity>(transaction, id, condition).await,
            "providers" => find::<provider::Entity>(transaction, id, condition).await,
            "personas" => find::<persona::Entity>(transaction, id, condition).await,
            _ => find::<model::Entity>(transaction, id, condition).await,
        };
        let found = found.map_err(|error| error.to_string())?;
        let owner = self.owner.filter(|_| table == "users");
        let found = match (found, owner) {
            (Some(found), _) => found,
            (None, Some(owner)) => {
                self.replaced.insert(id);
                owner
            }
            (None, None) if table == "users" => {
                return Err(
                    "the database does not have this user: name a replacement with --owner"
                        .to_owned(),
                );
            }
            (None, None) => {
                self.known.insert(id, id);
                return Ok(false);
            }
        };
        self.known.insert(id, found);
        Ok(true)
    }

    /// Whether the user of a share is replaced, or owns the circle in this database: an owner is no collaborator.
    async fn is_owner_or_replaced(
        &self,
        transaction: &DatabaseTransaction,
        row: &Map<String, Json>,
    ) -> Result<bool, String> {
        let id = |name: &str| {
            let text = row.get(name).and_then(Json::as_str).unwrap_or_default();
            let id = text.parse::<Uuid>();
            id.map_err(|_| format!("the value of {name} is invalid"))
        };
        let (user, circle) = (id("user_id")?, id("circle_id")?);
        let owned = circle::Column::OwnerId.eq(self.mapped(user));
        let owned = circle::Entity::find_by_id(self.mapped(circle)).filter(owned);
        let owned = owned.one(transaction).await;
        let owned = owned.map_err(|error| error.to_string())?;
        Ok(owned.is_some() || self.replaced.contains(&user))
    }

    /// Adds a number to the name of an agent, project or circle, if its owner has another one with this name.
    async fn rename<E: EntityTrait>(
        &self,
        transaction: &DatabaseTransaction,
        table: &str,
        row: &mut Map<String, Json>,
    ) -> Result<(), String> {
        let (most, scope) = match table {
            "agents" => (100, None),
            "projects" => (200, Some("ARCHIVED")),
            "circles" => (100, Some("ARCHIVED")),
            _ => return Ok(()),
        };
        let text = |name: &str| {
            row.get(name)
                .and_then(Json::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (name, key) = (text("name"), text("name_key"));
        let parse = |name: &str| {
            text(name)
                .parse::<Uuid>()
                .map_err(|_| format!("the value of {name} is invalid"))
        };
        let (id, owner) = (parse("id")?, parse("owner_id")?);
        if scope.is_some_and(|archived| text("status") == archived) {
            return Ok(());
        }
        let column = |name| column::<E>(name).ok_or("the table has no names");
        let mut number = 1;
        loop {
            let numbered = |text: &str| {
                if number == 1 {
                    return text.to_owned();
                }
                let end = format!(" ({number})");
                let start = text.chars().take(most - end.len());
                start.chain(end.chars()).collect()
            };
            let mut taken = Condition::all()
                .add(column("owner_id")?.eq(owner))
                .add(column("name_key")?.eq(numbered(&key)))
                .add(column("id")?.ne(id));
            if let Some(archived) = scope {
                taken = taken.add(column("status")?.ne(archived));
            }
            let count = E::find().filter(taken).limit(1);
            let rows = count
                .all(transaction)
                .await
                .map_err(|error| error.to_string())?;
            if rows.is_empty() {
                row.insert("name".to_owned(), json!(numbered(&name)));
                row.insert("name_key".to_owned(), json!(numbered(&key)));
                return Ok(());
            }
            number += 1;
        }
    }
}

/// The id of the row with an id, or else of the one that matches a condition.
async fn find<E>(
    db: &DatabaseTransaction,
    id: Uuid,
    condition: Expr,
) -> Result<Option<Uuid>, sea_orm::DbErr>
where
    E: EntityTrait,
{
    let Some(key) = column::<E>("id") else {
        return Ok(None);
    };
    let ids = |condition: Expr| {
        E::find()
            .select_only()
            .column(key)
            .filter(condition)
            .into_tuple()
    };
    let same: Option<Uuid> = ids(key.eq(id)).one(db).await?;
    if same.is_some() {
        return Ok(same);
    }
    ids(condition).one(db).await
}

/// A new id that depends on the key and the former id alone, and sorts by creation time like it.
fn derived(key: &str, id: Uuid) -> Uuid {
    let digest = Sha256::new()
        .chain_update(key)
        .chain_update(id.as_bytes())
        .finalize();
    let mut bytes = id.into_bytes();
    bytes[6..].copy_from_slice(&digest[..10]);
    // The version and the variant.
    bytes[6] = 0x70 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    Uuid::from_bytes(bytes)
}
