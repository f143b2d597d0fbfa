//! From the text of a document to an executable operation, and to the field order of its response.

pub(crate) mod bind;
mod cost;
mod documents;
mod introspection;
mod list_size;
mod literal;
mod merge;
mod params;
pub(crate) mod plan;
mod prepare;
pub(crate) mod source;
mod syntax;
mod validator;
mod variables;

pub(crate) use bind::bind;
pub(crate) use cost::{Measure, measure};
pub use documents::{Trust, TrustedDocuments};
pub(crate) use introspection::Introspection;
pub use params::Params;
pub(crate) use plan::Plan;
pub use prepare::Operation;
pub(crate) use prepare::{Preparer, Timings};
pub(crate) use validator::{Document, Validator, Variables};
