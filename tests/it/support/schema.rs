//! The schema as introspection shows it, from which other tests generate operations.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::server::TestServer;

const QUERY: &str = "{ __schema { types { kind name possibleTypes { name } interfaces { name }
    inputFields { name defaultValue type { ...T } } enumValues { name }
    fields(includeDeprecated: true) { name type { ...T } args { name defaultValue type { ...T } } } } } }
  fragment T on __Type { kind name ofType { kind name ofType { kind name ofType { kind name } } } }";

/// All types by name.
pub(crate) struct Schema {
    types: BTreeMap<String, Type>,
}

/// A type of the schema.
pub(crate) struct Type {
    pub(crate) kind: String,
    /// The fields of an object or interface.
    pub(crate) fields: Vec<Field>,
    /// The fields of an input object.
    pub(crate) inputs: Vec<Argument>,
    /// The values of an enum.
    values: Vec<String>,
    /// The object types of an interface or union.
    pub(crate) possible: Vec<String>,
    /// The interfaces of an object.
    pub(crate) interfaces: Vec<String>,
}

/// A field of an object or interface.
pub(crate) struct Field {
    pub(crate) name: String,
    ty: String,
    pub(crate) arguments: Vec<Argument>,
}

/// An argument of a field, or a field of an input object.
pub(crate) struct Argument {
    pub(crate) name: String,
    /// In the notation of the schema definition language.
    pub(crate) ty: String,
    has_default: bool,
}

/// The name of a type without its list and non-null wrappers.
fn named(ty: &str) -> &str {
    ty.trim_matches(['[', ']', '!'])
}

impl Field {
    /// The name of the field's type, without lists.
    pub(crate) fn named(&self) -> &str {
        named(&self.ty)
    }

    /// The argument with this name.
    pub(crate) fn argument(&self, name: &str) -> Option<&Argument> {
        self.arguments.iter().find(|argument| argument.name == name)
    }

    /// The required arguments.
    pub(crate) fn required(&self) -> impl Iterator<Item = &Argument> {
        self.arguments
            .iter()
            .filter(|argument| argument.is_required())
    }
}

impl Argument {
    /// The name of the argument's type, without lists.
    pub(crate) fn named(&self) -> &str {
        named(&self.ty)
    }

    /// The value in as many lists as the argument's type has.
    pub(crate) fn wrapped(&self, value: Value) -> Value {
        let lists = self.ty.matches('[').count();
        (0..lists).fold(value, |value, _| json!([value]))
    }

    pub(crate) fn is_required(&self) -> bool {
        self.ty.ends_with('!') && !self.has_default
    }
}

impl Schema {
    pub(crate) async fn of(server: &TestServer) -> Self {
        let answer = server.anonymous().answer(QUERY, json!({})).await;
        let types = list(&answer["data"]["__schema"]["types"]);
        let types = types.map(|ty| {
            let known = Type {
                kind: text(&ty["kind"]),
                fields: list(&ty["fields"]).map(field).collect(),
                inputs: list(&ty["inputFields"]).map(argument).collect(),
                values: list(&ty["enumValues"])
                    .map(|value| text(&value["name"]))
                    .collect(),
                possible: list(&ty["possibleTypes"])
                    .map(|ty| text(&ty["name"]))
                    .collect(),
                interfaces: list(&ty["interfaces"])
                    .map(|ty| text(&ty["name"]))
                    .collect(),
            };
            (text(&ty["name"]), known)
        });
        let types: BTreeMap<_, _> = types.collect();
        assert!(types.contains_key("Query"), "{answer}");
        Self { types }
    }

    pub(crate) fn get(&self, name: &str) -> &Type {
        self.types
            .get(name)
            .unwrap_or_else(|| panic!("no type is called {name}"))
    }

    /// The first value of an enum.
    pub(crate) fn first_value(&self, name: &str) -> &str {
        let first = self.get(name).values.first();
        first.unwrap_or_else(|| panic!("{name} has values"))
    }

    /// A selection of the type's fields that take no arguments and have no subfields.
    pub(crate) fn selection(&self, name: &str) -> String {
        let fields = self.get(name).fields.iter();
        let plain =
            fields.filter(|field| field.arguments.is_empty() && !self.is_composite(field.named()));
        let names: Vec<_> = plain.map(|field| field.name.as_str()).collect();
        let nodes = self
            .field(name, "nodes")
            .map_or("", |_| "nodes { __typename }");
        format!("{{ __typename {} {nodes} }}", names.join(" "))
    }

    /// Whether the type has fields.
    pub(crate) fn is_composite(&self, name: &str) -> bool {
        matches!(&*self.get(name).kind, "OBJECT" | "INTERFACE" | "UNION")
    }

    pub(crate) fn is_abstract(&self, name: &str) -> bool {
        self.is_composite(name) && self.get(name).kind != "OBJECT"
    }

    /// Whether the type is abstract or implements `Node`.
    pub(crate) fn is_node(&self, name: &str) -> bool {
        self.is_abstract(name) || self.get(name).interfaces.iter().any(|is| is == "Node")
    }

    pub(crate) fn field(&self, ty: &str, name: &str) -> Option<&Field> {
        self.get(ty).fields.iter().find(|field| field.name == name)
    }

    /// The type of the nodes of a connection.
    pub(crate) fn node_of(&self, connection: &str) -> Option<&str> {
        let edge = self.field(connection, "edges")?.named();
        Some(self.field(edge, "node")?.named())
    }

    /// The object types that a query can reach.
    pub(crate) fn reachable(&self) -> BTreeSet<&str> {
        let mut reached = BTreeSet::new();
        let mut waiting = vec!["Query"];
        while let Some(name) = waiting.pop() {
            if !self.is_composite(name) || !reached.insert(name) {
                continue;
            }
            let ty = self.get(name);
            waiting.extend(ty.fields.iter().map(Field::named));
            waiting.extend(ty.possible.iter().map(String::as_str));
        }
        reached.retain(|name| !self.is_abstract(name));
        reached
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

fn ty(reference: &Value) -> String {
    match reference["kind"].as_str() {
        Some("NON_NULL") => format!("{}!", ty(&reference["ofType"])),
        Some("LIST") => format!("[{}]", ty(&reference["ofType"])),
        _ => text(&reference["name"]),
    }
}

fn field(value: &Value) -> Field {
    Field {
        name: text(&value["name"]),
        ty: ty(&value["type"]),
        arguments: list(&value["args"]).map(argument).collect(),
    }
}

fn argument(value: &Value) -> Argument {
    Argument {
        name: text(&value["name"]),
        ty: ty(&value["type"]),
        has_default: !value["defaultValue"].is_null(),
    }
}
