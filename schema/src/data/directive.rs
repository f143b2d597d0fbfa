//! The directive that declares the size of a list.

use async_graphql::TypeDirective;

/// Declares the size of a list for the complexity limit.
/// The size is the value of the first slicing argument that is set, or its length if the argument is a list, and the
/// assumed size otherwise. If `sizedFields` is set, the size applies to these fields of the object, as in a connection.
/// See the [cost directive specification](https://ibm.github.io/graphql-specs/cost-spec.html).
#[TypeDirective(name = "listSize", location = "FieldDefinition")]
pub(crate) fn list_size(
    #[graphql(desc = "The size if no slicing argument is set.")] assumed_size: Option<u32>,
    #[graphql(desc = "The arguments that limit the size.")] slicing_arguments: Option<Vec<String>>,
    #[graphql(desc = "The fields of the object to which the size applies.")] sized_fields: Option<
        Vec<String>,
    >,
) {
}
