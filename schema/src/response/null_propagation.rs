//! The rules of the response format that the executor does not follow.
//!
//! async-graphql 7.2 returns fields in the order in which they complete, and omits a field that failed. The
//! [specification](https://spec.graphql.org/September2025/#sec-Response-Format) requires the order of the document,
//! null for a failed field, and, if null is not allowed, null for the nearest enclosing field that is nullable.

use apollo_compiler::ast::Type;
use async_graphql::{Name, PathSegment, ServerError, Value, indexmap::IndexMap};
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    json::{write_json, write_key},
    operation::{
        bind::TYPE_KEY,
        plan::{Abstract, FieldPlan, Plan, Selection},
    },
};

impl Abstract {
    /// The fields of an object, in order.
    fn of<'a>(&'a self, object: &IndexMap<Name, Value>) -> impl Iterator<Item = &'a FieldPlan> {
        let fields = match object.get(TYPE_KEY) {
            Some(Value::String(ty)) => self.by_type.get(ty.as_str()),
            _ => None,
        };
        fields
            .into_iter()
            .flat_map(|fields| &**fields)
            .map(|field| &**field)
    }
}

/// Sets failed fields to null, according to the errors.
pub(crate) fn propagate_nulls(plan: &Plan, data: &mut Value, errors: &[ServerError]) {
    let paths: Vec<_> = errors
        .iter()
        .map(|error| &error.path[..])
        .filter(|path| !path.is_empty())
        .collect();
    if paths.is_empty() {
        return;
    }
    if *data == Value::Null {
        *data = Value::Object(IndexMap::new());
    }
    if !in_object(&plan.root, data, &paths) {
        *data = Value::Null;
    }
}

/// Whether the object is valid now; if not, it becomes null.
fn in_object(selection: &Selection, value: &mut Value, paths: &[&[PathSegment]]) -> bool {
    // The error is of a field of this object, or of the object itself.
    let Value::Object(object) = value else {
        return *value != Value::Null;
    };
    match selection {
        Selection::Leaf => true,
        Selection::Object(fields) => fields.iter().all(|field| in_field(field, object, paths)),
        Selection::Abstract(selection) => {
            let fields: Vec<_> = selection.of(object).collect();
            fields
                .into_iter()
                .all(|field| in_field(field, object, paths))
        }
    }
}

fn in_field(
    field: &FieldPlan,
    object: &mut IndexMap<Name, Value>,
    paths: &[&[PathSegment]],
) -> bool {
    let key = &field.key;
    let below = below(
        paths,
        |segment| matches!(segment, PathSegment::Field(name) if *name == key.as_str()),
    );
    if below.is_empty() {
        return true;
    }
    let stays = object
        .get_mut(key)
        .is_some_and(|value| in_value(&field.selection, value, &field.ty, &below));
    if !stays {
        if field.ty.is_non_null() {
            return false;
        }
        object.insert(key.clone(), Value::Null);
    }
    true
}

fn in_value(selection: &Selection, value: &mut Value, ty: &Type, paths: &[&[PathSegment]]) -> bool {
    let (Value::List(items), true) = (&mut *value, ty.is_list()) else {
        return in_object(selection, value, paths);
    };
    let of = ty.item_type();
    for (place, item) in items.iter_mut().enumerate() {
        let below = below(
            paths,
            |segment| matches!(segment, PathSegment::Index(index) if *index == place),
        );
        if !below.is_empty() && !in_value(selection, item, of, &below) {
            if of.is_non_null() {
                return false;
            }
            *item = Value::Null;
        }
    }
    true
}

/// The remaining paths after a leading segment.
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

/// A value in the order of its selection.
struct Ordered<'a>(&'a Value, &'a Selection);

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(value, selection) = self;
        match (value, selection) {
            (value, Selection::Leaf) => value.serialize(serializer),
            (Value::Object(object), Selection::Object(fields)) => {
                in_order(object, fields.iter().map(|field| &**field), serializer)
            }
            (Value::Object(object), Selection::Abstract(selection)) => {
                in_order(object, selection.of(object), serializer)
            }
            (Value::List(items), selection) => {
                serializer.collect_seq(items.iter().map(|item| Self(item, selection)))
            }
            (value, _) => value.serialize(serializer),
        }
    }
}

fn in_order<'a, S: Serializer>(
    object: &IndexMap<Name, Value>,
    fields: impl Iterator<Item = &'a FieldPlan>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    for field in fields {
        if let Some(value) = object.get(&field.key) {
            map.serialize_entry(field.key.as_str(), &Ordered(value, &field.selection))?;
        }
    }
    map.end()
}

/// Root fields that are JSON already, by response key.
pub(crate) type Written = Vec<(Name, Vec<u8>)>;

impl Plan {
    /// Writes the data of a response in the order of the document. Null replaces all of it.
    pub(crate) fn write(&self, data: &Value, written: &Written, out: &mut Vec<u8>) {
        let Value::Object(object) = data else {
            return write_json(out, data);
        };
        out.push(b'{');
        for field in self.roots() {
            let key = &field.key;
            if let Some((_, json)) = written.iter().find(|(name, _)| name == key) {
                write_key(out, key);
                out.extend_from_slice(json);
            } else if let Some(value) = object.get(key) {
                write_key(out, key);
                write_json(out, &Ordered(value, &field.selection));
            }
        }
        out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::*;
    use crate::operation::{Validator, bind, plan::Plan};

    const SDL: &str = "type Query { a: A b: A! list: [A!]! holes: [A] loose: [A!] n: N }
        interface N { id: ID! }
        type A implements N { id: ID! name: String must: A! may: A }
        type B implements N { id: ID! name: String }";

    fn plan(query: &str) -> Plan {
        let front = Validator::new(SDL).expect("a schema");
        let limits = crate::limits::Limits {
            document_bytes: 10_000,
            tokens: 1_000,
            root_fields: 100,
            aliases: 100,
            depth: 100,
            complexity: 1_000,
            text_bytes: 1_000,
            timeout: std::time::Duration::from_secs(1),
            parsed_documents: 1,
            compiled_queries: 1,
            persisted_queries: 1,
            introspection: true,
        };
        let document = front.parse(query, &limits).expect("a document");
        let operation = document.executable.operations.get(None);
        let operation = operation.expect("an operation");
        let plan = Plan::new(&front, &document, operation, &HashMap::new(), 1_000);
        let Ok(plan) = plan else { panic!("{query}") };
        plan
    }

    fn text(plan: &Plan, data: &Value, written: &Written) -> String {
        let mut out = Vec::new();
        plan.write(data, written, &mut out);
        String::from_utf8(out).expect("UTF-8")
    }

    fn answered(query: &str, data: serde_json::Value, paths: &[serde_json::Value]) -> String {
        let plan = plan(query);
        let mut data = Value::from_json(data).expect("a value");
        let segment = |segment: &serde_json::Value| match segment.as_u64() {
            Some(index) => PathSegment::Index(usize::try_from(index).expect("an index")),
            None => PathSegment::Field(segment.as_str().expect("a name").to_owned()),
        };
        let errors: Vec<_> = paths
            .iter()
            .map(|path| {
                let segments = path.as_array().into_iter().flatten().map(segment);
                ServerError::new("no", None).with_path(segments.collect())
            })
            .collect();
        propagate_nulls(&plan, &mut data, &errors);
        text(&plan, &data, &Written::new())
    }

    #[test]
    fn fields_follow_the_order_of_the_document() {
        let query = "{ b { name id } ...F a { id } } fragment F on Query { a { name } x: b { id } b { may { id } } }";
        let data = json!({"x": {"id": 1}, "a": {"id": 2, "name": 3}, "b": {"may": null, "id": 4, "name": 5}});
        assert_eq!(
            answered(query, data, &[]),
            r#"{"b":{"name":5,"id":4,"may":null},"a":{"name":3,"id":2},"x":{"id":1}}"#
        );
    }

    #[test]
    fn fields_that_are_json_already_follow_the_order_of_the_document() {
        let plan = plan("{ b { id } a { name } x: b { id } }");
        let data = json!({"a": {"name": "\""}});
        let data = Value::from_json(data).expect("a value");
        let written = ["x", "b"].map(|key| (Name::new(key), format!("[\"{key}\"]").into_bytes()));
        assert_eq!(
            text(&plan, &data, &written.to_vec()),
            r#"{"b":["b"],"a":{"name":"\""},"x":["x"]}"#
        );
        assert_eq!(text(&plan, &Value::Null, &written.to_vec()), "null");
    }

    #[test]
    fn the_field_order_depends_on_the_concrete_type() {
        let query = "{ n { ... on A { name id } ... on B { id name } } }";
        for (ty, expected) in [
            ("A", r#"{"n":{"name":2,"id":1}}"#),
            ("B", r#"{"n":{"id":1,"name":2}}"#),
        ] {
            let data = json!({"n": {"": ty, "id": 1, "name": 2}});
            assert_eq!(answered(query, data, &[]), expected);
        }
    }

    #[test]
    fn equal_fields_are_executed_once() {
        let query = "{ a { id } ...F a { name } n { id ... on A { id name } } } fragment F on Query { a { id may { id } } }";
        let document = bind(&plan(query), &crate::operation::Variables::new(), &[]);
        let operation = document.operations.iter().next().expect("an operation").1;
        assert_eq!(operation.node.selection_set.node.items.len(), 2);
    }

    #[test]
    fn a_failed_field_nulls_its_nearest_nullable_parent() {
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
            // The executor has already returned null for the item.
            (
                "{ list { must { id } } }",
                &json!({"list": [null, null]}),
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
            assert_eq!(answered(query, data.clone(), &[path]), expected, "{query}");
        }
    }
}
