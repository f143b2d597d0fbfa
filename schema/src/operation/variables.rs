//! Checks that [variable usages are
//! allowed](https://spec.graphql.org/September2025/#sec-All-Variable-Usages-Are-Allowed). The compiler checks only
//! whole arguments, and treats a null default as a value. Also checks the literals of custom scalars, all of which the
//! compiler accepts.

use std::collections::{HashMap, HashSet};

use apollo_compiler::{
    ExecutableDocument, Name, Node, Schema,
    ast::{Argument, DirectiveList, InputValueDefinition, Type, Value, VariableDefinition},
    executable::{Operation, Selection, SelectionSet},
    parser::SourceSpan,
};

use crate::{operation::literal::literal, scalar};

/// A usage of a variable.
struct Usage<'a> {
    variable: &'a Name,
    at: Option<SourceSpan>,
    /// `None` inside an object for a custom scalar.
    ty: Option<Type>,
    has_default: bool,
}

/// The usages in an operation or a fragment, without those in fragments that it spreads.
#[derive(Default)]
struct Used<'a> {
    usages: Vec<Usage<'a>>,
    fragments: Vec<&'a Name>,
    /// Literals that their custom scalar rejects.
    misfits: Vec<InvalidUsage>,
}

/// An invalid usage of a variable, or an invalid literal.
#[derive(Clone)]
pub(crate) struct InvalidUsage {
    pub(crate) message: String,
    pub(crate) at: Option<SourceSpan>,
}

/// The invalid usages in the operations of a document.
pub(crate) fn invalid_usages(schema: &Schema, document: &ExecutableDocument) -> Vec<InvalidUsage> {
    let mut of_fragments = HashMap::new();
    for (name, fragment) in &document.fragments {
        let mut used = Used::default();
        used.directives(schema, &fragment.directives);
        used.selections(schema, &fragment.selection_set);
        of_fragments.insert(name, used);
    }
    let operations = document.operations.iter();
    operations
        .flat_map(|operation| of_operation(schema, operation, &of_fragments))
        .collect()
}

fn of_operation(
    schema: &Schema,
    operation: &Node<Operation>,
    of_fragments: &HashMap<&Name, Used<'_>>,
) -> Vec<InvalidUsage> {
    let variables = operation.variables.iter();
    let variables: HashMap<_, _> = variables
        .map(|variable| (&variable.name, variable))
        .collect();
    let mut used = Used::default();
    for variable in &operation.variables {
        if let Some(default) = &variable.default_value {
            used.value(schema, default, Some(&variable.ty), false);
        }
    }
    used.directives(schema, &operation.directives);
    used.selections(schema, &operation.selection_set);
    let mut invalid_usages = used.invalid_usages(&variables);
    let mut fragments = used.fragments;
    let mut seen = HashSet::new();
    while let Some(name) = fragments.pop() {
        if let Some(used) = of_fragments.get(name).filter(|_| seen.insert(name)) {
            invalid_usages.extend(used.invalid_usages(&variables));
            fragments.extend(&used.fragments);
        }
    }
    invalid_usages
}

impl<'a> Used<'a> {
    fn selections(&mut self, schema: &Schema, set: &'a SelectionSet) {
        for selection in &set.selections {
            match selection {
                Selection::Field(field) => {
                    self.arguments(schema, &field.arguments, &field.definition.arguments);
                    self.directives(schema, &field.directives);
                    self.selections(schema, &field.selection_set);
                }
                Selection::FragmentSpread(spread) => {
                    self.directives(schema, &spread.directives);
                    self.fragments.push(&spread.fragment_name);
                }
                Selection::InlineFragment(inline) => {
                    self.directives(schema, &inline.directives);
                    self.selections(schema, &inline.selection_set);
                }
            }
        }
    }

    fn directives(&mut self, schema: &Schema, directives: &'a DirectiveList) {
        for directive in directives {
            if let Some(definition) = schema.directive_definitions.get(&directive.name) {
                self.arguments(schema, &directive.arguments, &definition.arguments);
            }
        }
    }

    fn arguments(
        &mut self,
        schema: &Schema,
        arguments: &'a [Node<Argument>],
        definitions: &[Node<InputValueDefinition>],
    ) {
        for argument in arguments {
            let named = |definition: &&Node<InputValueDefinition>| definition.name == argument.name;
            if let Some(definition) = definitions.iter().find(named) {
                let has_default = definition.default_value.is_some();
                self.value(schema, &argument.value, Some(&definition.ty), has_default);
            }
        }
    }

    fn value(
        &mut self,
        schema: &Schema,
        value: &'a Node<Value>,
        ty: Option<&Type>,
        has_default: bool,
    ) {
        if let Some(message) = ty.and_then(|ty| misfit(schema, value, ty)) {
            let at = value.location();
            self.misfits.push(InvalidUsage { message, at });
        }
        match &**value {
            Value::Variable(variable) => self.usages.push(Usage {
                variable,
                at: value.location(),
                ty: ty.cloned(),
                has_default,
            }),
            Value::List(items) => {
                let of = ty.map(|ty| if ty.is_list() { ty.item_type() } else { ty });
                for item in items {
                    self.value(schema, item, of, false);
                }
            }
            Value::Object(fields) => {
                let input = ty.and_then(|ty| schema.get_input_object(ty.inner_named_type()));
                for (name, value) in fields {
                    let field = input.and_then(|input| input.fields.get(name));
                    let ty = field.map(|field| &*field.ty);
                    let has_default = field.is_some_and(|field| field.default_value.is_some());
                    self.value(schema, value, ty, has_default);
                }
            }
            _ => {}
        }
    }

    fn invalid_usages(
        &self,
        variables: &HashMap<&Name, &Node<VariableDefinition>>,
    ) -> Vec<InvalidUsage> {
        let invalid = self.usages.iter().filter_map(|usage| {
            let name = usage.variable;
            let message = match (variables.get(name), &usage.ty) {
                (None, None) => format!("Variable `${name}` is not defined."),
                (Some(variable), Some(ty)) if !fits(variable, ty, usage.has_default) => format!(
                    "Variable `${name}` of type `{}` cannot be used where type `{ty}` is expected.",
                    variable.ty
                ),
                // The compiler reports the other undefined variables.
                _ => return None,
            };
            let at = usage.at;
            Some(InvalidUsage { message, at })
        });
        invalid.chain(self.misfits.iter().cloned()).collect()
    }
}

/// Why a custom scalar rejects a literal. The executor would report it only after other fields have been executed.
fn misfit(schema: &Schema, value: &Value, ty: &Type) -> Option<String> {
    let is_list = ty.is_list() && value.as_list().is_some();
    if is_list || value.is_null() {
        return None;
    }
    let value = literal(schema, value, ty).into_const()?;
    scalar::misfit(ty.inner_named_type(), value)
}

/// [`IsVariableUsageAllowed`](https://spec.graphql.org/September2025/#IsVariableUsageAllowed()).
fn fits(variable: &VariableDefinition, ty: &Type, place_has_default: bool) -> bool {
    if !ty.is_non_null() || variable.ty.is_non_null() {
        return variable.ty.is_assignable_to(ty);
    }
    let default = variable.default_value.as_ref();
    let has_default = default.is_some_and(|default| !default.is_null());
    (has_default || place_has_default) && variable.ty.is_assignable_to(&ty.clone().nullable())
}
