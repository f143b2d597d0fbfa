//! Sort orders shared by several lists.

use async_graphql::{Enum, InputObject};
use sea_orm::ColumnTrait;

use crate::data::Order;

/// The sort direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum SortDirection {
    /// Ascending: smallest or oldest first.
    Asc,
    /// Descending: largest or newest first.
    Desc,
}

impl SortDirection {
    pub(crate) fn over<C: ColumnTrait>(self, columns: impl Into<Vec<C>>) -> Order<C> {
        match self {
            Self::Asc => Order::ascending(columns),
            Self::Desc => Order::descending(columns),
        }
    }
}

/// The fields that a list of named objects can be ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum NamedOrderField {
    /// When it was created.
    CreatedAt,
    /// When it was last changed.
    UpdatedAt,
    /// The case-folded name, in code point order.
    Name,
}

/// Orders a list of named objects.
#[derive(Clone, Copy, InputObject)]
pub struct NamedOrder {
    /// The field to order by.
    pub(crate) field: NamedOrderField,
    /// The sort direction.
    #[graphql(default_with = "SortDirection::Desc")]
    pub(crate) direction: SortDirection,
}
