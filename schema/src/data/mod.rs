//! The building blocks of nouns: pages of a connection, and changes in one transaction.

mod change;
mod column;
mod cursor;
mod directive;
mod draft;
mod edits;
mod fields;
mod group;
mod noun;
mod order;
mod page;

pub(crate) use change::{Change, Outcome, Stop, change, unique};
pub use column::Entries;
pub(crate) use column::{Cell, Column, EdgeField, One};
pub(crate) use cursor::Order;
pub(crate) use directive::list_size;
pub(crate) use draft::{Draft, draft};
pub(crate) use edits::{Edits, check_version};
pub(crate) use fields::{Field, Fields, List, ListArguments, argument};
pub(crate) use group::Groups;
pub use noun::{FieldsOf, Noun};
pub(crate) use noun::{by_id, load};
pub use order::{NamedOrder, NamedOrderField, SortDirection};
pub(crate) use page::DEFAULT_PAGE;
pub(crate) use page::Page;
pub use page::{Connection, Edge, Listed, MAX_PAGE};
