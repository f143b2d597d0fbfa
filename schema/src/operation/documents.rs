//! Documents: sent, persisted, or trusted by the operator.

use std::{collections::HashMap, sync::Arc};

use serde_json::{Map, json};
use sha2::{Digest, Sha256};

use crate::{
    cache::{Cache, CacheStats},
    error::{Code, Error, Refusal},
    limits::Limits,
    operation::{Document, Validator},
    text,
};

gathering_settings::choice! {
    /// The treatment of operations that are not in the manifest.
    pub enum Trust {
        /// No manifest is used.
        Any = "off",
        /// They run and are logged.
        Audit = "audit",
        /// They are refused.
        Enforce = "enforce",
    }
}

/// The documents that the server's operator trusts.
#[derive(Clone, Debug)]
pub struct TrustedDocuments {
    /// How other documents are treated.
    pub trust: Trust,
    /// The documents by id.
    pub documents: HashMap<String, Arc<str>>,
}

/// The hash of an automatic persisted query, in lower-case hexadecimal.
pub(crate) fn persisted_hash(
    extensions: Option<&Map<String, serde_json::Value>>,
) -> Result<Option<String>, Error> {
    let Some(persisted) = extensions.and_then(|extensions| extensions.get("persistedQuery")) else {
        return Ok(None);
    };
    let hash = persisted
        .get("sha256Hash")
        .and_then(serde_json::Value::as_str);
    let is_known = persisted.get("version") == Some(&json!(1));
    match hash {
        Some(hash)
            if is_known
                && hash.len() == 64
                && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            Ok(Some(hash.to_ascii_lowercase()))
        }
        _ => Err(Error::bad_input(
            "`extensions.persistedQuery` must have `version` 1 and the SHA-256 of the document as `sha256Hash`.",
        )),
    }
}

/// Documents that were sent before, and those that the operator trusts.
pub(crate) struct Documents {
    trusted: TrustedDocuments,
    persisted: Cache<String, Arc<str>>,
    parsed: Cache<Arc<str>, Arc<Document>>,
    accepts_persisted: bool,
}

impl Documents {
    pub(crate) fn new(trusted: TrustedDocuments, limits: &Limits) -> Self {
        Self {
            trusted,
            persisted: Cache::new(limits.persisted_queries, None),
            parsed: Cache::weighed(limits.parsed_documents, |text: &Arc<str>, _| {
                text.len() as u64 >> 10
            }),
            accepts_persisted: limits.persisted_queries > 0,
        }
    }

    /// The statistics of the caches: parsed documents, persisted queries.
    pub(crate) fn stats(&self) -> [CacheStats; 2] {
        [self.parsed.stats(), self.persisted.stats()]
    }

    /// The document that a request contains or refers to, and the hash under which it is to be cached.
    pub(crate) fn find(
        &self,
        query: Option<String>,
        id: Option<&str>,
        hash: Option<String>,
    ) -> Result<(Arc<str>, Option<String>), Error> {
        let trust = self.trusted.trust;
        let named = id.or(hash.as_deref()).filter(|_| trust != Trust::Any);
        if let Some(known) = named.and_then(|name| self.trusted.documents.get(name)) {
            return Ok((Arc::clone(known), None));
        }
        if hash.is_some() && !self.accepts_persisted {
            return Err(Error::bad_input("PersistedQueryNotSupported"));
        }
        let Some(query) = query else {
            let known = hash.as_ref().filter(|_| trust != Trust::Enforce);
            return match known.and_then(|hash| self.persisted.get(hash)) {
                Some(known) => Ok((known, None)),
                // Apollo clients match this exact message.
                None if hash.is_some() => Err(Error::new(
                    Code::PersistedQueryNotFound,
                    "PersistedQueryNotFound",
                )),
                None if id.is_some() => Err(Error::new(
                    Code::PersistedQueryNotFound,
                    "`documentId` refers to no document that this server stores.",
                )),
                None => Err(Error::bad_input("`query` is missing.").field("query")),
            };
        };
        let sha256 = || text::hex(&Sha256::digest(query.as_bytes()));
        if hash.as_ref().is_some_and(|hash| sha256() != *hash) {
            return Err(Error::bad_input(
                "`extensions.persistedQuery.sha256Hash` is not the SHA-256 of `query`.",
            ));
        }
        if trust != Trust::Any
            && !self
                .trusted
                .documents
                .values()
                .any(|known| **known == *query)
        {
            if trust == Trust::Enforce {
                let message = "Only trusted documents may run on this server.";
                return Err(Error::new(Code::Forbidden, message));
            }
            tracing::warn!(sha256 = sha256(), "document not trusted");
        }
        Ok((query.into(), hash))
    }

    /// Keeps the text of an automatic persisted query.
    pub(crate) fn persist(&self, hash: String, text: Arc<str>) {
        self.persisted.insert(hash, text);
    }

    /// The parsed document.
    ///
    /// # Errors
    /// The document is invalid, or exceeds a limit.
    pub(crate) fn parse(
        &self,
        text: &Arc<str>,
        validator: &Validator,
        limits: &Limits,
    ) -> Result<Arc<Document>, Refusal> {
        if let Some(known) = self.parsed.get(text) {
            return Ok(known);
        }
        let document = Arc::new(validator.parse(text, limits)?);
        self.parsed.insert(Arc::clone(text), Arc::clone(&document));
        Ok(document)
    }
}
