//! The order of a connection, and the cursors that mark places in it.

use crate::{error::Error, scalar::is_storable};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::DateTime;
use sea_orm::{
    ColumnTrait, EntityTrait, ModelTrait, Value,
    sea_query::{self, ColumnType, Expr, ExprTrait},
};
use uuid::Uuid;

/// Maximum length of a cursor, in characters.
const MAX_CURSOR: usize = 1_024;

/// The order of a list: columns that together are unique and never null, all in one direction.
#[derive(Clone, Debug)]
pub(crate) struct Order<C> {
    pub(super) columns: Vec<C>,
    descending: bool,
    /// Part of the list tag in its cursors.
    salt: Option<Uuid>,
}

impl<C: ColumnTrait> Order<C> {
    pub(crate) fn ascending(columns: impl Into<Vec<C>>) -> Self {
        Self {
            columns: columns.into(),
            descending: false,
            salt: None,
        }
    }

    pub(crate) fn descending(columns: impl Into<Vec<C>>) -> Self {
        Self {
            columns: columns.into(),
            descending: true,
            salt: None,
        }
    }

    /// Adds a salt: cursors of an order with another salt are rejected.
    pub(crate) fn salted(self, salt: Uuid) -> Self {
        Self {
            salt: Some(salt),
            ..self
        }
    }

    /// Identifies the list in its cursors: FNV-1a over the names of the order columns and the salt.
    pub(super) fn tag(&self) -> [u8; 4] {
        let mut hash = 0x811c_9dc5_u32;
        for column in &self.columns {
            let name = format!("{}.{};", column.entity_name(), column.as_str());
            for byte in name.bytes() {
                hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
            }
        }
        for byte in self.salt.iter().flat_map(Uuid::as_bytes) {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
        hash.to_be_bytes()
    }

    pub(crate) fn cursor<M>(&self, row: &M) -> String
    where
        M: ModelTrait<Entity: EntityTrait<Column = C>>,
    {
        let mut bytes = self.tag().to_vec();
        for column in &self.columns {
            match row.get(*column) {
                Value::Int(Some(number)) => bytes.extend(i64::from(number).to_be_bytes()),
                Value::BigInt(Some(number)) => bytes.extend(number.to_be_bytes()),
                Value::ChronoDateTimeUtc(Some(instant)) => {
                    bytes.extend(instant.timestamp_micros().to_be_bytes());
                }
                Value::Uuid(Some(uuid)) => bytes.extend(uuid.as_bytes()),
                Value::String(Some(text)) => {
                    bytes.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
                // Unreachable: order columns are never null. A cursor without the value would be invalid.
                _ => {}
            }
        }
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Decodes the values in a cursor of this order.
    pub(crate) fn values(&self, cursor: &str, field: &str) -> Result<Vec<Value>, Error> {
        self.decode(cursor).ok_or_else(|| {
            Error::bad_input(format!("`{field}` must be a cursor of this list.")).field(field)
        })
    }

    fn decode(&self, cursor: &str) -> Option<Vec<Value>> {
        if cursor.len() > MAX_CURSOR {
            return None;
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let mut rest = bytes.strip_prefix(&self.tag())?;
        let mut take = |length: usize| {
            let (part, after) = rest.split_at_checked(length)?;
            rest = after;
            Some(part)
        };
        let mut values = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            values.push(match column.def().get_column_type() {
                ColumnType::Integer | ColumnType::BigInteger => {
                    Value::from(i64::from_be_bytes(take(8)?.try_into().ok()?))
                }
                ColumnType::TimestampWithTimeZone => {
                    let micros = i64::from_be_bytes(take(8)?.try_into().ok()?);
                    let instant = DateTime::from_timestamp_micros(micros)?;
                    Value::from(Some(instant).filter(|instant| is_storable(*instant))?)
                }
                ColumnType::Uuid => Value::from(Uuid::from_slice(take(16)?).ok()?),
                _ => {
                    let length = u16::from_be_bytes(take(2)?.try_into().ok()?);
                    let text = std::str::from_utf8(take(usize::from(length))?).ok()?;
                    // PostgreSQL text cannot contain NUL, so no row can match.
                    if text.contains('\0') {
                        return None;
                    }
                    Value::from(text)
                }
            });
        }
        rest.is_empty().then_some(values)
    }

    pub(super) fn direction(&self, backward: bool) -> sea_query::Order {
        if self.descending == backward {
            sea_query::Order::Asc
        } else {
            sea_query::Order::Desc
        }
    }

    /// The condition for rows after a cursor, or before it.
    pub(super) fn beyond(&self, values: Vec<Value>, behind: bool) -> Expr {
        let columns = self
            .columns
            .iter()
            .map(|column| Expr::col(column.as_column_ref()));
        let (left, right) = if let [column] = self.columns[..] {
            let value = values
                .into_iter()
                .next()
                .map_or_else(|| Expr::val(Value::Bool(None)), Expr::val);
            (Expr::col(column.as_column_ref()), value)
        } else {
            (
                Expr::tuple(columns),
                Expr::tuple(values.into_iter().map(Expr::val)),
            )
        };
        if self.descending == behind {
            left.lt(right)
        } else {
            left.gt(right)
        }
    }
}
