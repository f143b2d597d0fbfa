//! The parameters of a request, independent of the transport.

use serde::Deserialize;
use serde_json::Map;

/// The parameters of a GraphQL request, in every transport.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Params {
    /// The GraphQL document; may be absent if `extensions.persistedQuery` or `documentId` refers to one.
    #[serde(default)]
    pub query: Option<String>,
    /// The name of the operation to run.
    #[serde(default)]
    pub operation_name: Option<String>,
    /// The values of the operation's variables.
    #[serde(default)]
    pub variables: Option<Map<String, serde_json::Value>>,
    /// Protocol extensions, such as `persistedQuery`.
    #[serde(default)]
    pub extensions: Option<Map<String, serde_json::Value>>,
    /// The id of a trusted document.
    #[serde(default)]
    pub document_id: Option<String>,
}
