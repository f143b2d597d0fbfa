//! The answer that a client gets.

use std::sync::Arc;

use async_graphql::{PathSegment, Pos, Response, ServerError, Value};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, json, value::RawValue};

use crate::{
    error::{Code, Error, Refusal},
    json::{write_json, write_key},
    operation::{Plan, bind::TYPE_KEY},
    rate_limit::{self, Decision, QuotaStatus},
    response::{Written, propagate_nulls},
};

/// Size of the status of a quota in a response, in bytes.
const QUOTA_BYTES: usize = 256;

/// A response.
#[derive(Debug)]
pub struct Answer {
    data: Option<Box<Data>>,
    errors: Vec<ServerError>,
    extensions: Map<String, serde_json::Value>,
    quotas: Vec<QuotaStatus>,
    cursor: Option<String>,
    /// The complexity of the response, if it was measured.
    complexity: Option<u32>,
    /// The number of statements that the operation waited for, if it was executed.
    statements: Option<u32>,
}

/// The data of a response.
#[derive(Debug)]
enum Data {
    /// The result of an execution: root fields of the executor, and those of the compiled query.
    Fresh(Value, Written, Arc<Plan>),
    /// The stored text of an earlier response.
    Kept(Box<RawValue>),
}

impl Data {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Fresh(data, written, plan) => plan.write(data, written, out),
            Self::Kept(text) => out.extend_from_slice(text.get().as_bytes()),
        }
    }

    /// The bytes that are JSON already.
    fn written_bytes(&self) -> usize {
        match self {
            Self::Fresh(_, written, _) => written.iter().map(|(_, json)| json.len()).sum(),
            Self::Kept(text) => text.get().len(),
        }
    }
}

/// The extensions of a response, with the quotas.
struct Extensions<'a>(&'a Answer);

impl Serialize for Extensions<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Answer {
            extensions, quotas, ..
        } = self.0;
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in extensions {
            map.serialize_entry(name, value)?;
        }
        rate_limit::report(quotas, &mut map)?;
        map.end()
    }
}

impl Answer {
    /// A request error: nothing was executed.
    pub fn refusal(code: Code, message: impl Into<String>) -> Self {
        Error::new(code, message.into()).into()
    }

    /// The answer to a stream or connection whose session has ended.
    pub fn session_ended() -> Self {
        Error::token_revoked().into()
    }

    /// A request error: a rate limit is exceeded and nothing was executed.
    pub(crate) fn limited(decision: Decision) -> Self {
        let errors = decision.refused.iter().map(|(field, place)| {
            let error = rate_limit::refused(&decision.quotas[*place]);
            let mut refused = ServerError::new(error.message.clone(), None);
            refused.extensions = Some(error.extension_values());
            // A refused request is charged for its route, which is not a field of the response.
            if field.place != Pos::default() {
                refused.path = vec![PathSegment::Field(field.key.to_string())];
            }
            refused
        });
        Self::refused(errors.collect()).with_quotas(decision.quotas)
    }

    /// A request error, with the request id if the error is internal.
    pub(crate) fn failed(error: Error, request_id: &str) -> Self {
        let is_ours = error.code == Code::Internal;
        Self::from(if is_ours {
            error.with("requestId", request_id)
        } else {
            error
        })
    }

    pub(crate) fn refused(errors: Vec<ServerError>) -> Self {
        Self {
            data: None,
            errors,
            extensions: Map::new(),
            quotas: Vec::new(),
            cursor: None,
            complexity: None,
            statements: None,
        }
    }

    /// Appends the GraphQL response map as JSON, without `data` for a request error.
    pub fn write(&self, out: &mut Vec<u8>) {
        let written = self.data.as_ref().map_or(0, |data| data.written_bytes());
        // Space for the status of each quota and for the rest, so that a long answer is not copied while it grows.
        out.reserve(written + QUOTA_BYTES * (1 + self.quotas.len()));
        out.push(b'{');
        if !self.errors.is_empty() {
            write_key(out, "errors");
            write_json(out, &self.errors);
        }
        if let Some(data) = &self.data {
            write_key(out, "data");
            data.write(out);
        }
        if !self.extensions.is_empty() || !self.quotas.is_empty() {
            write_key(out, "extensions");
            write_json(out, &Extensions(self));
        }
        out.push(b'}');
    }

    /// The quota status of the requested fields.
    pub fn quotas(&self) -> &[QuotaStatus] {
        &self.quotas
    }

    /// Adds the quota status.
    #[must_use]
    pub fn with_quotas(mut self, quotas: Vec<QuotaStatus>) -> Self {
        self.quotas = quotas;
        self
    }

    /// The cursor of the event in an answer of a subscription, after which a client can resume.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    #[must_use]
    pub(crate) fn at(self, cursor: Option<String>) -> Self {
        Self { cursor, ..self }
    }

    /// The response as a request error, because execution did not start.
    #[must_use]
    pub(crate) fn without_data(self) -> Self {
        Self { data: None, ..self }
    }

    /// Whether execution started, so that the response has `data`.
    pub fn has_data(&self) -> bool {
        self.data.is_some()
    }

    /// The code of each error, in order.
    pub(crate) fn codes(&self) -> impl Iterator<Item = Option<Code>> {
        self.errors.iter().map(code_of)
    }

    /// The complexity of the response: the number of its fields, as in the complexity of an operation whose lists have
    /// the sizes of those in the response. `None` if it was not measured, as for a stored response or one with errors.
    pub(crate) fn complexity(&self) -> Option<u64> {
        self.complexity.map(u64::from)
    }

    /// Measures the complexity of the response, given the number of fields below the root fields of the compiled query.
    /// An error below a root field can have removed fields that were read, so such a response is not measured.
    pub(crate) fn measure(&mut self, written_fields: u64) {
        if self.errors.iter().any(|error| error.path.len() != 1) {
            return;
        }
        if let Some(Data::Fresh(data, written, _)) = self.data.as_deref() {
            let complexity = fields_in(data) + written.len() as u64 + written_fields;
            self.complexity = Some(u32::try_from(complexity).unwrap_or(u32::MAX));
        }
    }

    /// The number of statements of batches that the operation waited for, those shared with other operations included.
    /// `None` if it was not executed.
    pub fn statements(&self) -> Option<u32> {
        self.statements
    }

    pub(crate) fn count_statements(&mut self, statements: u64) {
        self.statements = Some(u32::try_from(statements).unwrap_or(u32::MAX));
    }

    /// Adds an entry to `extensions`.
    pub(crate) fn extend(&mut self, name: &str, value: serde_json::Value) {
        self.extensions.insert(name.to_owned(), value);
    }

    /// The code of the first error.
    pub fn code(&self) -> Option<Code> {
        self.errors.first().and_then(code_of)
    }

    /// A response restored from the database.
    pub(crate) fn again(known: &serde_json::Value) -> Self {
        let part = |name: &str| known.get(name).cloned().unwrap_or_default();
        let data = match part("data") {
            serde_json::Value::String(text) => text,
            data => data.to_string(),
        };
        let data = RawValue::from_string(data).unwrap_or_else(|_| RawValue::NULL.to_owned());
        let extensions = match part("extensions") {
            serde_json::Value::Object(extensions) => extensions,
            _ => Map::new(),
        };
        let mut again = Self {
            data: Some(Box::new(Data::Kept(data))),
            errors: serde_json::from_value(part("errors")).unwrap_or_default(),
            extensions,
            quotas: Vec::new(),
            cursor: None,
            complexity: None,
            statements: None,
        };
        again.mark_replayed();
        again
    }

    /// The response as it is stored. The database does not keep the order of an object's members, so the data is text.
    pub(crate) fn to_keep(&self) -> Option<serde_json::Value> {
        let mut data = Vec::new();
        self.data.as_ref()?.write(&mut data);
        let data = String::from_utf8(data).ok()?;
        Some(json!({ "data": data, "errors": self.errors, "extensions": self.extensions }))
    }

    /// Marks the response as a replay of an earlier request.
    pub(crate) fn mark_replayed(&mut self) {
        let mark = json!({ "isReplayed": true });
        self.extensions.insert("idempotency".to_owned(), mark);
    }

    /// Seconds after which a refused request may be retried: the maximum over all errors.
    pub fn retry_after(&self) -> Option<u64> {
        let seconds = self.errors.iter().filter_map(|error| {
            match error.extensions.as_ref()?.get("retryAfter")? {
                Value::Number(seconds) => seconds.as_u64(),
                _ => None,
            }
        });
        seconds.max()
    }

    pub(crate) fn of(
        response: Response,
        written: Written,
        plan: Arc<Plan>,
        request_id: &str,
    ) -> Self {
        // Only an error in a resolver has a path. If no error has one and there is no data, nothing was executed.
        let ran = response.data != Value::Null
            || response.errors.is_empty()
            || response.errors.iter().any(|error| !error.path.is_empty());
        let mut errors = response.errors;
        for error in &mut errors {
            let extensions = error.extensions.get_or_insert_default();
            if extensions.get("code").is_none() {
                let code = if error.path.is_empty() {
                    Code::ValidationFailed
                } else {
                    Code::BadUserInput
                };
                extensions.set("code", code.as_str());
            }
            if extensions.get("code") == Some(&Value::from(Code::Internal.as_str())) {
                extensions.set("requestId", request_id);
            }
        }
        let mut data = response.data;
        propagate_nulls(&plan, &mut data, &errors);
        Self {
            data: ran.then(|| Box::new(Data::Fresh(data, written, plan))),
            errors,
            extensions: Map::new(),
            quotas: Vec::new(),
            cursor: None,
            complexity: None,
            statements: None,
        }
    }
}

impl Answer {
    /// Replaces each refused root field by null and an error, even if the field is not nullable: a rate limit must not
    /// remove the other fields.
    pub(crate) fn refuse(&mut self, decision: &Decision) {
        for (field, place) in &decision.refused {
            if let Some(Data::Fresh(Value::Object(data), ..)) = self.data.as_deref_mut() {
                data.insert(field.key.clone(), Value::Null);
            }
            let error = rate_limit::refused(&decision.quotas[*place]);
            let mut refused = ServerError::new(error.message.clone(), Some(field.place));
            refused.path = vec![PathSegment::Field(field.key.to_string())];
            refused.extensions = Some(error.extension_values());
            self.errors.push(refused);
        }
    }
}

/// The number of fields in a value, without those that were added for the order of the response.
fn fields_in(value: &Value) -> u64 {
    match value {
        Value::List(items) => items.iter().map(fields_in).sum(),
        Value::Object(object) => {
            let fields = object.iter().filter(|(name, _)| *name != TYPE_KEY);
            fields.map(|(_, value)| 1 + fields_in(value)).sum()
        }
        _ => 0,
    }
}

impl From<Data> for Value {
    fn from(data: Data) -> Self {
        let mut text = Vec::new();
        data.write(&mut text);
        serde_json::from_slice(&text).unwrap_or_else(|_| unreachable!("data is a JSON value"))
    }
}

/// A request error has null as `data`.
impl From<Answer> for Response {
    fn from(answer: Answer) -> Self {
        let extensions = serde_json::to_value(Extensions(&answer)).unwrap_or_default();
        let extensions = extensions.as_object().into_iter().flatten();
        let extensions = extensions
            .filter_map(|(name, value)| Some((name.clone(), Value::from_json(value.clone()).ok()?)))
            .collect();
        let mut response = Self::new(answer.data.map_or(Value::Null, |data| (*data).into()));
        response.errors = answer.errors;
        response.extensions = extensions;
        response
    }
}

impl From<Refusal> for Answer {
    fn from(Refusal(errors): Refusal) -> Self {
        Self::refused(errors)
    }
}

impl From<Error> for Answer {
    fn from(error: Error) -> Self {
        Refusal::from(error).into()
    }
}

fn code_of(error: &ServerError) -> Option<Code> {
    let Value::String(code) = error.extensions.as_ref()?.get("code")? else {
        return None;
    };
    Code::ALL.into_iter().find(|known| known.as_str() == code)
}
