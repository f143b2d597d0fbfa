//! Whether a session or an API key, and its user, are still valid: one statement for all concurrent requests with
//! access tokens, and one for those with keys.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use gathering_entity::{api_key, revoked_token, user};
use sea_orm::{
    ColumnTrait, Condition, DbBackend, EntityTrait, FromQueryResult, IdenStatic, Iterable,
    QueryFilter, QuerySelect, QueryTrait, Value,
    sea_query::{ArrayType, Expr, ExprTrait, Func, JoinType, Query},
};
use uuid::Uuid;

use crate::{
    auth::api_key::{KeyHash, hash_of},
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

/// The API key with this hash, and its user.
#[derive(Clone, PartialEq)]
pub(super) struct KeyCredential;

/// A key and its user, as stored in the database.
#[derive(Clone)]
pub(super) struct FoundKey {
    pub(super) key: Arc<api_key::Model>,
    pub(super) user: Arc<user::Model>,
    /// Whether the user may sign in, and for a service account its owner, too.
    pub(super) is_active: bool,
}

/// The prefixes of the columns of the key and of its user.
const KEY: &str = "key_";
const USER: &str = "user_";

/// The alias of the owner of a service account.
const OWNER: &str = "owners";

impl Batch for KeyCredential {
    type Key = KeyHash;
    type Value = Option<FoundKey>;

    fn name(&self) -> String {
        "API keys".to_owned()
    }

    async fn run(
        &self,
        db: &Reader,
        hashes: &[KeyHash],
    ) -> Result<HashMap<KeyHash, Self::Value>, Error> {
        let column = Expr::col(api_key::Column::SecretHash.as_column_ref());
        let values = hashes.iter().map(|hash| {
            let text: String = hash.iter().copied().map(char::from).collect();
            Value::from(text)
        });
        let values: Vec<Value> = values.collect();
        // The text of the statement depends on the number of keys as little as possible.
        let is_one = if db.backend() == DbBackend::Postgres {
            let array = Value::Array(ArrayType::String, Some(Box::new(values)));
            column.eq(Func::cust("ANY").arg(array))
        } else {
            let padding = values.len().next_power_of_two() - values.len();
            let padding = values.iter().take(1).cycle().take(padding).cloned();
            column.is_in(padding.collect::<Vec<_>>().into_iter().chain(values))
        };
        let mut select = Query::select();
        for column in api_key::Column::iter() {
            let alias = format!("{KEY}{}", column.as_str());
            select.expr_as(Expr::col(column.as_column_ref()), alias);
        }
        for column in user::Column::iter() {
            let alias = format!("{USER}{}", column.as_str());
            select.expr_as(Expr::col(column.as_column_ref()), alias);
        }
        let of_key = Expr::col(user::Column::Id.as_column_ref())
            .equals(api_key::Column::UserId.as_column_ref());
        let of_service = Expr::col((OWNER, "id")).equals(user::Column::OwnerId.as_column_ref());
        select
            .expr_as(Expr::col((OWNER, "is_active")), "is_owner_active")
            .from(api_key::Entity)
            .join(JoinType::InnerJoin, user::Entity, of_key)
            .join_as(JoinType::LeftJoin, user::Entity, OWNER, of_service)
            .and_where(is_one);
        let mut found = HashMap::with_capacity(hashes.len());
        for row in db.rows(&select).await? {
            let key = api_key::Model::from_query_result(&row, KEY)?;
            let user = Arc::new(user::Model::from_query_result(&row, USER)?);
            if let Some(hash) = hash_of(&key) {
                let of_owner: Option<bool> = row.try_get("", "is_owner_active")?;
                let found_key = FoundKey {
                    key: Arc::new(key),
                    is_active: user.is_active && of_owner.unwrap_or(true),
                    user,
                };
                found.insert(hash, Some(found_key));
            }
        }
        Ok(found)
    }
}
