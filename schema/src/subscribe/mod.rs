//! Subscriptions: their root fields, their feed of events, and their answers.

mod burst;
mod feed;
mod root;
mod sign_outs;
mod stream;

pub(crate) use burst::{Burst, Update};
pub(crate) use feed::{Feed, Item};
pub(crate) use root::Subscription;
pub(crate) use sign_outs::watch_sign_outs;
pub use stream::Answers;
pub(crate) use stream::Live;
