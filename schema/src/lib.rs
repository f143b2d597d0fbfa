//! Gathering's graph and everything a resolver may touch. It knows no HTTP and no environment.

pub mod error;
pub mod execute;
pub mod viewer;

pub use error::Code;
pub use execute::{Answer, Caller, Graph, Limits, Operation, Params};
pub use viewer::Viewer;
