//! Parsing, validation and coercion of variables according to the
//! [specification](https://spec.graphql.org/September2025/): by `apollo-compiler`, and here for the rules that it does
//! not implement.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicU64, Ordering},
};

use apollo_compiler::{
    ExecutableDocument, Name as ApolloName, Node, Schema,
    ast::{self, Definition, Directive, FieldDefinition, Selection, Type, Value},
    executable::Operation,
    introspection::check_max_depth,
    parser::{LineColumn, Parser},
    request::coerce_variable_values,
    response::GraphQLError,
    schema::{Component, ExtendedType},
    validation::{DiagnosticList, Valid},
};
use async_graphql::{ErrorExtensionValues, Name, Pos, ServerError, indexmap::IndexMap};
use async_graphql_value::ConstValue;
use serde_json::{Map, Value as Json};

use crate::{
    error::{Code, Error, Refusal},
    limits::Limits,
    operation::{
        literal::{is_custom, literal},
        merge, source, syntax, variables,
    },
    rate_limit::Tier,
    scalar,
};

/// Maximum number of validation errors in a response.
const MAX_ERRORS: usize = 20;

/// Maximum size of the merged selections of a document, per token that it may have.
const MERGED_PER_TOKEN: u64 = 4;

/// Maximum number of values in the variables of a request.
const MAX_VALUES: u64 = 10_000;

/// Maximum length of a list in a variable.
const MAX_ITEMS: usize = 1_000;

/// Maximum length of a message about a variable, in characters, because the message repeats the value.
const MAX_MESSAGE: usize = 300;

/// Coerced values of variables. A variable without a value and without a default is absent.
pub(crate) type Variables = IndexMap<Name, ConstValue>;

/// The schema, for parsing and validation.
pub(crate) struct Validator {
    schema: Valid<Schema>,
    /// The object types of each object, interface and union type.
    possible: HashMap<ApolloName, Vec<ApolloName>>,
    documents: AtomicU64,
}

/// A valid document.
pub(crate) struct Document {
    /// A unique id, part of the key of the plan cache.
    pub(crate) id: u64,
    pub(crate) executable: Valid<ExecutableDocument>,
    /// The variables in `@skip` and `@include`.
    pub(crate) conditions: Vec<ApolloName>,
}

impl Validator {
    /// Reads the schema.
    ///
    /// # Errors
    /// The schema is invalid; the text contains the reason.
    pub(crate) fn new(sdl: &str) -> Result<Self, String> {
        let schema = Schema::parse(sdl, "schema.graphql");
        let mut schema = schema.map_err(|error| error.errors.to_string())?;
        // A field of the September 2025 specification.
        if let Some(ExtendedType::Object(ty)) = schema.types.get_mut("__Type") {
            let name = ApolloName::new("isOneOf").map_err(|error| error.to_string())?;
            let boolean = ApolloName::new("Boolean").map_err(|error| error.to_string())?;
            let field = FieldDefinition {
                description: None,
                name: name.clone(),
                arguments: Vec::new(),
                ty: Type::Named(boolean),
                directives: ast::DirectiveList::new(),
            };
            ty.make_mut().fields.insert(name, Component::new(field));
        }
        let schema = schema.validate();
        let schema = schema.map_err(|error| error.errors.to_string())?;
        let implementers = schema.implementers_map();
        let mut possible = HashMap::new();
        for (name, ty) in &schema.types {
            let objects = match ty {
                ExtendedType::Object(_) => vec![name.clone()],
                ExtendedType::Interface(_) => {
                    let found = implementers.get(name);
                    let objects = found.into_iter().flat_map(|found| &found.objects);
                    objects.cloned().collect()
                }
                ExtendedType::Union(union) => union
                    .members
                    .iter()
                    .map(|member| member.name.clone())
                    .collect(),
                _ => continue,
            };
            possible.insert(name.clone(), objects);
        }
        Ok(Self {
            schema,
            possible,
            documents: AtomicU64::new(0),
        })
    }

    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The object types that a value of a composite type can have.
    pub(crate) fn possible(&self, ty: &str) -> &[ApolloName] {
        self.possible.get(ty).map_or(&[], Vec::as_slice)
    }

    /// The declared tiers of the root fields.
    pub(crate) fn tiers(&self) -> HashMap<String, Tier> {
        let definition = &self.schema.schema_definition;
        let roots = [
            &definition.query,
            &definition.mutation,
            &definition.subscription,
        ];
        let types = roots.into_iter().flatten();
        let objects = types.filter_map(|root| self.schema.get_object(&root.name));
        let fields = objects.flat_map(|object| object.fields.values());
        let tiers = fields.filter_map(|field| {
            let declared = field.directives.get("rateLimit")?;
            let tier = declared.specified_argument_by_name("tier")?.as_enum()?;
            Some((field.name.to_string(), Tier::declared(tier)?))
        });
        tiers.collect()
    }

    /// Parses and validates a document.
    ///
    /// # Errors
    /// A request error, ready to be sent.
    pub(crate) fn parse(&self, text: &str, limits: &Limits) -> Result<Document, Refusal> {
        let bytes = text.len() as u64;
        if bytes > limits.document_bytes {
            let limit = limits.document_bytes;
            return Err(
                source::too_complex("bytes", limit, bytes, "Send a shorter document.").into(),
            );
        }
        let (tokens, end) = source::divide(text);
        source::check(text, &tokens, limits)?;
        let plain = end.and_then(|()| syntax::check(text, &tokens));
        let plain = plain.map_err(|failed| {
            let message = format!("Syntax error: {}.", failed.message);
            let place = failed.place(text);
            Refusal(vec![error(&message, vec![place], Code::ParseFailed)])
        })?;
        let parsed = Parser::new()
            .recursion_limit(4 * source::MAX_NESTING)
            .parse_ast(plain, "document");
        let parsed = parsed.map_err(|failed| refused(&failed.errors, Code::ParseFailed))?;
        let built = parsed.to_executable(&self.schema);
        let built = built.unwrap_or_else(|failed| failed.partial);
        let most = limits.tokens.saturating_mul(MERGED_PER_TOKEN);
        let conflicts = merge::conflicts(&self.schema, &built, most).map_err(|size| {
            let advice = "Use fewer fragments.";
            source::too_complex("selections and values in its fragments", most, size, advice)
        })?;
        let executable = match parsed.to_executable_validate(&self.schema) {
            Ok(valid) => valid,
            Err(failed) if only_equal_roots(&failed.errors, &failed.partial) => {
                Valid::assume_valid(failed.partial)
            }
            Err(failed) => return Err(refused(&failed.errors, Code::ValidationFailed)),
        };
        let mut found = Checker {
            document: &executable,
            conditions: HashSet::new(),
            errors: Vec::new(),
            introspection: limits.introspection,
        };
        for conflict in conflicts {
            let message = format!(
                "Operation must not provide conflicting field arguments for the same name `{}`.",
                conflict.name
            );
            found.refuse(&message, conflict.at);
        }
        for usage in variables::invalid_usages(&self.schema, &executable) {
            found.refuse(&usage.message, usage.at);
        }
        found.definitions(&parsed);
        if !found.errors.is_empty() {
            return Err(Refusal(found.errors));
        }
        let conditions = found.conditions.into_iter().cloned().collect();
        for operation in executable.operations.iter() {
            check_max_depth(&executable, operation).map_err(|_| {
                let message = "Introspection list fields can be nested at most two levels deep.";
                Error::new(Code::QueryTooComplex, message)
            })?;
        }
        Ok(Document {
            id: self.documents.fetch_add(1, Ordering::Relaxed),
            executable,
            conditions,
        })
    }

    /// The values of an operation's variables, with defaults, coerced to the declared types.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` for a value that does not match the type of its variable.
    pub(crate) fn coerce(
        &self,
        operation: &Operation,
        values: Map<String, Json>,
    ) -> Result<Variables, Error> {
        if operation.variables.is_empty() {
            return Ok(Variables::new());
        }
        let mut count = 0;
        for variable in &operation.variables {
            if let Some(value) = values.get(variable.name.as_str()) {
                check_size(value, &mut count).map_err(|error| error.field(&variable.name))?;
            }
        }
        let raw = values.into_iter().filter_map(|(name, value)| {
            Some((
                apollo_compiler::response::serde_json_bytes::ByteString::from(name),
                apollo_compiler::response::serde_json_bytes::to_value(value).ok()?,
            ))
        });
        let raw = raw.collect();
        let coerced = coerce_variable_values(&self.schema, operation, &raw);
        let coerced = coerced.map_err(|error| {
            let message = sentence(&error.message().to_string());
            let refusal = Error::bad_input(match message.char_indices().nth(MAX_MESSAGE) {
                Some((end, _)) => format!("{}…", &message[..end]),
                None => message,
            });
            // The error does not name the variable.
            let mut alone = operation.clone();
            let named = operation.variables.iter().find(|variable| {
                alone.variables = vec![Node::clone(variable)];
                coerce_variable_values(&self.schema, &alone, &raw).is_err()
            });
            match named {
                Some(variable) => refusal.field(variable.name.as_str()),
                None => refusal,
            }
        })?;
        let mut variables = Variables::with_capacity(coerced.len());
        for (name, value) in coerced.iter() {
            let value = serde_json::to_value(value).ok();
            let value = value.and_then(|value| ConstValue::from_json(value).ok());
            variables.insert(Name::new(name.as_str()), value.unwrap_or_default());
        }
        for variable in &operation.variables {
            let name = variable.name.as_str();
            let Some(value) = variables.get_mut(name) else {
                continue;
            };
            if let Some(default) = &variable.default_value
                && !raw.contains_key(name)
                && is_custom(&self.schema, variable.ty.inner_named_type())
            {
                // A literal keeps the digits of a number.
                *value = literal(&self.schema, default, &variable.ty)
                    .into_const()
                    .unwrap_or_default();
            }
            if let Some(message) = self.misfit(value, &variable.ty) {
                return Err(Error::bad_input(sentence(&message)).field(name));
            }
        }
        Ok(variables)
    }

    /// Why a custom scalar in a coerced value rejects its value.
    fn misfit(&self, value: &ConstValue, ty: &Type) -> Option<String> {
        match value {
            ConstValue::Null => None,
            ConstValue::List(items) if ty.is_list() => {
                let mut items = items.iter();
                items.find_map(|item| self.misfit(item, ty.item_type()))
            }
            value => {
                let named = ty.inner_named_type();
                match (value, self.schema.get_input_object(named)) {
                    (ConstValue::Object(fields), Some(input)) => {
                        fields.iter().find_map(|(name, value)| {
                            self.misfit(value, &input.fields.get(name.as_str())?.ty)
                        })
                    }
                    _ => scalar::misfit(named, value.clone()),
                }
            }
        }
    }
}

/// Limits the values of variables, which the token limit of the document does not cover.
fn check_size(value: &Json, count: &mut u64) -> Result<(), Error> {
    *count += 1;
    if *count > MAX_VALUES {
        let message = format!("The variables have more than {MAX_VALUES} values. Send fewer.");
        return Err(Error::bad_input(message));
    }
    match value {
        Json::Array(items) if items.len() > MAX_ITEMS => {
            let (actual, most) = (items.len(), MAX_ITEMS);
            let message = format!("A list has {actual} items; the limit is {most}.");
            Err(Error::bad_input(message))
        }
        Json::Array(items) => items.iter().try_for_each(|item| check_size(item, count)),
        Json::Object(fields) => {
            let mut values = fields.values();
            values.try_for_each(|value| check_size(value, count))
        }
        _ => Ok(()),
    }
}

/// The error's text as a sentence.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters
        .next()
        .map(|letter| letter.to_uppercase().to_string());
    let end = if text.ends_with('.') { "" } else { "." };
    format!("{}{}{end}", first.unwrap_or_default(), letters.as_str())
}

fn place(at: LineColumn) -> Pos {
    Pos {
        line: at.line,
        column: at.column,
    }
}

/// Whether the compiler refuses nothing but subscriptions with one root field that occurs several times. The
/// [specification](https://spec.graphql.org/September2025/#sec-Single-Root-Field) counts equal response names once.
fn only_equal_roots(diagnostics: &DiagnosticList, document: &ExecutableDocument) -> bool {
    let has_one_root = |operation: &Node<Operation>| {
        let keys = operation.root_fields(document);
        keys.map(|field| field.response_key())
            .collect::<HashSet<_>>()
            .len()
            == 1
    };
    let mut subscriptions = document
        .operations
        .iter()
        .filter(|operation| operation.is_subscription());
    let mut errors = diagnostics
        .iter()
        .map(|diagnostic| diagnostic.error.unstable_error_name());
    errors.all(|name| name == Some("SubscriptionUsesMultipleFields"))
        && subscriptions.all(has_one_root)
}

/// The response to a refused document. Reports only the first syntax error.
fn refused(diagnostics: &DiagnosticList, code: Code) -> Refusal {
    let most = if code == Code::ParseFailed {
        1
    } else {
        MAX_ERRORS
    };
    let errors = diagnostics.iter().take(most).map(|diagnostic| {
        let GraphQLError {
            message, locations, ..
        } = diagnostic.to_json();
        let places = locations.into_iter().map(place).collect();
        error(&sentence(&message), places, code)
    });
    Refusal(errors.collect())
}

fn error(message: &str, places: Vec<Pos>, code: Code) -> ServerError {
    let mut refused = ServerError::new(message, None);
    refused.locations = places;
    let mut extensions = ErrorExtensionValues::default();
    extensions.set("code", code.as_str());
    refused.extensions = Some(extensions);
    refused
}

/// Checks a document that the compiler accepted.
struct Checker<'a> {
    document: &'a ExecutableDocument,
    conditions: HashSet<&'a ApolloName>,
    errors: Vec<ServerError>,
    /// Whether introspection is allowed.
    introspection: bool,
}

impl<'a> Checker<'a> {
    fn definitions(&mut self, document: &'a ast::Document) {
        for definition in &document.definitions {
            match definition {
                Definition::OperationDefinition(operation) => {
                    for variable in &operation.variables {
                        if let Some(value) = &variable.default_value {
                            self.value(value);
                        }
                    }
                    self.selections(&operation.selection_set);
                }
                Definition::FragmentDefinition(fragment) => {
                    self.selections(&fragment.selection_set);
                }
                _ => {}
            }
        }
    }

    fn selections(&mut self, selections: &'a [Selection]) {
        for selection in selections {
            match selection {
                Selection::Field(field) => {
                    let reads_schema = matches!(field.name.as_str(), "__schema" | "__type");
                    if reads_schema && !self.introspection {
                        let message = format!(
                            "Introspection is disabled: `{}` cannot be selected.",
                            field.name
                        );
                        self.refuse(&message, field.location());
                    }
                    for argument in &field.arguments {
                        self.value(&argument.value);
                    }
                    self.directives(&field.directives);
                    self.selections(&field.selection_set);
                }
                Selection::FragmentSpread(spread) => self.directives(&spread.directives),
                Selection::InlineFragment(inline) => {
                    self.directives(&inline.directives);
                    self.selections(&inline.selection_set);
                }
            }
        }
    }

    fn directives(&mut self, directives: &'a [Node<Directive>]) {
        let conditions = directives
            .iter()
            .filter(|directive| matches!(directive.name.as_str(), "skip" | "include"))
            .filter_map(|directive| directive.specified_argument_by_name("if")?.as_variable());
        self.conditions.extend(conditions);
    }

    /// Reports [duplicate input fields](https://spec.graphql.org/September2025/#sec-Input-Object-Field-Uniqueness).
    fn value(&mut self, value: &'a Node<Value>) {
        match &**value {
            Value::List(items) => {
                for item in items {
                    self.value(item);
                }
            }
            Value::Object(fields) => {
                let mut names = HashSet::new();
                for (name, value) in fields {
                    if !names.insert(name) {
                        let message = format!("There can be only one input field named `{name}`.");
                        self.refuse(&message, name.location());
                    }
                    self.value(value);
                }
            }
            _ => {}
        }
    }

    fn refuse(&mut self, message: &str, at: Option<apollo_compiler::parser::SourceSpan>) {
        if self.errors.len() == MAX_ERRORS {
            return;
        }
        let at = at.and_then(|at| at.line_column(&self.document.sources));
        let places = at.map(place).into_iter().collect();
        self.errors
            .push(error(message, places, Code::ValidationFailed));
    }
}
