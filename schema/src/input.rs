//! What a mutation's input must hold to, and how its payload says what does not.
//!
//! All faults of an input are told at once, one for each field.

use std::{collections::HashSet, fmt::Display, ops::RangeInclusive};

use async_graphql::{Enum, MaybeUndefined, SimpleObject};
use gathering_entity::List;
use url::Url;

use crate::text::{self, MAX_EMAIL};

/// Most characters of a web address.
const MAX_URL: usize = 2_048;

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
    /// A fault of a field, which is named by its path in the input: `members.3.agentId`.
    pub(crate) fn new(field: &str, code: UserErrorCode, message: impl Into<String>) -> Self {
        Self {
            field: Some(field.split('.').map(str::to_owned).collect()),
            code,
            message: message.into(),
        }
    }

    /// A fault of no single field.
    pub(crate) fn general(code: UserErrorCode, message: impl Into<String>) -> Self {
        Self {
            field: None,
            code,
            message: message.into(),
        }
    }

    /// A transition that the object's state does not allow.
    pub(crate) fn bad_transition(message: impl Into<String>) -> Self {
        Self::general(UserErrorCode::BadTransition, message)
    }

    /// As [`UserError::bad_transition`], of a thing that is in a state in which this cannot be done to it.
    pub(crate) fn cannot(thing: &str, status: &str, done: &str) -> Self {
        let article = if status.starts_with(['A', 'I']) {
            "An"
        } else {
            "A"
        };
        Self::bad_transition(format!("{article} {status} {thing} cannot be {done}."))
    }
}

/// The list that an update gives: absent leaves it alone, null empties it.
pub(crate) fn entries(values: &MaybeUndefined<Vec<String>>) -> Option<&[String]> {
    values.as_opt_deref().map(Option::unwrap_or_default)
}

/// The path of an entry of a list.
pub(crate) fn entry(list: &str, place: usize) -> String {
    format!("{list}.{place}")
}

/// Whether this is an http or https address with a host and without a user name or password.
fn is_web_address(address: &str) -> bool {
    // The parser is as lenient as a browser: it misses no slashes, takes `\` for one, and drops tabs.
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

/// An entry of a list of lines, with its place in the input, as written and folded.
struct Line {
    place: usize,
    text: String,
    key: String,
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

    /// A line of text with something to be seen in it, trimmed.
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

    /// A line of text that is compared character by character, so that it must have no invisible characters.
    pub(crate) fn exact_line(&mut self, field: &str, value: &str, most: usize) -> String {
        let faults = self.errors.len();
        let line = self.line(field, value, most);
        if self.errors.len() == faults && line.contains(text::is_invisible) {
            let message = format!("`{field}` must have no invisible characters.");
            self.fault(field, UserErrorCode::Invalid, message);
        }
        line
    }

    /// A name, as [`Check::line`], and its folded form, which has no more characters either.
    pub(crate) fn name(&mut self, field: &str, value: &str, most: usize) -> (String, String) {
        let faults = self.errors.len();
        let name = self.line(field, value, most);
        let key = text::fold(&name);
        if self.errors.len() == faults && key.chars().nth(most).is_some() {
            // Some letters fold to several.
            self.too_long(field, most);
        }
        (name, key)
    }

    /// A name that programs use: lower-case letters, digits, `_` and `-`.
    pub(crate) fn identifier(&mut self, field: &str, value: &str, most: usize) -> String {
        let faults = self.errors.len();
        let name = self.line(field, value, most);
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let fits = name.starts_with(is_plain)
            && name.chars().all(|c| is_plain(c) || matches!(c, '_' | '-'));
        if self.errors.len() == faults && !fits {
            let message = format!(
                "`{field}` must be lower-case letters, digits, `_` and `-`, and begin with a letter or digit."
            );
            self.fault(field, UserErrorCode::Invalid, message);
        }
        name
    }

    /// A line of text that may be missing; one with nothing to be seen in it is as good as none.
    pub(crate) fn optional_line(
        &mut self,
        field: &str,
        value: Option<&str>,
        most: usize,
    ) -> Option<String> {
        let value = value.filter(|value| !text::is_blank(value))?;
        Some(self.line(field, value, most))
    }

    /// Text of any number of lines with something to be seen in it, trimmed; a line ends with a line feed.
    pub(crate) fn text(&mut self, field: &str, value: &str, most: usize) -> String {
        let value = value.trim().replace("\r\n", "\n");
        if text::is_blank(&value) {
            self.required(field);
        } else if value.chars().nth(most).is_some() {
            self.too_long(field, most);
        } else if value.contains(|c: char| c.is_control() && c != '\t' && c != '\n') {
            let message = format!("`{field}` must be without control characters.");
            self.fault(field, UserErrorCode::Invalid, message);
        }
        value
    }

    /// Text of any number of lines that may be missing; one with nothing to be seen in it is as good as none.
    pub(crate) fn optional_text(
        &mut self,
        field: &str,
        value: Option<&str>,
        most: usize,
    ) -> Option<String> {
        let value = value.filter(|value| !text::is_blank(value))?;
        Some(self.text(field, value, most))
    }

    /// An http or https address that may be missing. It names nobody: whoever reads it would read a password too.
    pub(crate) fn url(&mut self, field: &str, value: Option<&str>) -> Option<String> {
        let faults = self.errors.len();
        let url = self.optional_line(field, value, MAX_URL)?;
        if self.errors.len() == faults && !is_web_address(&url) {
            let message =
                format!("`{field}` must be an http or https address without a user name.");
            self.fault(field, UserErrorCode::Invalid, message);
        }
        Some(url)
    }

    /// A list of lines: trimmed, each once (folded), in order. The first that is wrong is told.
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

    /// As [`Check::list`], of words that are kept folded, so that a search for one is exact.
    pub(crate) fn words(
        &mut self,
        field: &str,
        values: &[String],
        most: usize,
        length: usize,
    ) -> List {
        let lines = self.lines(field, values, most, length);
        // Some characters are many when folded.
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

    /// A number within bounds, both included.
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

    /// A field of an update that cannot be cleared: absent leaves it alone, null is a fault.
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

    /// Adds the fault of a field that has no value.
    pub(crate) fn required(&mut self, field: &str) {
        let message = format!("`{field}` must not be empty.");
        self.fault(field, UserErrorCode::Required, message);
    }

    /// An e-mail address as typed, trimmed, and folded.
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

    /// The faults, if there are any.
    pub(crate) fn faults(self) -> Result<(), Vec<UserError>> {
        if self.errors.is_empty() {
            Ok(())
        } else {
            Err(self.errors)
        }
    }
}
