//! The audit log.

mod action;
mod log;

pub(crate) use action::AuditAction;
pub(crate) use log::{AuditLog, audit_log};
pub use log::{AuditWriter, Client};
