//! Limits the amount of the schema that an operation reads.
//!
//! The introspection schema has cycles of lists, so a short document can request a response without end. The size of
//! the response is known without execution: each selection is measured once for each type.

use std::collections::HashMap;

use apollo_compiler::{
    Name as ApolloName, Schema,
    ast::{EnumValueDefinition, FieldDefinition, InputValueDefinition, Type},
    executable::Operation,
    schema::{DirectiveDefinition, ExtendedType},
};
use async_graphql_value::{ConstValue, Value as Input};

use crate::{
    error::Error,
    limits::Limits,
    operation::{
        plan::{FieldPlan, Plan, Selection},
        source::too_complex,
        validator::{Validator, Variables},
    },
};

/// The introspection query of common tools, which reads the whole schema.
const WHOLE: &str = "{ __schema { description queryType { name } mutationType { name } subscriptionType { name }
    types { ...T } directives { name description isRepeatable locations args(includeDeprecated: true) { ...I } } } }
  fragment T on __Type { kind name description specifiedByURL isOneOf
    fields(includeDeprecated: true) { name description args(includeDeprecated: true) { ...I } type { ...R }
      isDeprecated deprecationReason }
    inputFields(includeDeprecated: true) { ...I } interfaces { ...R }
    enumValues(includeDeprecated: true) { name description isDeprecated deprecationReason }
    possibleTypes { ...R } }
  fragment I on __InputValue { name description type { ...R } defaultValue isDeprecated deprecationReason }
  fragment R on __Type { kind name ofType { kind name ofType { kind name ofType { kind name ofType { kind name
    ofType { kind name ofType { kind name ofType { kind name ofType { kind name } } } } } } } } }";

/// The number of values from which introspection runs off the async threads.
const LONG: u64 = 2_000;

/// Limits for introspection.
pub(crate) struct Introspection {
    /// Maximum number of values, and of bytes, in one response.
    most: Size,
}

/// The amount of the schema in a response.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    values: u64,
    bytes: u64,
}

impl Size {
    fn and(self, other: Self) -> Self {
        Self {
            values: self.values.saturating_add(other.values),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

impl Introspection {
    /// The limit is twice the size of the whole schema.
    ///
    /// # Errors
    /// The schema cannot be read; the text contains the reason.
    pub(crate) fn new(validator: &Validator, limits: &Limits) -> Result<Self, String> {
        let limits = Limits {
            document_bytes: u64::MAX,
            tokens: u64::MAX,
            introspection: true,
            ..limits.clone()
        };
        let unreadable = || "cannot introspect the schema".to_owned();
        let document = validator.parse(WHOLE, &limits).map_err(|_| unreadable())?;
        let operation: Option<&Operation> =
            document.executable.operations.iter().next().map(|it| &**it);
        let operation = operation.ok_or_else(unreadable)?;
        let plan = Plan::new(validator, &document, operation, &HashMap::new(), u64::MAX);
        let plan = plan.map_err(|_| unreadable())?;
        let whole = size(validator, &plan, &Variables::new());
        Ok(Self {
            most: whole.and(whole),
        })
    }

    /// Whether introspection takes long.
    ///
    /// # Errors
    /// `QUERY_TOO_COMPLEX` for an operation that reads too much.
    pub(crate) fn check(
        &self,
        validator: &Validator,
        plan: &Plan,
        variables: &Variables,
    ) -> Result<bool, Error> {
        let size = size(validator, plan, variables);
        let less = "Request a smaller part of the schema.";
        if size.values > self.most.values {
            let what = "introspection values";
            return Err(too_complex(what, self.most.values, size.values, less));
        }
        if size.bytes > self.most.bytes {
            let what = "bytes of introspection data";
            return Err(too_complex(what, self.most.bytes, size.bytes, less));
        }
        Ok(size.values >= LONG)
    }
}

fn size(validator: &Validator, plan: &Plan, variables: &Variables) -> Size {
    let mut reader = Reader {
        validator,
        schema: validator.schema(),
        variables,
        known: HashMap::new(),
    };
    let mut sum = Size::default();
    for field in plan.roots() {
        let read = match field.name.as_str() {
            "__schema" => reader.selection(&field.selection, Thing::Schema),
            "__type" => reader.named(field),
            _ => continue,
        };
        sum = sum.and(read);
    }
    sum
}

/// An element of the schema.
#[derive(Clone, Copy)]
enum Thing<'a> {
    Schema,
    /// A named type.
    Named(&'a ApolloName),
    /// A list or a non-null type.
    Wrapping(&'a Type),
    Field(&'a FieldDefinition),
    Input(&'a InputValueDefinition),
    EnumValue(&'a EnumValueDefinition),
    Directive(&'a DirectiveDefinition),
}

struct Reader<'a> {
    validator: &'a Validator,
    schema: &'a Schema,
    variables: &'a Variables,
    /// By the address of a selection, and the name of its type.
    known: HashMap<(*const Selection, &'a str), Size>,
}

impl<'a> Reader<'a> {
    fn named(&mut self, field: &FieldPlan) -> Size {
        let name = match field.argument("name") {
            Some(Input::String(name)) => Some(name),
            Some(Input::Variable(name)) => match self.variables.get(name) {
                Some(ConstValue::String(name)) => Some(name),
                _ => None,
            },
            _ => None,
        };
        let found = name.and_then(|name| self.schema.types.get_key_value(name.as_str()));
        match found {
            Some((name, _)) => self.selection(&field.selection, Thing::Named(name)),
            None => Size::default(),
        }
    }

    fn selection(&mut self, selection: &Selection, thing: Thing<'a>) -> Size {
        let Selection::Object(fields) = selection else {
            return Size::default();
        };
        let key = match thing {
            Thing::Named(name) => Some((std::ptr::from_ref(selection), name.as_str())),
            _ => None,
        };
        if let Some(known) = key.and_then(|key| self.known.get(&key)) {
            return *known;
        }
        let mut sum = Size::default();
        for field in fields {
            let size = self.field(field, thing);
            let key = field.key.len() as u64 + 4;
            sum = sum.and(Size {
                values: size.values.saturating_add(1),
                bytes: size.bytes.saturating_add(key),
            });
        }
        if let Some(key) = key {
            self.known.insert(key, sum);
        }
        sum
    }

    fn all(&mut self, field: &FieldPlan, things: impl Iterator<Item = Thing<'a>>) -> Size {
        let sizes = things.map(|thing| {
            let size = self.selection(&field.selection, thing);
            Size {
                values: size.values.saturating_add(1),
                ..size
            }
        });
        sizes.fold(Size::default(), Size::and)
    }

    fn ty(&mut self, field: &FieldPlan, ty: &'a Type) -> Size {
        let thing = match ty {
            Type::Named(name) => Thing::Named(name),
            wrapping => Thing::Wrapping(wrapping),
        };
        self.selection(&field.selection, thing)
    }

    fn field(&mut self, field: &FieldPlan, thing: Thing<'a>) -> Size {
        let text = |text: Option<&str>| Size {
            values: 0,
            bytes: text.map_or(4, |text| text.len() as u64 + 2),
        };
        match (thing, field.name.as_str()) {
            (Thing::Schema, "types") => {
                let types = self.schema.types.keys();
                self.all(field, types.map(Thing::Named))
            }
            (Thing::Schema, "directives") => {
                let directives = self.schema.directive_definitions.values();
                self.all(
                    field,
                    directives.map(|directive| Thing::Directive(directive)),
                )
            }
            (Thing::Schema, "queryType" | "mutationType" | "subscriptionType") => {
                let definition = &self.schema.schema_definition;
                let root = match field.name.as_str() {
                    "queryType" => &definition.query,
                    "mutationType" => &definition.mutation,
                    _ => &definition.subscription,
                };
                let root = root.iter().map(|root| Thing::Named(&root.name));
                self.all(field, root)
            }
            (Thing::Named(name), of) => self.of_type(field, name, of),
            (Thing::Wrapping(ty), "ofType") => match ty {
                Type::NonNullNamed(name) => self.selection(&field.selection, Thing::Named(name)),
                Type::List(of) | Type::NonNullList(of) => self.ty(field, of),
                Type::Named(_) => Size::default(),
            },
            (Thing::Field(definition), "args") => {
                let arguments = definition.arguments.iter();
                self.all(field, arguments.map(|argument| Thing::Input(argument)))
            }
            (Thing::Directive(definition), "args") => {
                let arguments = definition.arguments.iter();
                self.all(field, arguments.map(|argument| Thing::Input(argument)))
            }
            (Thing::Field(definition), "type") => self.ty(field, &definition.ty),
            (Thing::Input(definition), "type") => self.ty(field, &definition.ty),
            (Thing::Field(it), "description") => text(it.description.as_deref()),
            (Thing::Input(it), "description") => text(it.description.as_deref()),
            (Thing::EnumValue(it), "description") => text(it.description.as_deref()),
            (Thing::Directive(it), "description") => text(it.description.as_deref()),
            (Thing::Directive(it), "locations") => Size {
                values: it.locations.len() as u64,
                bytes: it.locations.len() as u64 * 24,
            },
            // Names, kinds and flags.
            _ => Size {
                values: 0,
                bytes: 32,
            },
        }
    }

    fn of_type(&mut self, field: &FieldPlan, name: &'a ApolloName, of: &str) -> Size {
        let ty = self.schema.types.get(name);
        match (of, ty) {
            ("fields", Some(ExtendedType::Object(ty))) => {
                self.all(field, ty.fields.values().map(|field| Thing::Field(field)))
            }
            ("fields", Some(ExtendedType::Interface(ty))) => {
                self.all(field, ty.fields.values().map(|field| Thing::Field(field)))
            }
            ("interfaces", Some(ExtendedType::Object(ty))) => {
                let interfaces = ty.implements_interfaces.iter();
                self.all(
                    field,
                    interfaces.map(|interface| Thing::Named(&interface.name)),
                )
            }
            ("interfaces", Some(ExtendedType::Interface(ty))) => {
                let interfaces = ty.implements_interfaces.iter();
                self.all(
                    field,
                    interfaces.map(|interface| Thing::Named(&interface.name)),
                )
            }
            ("possibleTypes", Some(ExtendedType::Interface(_) | ExtendedType::Union(_))) => {
                let validator = self.validator;
                self.all(field, validator.possible(name).iter().map(Thing::Named))
            }
            ("enumValues", Some(ExtendedType::Enum(ty))) => self.all(
                field,
                ty.values.values().map(|value| Thing::EnumValue(value)),
            ),
            ("inputFields", Some(ExtendedType::InputObject(ty))) => {
                self.all(field, ty.fields.values().map(|input| Thing::Input(input)))
            }
            ("description", Some(ty)) => Size {
                values: 0,
                bytes: ty.description().map_or(4, |text| text.len() as u64 + 2),
            },
            _ => Size {
                values: 0,
                bytes: 32,
            },
        }
    }
}
