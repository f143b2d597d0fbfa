//! Validation of mutation inputs, and the user errors in mutation payloads.
//!
//! All errors of an input are reported together, one for each field.

use std::{collections::HashSet, fmt::Display, ops::RangeInclusive};

use async_graphql::{Enum, MaybeUndefined, SimpleObject};
use gathering_entity::List;
use url::Url;

use crate::text::{self, MAX_EMAIL};

/// Maximum length of a URL, in characters.
const MAX_URL: usize = 2_048;

/// The code of a user error: invalid input, or a state that does not allow the mutation.
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
    /// The number is out of range.
    OutOfRange,
    /// The value has an invalid format.
    Invalid,
    /// The value must be unique and is already in use.
    Taken,
    /// The object has been changed since it was read.
    Conflict,
    /// The object's state does not allow this.
    BadTransition,
    /// The object is still in use by other objects.
    InUse,
    /// A limit has been reached.
    LimitReached,
    /// The agent is not an active member of the circle.
    NotMember,
    /// The object is protected against this change.
    Protected,
}

/// An expected failure of a mutation, which the caller can correct.
#[derive(Clone, Debug, SimpleObject)]
pub struct UserError {
    /// The path of the input field, such as `["members", "3", "agentId"]`. Null if no single field is wrong.
    field: Option<Vec<String>>,
    /// The machine-readable code.
    code: UserErrorCode,
    /// The human-readable message.
    pub(crate) message: String,
}

impl UserError {
    /// An error of a field, given by its path in the input: `members.3.agentId`.
    pub(crate) fn new(field: &str, code: UserErrorCode, message: impl Into<String>) -> Self {
        Self {
            field: Some(field.split('.').map(str::to_owned).collect()),
            code,
            message: message.into(),
        }
    }

    /// An error of no single field.
    pub(crate) fn general(code: UserErrorCode, message: impl Into<String>) -> Self {
        Self {
            field: None,
            code,
            message: message.into(),
        }
    }

    /// A `BAD_TRANSITION` error: the object's state does not allow the transition.
    pub(crate) fn bad_transition(message: impl Into<String>) -> Self {
        Self::general(UserErrorCode::BadTransition, message)
    }

    /// As [`UserError::bad_transition`], with a message that names the object, its status and the action.
    pub(crate) fn cannot(thing: &str, status: &str, done: &str) -> Self {
        let article = if status.starts_with(['A', 'E', 'I']) {
            "An"
        } else {
            "A"
        };
        Self::bad_transition(format!("{article} {status} {thing} cannot be {done}."))
    }
}

/// The list in an update: `None` if it is absent, empty if it is null.
pub(crate) fn entries(values: &MaybeUndefined<Vec<String>>) -> Option<&[String]> {
    values.as_opt_deref().map(Option::unwrap_or_default)
}

/// The path of a list entry.
pub(crate) fn entry(list: &str, place: usize) -> String {
    format!("{list}.{place}")
}

/// Whether this is an http or https address with a host and without a user name or password.
fn is_web_address(address: &str) -> bool {
    // The parser is as lenient as a browser: it accepts missing slashes, treats `\` as `/`, and drops tabs.
    let is_strict = address.split_once("://").is_some_and(|(scheme, rest)| {
        ["http", "https"]
            .iter()
            .any(|known| scheme.eq_ignore_ascii_case(known))
            && !rest.starts_with('/')
            && !rest.contains(|c: char| c == '\\' || c.is_whitespace() || text::is_invisible(c))
    });
    is_strict
        && Url::parse(address)
            .is_ok_and(|url| url.username().is_empty() && url.password().is_none())
}

/// A list entry with its index in the input, as written and folded.
struct Line {
    place: usize,
    text: String,
    key: String,
}

/// Collects the errors of an input.
#[derive(Default)]
pub(crate) struct Check {
    errors: Vec<UserError>,
}

impl Check {
    /// Adds an error of a field.
    pub(crate) fn fault(&mut self, field: &str, code: UserErrorCode, message: impl Into<String>) {
        self.errors.push(UserError::new(field, code, message));
    }

    /// Checks a line of text, which must not be blank, and trims it.
    pub(crate) fn line(&mut self, field: &str, value: &str, most: usize) -> String {
        let value = value.trim();
        if text::is_blank(value) {
            self.required(field);
        } else if value.chars().nth(most).is_some() {
            self.too_long(field, most);
        } else if !text::is_line(value) {
            let message = format!("`{field}` must be one line without control characters.");
            self.fault(field, UserErrorCode::Invalid, message);
        }
        value.to_owned()
    }

    /// As [`Check::line`], for text that is compared character by character: refuses invisible characters.
    pub(crate) fn exact_line(&mut self, field: &str, value: &str, most: usize) -> String {
        let faults = self.errors.len();
        let line = self.line(field, value, most);
        if self.errors.len() == faults && line.contains(text::is_invisible) {
            let message = format!("`{field}` must not contain invisible characters.");
            self.fault(field, UserErrorCode::Invalid, message);
        }
        line
    }

    /// As [`Check::line`], for a name; returns its folded form too, which has the same maximum length.
    pub(crate) fn name(&mut self, field: &str, value: &str, most: usize) -> (String, String) {
        let faults = self.errors.len();
        let name = self.line(field, value, most);
        let key = text::fold(&name);
        if self.errors.len() == faults && key.chars().nth(most).is_some() {
            // Folding can make a text longer.
            self.too_long(field, most);
        }
        (name, key)
    }

    /// Checks an identifier: lower-case letters, digits, `_` and `-`.
    pub(crate) fn identifier(&mut self, field: &str, value: &str, most: usize) -> String {
        let faults = self.errors.len();
        let name = self.line(field, value, most);
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let fits = name.starts_with(is_plain)
            && name.chars().all(|c| is_plain(c) || matches!(c, '_' | '-'));
        if self.errors.len() == faults && !fits {
            let message = format!(
                "`{field}` must contain only lower-case letters, digits, `_` and `-`, and begin with a letter or digit."
            );
            self.fault(field, UserErrorCode::Invalid, message);
        }
        name
    }

    /// As [`Check::line`], for an optional line; a blank one counts as absent.
    pub(crate) fn optional_line(
        &mut self,
        field: &str,
        value: Option<&str>,
        most: usize,
    ) -> Option<String> {
        let value = value.filter(|value| !text::is_blank(value))?;
        Some(self.line(field, value, most))
    }

    /// Checks a text of any number of lines, which must not be blank; trims it and converts CRLF to LF.
    pub(crate) fn text(&mut self, field: &str, value: &str, most: usize) -> String {
        let value = value.trim().replace("\r\n", "\n");
        if text::is_blank(&value) {
            self.required(field);
        } else if value.chars().nth(most).is_some() {
            self.too_long(field, most);
        } else if value.contains(|c: char| c.is_control() && c != '\t' && c != '\n') {
            let message = format!("`{field}` must not contain control characters.");
            self.fault(field, UserErrorCode::Invalid, message);
        }
        value
    }

    /// As [`Check::text`], for an optional text; a blank one counts as absent.
    pub(crate) fn optional_text(
        &mut self,
        field: &str,
        value: Option<&str>,
        most: usize,
    ) -> Option<String> {
        let value = value.filter(|value| !text::is_blank(value))?;
        Some(self.text(field, value, most))
    }

    /// Checks an optional http or https address. Refuses user names, because all readers of the address would see a
    /// password in it.
    pub(crate) fn url(&mut self, field: &str, value: Option<&str>) -> Option<String> {
        let faults = self.errors.len();
        let url = self.optional_line(field, value, MAX_URL)?;
        if self.errors.len() == faults && !is_web_address(&url) {
            let message = format!("`{field}` must be an http or https URL without a user name.");
            self.fault(field, UserErrorCode::Invalid, message);
        }
        Some(url)
    }

    /// Checks a list of lines: trims them and removes duplicates (folded), in order. Only the first invalid line is
    /// reported.
    pub(crate) fn list(
        &mut self,
        field: &str,
        values: &[String],
        most: usize,
        length: usize,
    ) -> List {
        let lines = self.lines(field, values, most, length);
        List(lines.into_iter().map(|line| line.text).collect())
    }

    /// As [`Check::list`], for words that are stored folded, so that they can be searched exactly.
    pub(crate) fn words(
        &mut self,
        field: &str,
        values: &[String],
        most: usize,
        length: usize,
    ) -> List {
        let lines = self.lines(field, values, most, length);
        // Folding can make a text longer.
        let long = lines
            .iter()
            .find(|line| line.key.chars().nth(length).is_some());
        if let Some(long) = long {
            self.too_long(&entry(field, long.place), length);
            return List::default();
        }
        List(lines.into_iter().map(|line| line.key).collect())
    }

    fn lines(&mut self, field: &str, values: &[String], most: usize, length: usize) -> Vec<Line> {
        if values.len() > most {
            let message = format!("`{field}` must have at most {most} entries.");
            self.fault(field, UserErrorCode::TooMany, message);
            return Vec::new();
        }
        let faults = self.errors.len();
        let mut known = HashSet::new();
        let mut lines = Vec::with_capacity(values.len());
        for (place, value) in values.iter().enumerate() {
            let field = entry(field, place);
            if text::is_blank(value) {
                let message = format!("`{field}` must not be empty.");
                self.fault(&field, UserErrorCode::Invalid, message);
            } else {
                let text = self.line(&field, value, length);
                let key = text::fold(&text);
                if known.insert(key.clone()) {
                    lines.push(Line { place, text, key });
                }
            }
            if self.errors.len() > faults {
                return Vec::new();
            }
        }
        lines
    }

    /// Checks a number against bounds, both inclusive.
    pub(crate) fn range<T>(&mut self, field: &str, value: T, bounds: RangeInclusive<T>) -> T
    where
        T: PartialOrd + Display,
    {
        if !bounds.contains(&value) {
            let (low, high) = bounds.into_inner();
            let message = format!("`{field}` must be from {low} to {high}.");
            self.fault(field, UserErrorCode::OutOfRange, message);
        }
        value
    }

    /// Checks a field of an update that cannot be cleared: absent keeps the value, null is an error.
    pub(crate) fn if_given<'v, T>(
        &mut self,
        field: &str,
        value: &'v MaybeUndefined<T>,
    ) -> Option<&'v T> {
        if value.is_null() {
            self.required(field);
        }
        value.as_opt_ref().flatten()
    }

    /// Adds a `REQUIRED` error of a field.
    pub(crate) fn required(&mut self, field: &str) {
        let message = format!("`{field}` must not be empty.");
        self.fault(field, UserErrorCode::Required, message);
    }

    /// Checks an e-mail address; returns it trimmed, and folded.
    pub(crate) fn email(&mut self, field: &str, value: &str) -> (String, String) {
        let faults = self.errors.len();
        let value = self.exact_line(field, value, MAX_EMAIL);
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

    /// Adds the fault of a text that has too many characters.
    pub(crate) fn too_long(&mut self, field: &str, most: usize) {
        let message = format!("`{field}` must have at most {most} characters.");
        self.fault(field, UserErrorCode::TooLong, message);
    }

    /// Returns the collected errors, if there are any.
    pub(crate) fn faults(self) -> Result<(), Vec<UserError>> {
        if self.errors.is_empty() {
            Ok(())
        } else {
            Err(self.errors)
        }
    }
}
