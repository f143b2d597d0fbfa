//! The lines of an export: a header, one object for each row, and an end with the number of rows.
//!
//! A row that refers to rows of its own table is written without these references, and a link after the table adds them,
//! so that the order of the lines satisfies the foreign keys.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use sea_orm::sea_query::ColumnType;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, IdenStatic, Iterable, ModelTrait, Value,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};
use uuid::Uuid;

/// The format of the lines.
pub(super) const FORMAT: u32 = 1;

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// The format of the lines: [`FORMAT`].
    pub(super) gathering_export: u32,
    /// The latest migration of the database, which determines the columns.
    pub(super) migration: String,
    /// The exported circle; everything without it.
    pub(super) circle: Option<Uuid>,
    /// Whether there are password hashes and API keys.
    pub(super) credentials: bool,
    /// The kind of the database.
    pub(super) source: String,
    /// When the export began.
    pub(super) created_at: DateTime<Utc>,
}

/// The other lines.
#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(super) enum Line {
    /// A row.
    Row {
        table: String,
        row: Map<String, Json>,
    },
    /// References of a row to rows of the same table.
    Link {
        table: String,
        id: Uuid,
        link: Map<String, Json>,
    },
    /// The last line: the number of rows and links of each table.
    End { end: BTreeMap<String, u64> },
}

/// The columns that refer to a row of the same table.
pub(super) fn links(table: &str) -> &'static [&'static str] {
    match table {
        "users" => &["owner_id"],
        "tasks" | "messages" => &["parent_id"],
        _ => &[],
    }
}

/// The column with this name.
pub(super) fn column<E: EntityTrait>(name: &str) -> Option<E::Column> {
    E::Column::iter().find(|column| column.as_str() == name)
}

/// A row as an object.
///
/// # Errors
/// A column has a type without a representation.
pub(super) fn encode<M: ModelTrait>(row: &M) -> Result<Map<String, Json>, String> {
    let columns = <M::Entity as EntityTrait>::Column::iter();
    let values = columns.map(|column| {
        let value = match row.get(column) {
            Value::Bool(value) => json!(value),
            Value::Int(value) => json!(value),
            Value::BigInt(value) => json!(value),
            Value::Double(value) => json!(value),
            Value::String(value) => json!(value),
            Value::Uuid(value) => json!(value),
            Value::Json(value) => value.map_or(Json::Null, |value| *value),
            Value::ChronoDateTimeUtc(value) => {
                json!(value.map(|at| at.to_rfc3339_opts(SecondsFormat::Micros, true)))
            }
            _ => return Err(format!("the column {} cannot be exported", column.as_str())),
        };
        Ok((column.as_str().to_owned(), value))
    });
    values.collect()
}

/// A row that can be inserted, from an object with every column.
///
/// # Errors
/// A column is unknown or missing, or its value has another type.
pub(super) fn decode<E: EntityTrait>(mut row: Map<String, Json>) -> Result<E::ActiveModel, String> {
    let mut model = <E::ActiveModel as ActiveModelTrait>::default();
    for column in E::Column::iter() {
        let name = column.as_str();
        let json = row.remove(name);
        let json = json.ok_or_else(|| format!("the column {name} is missing"))?;
        let value = value(column.def().get_column_type(), json)
            .ok_or_else(|| format!("the value of {name} is invalid"))?;
        let set = model.try_set(column, value);
        set.map_err(|_| format!("the value of {name} is invalid"))?;
    }
    match row.keys().next() {
        Some(name) => Err(format!("the column {name} is unknown")),
        None => Ok(model),
    }
}

/// A value of a type; `None` if it has another one.
fn value(kind: &ColumnType, json: Json) -> Option<Value> {
    let is_null = json.is_null();
    Some(match kind {
        ColumnType::Json | ColumnType::JsonBinary => {
            Value::Json((!is_null).then(|| Box::new(json)))
        }
        ColumnType::Uuid if is_null => Value::Uuid(None),
        ColumnType::Uuid => Value::Uuid(Some(json.as_str()?.parse().ok()?)),
        ColumnType::Text | ColumnType::String(_) if is_null => Value::String(None),
        ColumnType::Text | ColumnType::String(_) => Value::String(Some(json.as_str()?.to_owned())),
        ColumnType::Integer if is_null => Value::Int(None),
        ColumnType::Integer => Value::Int(Some(i32::try_from(json.as_i64()?).ok()?)),
        ColumnType::BigInteger if is_null => Value::BigInt(None),
        ColumnType::BigInteger => Value::BigInt(Some(json.as_i64()?)),
        ColumnType::Double if is_null => Value::Double(None),
        ColumnType::Double => Value::Double(Some(json.as_f64()?)),
        ColumnType::Boolean if is_null => Value::Bool(None),
        ColumnType::Boolean => Value::Bool(Some(json.as_bool()?)),
        ColumnType::TimestampWithTimeZone if is_null => Value::ChronoDateTimeUtc(None),
        ColumnType::TimestampWithTimeZone => {
            let at = DateTime::parse_from_rfc3339(json.as_str()?).ok()?;
            Value::ChronoDateTimeUtc(Some(at.with_timezone(&Utc)))
        }
        _ => return None,
    })
}

/// Invokes a macro with the module and the name of each exported table, ordered so that each table refers only to
/// earlier ones and to itself.
macro_rules! for_each_table {
    ($do:ident) => {
        $do!(user, "users");
        $do!(revoked_token, "revoked_tokens");
        $do!(provider, "providers");
        $do!(model, "models");
        $do!(persona, "personas");
        $do!(agent, "agents");
        $do!(project, "projects");
        $do!(circle, "circles");
        $do!(collaborator, "circle_collaborators");
        $do!(member, "circle_members");
        $do!(task, "tasks");
        $do!(conversation, "conversations");
        $do!(participant, "conversation_participants");
        $do!(message, "messages");
        $do!(api_key, "api_keys");
        $do!(api_key_circle, "api_key_circles");
        $do!(transfer, "transfers");
        $do!(event, "events");
        $do!(audit, "audit_log");
    };
}
pub(super) use for_each_table;
