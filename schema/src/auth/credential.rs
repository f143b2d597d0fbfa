//! Whether a session and its user are still valid: one statement for all concurrent requests.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use gathering_entity::{revoked_token, user};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, FromQueryResult, QueryFilter, QuerySelect, QueryTrait,
    sea_query::{Expr, ExprTrait, JoinType},
};
use uuid::Uuid;

use crate::{
    db::{Batch, ColumnOf, Reader, is_among},
    error::Error,
};

/// The user and the session named by an access token.
#[derive(Clone, PartialEq)]
pub(super) struct Credential;

/// The user, and whether the session is revoked, as stored in the database.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) user: Arc<user::Model>,
    pub(super) is_revoked: bool,
}

impl Batch for Credential {
    type Key = (Uuid, Uuid);
    type Value = Option<Found>;

    fn name(&self) -> String {
        "credentials".to_owned()
    }

    async fn run(
        &self,
        db: &Reader,
        keys: &[Self::Key],
    ) -> Result<HashMap<Self::Key, Self::Value>, Error> {
        let distinct = |ids: HashSet<Uuid>| ids.into_iter().collect::<Vec<_>>();
        let users = distinct(keys.iter().map(|(user, _)| *user).collect());
        let sessions = distinct(keys.iter().map(|(_, session)| *session).collect());
        let among = |column: ColumnOf, ids: &[Uuid]| is_among(db.backend(), column, ids);
        let user_id = user::Column::Id.as_column_ref();
        let jti = revoked_token::Column::Jti.as_column_ref();
        let of_user =
            Expr::col(revoked_token::Column::UserId.as_column_ref()).equals(user_id.clone());
        let select = user::Entity::find()
            .expr_as(Expr::col(jti.clone()), "revoked")
            .filter(among(user_id, &users))
            .into_query()
            .join(
                JoinType::LeftJoin,
                revoked_token::Entity,
                Condition::all().add(of_user).add(among(jti, &sessions)),
            )
            .take();
        let mut by_user: HashMap<Uuid, (Arc<user::Model>, HashSet<Uuid>)> = HashMap::new();
        for row in db.rows(&select).await? {
            let user = user::Model::from_query_result(&row, "")?;
            let revoked: Option<Uuid> = row.try_get("", "revoked")?;
            let (_, sessions) = by_user
                .entry(user.id)
                .or_insert_with(|| (Arc::new(user), HashSet::new()));
            sessions.extend(revoked);
        }
        Ok(keys
            .iter()
            .filter_map(|key| {
                let (user, revoked) = by_user.get(&key.0)?;
                let found = Found {
                    user: Arc::clone(user),
                    is_revoked: revoked.contains(&key.1),
                };
                Some((*key, Some(found)))
            })
            .collect())
    }
}
