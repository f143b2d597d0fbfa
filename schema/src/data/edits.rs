//! The changed columns of an update.

use crate::input::{UserError, UserErrorCode};
use sea_orm::{ActiveValue, Value};

/// The fields of a row that an update changes.
#[derive(Default)]
pub(crate) struct Edits(Vec<&'static str>);

impl Edits {
    /// Sets a field to a value, if there is one and it differs from the current one.
    pub(crate) fn set<V>(
        &mut self,
        name: &'static str,
        field: &mut ActiveValue<V>,
        value: Option<V>,
    ) where
        V: Into<Value> + PartialEq,
    {
        if let Some(value) = value.filter(|value| field.try_as_ref() != Some(value)) {
            *field = ActiveValue::Set(value);
            self.0.push(name);
        }
    }

    /// The names of the fields that changed.
    pub(crate) fn names(&self) -> &[&'static str] {
        &self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Refuses an expected version that is not the current one.
pub(crate) fn check_version(expected: Option<i32>, version: i32) -> Result<(), UserError> {
    match expected {
        Some(expected) if expected != version => {
            let message = format!("Version conflict: the current version is {version}.");
            Err(UserError::new(
                "expectedVersion",
                UserErrorCode::Conflict,
                message,
            ))
        }
        _ => Ok(()),
    }
}
