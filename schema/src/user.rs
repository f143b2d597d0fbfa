//! Users: the people who sign in.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object, connection::EmptyFields};
use gathering_entity::user;
use sea_orm::{ColumnTrait, Condition, sea_query::Expr};

use crate::{
    ctx::Door,
    error::Error,
    id::Kind,
    page::{Connection, Listed, Order, Page},
    scalar::DateTime,
    text,
};

/// What a user may do on this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "user::UserRole")]
pub enum UserRole {
    /// Works with what is theirs and what is shared with them.
    User,
    /// May read and change everything, and keeps the catalogue of providers, models and personas.
    Admin,
}

/// A person with an account.
pub struct User(pub(crate) Arc<user::Model>);

/// A person with an account. Every signed-in user may see a user's name and role.
#[Object]
impl User {
    /// The id of the user, `user_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::User.id(self.0.id)
    }

    /// The name shown to others, at most 100 characters.
    pub(crate) async fn name(&self) -> &str {
        &self.0.name
    }

    /// The e-mail address. Null for everyone but the user and administrators.
    async fn email(&self, ctx: &Context<'_>) -> Option<&str> {
        self.is_private_to(ctx).then_some(&self.0.email)
    }

    /// What the user may do on this server.
    async fn role(&self) -> UserRole {
        self.0.role.into()
    }

    /// Whether the user may sign in.
    async fn is_active(&self) -> bool {
        self.0.is_active
    }

    /// When the account was made.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When the user last signed in. Null for everyone but the user and administrators, and before the first time.
    async fn last_login_at(&self, ctx: &Context<'_>) -> Option<DateTime> {
        self.0
            .last_login_at
            .filter(|_| self.is_private_to(ctx))
            .map(DateTime)
    }
}

impl User {
    fn is_private_to(&self, ctx: &Context<'_>) -> bool {
        ctx.request()
            .viewer()
            .is_ok_and(|viewer| viewer.is_admin() || viewer.id() == self.0.id)
    }
}

/// Users as a list.
pub struct Users;

impl Listed for Users {
    type Entity = user::Entity;
    type Node = User;
    type Extra = EmptyFields;
    const NAME: &'static str = "User";

    async fn nodes(_: &Context<'_>, rows: &[Arc<user::Model>]) -> Result<Vec<Option<User>>, Error> {
        Ok(rows.iter().map(|row| Some(User(Arc::clone(row)))).collect())
    }

    fn extra(_: &Arc<user::Model>) -> EmptyFields {
        EmptyFields
    }
}

/// Narrows a list of users. All given conditions must hold.
#[derive(InputObject)]
pub struct UserFilter {
    /// Only users with this role.
    role: Option<UserRole>,
    /// Only users who may sign in, or only those who may not.
    is_active: Option<bool>,
    /// Only users whose e-mail address contains this text, whatever its case; at most 100 characters.
    search: Option<String>,
}

impl UserFilter {
    fn condition(self) -> Result<Condition, Error> {
        Ok(Condition::all()
            .add_option(
                self.role
                    .map(|role| user::Column::Role.eq(user::UserRole::from(role))),
            )
            .add_option(
                self.is_active
                    .map(|is_active| user::Column::IsActive.eq(is_active)),
            )
            .add_option(
                self.search
                    .map(|search| {
                        text::contains(Expr::col(user::Column::EmailKey.as_column_ref()), &search)
                    })
                    .transpose()?,
            ))
    }
}

/// Queries about users.
#[derive(Default)]
pub struct UserQuery;

#[Object]
impl UserQuery {
    /// The signed-in user, or null for an anonymous caller.
    async fn viewer(&self, ctx: &Context<'_>) -> Option<User> {
        let viewer = ctx.request().viewer.as_ref()?;
        Some(User(Arc::clone(&viewer.user)))
    }

    /// All users, newest first. For administrators.
    async fn users(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<UserFilter>,
    ) -> Result<Connection<Users>, Error> {
        ctx.request().admin()?;
        let condition = filter
            .map(UserFilter::condition)
            .transpose()?
            .unwrap_or_else(Condition::all);
        Connection::new(
            condition,
            Order::descending([user::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }
}
