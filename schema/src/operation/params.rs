//! What a client sends, whatever the transport.

use serde::Deserialize;
use serde_json::Map;

/// What a client sends to have an operation run, whatever the transport.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Params {
    /// The GraphQL document; may be absent when `extensions.persistedQuery` or `documentId` names one.
    #[serde(default)]
    pub query: Option<String>,
    /// Which operation of the document to run.
    #[serde(default)]
    pub operation_name: Option<String>,
    /// Values of the operation's variables.
    #[serde(default)]
    pub variables: Option<Map<String, serde_json::Value>>,
    /// Protocol extensions, such as `persistedQuery`.
    #[serde(default)]
    pub extensions: Option<Map<String, serde_json::Value>>,
    /// The id of a trusted document.
    #[serde(default)]
    pub document_id: Option<String>,
}
