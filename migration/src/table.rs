//! A description of a table, and the SQL that creates it on SQLite and PostgreSQL.
//!
//! SQLite's tables are `STRICT`, and checks replace the types that SQLite lacks, so that both databases refuse the same
//! rows. Columns are NOT NULL unless declared nullable.

use std::{fmt::Write, ops::RangeInclusive};

use sea_orm_migration::{
    SchemaManager,
    sea_orm::{ConnectionTrait, DbBackend, DbErr},
};

/// The action on a row when the row it references is deleted.
#[derive(Clone, Copy)]
pub(crate) enum OnDelete {
    Cascade,
    SetNull,
    Restrict,
}

#[derive(Clone, Copy)]
enum Kind {
    Uuid,
    Text,
    Key,
    Int,
    Big,
    Real,
    Bool,
    Time,
    List,
    Object,
    Json,
}

/// A column with its constraints.
pub(crate) struct Column {
    name: &'static str,
    kind: Kind,
    nullable: bool,
    default: Option<&'static str>,
    check: Option<String>,
    reference: Option<(&'static str, OnDelete)>,
}

impl Column {
    fn new(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            nullable: false,
            default: None,
            check: None,
            reference: None,
        }
    }

    /// Allows NULL.
    pub(crate) fn nullable(self) -> Self {
        Self {
            nullable: true,
            ..self
        }
    }

    /// Sets the default, an SQL literal.
    pub(crate) fn default(self, literal: &'static str) -> Self {
        Self {
            default: Some(literal),
            ..self
        }
    }

    /// Adds a check: the SQL that follows the column's name, such as `> 0`.
    pub(crate) fn check(self, condition: &str) -> Self {
        Self {
            check: Some(format!("{} {condition}", self.name)),
            ..self
        }
    }

    /// References the `id` of another table.
    pub(crate) fn to(self, table: &'static str, on_delete: OnDelete) -> Self {
        Self {
            reference: Some((table, on_delete)),
            ..self
        }
    }

    fn sql(&self, backend: DbBackend) -> String {
        let name = self.name;
        let (kind, guard) = match backend {
            DbBackend::Postgres => self.kind.postgres(name),
            _ => self.kind.sqlite(name),
        };
        let mut sql = format!("{name} {kind}");
        if !self.nullable {
            sql.push_str(" NOT NULL");
        }
        if let Some(literal) = self.default {
            let _ = write!(sql, " DEFAULT {literal}");
        }
        for condition in [&self.check, &guard].into_iter().flatten() {
            let _ = write!(sql, " CHECK ({condition})");
        }
        if let Some((table, on_delete)) = self.reference {
            let action = match on_delete {
                OnDelete::Cascade => "CASCADE",
                OnDelete::SetNull => "SET NULL",
                OnDelete::Restrict => "RESTRICT",
            };
            let _ = write!(sql, " REFERENCES {table} (id) ON DELETE {action}");
        }
        sql
    }
}

impl Kind {
    /// The type in PostgreSQL, and a check if the type is wider than the kind.
    fn postgres(self, name: &str) -> (&'static str, Option<String>) {
        match self {
            Self::Uuid => ("uuid", None),
            Self::Text => ("text", None),
            Self::Key => ("text COLLATE \"C\"", None),
            Self::Int => ("integer", None),
            Self::Big => ("bigint", None),
            Self::Real => ("double precision", None),
            Self::Bool => ("boolean", None),
            Self::Time => ("timestamptz(6)", None),
            Self::List => ("jsonb", Some(format!("jsonb_typeof({name}) = 'array'"))),
            Self::Object => ("jsonb", Some(format!("jsonb_typeof({name}) = 'object'"))),
            Self::Json => ("jsonb", None),
        }
    }

    /// The type in SQLite, and a check that emulates PostgreSQL's type.
    fn sqlite(self, name: &str) -> (&'static str, Option<String>) {
        match self {
            Self::Uuid => ("BLOB", Some(format!("length({name}) = 16"))),
            Self::Text | Self::Key => ("TEXT", None),
            Self::Int => (
                "INTEGER",
                Some(format!("{name} BETWEEN -2147483648 AND 2147483647")),
            ),
            Self::Big => ("INTEGER", None),
            Self::Real => ("REAL", None),
            Self::Bool => ("INTEGER", Some(format!("{name} IN (FALSE, TRUE)"))),
            // Text in this form, with the fraction cut to microseconds and omitted when zero, sorts by time: '+' sorts
            // before '.', and '.' before the digits.
            Self::Time => (
                "TEXT",
                Some(format!(
                    "{name} LIKE '____-__-__T__:__:__%+00:00' AND length({name}) <= 32"
                )),
            ),
            Self::List => ("TEXT", Some(json(name, "array"))),
            Self::Object => ("TEXT", Some(json(name, "object"))),
            Self::Json => ("TEXT", Some(format!("json_valid({name})"))),
        }
    }
}

/// SQLite's check for JSON of one type; `json_type` alone would fail on text that is not JSON.
fn json(name: &str, kind: &str) -> String {
    format!(
        "CASE WHEN json_valid({name}) THEN json_type({name}) = '{kind}' ELSE {name} IS NULL END"
    )
}

/// A UUID.
pub(crate) fn uuid(name: &'static str) -> Column {
    Column::new(name, Kind::Uuid)
}

/// Text with a length in characters.
pub(crate) fn text(name: &'static str, length: RangeInclusive<u32>) -> Column {
    let check = match (length.start(), length.end()) {
        (0, most) => format!("length({name}) <= {most}"),
        (least, most) => format!("length({name}) BETWEEN {least} AND {most}"),
    };
    Column {
        check: Some(check),
        ..Column::new(name, Kind::Text)
    }
}

/// Folded text with a maximum length in characters, compared byte by byte.
pub(crate) fn key(name: &'static str, most: u32) -> Column {
    Column {
        kind: Kind::Key,
        ..text(name, 0..=most)
    }
}

/// A text that is one of these words.
pub(crate) fn one_of(name: &'static str, words: &[&str]) -> Column {
    Column::new(name, Kind::Text).check(&format!("IN ('{}')", words.join("', '")))
}

/// A 32-bit integer.
pub(crate) fn int(name: &'static str) -> Column {
    Column::new(name, Kind::Int)
}

/// A 64-bit integer.
pub(crate) fn big(name: &'static str) -> Column {
    Column::new(name, Kind::Big)
}

/// An amount of money: millionths of a US dollar, not negative.
pub(crate) fn micros(name: &'static str) -> Column {
    big(name).default("0").check(">= 0")
}

/// A double-precision number.
pub(crate) fn real(name: &'static str) -> Column {
    Column::new(name, Kind::Real)
}

/// A boolean.
pub(crate) fn bool(name: &'static str) -> Column {
    Column::new(name, Kind::Bool)
}

/// A point in time in UTC, with microseconds.
pub(crate) fn time(name: &'static str) -> Column {
    Column::new(name, Kind::Time)
}

/// A JSON array, empty by default.
pub(crate) fn list(name: &'static str) -> Column {
    Column::new(name, Kind::List).default("'[]'")
}

/// A JSON object.
pub(crate) fn object(name: &'static str) -> Column {
    Column::new(name, Kind::Object)
}

/// Any JSON value.
pub(crate) fn json_value(name: &'static str) -> Column {
    Column::new(name, Kind::Json)
}

/// A table with its indexes.
pub(crate) struct Table {
    name: &'static str,
    columns: Vec<Column>,
    constraints: Vec<String>,
    indexes: Vec<String>,
}

impl Table {
    /// A table with the primary key `id` and the creation time `created_at`.
    pub(crate) fn new(name: &'static str) -> Self {
        Self::keyed(name, "id").columns([uuid("id"), time("created_at")])
    }

    /// A table with another primary key.
    pub(crate) fn keyed(name: &'static str, primary_key: &str) -> Self {
        Self {
            name,
            columns: vec![],
            constraints: vec![format!("PRIMARY KEY ({primary_key})")],
            indexes: vec![],
        }
    }

    /// Adds `updated_at`, when the application last changed the row.
    pub(crate) fn updated(self) -> Self {
        self.columns([time("updated_at")])
    }

    /// Adds `version`, for optimistic locking.
    pub(crate) fn versioned(self) -> Self {
        self.columns([int("version").default("1")])
    }

    /// Adds columns.
    pub(crate) fn columns(mut self, columns: impl IntoIterator<Item = Column>) -> Self {
        self.columns.extend(columns);
        self
    }

    /// Adds a check on the whole row.
    pub(crate) fn check(mut self, condition: &str) -> Self {
        self.constraints.push(format!("CHECK ({condition})"));
        self
    }

    /// Adds an index on columns, separated by `, `.
    pub(crate) fn index(self, columns: &str) -> Self {
        self.indexed("INDEX", columns, "idx", "")
    }

    /// Adds an index on the rows that meet a condition.
    pub(crate) fn index_where(self, columns: &str, condition: &str) -> Self {
        self.indexed("INDEX", columns, "part", &format!(" WHERE {condition}"))
    }

    /// Adds a unique index on columns, separated by `, `.
    pub(crate) fn unique(self, columns: &str) -> Self {
        self.indexed("UNIQUE INDEX", columns, "key", "")
    }

    /// Adds a unique index on the rows that meet a condition.
    pub(crate) fn unique_where(self, columns: &str, condition: &str) -> Self {
        let condition = format!(" WHERE {condition}");
        self.indexed("UNIQUE INDEX", columns, "key", &condition)
    }

    fn indexed(mut self, what: &str, columns: &str, suffix: &str, condition: &str) -> Self {
        let table = self.name;
        let name = format!("{table}_{}_{suffix}", columns.replace(", ", "_"));
        self.indexes.push(format!(
            "CREATE {what} {name} ON {table} ({columns}){condition}"
        ));
        self
    }

    /// Adds a column to the existing table.
    pub(crate) async fn add(
        &self,
        manager: &SchemaManager<'_>,
        column: &Column,
    ) -> Result<(), DbErr> {
        let definition = column.sql(manager.get_database_backend());
        self.alter(manager, &format!("ADD COLUMN {definition}"))
            .await
    }

    /// Drops a column of the existing table.
    pub(crate) async fn remove(
        &self,
        manager: &SchemaManager<'_>,
        column: &str,
    ) -> Result<(), DbErr> {
        self.alter(manager, &format!("DROP COLUMN {column}")).await
    }

    async fn alter(&self, manager: &SchemaManager<'_>, what: &str) -> Result<(), DbErr> {
        let statement = format!("ALTER TABLE {} {what}", self.name);
        let connection = manager.get_connection();
        connection.execute_unprepared(&statement).await?;
        Ok(())
    }

    /// Drops the table with its indexes.
    pub(crate) async fn drop(&self, manager: &SchemaManager<'_>) -> Result<(), DbErr> {
        let statement = format!("DROP TABLE {}", self.name);
        let connection = manager.get_connection();
        connection.execute_unprepared(&statement).await?;
        Ok(())
    }

    /// Creates the table and its indexes.
    pub(crate) async fn create(&self, manager: &SchemaManager<'_>) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        let columns = self.columns.iter().map(|column| column.sql(backend));
        let lines: Vec<String> = columns.chain(self.constraints.iter().cloned()).collect();
        let strict = match backend {
            DbBackend::Sqlite => " STRICT",
            _ => "",
        };
        let table = format!("CREATE TABLE {} ({}){strict}", self.name, lines.join(", "));
        let connection = manager.get_connection();
        connection.execute_unprepared(&table).await?;
        for index in &self.indexes {
            connection.execute_unprepared(index).await?;
        }
        Ok(())
    }
}
