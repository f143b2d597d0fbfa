//! The columns of rows in a response, and the objects that they refer to.

use async_graphql::OutputType;
use sea_orm::{ColumnTrait, sea_query::ColumnType};

use crate::id::Kind;

/// The values of a column in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Id(Kind),
    /// A key that is not shown itself.
    Key,
    Text,
    Bool,
    Int,
    Float,
    Time,
    /// An exact decimal number in millionths.
    Decimal,
    /// A list of texts.
    List,
}

/// A column, and how its values are written.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) cell: Cell,
    /// Whether the values are so long that they are not repeated in a result, and count against `graphql.text_bytes`.
    pub(crate) is_long: bool,
}

impl Column {
    /// # Panics
    /// The column is of a type that no response contains.
    pub(crate) fn of(column: impl ColumnTrait) -> Self {
        let cell = match column.def().get_column_type() {
            ColumnType::Uuid => Cell::Key,
            ColumnType::Text | ColumnType::String(_) | ColumnType::Enum { .. } => Cell::Text,
            ColumnType::Boolean => Cell::Bool,
            ColumnType::Integer | ColumnType::BigInteger => Cell::Int,
            ColumnType::Double => Cell::Float,
            ColumnType::TimestampWithTimeZone => Cell::Time,
            ColumnType::Json | ColumnType::JsonBinary => Cell::List,
            other => unreachable!("a response has no values of type {other:?}"),
        };
        Self {
            name: column.as_str(),
            cell,
            is_long: false,
        }
    }
}

/// An edge to the object whose id a column contains.
pub(crate) struct One {
    pub(crate) column: &'static str,
    /// The name of its type.
    pub(crate) target: String,
    /// Whether the rule for reading applies to the object. Otherwise a reader of the row may read it.
    pub(crate) is_checked: bool,
}

impl One {
    pub(crate) fn to<T: OutputType>(column: impl ColumnTrait) -> Self {
        Self {
            column: column.as_str(),
            target: T::type_name().into_owned(),
            is_checked: false,
        }
    }
}

/// How the rows of a list become edges.
pub struct Entries {
    /// The node; `None` if the row is the node.
    pub(crate) node: Option<One>,
    /// The name of the type whose fields the row has.
    pub(crate) row: String,
    /// Further fields of the edge.
    pub(crate) extra: Vec<(&'static str, EdgeField)>,
}

/// A further field of an edge.
pub(crate) enum EdgeField {
    Column(Column),
    /// The row as an object.
    Row,
}
