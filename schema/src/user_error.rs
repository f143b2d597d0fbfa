//! What a mutation's input must hold to, and how its payload says what does not.
//!
//! All faults of an input are told at once, one for each field.

use std::ops::RangeInclusive;

use async_graphql::{Enum, SimpleObject};

use crate::{
    auth::{PASSWORD_LENGTH, password_has},
    text::{self, MAX_EMAIL},
};

/// What is wrong with a mutation's input, or with the state of what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum UserErrorCode {
    /// The field must have a value.
    Required,
    /// The text has too few characters.
    TooShort,
    /// The text has too many characters.
    TooLong,
    /// The list has too many entries.
    TooMany,
    /// The number is out of its range.
    OutOfRange,
    /// The value is not of the form that it must have.
    Invalid,
    /// Another has this value already, and it must be unique.
    Taken,
    /// The object has been changed since it was read.
    Conflict,
    /// The object's state does not allow this.
    BadTransition,
    /// Something else still needs the object.
    InUse,
    /// A limit has been reached.
    LimitReached,
    /// The agent is no active member of the circle.
    NotMember,
    /// The object must not be changed like this.
    Protected,
}

/// An expected failure of a mutation: something that the caller can put right.
#[derive(Clone, Debug, SimpleObject)]
pub struct UserError {
    /// The path of the field in the input, such as `["members", "3", "agentId"]`; null when it is about no single field.
    field: Option<Vec<String>>,
    /// What is wrong, for programs.
    code: UserErrorCode,
    /// What is wrong, for people.
    pub(crate) message: String,
}

impl UserError {
    pub(crate) fn new(field: &str, code: UserErrorCode, message: impl Into<String>) -> Self {
        Self {
            field: Some(vec![field.to_owned()]),
            code,
            message: message.into(),
        }
    }
}

/// Collects the faults of an input.
#[derive(Default)]
pub(crate) struct Check {
    errors: Vec<UserError>,
}

impl Check {
    /// Adds a fault of a field.
    pub(crate) fn fault(&mut self, field: &str, code: UserErrorCode, message: impl Into<String>) {
        self.errors.push(UserError::new(field, code, message));
    }

    /// A line of text, trimmed.
    pub(crate) fn line(&mut self, field: &str, value: &str, most: usize) -> String {
        let value = value.trim();
        if value.is_empty() {
            self.fault(
                field,
                UserErrorCode::Required,
                format!("`{field}` must not be empty."),
            );
        } else if value.chars().nth(most).is_some() {
            self.too_long(field, most);
        } else if value.contains(char::is_control) {
            let message = format!("`{field}` must be one line without control characters.");
            self.fault(field, UserErrorCode::Invalid, message);
        }
        value.to_owned()
    }

    /// An e-mail address as typed, trimmed, and folded.
    pub(crate) fn email(&mut self, field: &str, value: &str) -> (String, String) {
        let faults = self.errors.len();
        let value = self.line(field, value, MAX_EMAIL);
        let key = text::fold(&value);
        if self.errors.len() > faults {
            return (value, key);
        }
        let has_sides = |text: &str| {
            text.split_once('@').is_some_and(|(name, host)| {
                !name.is_empty() && !host.is_empty() && !host.contains('@')
            })
        };
        if key.chars().nth(MAX_EMAIL).is_some() {
            self.too_long(field, MAX_EMAIL);
        } else if !has_sides(&value)
            || !has_sides(&key)
            || key.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            let message = format!("`{field}` must be an e-mail address, such as ada@example.com.");
            self.fault(field, UserErrorCode::Invalid, message);
        }
        (value, key)
    }

    /// A new password.
    pub(crate) fn password(&mut self, field: &str, value: &str) {
        let (least, most) = RangeInclusive::into_inner(PASSWORD_LENGTH);
        if value.is_empty() {
            self.fault(
                field,
                UserErrorCode::Required,
                format!("`{field}` must not be empty."),
            );
        } else if !password_has(value, least) {
            let message = format!("`{field}` must have at least {least} characters.");
            self.fault(field, UserErrorCode::TooShort, message);
        } else if password_has(value, most + 1) {
            self.too_long(field, most);
        }
    }

    fn too_long(&mut self, field: &str, most: usize) {
        let message = format!("`{field}` must have at most {most} characters.");
        self.fault(field, UserErrorCode::TooLong, message);
    }

    /// The faults, if there are any.
    pub(crate) fn faults(self) -> Result<(), Vec<UserError>> {
        if self.errors.is_empty() {
            Ok(())
        } else {
            Err(self.errors)
        }
    }
}
