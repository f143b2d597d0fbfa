//! Orders that several lists share.

use async_graphql::{Enum, InputObject};
use sea_orm::ColumnTrait;

use crate::data::Order;

/// Which end of an order comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum SortDirection {
    /// Smallest or oldest first.
    Asc,
    /// Largest or newest first.
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

/// What named things may be ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum NamedOrderField {
    /// When it was made.
    CreatedAt,
    /// When it was last changed.
    UpdatedAt,
    /// The folded name, character by character.
    Name,
}

/// An order of named things.
#[derive(Clone, Copy, InputObject)]
pub struct NamedOrder {
    /// What to order by.
    pub(crate) field: NamedOrderField,
    /// Which end comes first.
    #[graphql(default_with = "SortDirection::Desc")]
    pub(crate) direction: SortDirection,
}
