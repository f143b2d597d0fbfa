//! Properties of root fields that differ from those of the others.
//!
//! The rate tier is declared on the field by the directive `@rateLimit`.

/// Properties of a root field.
#[derive(Clone, Copy, Default)]
pub(crate) struct RootFieldProperties {
    /// Needs no authenticated caller, although it is a mutation.
    pub(crate) is_public: bool,
    /// The response contains a secret that must not be stored under an idempotency key.
    pub(crate) is_secret: bool,
    /// Charges no rate limit bucket.
    pub(crate) is_free: bool,
}

const NONE: RootFieldProperties = RootFieldProperties {
    is_public: false,
    is_secret: false,
    is_free: false,
};

const SIGN_IN: RootFieldProperties = RootFieldProperties {
    is_public: true,
    is_secret: true,
    ..NONE
};

const TABLE: [(&str, RootFieldProperties); 6] = [
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
            is_secret: true,
            ..NONE
        },
    ),
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
