//! The actions in the audit log.

use gathering_entity::audit::AuditSeverity;

/// An action in the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AuditAction {
    Registered,
    LoginSucceeded,
    LoginFailed,
    Locked,
    Refreshed,
    RefreshReused,
    LoggedOut,
    SessionRevoked,
    PasswordChanged,
    PasswordResetRequested,
    PasswordReset,
    EmailChangeRequested,
    EmailChanged,
    EmailVerified,
    TokenRejected,
    Refused,
    RateLimited,
    UserCreated,
    UserChanged,
    UserDeleted,
    ServiceAccountCreated,
    ApiKeyCreated,
    ApiKeyRevoked,
    CatalogueChanged,
    TransferRequested,
    TransferAccepted,
    TransferDeclined,
    TransferCancelled,
}

impl AuditAction {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Registered => "auth.registered",
            Self::LoginSucceeded => "auth.login_succeeded",
            Self::LoginFailed => "auth.login_failed",
            Self::Locked => "auth.locked",
            Self::Refreshed => "auth.refreshed",
            Self::RefreshReused => "auth.refresh_reused",
            Self::LoggedOut => "auth.logged_out",
            Self::SessionRevoked => "auth.session_revoked",
            Self::PasswordChanged => "auth.password_changed",
            Self::PasswordResetRequested => "auth.password_reset_requested",
            Self::PasswordReset => "auth.password_reset",
            Self::EmailChangeRequested => "auth.email_change_requested",
            Self::EmailChanged => "auth.email_changed",
            Self::EmailVerified => "auth.email_verified",
            Self::TokenRejected => "auth.token_rejected",
            Self::Refused => "auth.refused",
            Self::RateLimited => "rate.limited",
            Self::UserCreated => "user.created",
            Self::UserChanged => "user.changed",
            Self::UserDeleted => "user.deleted",
            Self::ServiceAccountCreated => "user.service_created",
            Self::ApiKeyCreated => "api_key.created",
            Self::ApiKeyRevoked => "api_key.revoked",
            Self::CatalogueChanged => "catalogue.changed",
            Self::TransferRequested => "transfer.requested",
            Self::TransferAccepted => "transfer.accepted",
            Self::TransferDeclined => "transfer.declined",
            Self::TransferCancelled => "transfer.cancelled",
        }
    }

    pub(super) fn severity(self) -> AuditSeverity {
        match self {
            Self::Registered
            | Self::LoginSucceeded
            | Self::Refreshed
            | Self::LoggedOut
            | Self::SessionRevoked
            | Self::EmailVerified
            | Self::ApiKeyRevoked
            | Self::CatalogueChanged
            | Self::TransferDeclined
            | Self::TransferCancelled => AuditSeverity::Info,
            Self::LoginFailed
            | Self::TokenRejected
            | Self::Refused
            | Self::RateLimited
            | Self::PasswordChanged
            | Self::PasswordResetRequested
            | Self::PasswordReset
            | Self::EmailChangeRequested
            | Self::EmailChanged
            | Self::UserCreated
            | Self::UserChanged
            | Self::UserDeleted
            | Self::ServiceAccountCreated
            | Self::ApiKeyCreated
            | Self::TransferRequested
            | Self::TransferAccepted => AuditSeverity::Warning,
            Self::Locked | Self::RefreshReused => AuditSeverity::High,
        }
    }

    /// Whether one client can cause it without limit.
    pub(super) fn is_repetitive(self) -> bool {
        matches!(
            self,
            Self::TokenRejected | Self::Refused | Self::RateLimited
        )
    }
}
