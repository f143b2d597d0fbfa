//! Typed public ids: `<prefix>_<26 characters>`, where the characters are the row's UUID in base32.
//!
//! The alphabet is Crockford's in lower case. The 128 bits are padded on the left to 130, so that ids of one type sort
//! like their rows: by creation.

use async_graphql::{ID, MaybeUndefined};
use uuid::Uuid;

use crate::error::Error;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const LENGTH: usize = 26;

/// The prefixes of the public ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `user_…`
    User,
    /// `provider_…`
    Provider,
    /// `model_…`
    Model,
    /// `persona_…`
    Persona,
    /// `agent_…`
    Agent,
    /// `project_…`
    Project,
    /// `circle_…`
    Circle,
    /// `member_…`
    Member,
    /// `task_…`
    Task,
    /// `conversation_…`
    Conversation,
    /// `message_…`
    Message,
    /// `event_…`
    Event,
    /// `audit_…`
    Audit,
    /// `signin_…`
    SignIn,
    /// `key_…`
    ApiKey,
    /// `transfer_…`
    Transfer,
}

impl Kind {
    // The length follows from the last variant, so that an omitted entry is a compiler error.
    const ALL: [Self; Self::Transfer as usize + 1] = [
        Self::User,
        Self::Provider,
        Self::Model,
        Self::Persona,
        Self::Agent,
        Self::Project,
        Self::Circle,
        Self::Member,
        Self::Task,
        Self::Conversation,
        Self::Message,
        Self::Event,
        Self::Audit,
        Self::SignIn,
        Self::ApiKey,
        Self::Transfer,
    ];

    /// The text before the underscore.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Provider => "provider",
            Self::Model => "model",
            Self::Persona => "persona",
            Self::Agent => "agent",
            Self::Project => "project",
            Self::Circle => "circle",
            Self::Member => "member",
            Self::Task => "task",
            Self::Conversation => "conversation",
            Self::Message => "message",
            Self::Event => "event",
            Self::Audit => "audit",
            Self::SignIn => "signin",
            Self::ApiKey => "key",
            Self::Transfer => "transfer",
        }
    }

    pub(crate) fn from_prefix(prefix: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.prefix() == prefix)
    }

    /// The public id of a row.
    pub fn id(self, uuid: Uuid) -> ID {
        let mut text = Vec::with_capacity(self.prefix().len() + 1 + LENGTH);
        self.write(uuid, &mut text);
        ID(text.into_iter().map(char::from).collect())
    }

    /// Writes the public id of a row in ASCII.
    pub(crate) fn write(self, uuid: Uuid, out: &mut Vec<u8>) {
        out.extend_from_slice(self.prefix().as_bytes());
        out.push(b'_');
        let bits = uuid.as_u128();
        for place in (0..LENGTH).rev() {
            let digit = (bits >> (5 * place)) & 31;
            out.push(ALPHABET[digit as usize]);
        }
    }

    /// Parses an id given as `field`.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` with `extensions.expected` when the id is malformed or of another type.
    pub fn parse(self, id: &ID, field: &str) -> Result<Uuid, Error> {
        match parse(id) {
            Some((kind, uuid)) if kind == self => Ok(uuid),
            _ => Err(Error::bad_input(format!(
                "`{field}` must be an id with the prefix `{prefix}`, such as {prefix}_01h455vb4pex5vsknk084sn02q.",
                prefix = self.prefix()
            ))
            .field(field)
            .expected(self.prefix())),
        }
    }

    /// As [`Kind::parse`], for an optional argument.
    ///
    /// # Errors
    /// As [`Kind::parse`].
    pub fn parse_opt(self, id: Option<&ID>, field: &str) -> Result<Option<Uuid>, Error> {
        id.map(|id| self.parse(id, field)).transpose()
    }

    /// As [`Kind::parse`], for a field of an update: absent is `None`, null is `Some(None)`.
    ///
    /// # Errors
    /// As [`Kind::parse`].
    pub fn parse_new(
        self,
        id: &MaybeUndefined<ID>,
        field: &str,
    ) -> Result<Option<Option<Uuid>>, Error> {
        let id = id.as_opt_ref();
        id.map(|id| self.parse_opt(id, field)).transpose()
    }
}

/// The type and the row of an id; `None` if the id is malformed.
pub fn parse(id: &ID) -> Option<(Kind, Uuid)> {
    let (prefix, digits) = id.rsplit_once('_')?;
    let kind = Kind::from_prefix(prefix)?;
    // 26 digits hold 130 bits: only the lower three bits of the first one may be set.
    if digits.len() != LENGTH || digits.as_bytes()[0] > b'7' {
        return None;
    }
    let mut bits = 0_u128;
    for byte in digits.bytes() {
        let digit = ALPHABET.iter().position(|letter| *letter == byte)?;
        bits = (bits << 5) | digit as u128;
    }
    Some((kind, Uuid::from_u128(bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_prefix_followed_by_the_uuid_in_base32() {
        let uuid = Uuid::parse_str("01890a5d-ac96-774b-bcce-b302099a8057").expect("a UUID");
        let id = Kind::Circle.id(uuid);
        assert_eq!(id.as_str(), "circle_01h455vb4pex5vsknk084sn02q");
        assert_eq!(parse(&id), Some((Kind::Circle, uuid)));
        for bits in [0, 1, u128::MAX, u128::MAX >> 1, 1 << 127] {
            let uuid = Uuid::from_u128(bits);
            assert_eq!(parse(&Kind::Event.id(uuid)), Some((Kind::Event, uuid)));
        }
    }

    #[test]
    fn a_malformed_id_is_rejected() {
        for text in [
            "",
            "_",
            "circle",
            "circle_",
            "circle_01h455vb4pex5vsknk084sn02",
            "circle_01h455vb4pex5vsknk084sn02qq",
            "circle_81h455vb4pex5vsknk084sn02q",
            "circle_01H455VB4PEX5VSKNK084SN02Q",
            "circle_01h455vb4pex5vsknk084sn0lq",
            "Circle_01h455vb4pex5vsknk084sn02q",
            "square_01h455vb4pex5vsknk084sn02q",
            "circle_01h455vb4pex5vsknk084sn0é",
            "circle01h455vb4pex5vsknk084sn02q",
        ] {
            assert_eq!(parse(&ID(text.to_owned())), None, "{text}");
        }
    }
}
