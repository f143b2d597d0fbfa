//! From the text of a document to an operation that can run, and to the order of its answer.

mod bind;
mod cost;
mod front;
mod introspection;
mod merge;
mod plan;
mod response;
mod source;
mod syntax;
mod variables;

pub(crate) use bind::bind;
pub(crate) use cost::{Measure, list_size, measure, root_fields};
pub(crate) use front::{Document, Front, Variables};
pub(crate) use introspection::Introspection;
pub(crate) use plan::Plan;
pub(crate) use response::propagate_nulls;
