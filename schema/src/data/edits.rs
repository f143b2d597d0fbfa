//! What an update changes.

use crate::input::{UserError, UserErrorCode};
use sea_orm::{ActiveValue, QueryFilter, Value};

/// The fields of a row that an update changes.
#[derive(Default)]
pub(crate) struct Edits(Vec<&'static str>);

impl Edits {
    /// Sets a field to a value, if there is one and it is another than the field has.
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

/// What a version says that is not the one the client has seen.
pub(crate) fn check_version(expected: Option<i32>, version: i32) -> Result<(), UserError> {
    match expected {
        Some(expected) if expected != version => {
            let message = format!("It has been changed in the meantime: its version is {version}.");
            Err(UserError::new(
                "expectedVersion",
                UserErrorCode::Conflict,
                message,
            ))
        }
        _ => Ok(()),
    }
}
