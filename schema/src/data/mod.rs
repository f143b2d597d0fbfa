//! The building blocks of nouns: pages of a connection, and changes in one transaction.

mod change;
mod cursor;
mod directive;
mod edits;
mod fields;
mod noun;
mod order;
mod page;

pub(crate) use change::{Change, Outcome, Stop, change, unique};
pub(crate) use cursor::Order;
pub(crate) use directive::list_size;
pub(crate) use edits::{Edits, check_version};
pub(crate) use fields::{
    Cell, Column, EdgeField, Field, Fields, List, ListArguments, One, argument,
};
pub use fields::{Entries, FieldsOf};
pub use noun::Noun;
pub(crate) use noun::{by_id, load};
pub use order::{NamedOrder, NamedOrderField, SortDirection};
pub(crate) use page::DEFAULT_PAGE;
pub(crate) use page::Page;
pub use page::{Connection, Edge, Listed, MAX_PAGE};
