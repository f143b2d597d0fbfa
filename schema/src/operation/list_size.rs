//! The sizes of lists, as declared by `@listSize`.

use apollo_compiler::ast::{FieldDefinition, Value as Literal};
use async_graphql::Name;

/// The size of a field's list, as declared by `@listSize`.
#[derive(Debug, Default)]
pub(crate) struct ListSize {
    pub(super) assumed: Option<u64>,
    pub(super) slicing: Vec<Name>,
    pub(super) sized: Vec<Name>,
}

impl ListSize {
    /// Reads the directive of a field.
    pub(crate) fn declared(definition: &FieldDefinition) -> Self {
        let Some(declared) = definition.directives.get("listSize") else {
            return Self::default();
        };
        let names = |argument: &str| {
            let list = declared.specified_argument_by_name(argument);
            let list = list.and_then(|list| list.as_list()).unwrap_or_default();
            let names = list.iter().filter_map(|name| name.as_str());
            names.map(Name::new).collect()
        };
        let assumed = declared.specified_argument_by_name("assumedSize");
        Self {
            assumed: assumed.and_then(|size| match &**size {
                Literal::Int(size) => size.as_str().parse().ok(),
                _ => None,
            }),
            slicing: names("slicingArguments"),
            sized: names("sizedFields"),
        }
    }
}
