//! Events that are answered together.

use crate::request::Request;
use async_graphql::{
    ContextSelectionSet, OutputType, PathSegment, Positioned, Response, ServerResult, Value,
    indexmap::IndexMap, parser::types::Field, registry::Registry,
};
use std::{borrow::Cow, mem, sync::atomic::Ordering};

/// Events that are resolved together, as a list, but answered one by one: together they take one statement per edge.
pub(crate) struct Burst<T>(Vec<Option<T>>);

/// An item to deliver, and the cursor of its event.
pub(crate) type Update<T> = (T, Option<String>);

impl<T> Burst<T> {
    /// A burst of all items; `None` if there are none.
    pub(crate) fn new(
        request: &Request,
        updates: impl IntoIterator<Item = Option<Update<T>>>,
    ) -> Option<Self> {
        let updates = updates.into_iter().flatten();
        let (updates, cursors): (Vec<_>, Vec<_>) = updates.map(|(it, at)| (Some(it), at)).unzip();
        if updates.is_empty() {
            return None;
        }
        request.progress.passed(cursors);
        request.text.store(0, Ordering::Relaxed);
        Some(Self(updates))
    }
}

/// In the schema a burst has the type of its items.
impl<T: OutputType> OutputType for Burst<T> {
    fn type_name() -> Cow<'static, str> {
        T::type_name()
    }

    fn qualified_type_name() -> String {
        T::qualified_type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        T::create_type_info(registry)
    }

    async fn resolve(
        &self,
        ctx: &ContextSelectionSet<'_>,
        field: &Positioned<Field>,
    ) -> ServerResult<Value> {
        self.0.resolve(ctx, field).await
    }
}

/// Splits the response to a burst into the answers to its items.
pub(super) fn split(mut response: Response) -> Vec<Response> {
    let burst = match &mut response.data {
        Value::Object(fields) => fields.iter_mut().find_map(|(key, value)| match value {
            Value::List(items) => Some((key.clone(), mem::take(items))),
            _ => None,
        }),
        _ => None,
    };
    let Some((key, items)) = burst else {
        return vec![response];
    };
    let answers = items.into_iter().map(|item| {
        let fields = IndexMap::from_iter([(key.clone(), item)]);
        Response::new(Value::Object(fields))
    });
    let mut answers: Vec<Response> = answers.collect();
    for mut error in response.errors {
        if let Some(PathSegment::Index(place)) = error.path.get(1).cloned() {
            error.path.remove(1);
            answers[place].errors.push(error);
        }
    }
    answers
}

/// The approximate length of a value in JSON, in bytes.
pub(super) fn weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::List(items) => items.iter().map(weight).sum(),
        Value::Object(fields) => {
            let fields = fields.iter();
            fields.map(|(key, value)| key.len() + weight(value)).sum()
        }
        _ => size_of::<Value>(),
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::{ServerError, value};

    use super::*;

    #[test]
    fn errors_are_assigned_to_the_answer_of_their_path() {
        let mut response = Response::new(value!({ "all": [{ "id": 1 }, null, { "id": 3 }] }));
        let field = |name: &str| PathSegment::Field(name.to_owned());
        let path = vec![field("all"), PathSegment::Index(1), field("id")];
        response.errors = vec![ServerError::new("no", None).with_path(path)];
        let answers = split(response);
        let data: Vec<_> = answers.iter().map(|answer| &answer.data).collect();
        let expected = [
            value!({ "all": { "id": 1 } }),
            value!({ "all": null }),
            value!({ "all": { "id": 3 } }),
        ];
        assert_eq!(data, expected.iter().collect::<Vec<_>>());
        let errors: Vec<_> = answers.iter().map(|answer| answer.errors.len()).collect();
        assert_eq!(errors, [0, 1, 0]);
        assert_eq!(answers[1].errors[0].path, [field("all"), field("id")]);
    }
}
