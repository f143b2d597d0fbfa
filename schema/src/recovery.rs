//! Recovery of accounts: new passwords, and verified and new e-mail addresses.

use async_graphql::{Context, InputObject, Object, SimpleObject};

use crate::{
    auth::check_password,
    error::Error,
    input::{Check, UserError, UserErrorCode},
    rate_limit::{Tier, rate_limit},
    request::RequestExt,
};

/// Payload of the mutations that recover or verify an account by a mail.
#[derive(SimpleObject)]
pub struct RecoveryPayload {
    /// Whether the request was accepted; false with `userErrors`.
    accepted: bool,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl RecoveryPayload {
    fn success() -> Self {
        Self::of(Vec::new())
    }

    fn of(user_errors: Vec<UserError>) -> Self {
        Self {
            accepted: user_errors.is_empty(),
            user_errors,
        }
    }
}

/// Input for `requestPasswordReset`.
#[derive(InputObject)]
pub struct RequestPasswordResetInput {
    /// The e-mail address of the account.
    email: String,
}

/// Input for `resetPassword`.
#[derive(InputObject)]
pub struct ResetPasswordInput {
    /// The token from the mail, `gtr_…`.
    #[graphql(secret)]
    token: String,
    /// The new password, 8 to 128 characters of any kind.
    #[graphql(secret)]
    new_password: String,
}

/// Input for `verifyEmail`.
#[derive(InputObject)]
pub struct VerifyEmailInput {
    /// The token from the mail, `gtr_…`.
    #[graphql(secret)]
    token: String,
}

/// Input for `changeEmail`.
#[derive(InputObject)]
pub struct ChangeEmailInput {
    /// The new e-mail address, at most 254 characters. Case and Unicode form are ignored in comparisons.
    email: String,
    /// The current password.
    #[graphql(secret)]
    current_password: String,
}

/// Mutations that recover and verify accounts.
#[derive(Default)]
pub struct RecoveryMutation;

#[Object]
impl RecoveryMutation {
    /// Mails a token for `resetPassword` to the user of an e-mail address.
    /// No authentication required. The response and its time are the same for an address without an account. The token
    /// can be used once within one hour, and a new request makes the earlier one unusable; at most 3 mails an hour are
    /// sent to an account. `FORBIDDEN` if the server sends no mails.
    #[graphql(directive = rate_limit::apply(Tier::Auth))]
    async fn request_password_reset(
        &self,
        ctx: &Context<'_>,
        input: RequestPasswordResetInput,
    ) -> Result<RecoveryPayload, Error> {
        let request = ctx.request();
        let accounts = request.accounts();
        let requested = accounts.request_password_reset(&request.client, &input.email);
        requested.await?;
        Ok(RecoveryPayload::success())
    }

    /// Sets a new password with a token from a mail, and ends all sessions of the user.
    /// No authentication required. Makes all other tokens of the user unusable, clears their lockouts, and verifies the
    /// e-mail address. API keys stay valid if the address was verified before; otherwise they are revoked, because another
    /// person may have created them. `UNAUTHENTICATED` for a token that cannot be used. `userErrors`: `REQUIRED`,
    /// `TOO_SHORT` and `TOO_LONG`.
    #[graphql(directive = rate_limit::apply(Tier::Auth))]
    async fn reset_password(
        &self,
        ctx: &Context<'_>,
        input: ResetPasswordInput,
    ) -> Result<RecoveryPayload, Error> {
        let request = ctx.request();
        let mut check = Check::default();
        check_password(&mut check, "newPassword", &input.new_password);
        if let Err(faults) = check.faults() {
            return Ok(RecoveryPayload::of(faults));
        }
        let accounts = request.accounts();
        let reset = accounts.reset_password(&request.client, &input.token, &input.new_password);
        reset.await?;
        Ok(RecoveryPayload::success())
    }

    /// Mails a token to the caller's e-mail address, with which `verifyEmail` verifies it.
    /// Sends nothing if the address is verified, or after 3 mails within an hour. The token can be used once within 24
    /// hours. `FORBIDDEN` if the server sends no mails.
    #[graphql(directive = rate_limit::apply(Tier::Auth))]
    async fn request_email_verification(
        &self,
        ctx: &Context<'_>,
    ) -> Result<RecoveryPayload, Error> {
        let request = ctx.request();
        let accounts = request.accounts();
        let requested = accounts.request_email_verification(request.viewer()?);
        requested.await?;
        if let Some(key) = &request.key {
            key.made();
        }
        Ok(RecoveryPayload::success())
    }

    /// Verifies an e-mail address with a token from a mail; after `changeEmail`, replaces it.
    /// No authentication required. `UNAUTHENTICATED` for a token that cannot be used, or if the new address has another
    /// account.
    #[graphql(directive = rate_limit::apply(Tier::Auth))]
    async fn verify_email(
        &self,
        ctx: &Context<'_>,
        input: VerifyEmailInput,
    ) -> Result<RecoveryPayload, Error> {
        let request = ctx.request();
        let verified = request
            .accounts()
            .verify_email(&request.client, &input.token);
        verified.await?;
        Ok(RecoveryPayload::success())
    }

    /// Mails a token to a new e-mail address; `verifyEmail` then makes it the caller's address.
    /// The address changes when the token is used; the former address then receives a notice. The token can be used once
    /// within 24 hours. The response is the same for an address that has an account, which receives a notice instead. At
    /// most 3 mails an hour are sent for a user, and 10 to an address. `FORBIDDEN` if the server sends no mails.
    /// `userErrors`: `INVALID` for a wrong password, which counts as a failed sign-in, `REQUIRED`, `TOO_LONG` and
    /// `INVALID` for the address.
    #[graphql(directive = rate_limit::apply(Tier::Auth))]
    async fn change_email(
        &self,
        ctx: &Context<'_>,
        input: ChangeEmailInput,
    ) -> Result<RecoveryPayload, Error> {
        let request = ctx.request();
        let viewer = request.viewer()?;
        let accounts = request.accounts();
        accounts.check_mails()?;
        let mut check = Check::default();
        let email = check.email("email", &input.email);
        if let Err(faults) = check.faults() {
            return Ok(RecoveryPayload::of(faults));
        }
        let requested =
            accounts.change_email(&request.client, viewer, &email, &input.current_password);
        if requested.await? {
            return Ok(RecoveryPayload::success());
        }
        Ok(RecoveryPayload::of(vec![UserError::new(
            "currentPassword",
            UserErrorCode::Invalid,
            "Wrong current password, or too many attempts. After several failures, wait a few minutes.",
        )]))
    }
}
