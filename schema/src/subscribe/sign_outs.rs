//! Ends the streams of users whose tokens were revoked on another instance.

use std::sync::Arc;

use crate::{
    events::{EventType, Handler},
    request::Services,
};

/// Checks the sessions of a user whose tokens were revoked, perhaps on another instance, and ends the streams of ended
/// sessions.
pub(crate) fn watch_sign_outs(services: Arc<Services>) -> Handler {
    Handler {
        name: "sign-outs",
        handle: Arc::new(move |event| {
            let services = Arc::clone(&services);
            Box::pin(async move {
                if event.kind == EventType::UserTokensRevoked.dotted() {
                    let Services {
                        accounts, loader, ..
                    } = &*services;
                    accounts.check_watched(loader, event.subject_id).await?;
                }
                Ok(())
            })
        }),
    }
}
