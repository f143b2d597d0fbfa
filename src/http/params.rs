//! From the bytes of a request to the parameters of its operations.

use std::borrow::Cow;
use std::fmt;

use gathering_schema::Params;
use percent_encoding::percent_decode_str;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A human-readable error in the parameters of a request.
pub(super) struct InvalidParams(pub(super) Cow<'static, str>);

impl InvalidParams {
    fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self(message.into())
    }
}

/// The JSON of a body, before its members are checked.
pub(super) enum Payload {
    One(Members),
    Batch(Vec<Members>),
}

impl Payload {
    pub(super) fn parse(body: &[u8]) -> Result<Self, InvalidParams> {
        let text = str::from_utf8(body)
            .map_err(|_| InvalidParams::new("The body must be valid UTF-8."))?;
        let text = unmarked(text);
        let parsed = match text.trim_ascii_start().as_bytes().first() {
            None => return Err(InvalidParams::new("The body is empty; send a JSON object.")),
            Some(b'[') => serde_json::from_str(text).map(Self::Batch),
            Some(_) => serde_json::from_str(text).map(Self::One),
        };
        parsed.map_err(|error| {
            if error.is_data() {
                return InvalidParams::new("An operation must be a JSON object.");
            }
            let (line, column) = (error.line(), error.column());
            InvalidParams::new(format!(
                "The body is not valid JSON: syntax error at line {line}, column {column}."
            ))
        })
    }
}

/// A JSON text without its optional byte-order mark.
pub(crate) fn unmarked(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// The members of a request in order, including duplicates.
pub(crate) struct Members(pub(crate) Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

impl Members {
    /// The parameters of a GET.
    pub(super) fn from_url(query: &str) -> Result<Self, InvalidParams> {
        let decode = |text: &str| {
            percent_decode_str(&text.replace('+', " "))
                .decode_utf8()
                .map(Cow::into_owned)
                .map_err(|_| InvalidParams::new("The URL's parameters must be valid UTF-8."))
        };
        let mut members = Vec::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            let value = match name.as_str() {
                "variables" | "extensions" if !value.is_empty() => {
                    serde_json::from_str(unmarked(&value))
                        .map_err(|_| InvalidParams::new(format!("`{name}` must be valid JSON.")))?
                }
                _ => Value::String(value),
            };
            members.push((name, value));
        }
        Ok(Self(members))
    }

    /// Validates the members; `place` is the prefix of their names in errors. Unknown members are ignored: the
    /// specification reserves them. A duplicate is refused, because parsers may disagree on which one counts. An empty
    /// string counts as absent on every transport, because a URL parameter cannot be null.
    pub(crate) fn into_params(self, place: &str) -> Result<Params, InvalidParams> {
        let [
            mut query,
            mut operation_name,
            mut variables,
            mut extensions,
            mut document_id,
        ] = [const { None }; 5];
        for (name, value) in self.0 {
            let slot = match name.as_str() {
                "query" => &mut query,
                "operationName" => &mut operation_name,
                "variables" => &mut variables,
                "extensions" => &mut extensions,
                "documentId" => &mut document_id,
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(InvalidParams::new(format!(
                    "`{place}{name}` occurs more than once."
                )));
            }
        }
        let is_absent = |value: &Value| value.is_null() || value == "";
        let text = |name, value: Option<Value>| match value.filter(|value| !is_absent(value)) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(InvalidParams::new(format!(
                "`{place}{name}` must be a string."
            ))),
        };
        let object = |name, value: Option<Value>| match value.filter(|value| !is_absent(value)) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(InvalidParams::new(format!(
                "`{place}{name}` must be an object."
            ))),
        };
        let params = Params {
            query: text("query", query)?,
            operation_name: text("operationName", operation_name)?,
            variables: object("variables", variables)?,
            extensions: object("extensions", extensions)?,
            document_id: text("documentId", document_id)?,
        };
        let named = params.document_id.is_some()
            || params
                .extensions
                .as_ref()
                .is_some_and(|extensions| extensions.contains_key("persistedQuery"));
        if params.query.is_none() && !named {
            return Err(InvalidParams::new(format!("`{place}query` is missing.")));
        }
        Ok(params)
    }
}
