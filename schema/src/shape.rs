//! The shape of an answer: what the specification says of it and the executor does not keep.
//!
//! async-graphql 7.2 answers fields in the order in which they were ready and leaves a field out when it failed. The
//! [specification](https://spec.graphql.org/September2025/#sec-Response-Format) wants the order of the document, null for
//! a failed field, and, where null is not allowed, null for the nearest field around it that may be null.

use async_graphql::{
    Name, PathSegment, ServerError, Value,
    indexmap::IndexMap,
    parser::types::{
        BaseType, ExecutableDocument, OperationDefinition, Selection, SelectionSet, Type,
    },
};
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::document::Costs;

/// The fields of a selection in the order of the document, fragments expanded and equal names merged.
#[derive(Debug, Default)]
pub(crate) struct Shape(IndexMap<Name, Part>);

#[derive(Debug, Default)]
struct Part {
    /// The field's type; `None` for fields of the introspection system.
    ty: Option<Type>,
    shape: Shape,
}

impl Shape {
    /// The shape of an operation that has been measured, so that its expansion is known to be small.
    pub(crate) fn of(
        document: &ExecutableDocument,
        operation: &OperationDefinition,
        costs: &Costs,
    ) -> Self {
        let mut shape = Self::default();
        shape.add(
            document,
            &operation.selection_set.node,
            Costs::root(operation.ty),
            costs,
        );
        shape
    }

    fn add(
        &mut self,
        document: &ExecutableDocument,
        selection: &SelectionSet,
        parent: &str,
        costs: &Costs,
    ) {
        for item in &selection.items {
            match &item.node {
                Selection::Field(field) => {
                    let field = &field.node;
                    let ty = costs.ty(parent, &field.name.node);
                    let part = self.0.entry(field.response_key().node.clone()).or_default();
                    let named = ty.map_or("", named);
                    part.shape
                        .add(document, &field.selection_set.node, named, costs);
                    if part.ty.is_none() {
                        part.ty = ty.cloned();
                    }
                }
                Selection::FragmentSpread(spread) => {
                    if let Some(fragment) = document.fragments.get(&spread.node.fragment_name.node)
                    {
                        let condition = &fragment.node.type_condition.node.on.node;
                        self.add(
                            document,
                            &fragment.node.selection_set.node,
                            condition,
                            costs,
                        );
                    }
                }
                Selection::InlineFragment(inline) => {
                    let condition = inline.node.type_condition.as_ref();
                    let parent =
                        condition.map_or(parent, |condition| condition.node.on.node.as_str());
                    self.add(document, &inline.node.selection_set.node, parent, costs);
                }
            }
        }
    }

    /// Puts null where the errors say that a field failed.
    pub(crate) fn settle(&self, data: &mut Value, errors: &[ServerError]) {
        let paths: Vec<_> = errors
            .iter()
            .map(|error| &error.path[..])
            .filter(|path| !path.is_empty())
            .collect();
        if !paths.is_empty() {
            if *data == Value::Null {
                *data = Value::Object(IndexMap::new());
            }
            if !self.settle_object(data, &paths) {
                *data = Value::Null;
            }
        }
    }

    /// Whether the object may stand as it is now.
    fn settle_object(&self, value: &mut Value, paths: &[&[PathSegment]]) -> bool {
        let Value::Object(fields) = value else {
            return true;
        };
        for (key, part) in &self.0 {
            let below = below(
                paths,
                |segment| matches!(segment, PathSegment::Field(name) if *name == key.as_str()),
            );
            if below.is_empty() {
                continue;
            }
            let ty = part.ty.as_ref();
            let stands = match fields.get_mut(key) {
                Some(value) => part.shape.settle_at(value, ty, &below),
                None => false,
            };
            if !stands {
                if ty.is_some_and(|ty| !ty.nullable) {
                    return false;
                }
                fields.insert(key.clone(), Value::Null);
            }
        }
        true
    }

    fn settle_at(&self, value: &mut Value, ty: Option<&Type>, paths: &[&[PathSegment]]) -> bool {
        let Value::List(items) = value else {
            return self.settle_object(value, paths);
        };
        let of = ty.and_then(|ty| match &ty.base {
            BaseType::List(of) => Some(&**of),
            BaseType::Named(_) => None,
        });
        for (place, item) in items.iter_mut().enumerate() {
            let below = below(
                paths,
                |segment| matches!(segment, PathSegment::Index(index) if *index == place),
            );
            if !below.is_empty() && !self.settle_at(item, of, &below) {
                if of.is_some_and(|of| !of.nullable) {
                    return false;
                }
                *item = Value::Null;
            }
        }
        true
    }
}

/// What is left of the paths that begin with a segment.
fn below<'a>(
    paths: &[&'a [PathSegment]],
    is: impl Fn(&PathSegment) -> bool,
) -> Vec<&'a [PathSegment]> {
    let rest = paths.iter().filter_map(|path| match path {
        [first, rest @ ..] if is(first) => Some(rest),
        _ => None,
    });
    rest.collect()
}

fn named(ty: &Type) -> &str {
    match &ty.base {
        BaseType::Named(name) => name,
        BaseType::List(of) => named(of),
    }
}

/// A value in the order of its shape.
pub(crate) struct Ordered<'a>(pub(crate) &'a Value, pub(crate) &'a Shape);

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(value, shape) = self;
        match value {
            // A scalar may be an object too, and has no shape.
            Value::Object(fields) if !shape.0.is_empty() => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (key, part) in &shape.0 {
                    if let Some(value) = fields.get(key) {
                        map.serialize_entry(key.as_str(), &Self(value, &part.shape))?;
                    }
                }
                map.end()
            }
            Value::List(items) if !shape.0.is_empty() => {
                serializer.collect_seq(items.iter().map(|item| Self(item, shape)))
            }
            value => value.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::parse_query;
    use serde_json::json;

    use super::*;

    const SDL: &str = "type Query { a: A b: A! list: [A!]! holes: [A] loose: [A!] }
        type A { id: ID! name: String must: A! may: A }";

    fn settled(query: &str, data: serde_json::Value, paths: &[serde_json::Value]) -> String {
        let document = parse_query(query).expect("a document");
        let operation = document
            .operations
            .iter()
            .next()
            .map(|(_, operation)| &operation.node);
        let shape = Shape::of(
            &document,
            operation.expect("an operation"),
            &Costs::new(SDL),
        );
        let mut data = Value::from_json(data).expect("a value");
        let errors: Vec<_> = paths
            .iter()
            .map(|path| {
                let segments =
                    path.as_array()
                        .into_iter()
                        .flatten()
                        .map(|segment| match segment.as_u64() {
                            Some(index) => {
                                PathSegment::Index(usize::try_from(index).expect("an index"))
                            }
                            None => {
                                PathSegment::Field(segment.as_str().expect("a name").to_owned())
                            }
                        });
                ServerError::new("no", None).with_path(segments.collect())
            })
            .collect();
        shape.settle(&mut data, &errors);
        serde_json::to_string(&Ordered(&data, &shape)).expect("JSON")
    }

    #[test]
    fn fields_stand_in_the_order_of_the_document() {
        let query = "{ b { name id } ...F a { id } } fragment F on Query { a { name } x: b { id } b { may { id } } }";
        let data = json!({"x": {"id": 1}, "a": {"id": 2, "name": 3}, "b": {"may": null, "id": 4, "name": 5}});
        assert_eq!(
            settled(query, data, &[]),
            r#"{"b":{"name":5,"id":4,"may":null},"a":{"name":3,"id":2},"x":{"id":1}}"#
        );
    }

    #[test]
    fn a_failed_field_is_null_as_far_out_as_null_is_not_allowed() {
        let all = json!({"a": {"id": 1}, "list": [{"id": 1}, {"id": 2}]});
        for (query, data, path, expected) in [
            (
                "{ a { id name } }",
                &all,
                json!(["a", "name"]),
                r#"{"a":{"id":1,"name":null}}"#,
            ),
            (
                "{ a { id must { id } } }",
                &all,
                json!(["a", "must"]),
                r#"{"a":null}"#,
            ),
            ("{ a { id } b { id } }", &all, json!(["b"]), "null"),
            ("{ a { id } }", &json!(null), json!(["a"]), r#"{"a":null}"#),
            (
                "{ list { id name } }",
                &all,
                json!(["list", 1, "name"]),
                r#"{"list":[{"id":1},{"id":2,"name":null}]}"#,
            ),
            (
                "{ list { id must { id } } }",
                &all,
                json!(["list", 1, "must"]),
                "null",
            ),
            (
                "{ holes { must { id } } }",
                &json!({"holes": [{}, {"must": {"id": 1}}]}),
                json!(["holes", 0, "must"]),
                r#"{"holes":[null,{"must":{"id":1}}]}"#,
            ),
            (
                "{ loose { must { id } } }",
                &json!({"loose": [{}]}),
                json!(["loose", 0, "must"]),
                r#"{"loose":null}"#,
            ),
        ] {
            assert_eq!(settled(query, data.clone(), &[path]), expected, "{query}");
        }
    }
}
