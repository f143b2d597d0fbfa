//! Who is asking.

use uuid::Uuid;

/// The signed-in user on whose behalf an operation runs.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// The user's row id.
    pub id: Uuid,
    /// Whether the user has the role ADMIN.
    pub is_admin: bool,
}
