//! Responses: the answer as it is sent, in the order of the document, with nulls propagated.

mod answer;
mod null_propagation;

pub use answer::Answer;
pub(crate) use null_propagation::{Written, propagate_nulls};
