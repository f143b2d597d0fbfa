//! Waits with a timeout and a message.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{sleep, timeout};

/// The bound of every wait. Only a test that fails takes as long, so the bound allows for a machine under heavy load.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// The pause between two observations.
const PAUSE: Duration = Duration::from_millis(2);

/// Waits for the end of a future.
pub(crate) async fn within<T>(what: impl Display, future: impl Future<Output = T>) -> T {
    let Ok(output) = timeout(PATIENCE, future).await else {
        panic!("waited {PATIENCE:?} in vain: {what}");
    };
    output
}

/// Repeats an observation until it is true.
pub(crate) async fn until(what: impl Display, mut is_true: impl AsyncFnMut() -> bool) {
    until_some(what, async || is_true().await.then_some(())).await;
}

/// Repeats an observation until it has a value.
pub(crate) async fn until_some<T>(
    what: impl Display,
    mut observe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let observed = async {
        loop {
            if let Some(value) = observe().await {
                break value;
            }
            sleep(PAUSE).await;
        }
    };
    within(what, observed).await
}
