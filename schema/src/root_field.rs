//! Properties of root fields that differ from those of the others.
//!
//! The rate tier is declared on the field by the directive `@rateLimit`.

/// The API keys with which a root field may be called. The scopes of a key are checked in addition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum KeyAccess {
    #[default]
    All,
    /// Those that are not limited to circles: the field changes what is outside of circles, or who may read a circle.
    Unlimited,
    /// None: the field is about passwords, sessions or keys.
    None,
}

/// A secret in a response or in a request, which must not be stored under an idempotency key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Secret {
    #[default]
    None,
    /// The field refuses idempotency keys. Also for a password in the input, of which no hash must be stored.
    Unrepeatable,
    /// A repeated request with the same idempotency key returns the response without the secret.
    Once,
}

/// Properties of a root field.
#[derive(Clone, Copy, Default)]
pub(crate) struct RootFieldProperties {
    /// Needs no authenticated caller, although it is a mutation.
    pub(crate) is_public: bool,
    /// Whether the response or the request contains a secret.
    pub(crate) secret: Secret,
    /// Charges no rate limit bucket.
    pub(crate) is_free: bool,
    pub(crate) keys: KeyAccess,
}

const NONE: RootFieldProperties = RootFieldProperties {
    is_public: false,
    secret: Secret::None,
    is_free: false,
    keys: KeyAccess::All,
};

const NO_KEYS: RootFieldProperties = RootFieldProperties {
    keys: KeyAccess::None,
    ..NONE
};

const UNLIMITED_KEYS: RootFieldProperties = RootFieldProperties {
    keys: KeyAccess::Unlimited,
    ..NONE
};

const SIGN_IN: RootFieldProperties = RootFieldProperties {
    is_public: true,
    secret: Secret::Unrepeatable,
    ..NO_KEYS
};

const TABLE: [(&str, RootFieldProperties); 37] = [
    (
        "__typename",
        RootFieldProperties {
            is_public: true,
            ..NONE
        },
    ),
    ("login", SIGN_IN),
    ("register", SIGN_IN),
    ("refreshSession", SIGN_IN),
    (
        "changePassword",
        RootFieldProperties {
            secret: Secret::Unrepeatable,
            ..NO_KEYS
        },
    ),
    ("requestPasswordReset", SIGN_IN),
    ("resetPassword", SIGN_IN),
    ("verifyEmail", SIGN_IN),
    ("requestEmailVerification", NO_KEYS),
    (
        "changeEmail",
        RootFieldProperties {
            secret: Secret::Unrepeatable,
            ..NO_KEYS
        },
    ),
    (
        "deleteAccount",
        RootFieldProperties {
            secret: Secret::Unrepeatable,
            ..NO_KEYS
        },
    ),
    ("logout", NO_KEYS),
    ("sessions", NO_KEYS),
    ("revokeSession", NO_KEYS),
    ("apiKeys", NO_KEYS),
    (
        "createApiKey",
        RootFieldProperties {
            secret: Secret::Once,
            ..NO_KEYS
        },
    ),
    ("revokeApiKey", NO_KEYS),
    ("updateProfile", UNLIMITED_KEYS),
    ("createAgent", UNLIMITED_KEYS),
    ("updateAgent", UNLIMITED_KEYS),
    ("deleteAgent", UNLIMITED_KEYS),
    ("createProject", UNLIMITED_KEYS),
    ("updateProject", UNLIMITED_KEYS),
    ("deleteProject", UNLIMITED_KEYS),
    ("createCircle", UNLIMITED_KEYS),
    ("deleteCircle", UNLIMITED_KEYS),
    ("shareCircle", UNLIMITED_KEYS),
    ("unshareCircle", UNLIMITED_KEYS),
    ("createServiceAccount", UNLIMITED_KEYS),
    ("transfers", UNLIMITED_KEYS),
    ("transferCircle", UNLIMITED_KEYS),
    ("transferAgent", UNLIMITED_KEYS),
    ("transferProject", UNLIMITED_KEYS),
    ("acceptTransfer", UNLIMITED_KEYS),
    ("declineTransfer", UNLIMITED_KEYS),
    ("cancelTransfer", UNLIMITED_KEYS),
    (
        "rateLimit",
        RootFieldProperties {
            is_free: true,
            ..NONE
        },
    ),
];

/// The properties of a root field.
pub(crate) fn properties(name: &str) -> RootFieldProperties {
    let entry = TABLE.iter().find(|(known, _)| *known == name);
    entry.map_or(NONE, |(_, properties)| *properties)
}
