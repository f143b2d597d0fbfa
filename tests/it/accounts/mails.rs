//! The queue of mails: a mail server that is down, several instances, and a shutdown.

use chrono::{SubsecRound, TimeDelta, Utc};
use futures_util::StreamExt;
use futures_util::future::join;
use futures_util::stream::FuturesUnordered;
use gathering_entity::mail;
use sea_orm::EntityTrait;
use sea_orm::sea_query::Expr;
use tokio::net::TcpStream;

use super::recovery::{NEW, RESET, VERIFY, accepted, serve, until_sent, waiting};
use crate::support::account::ADA;
use crate::support::server::{SIGNING_KEY, TestServer};
use crate::support::smtp::MailServer;
use crate::support::wait::until;

#[tokio::test]
async fn mails_wait_for_a_mail_server_that_is_down() {
    let mails = MailServer::start().await;
    let server = TestServer::with(|config| mails.configure(config)).await;
    let mails = mails.stop();
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    visitor.request_reset(ADA).await;
    let db = server.database().connect().await;
    until("failed attempts to send both mails", async || {
        let rows = mail::Entity::find().all(&db).await.expect("reads");
        rows.len() == 2 && rows.iter().all(|row| row.attempts > 0)
    })
    .await;
    assert_eq!(waiting(&db).await, 2);
    let mails = mails.restart().await;
    server.jump(600);
    let token = mails.token_for(ADA, RESET).await;
    accepted(&visitor.reset(&token, NEW).await, "resetPassword");
    mails.token_for(ADA, VERIFY).await;
    until_sent(&db).await;
    assert_eq!(mails.mails_to(ADA).len(), 2);
}

#[tokio::test]
async fn two_instances_send_every_mail_once() {
    let (server, mails) = serve().await;
    let beside = server.beside(|config| mails.configure(config)).await;
    let count = 40;
    let addresses: Vec<_> = (0..count)
        .map(|n| format!("user-{n}@example.com"))
        .collect();
    let mut registering: FuturesUnordered<_> = addresses
        .iter()
        .zip([&server, &beside].into_iter().cycle())
        .map(async |(email, on)| on.anonymous().register(email).await)
        .collect();
    while registering.next().await.is_some() {}
    mails.until_received(count).await;
    until_sent(&server.database().connect().await).await;
    for email in &addresses {
        let received = mails.mails_to(email);
        assert_eq!(received.len(), 1, "{email}: {received:?}");
    }
}

#[tokio::test]
async fn a_mail_of_an_instance_that_has_ended_is_sent_by_another() {
    let (server, mails) = serve().await;
    let db = server.database().connect().await;
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    mails.token_for(ADA, VERIFY).await;
    until_sent(&db).await;
    // As if an instance had claimed the mail, and ended before it was sent.
    let claimed = Utc::now().trunc_subsecs(6) + TimeDelta::minutes(7);
    mail::Entity::update_many()
        .col_expr(mail::Column::DueAt, Expr::value(claimed))
        .exec(&db)
        .await
        .expect("writes");
    server.jump(7 * 60 + 1);
    mails.nth_mail(ADA, 2).await;
}

#[tokio::test]
async fn a_mail_that_waits_is_sent_after_a_rotation_of_the_signing_key() {
    let mails = MailServer::start().await;
    let server = TestServer::with(|config| mails.configure(config)).await;
    let mails = mails.stop();
    server.anonymous().register(ADA).await;
    server.anonymous().request_reset(ADA).await;
    let database = server.end().await;
    let mails = mails.restart().await;
    let server = TestServer::on(database, |config| {
        mails.configure(config);
        let new = "another key of the tests: 9876543210 JIHGFEDCBA";
        config.auth.signing_key = new.to_owned().into();
        config.auth.verification_keys = SIGNING_KEY.to_owned().into();
    })
    .await;
    // Beyond the pause after a failed attempt.
    server.jump(600);
    let token = mails.token_for(ADA, RESET).await;
    accepted(
        &server.anonymous().reset(&token, NEW).await,
        "resetPassword",
    );
}

#[tokio::test]
async fn an_instance_without_the_key_of_a_mail_leaves_it_to_the_others_until_it_expires() {
    let mails = MailServer::start().await;
    let server = TestServer::with(|config| mails.configure(config)).await;
    let mails = mails.stop();
    server.anonymous().register(ADA).await;
    server.anonymous().request_reset(ADA).await;
    let database = server.end().await;
    let mails = mails.restart().await;
    let server = TestServer::on(database, |config| {
        mails.configure(config);
        let other = "another key of the tests: 9876543210 JIHGFEDCBA";
        config.auth.signing_key = other.to_owned().into();
    })
    .await;
    let db = server.database().connect().await;
    // The next attempt would be after the lifetime of the token for a new password.
    server.jump(3100);
    until("one mail to try again", async || waiting(&db).await == 1).await;
    until("an attempt", async || {
        let rows = mail::Entity::find().all(&db).await.expect("reads");
        let soon = Utc::now() + TimeDelta::seconds(3100);
        rows.iter()
            .any(|row| row.due_at.is_some_and(|due_at| due_at > soon))
    })
    .await;
    let database = server.end().await;
    let server = TestServer::on(database, |config| mails.configure(config)).await;
    server.jump(3100 + 700);
    mails.token_for(ADA, VERIFY).await;
    until_sent(&db).await;
    assert_eq!(mails.count(), 1);
}

#[tokio::test]
async fn a_mail_that_is_accepted_during_the_shutdown_is_not_sent_again() {
    let (server, mails) = serve().await;
    let held = mails.hold().await;
    server.anonymous().register(ADA).await;
    mails.until_received(1).await;
    let address = server.address();
    let accept_the_mail = async {
        until("a server that does not listen", async || {
            TcpStream::connect(address).await.is_err()
        })
        .await;
        drop(held);
    };
    let (database, ()) = join(server.end(), accept_the_mail).await;
    assert_eq!(waiting(&database.connect().await).await, 0);
}
