//! Builds the document for the executor from a plan and the values of its variables: without directives and variables,
//! and only with fragments that depend on the type of a value.

use std::{collections::HashMap, sync::Arc};

use async_graphql::{
    Name, Pos, Positioned,
    parser::types::{
        DocumentOperations, ExecutableDocument, Field, InlineFragment, OperationDefinition,
        Selection as Executed, SelectionSet, TypeCondition,
    },
};
use async_graphql_value::Value as Input;

use crate::operation::{
    plan::{FieldPlan, Plan, Selection},
    validator::Variables,
};

/// The response key under which the executor returns the type of an object. Clients cannot use it.
pub(crate) const TYPE_KEY: &str = "";

/// The document for the executor, without the root fields with these keys.
pub(crate) fn bind(plan: &Plan, variables: &Variables, refused: &[Name]) -> ExecutableDocument {
    let roots = plan.roots().iter();
    let roots = roots.filter(|root| !refused.contains(&root.key));
    let mut items: Vec<_> = roots.map(|root| field(root, variables)).collect();
    if items.is_empty() {
        items.push(type_name());
    }
    let operation = OperationDefinition {
        ty: plan.kind,
        variable_definitions: Vec::new(),
        directives: Vec::new(),
        selection_set: at(Pos::default(), SelectionSet { items }),
    };
    ExecutableDocument {
        operations: DocumentOperations::Single(at(Pos::default(), operation)),
        fragments: HashMap::new(),
    }
}

fn at<T>(place: Pos, node: T) -> Positioned<T> {
    Positioned::new(node, place)
}

fn type_name() -> Positioned<Executed> {
    let place = Pos::default();
    let field = Field {
        alias: Some(at(place, Name::new(TYPE_KEY))),
        name: at(place, Name::new("__typename")),
        arguments: Vec::new(),
        directives: Vec::new(),
        selection_set: Positioned::default(),
    };
    at(place, Executed::Field(at(place, field)))
}

fn selection(selection: &Selection, variables: &Variables) -> SelectionSet {
    let items = match selection {
        Selection::Leaf => Vec::new(),
        Selection::Object(fields) => {
            // The executor returns null for an object without fields, also if all of them failed.
            let may_be_empty = fields.iter().all(|field| !field.ty.is_non_null());
            let name = may_be_empty.then(type_name);
            let fields = fields.iter().map(|part| field(part, variables));
            name.into_iter().chain(fields).collect()
        }
        Selection::Abstract(selection) => {
            let mut items = vec![type_name()];
            let mut by_type: Vec<(&Name, Vec<&Arc<FieldPlan>>)> = Vec::new();
            for (types, part) in &selection.parts {
                let Some(types) = types else {
                    items.push(field(part, variables));
                    continue;
                };
                for ty in types {
                    match by_type.iter_mut().find(|(known, _)| *known == ty) {
                        Some((_, fields)) => fields.push(part),
                        None => by_type.push((ty, vec![part])),
                    }
                }
            }
            let place = Pos::default();
            items.extend(by_type.into_iter().map(|(ty, fields)| {
                let fields = fields.into_iter().map(|part| field(part, variables));
                let inline = InlineFragment {
                    type_condition: Some(at(
                        place,
                        TypeCondition {
                            on: at(place, ty.clone()),
                        },
                    )),
                    directives: Vec::new(),
                    selection_set: at(
                        place,
                        SelectionSet {
                            items: fields.collect(),
                        },
                    ),
                };
                at(place, Executed::InlineFragment(at(place, inline)))
            }));
            items
        }
    };
    SelectionSet { items }
}

fn field(plan: &FieldPlan, variables: &Variables) -> Positioned<Executed> {
    let place = plan.place;
    // An argument whose variable is absent gets its default.
    let arguments = plan.arguments.iter().filter_map(|(name, value)| {
        Some((
            at(place, name.clone()),
            at(place, value_of(value, variables)?),
        ))
    });
    let field = Field {
        alias: (plan.key != plan.name).then(|| at(place, plan.key.clone())),
        name: at(place, plan.name.clone()),
        arguments: arguments.collect(),
        directives: Vec::new(),
        selection_set: at(place, selection(&plan.selection, variables)),
    };
    at(place, Executed::Field(at(place, field)))
}

/// A value with its variables replaced; `None` for a variable without a value.
pub(crate) fn value_of(value: &Input, variables: &Variables) -> Option<Input> {
    Some(match value {
        Input::Variable(name) => variables.get(name)?.clone().into_value(),
        Input::List(items) => {
            let items = items.iter().map(|item| value_of(item, variables));
            Input::List(items.map(Option::unwrap_or_default).collect())
        }
        Input::Object(fields) => {
            let fields = fields.iter();
            let fields = fields
                .filter_map(|(name, value)| Some((name.clone(), value_of(value, variables)?)));
            Input::Object(fields.collect())
        }
        value => value.clone(),
    })
}
