//! The shapes of the answers.

use chrono::{DateTime, Datelike, Timelike, Utc};
use serde::{Serialize, Serializer, ser::Error};
use uuid::Uuid;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const DIGITS: usize = 26;

/// A public id: a prefix and the base32 digits of a UUID.
#[derive(Clone, Copy)]
pub struct Id(pub &'static str, pub Uuid);

impl Id {
    /// Parses an id with the prefix.
    pub fn parse(prefix: &str, id: &str) -> Option<Uuid> {
        let digits = id.strip_prefix(prefix)?.strip_prefix('_')?;
        if digits.len() != DIGITS || digits.as_bytes()[0] > b'7' {
            return None;
        }
        let mut bits = 0;
        for digit in digits.bytes() {
            let value = ALPHABET.iter().position(|letter| *letter == digit)?;
            bits = bits << 5 | value as u128;
        }
        Some(Uuid::from_u128(bits))
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = [0; 40];
        let prefix = self.0.len();
        text[..prefix].copy_from_slice(self.0.as_bytes());
        text[prefix] = b'_';
        let bits = self.1.as_u128();
        for (place, digit) in text[prefix + 1..][..DIGITS].iter_mut().rev().enumerate() {
            *digit = ALPHABET[(bits >> (5 * place)) as usize & 31];
        }
        ascii(&text[..=prefix + DIGITS], serializer)
    }
}

/// A time in UTC with microseconds, as RFC 3339.
pub struct Time(pub DateTime<Utc>);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        let mut put = |end: usize, digits: usize, mut value: u32| {
            for place in text[end - digits..end].iter_mut().rev() {
                *place = b'0' + (value % 10) as u8;
                value /= 10;
            }
        };
        put(4, 4, self.0.year().unsigned_abs());
        put(7, 2, self.0.month());
        put(10, 2, self.0.day());
        put(13, 2, self.0.hour());
        put(16, 2, self.0.minute());
        put(19, 2, self.0.second());
        put(26, 6, self.0.timestamp_subsec_micros());
        ascii(&text, serializer)
    }
}

fn ascii<S: Serializer>(text: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(std::str::from_utf8(text).map_err(S::Error::custom)?)
}

#[derive(Serialize)]
pub struct Data<T> {
    pub data: T,
}

#[derive(Serialize)]
pub struct Agent<'a> {
    pub agent: AgentNode<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentNode<'a> {
    pub id: Id,
    pub name: &'a str,
    pub status: &'a str,
    pub last_active_at: Time,
    pub model: Option<AgentModel<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentModel<'a> {
    pub id: Id,
    pub display_name: &'a str,
}

#[derive(Serialize)]
pub struct Circle<'a> {
    pub circle: CircleNode<'a>,
}

#[derive(Serialize)]
pub struct Circles<'a> {
    pub circles: Nodes<'a>,
}

#[derive(Serialize)]
pub struct Nodes<'a> {
    pub nodes: Vec<CircleNode<'a>>,
}

#[derive(Serialize)]
pub struct CircleNode<'a> {
    pub id: Id,
    pub name: &'a str,
    pub members: Members<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Members<'a> {
    pub edges: Vec<Edge<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page_info: Option<PageInfo>,
}

#[derive(Serialize)]
pub struct Edge<'a> {
    pub membership: Membership<'a>,
    pub node: Node<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership<'a> {
    pub role: &'a str,
    pub joined_at: Time,
}

#[derive(Serialize)]
pub struct Node<'a> {
    pub id: Id,
    pub name: &'a str,
    pub status: &'a str,
    pub model: Option<Model<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Model<'a> {
    pub id: Id,
    pub display_name: &'a str,
    pub provider: Provider<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Provider<'a> {
    pub id: Id,
    pub name: &'a str,
    pub is_local: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PageInfo {
    pub has_next_page: bool,
    pub end_cursor: Option<Id>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateTask<'a> {
    pub create_task: Payload<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Payload<'a> {
    pub task: Task<'a>,
    pub user_errors: [(); 0],
}

#[derive(Serialize)]
pub struct Task<'a> {
    pub id: Id,
    pub title: &'a str,
    pub status: &'static str,
    pub version: i32,
}
