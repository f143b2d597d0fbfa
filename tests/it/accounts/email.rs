//! Verified and new e-mail addresses.

use futures_util::future::join;
use gathering_entity::{lockout, mail};
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter};
use serde_json::{Value, json};

use super::recovery::{ACCEPTED, RESET, VERIFY, accepted, serve, until_sent};
use crate::accounts::audit::until_recorded;
use crate::support::account::{ADA, BOB, user};
use crate::support::actor::{ADMIN, Actor, code, faults};
use crate::support::database::PASSWORD;
use crate::support::smtp::Received;

const CHANGE: &str = "Verify your new e-mail address";
const TAKEN: &str = "Your e-mail address has an account already";
const CHANGED: &str = "Your e-mail address was changed";

const CAROL: &str = "carol@example.com";

impl Actor {
    /// The complete response to a change of the address.
    async fn change_email(&self, email: &str, password: &str) -> Value {
        let input = json!({ "email": email, "currentPassword": password });
        self.mutate("changeEmail", ACCEPTED, input).await
    }

    /// When the address of the caller was verified.
    async fn verified_at(&self) -> Value {
        let data = self.ask("{ viewer { emailVerifiedAt } }", json!({})).await;
        data["viewer"]["emailVerifiedAt"].clone()
    }

    async fn request_verification(&self) -> Value {
        let query = format!("mutation {{ requestEmailVerification {{ {ACCEPTED} }} }}");
        self.answer(&query, json!({})).await
    }
}

#[tokio::test]
async fn registration_mails_a_token_that_verifies_the_address() {
    let (server, mails) = serve().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let ada = visitor.with(&ada.access);
    let first = mails.token_for(ADA, VERIFY).await;
    assert_eq!(ada.verified_at().await, Value::Null);
    accepted(
        &ada.request_verification().await,
        "requestEmailVerification",
    );
    let second = mails.nth_mail(ADA, 2).await.token();
    assert_eq!(code(&visitor.verify(&first).await), "UNAUTHENTICATED");
    // A token has one purpose.
    assert_eq!(
        code(&visitor.reset(&second, "a new password").await),
        "UNAUTHENTICATED"
    );
    accepted(&visitor.verify(&second).await, "verifyEmail");
    assert!(ada.verified_at().await.is_string());
    assert_eq!(code(&visitor.verify(&second).await), "UNAUTHENTICATED");
    // A verified address gets no further mail, and the session continues.
    accepted(
        &ada.request_verification().await,
        "requestEmailVerification",
    );
    let db = server.database().connect().await;
    until_recorded(&db, "auth.email_verified", 1).await;
    assert_eq!(mail::Entity::find().all(&db).await.expect("reads").len(), 2);

    // The field has the readers of `email`.
    let query = "query($id: ID!) { node(id: $id) { ... on User { emailVerifiedAt email } } }";
    let id = json!({ "id": ada.id().await });
    let bob = visitor.register(BOB).await;
    let seen = visitor.with(&bob.access).ask(query, id.clone()).await;
    assert_eq!(
        seen["node"],
        json!({ "emailVerifiedAt": null, "email": null })
    );
    let seen = server.actor(ADMIN).await.ask(query, id).await;
    assert!(seen["node"]["emailVerifiedAt"].is_string(), "{seen}");
}

#[tokio::test]
async fn an_unverified_token_expires_after_a_day() {
    let (server, mails) = serve().await;
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    let token = mails.token_for(ADA, VERIFY).await;
    server.pass(24 * 3600 + 1);
    assert_eq!(code(&visitor.verify(&token).await), "UNAUTHENTICATED");
    visitor.login(ADA, PASSWORD).await;
}

#[tokio::test]
async fn a_new_address_replaces_the_former_one_when_it_is_verified() {
    let (server, mails) = serve().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let ada = visitor.with(&ada.access);
    let verification = mails.token_for(ADA, VERIFY).await;
    visitor.request_reset(ADA).await;
    let reset = mails.token_for(ADA, RESET).await;

    accepted(&ada.change_email(CAROL, PASSWORD).await, "changeEmail");
    let token = mails.token_for(CAROL, CHANGE).await;
    assert_eq!(ada.who().await, user(ADA));
    assert_eq!(
        code(&visitor.reset(&token, "a new password").await),
        "UNAUTHENTICATED"
    );
    accepted(&visitor.verify(&token).await, "verifyEmail");

    assert_eq!(ada.who().await, user(CAROL));
    assert!(ada.verified_at().await.is_string());
    visitor.login(CAROL, PASSWORD).await;
    assert_eq!(
        code(&visitor.try_login(ADA, PASSWORD).await),
        "UNAUTHENTICATED"
    );
    // The tokens in the former mailbox are useless, and it gets a notice without a token.
    for old in [&verification, &token] {
        assert_eq!(code(&visitor.verify(old).await), "UNAUTHENTICATED");
    }
    assert_eq!(
        code(&visitor.reset(&reset, "a new password").await),
        "UNAUTHENTICATED"
    );
    let notice = mails.nth_mail(ADA, 3).await;
    assert_eq!(notice.subject, CHANGED);
    assert!(!notice.text.contains("gtr_") && !notice.text.contains(CAROL));
    // The former address is free.
    visitor.register(ADA).await;
    let db = server.database().connect().await;
    until_recorded(&db, "auth.email_change_requested", 1).await;
    until_recorded(&db, "auth.email_changed", 1).await;
}

#[tokio::test]
async fn a_new_spelling_of_an_address_sends_no_notice_and_keeps_the_known_networks() {
    let (server, mails) = serve().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let ada = visitor.with(&ada.access);
    let spelled = ADA.to_uppercase();
    accepted(&ada.change_email(&spelled, PASSWORD).await, "changeEmail");
    let db = server.database().connect().await;
    let networks = async || lockout::Entity::find().all(&db).await.expect("reads");
    let before = networks().await;
    assert!(!before.is_empty());
    let token = mails.token_for(&spelled, CHANGE).await;
    accepted(&visitor.verify(&token).await, "verifyEmail");
    assert_eq!(ada.who().await, user(&spelled));
    assert!(ada.verified_at().await.is_string());
    assert_eq!(networks().await, before);
    until_sent(&db).await;
    // The verification after the registration is the only mail to the former spelling.
    assert_eq!(mails.mails_to(ADA).len(), 1);
}

#[tokio::test]
async fn an_address_gets_mails_for_several_users_up_to_a_limit() {
    let (server, _mails) = serve().await;
    let visitor = server.anonymous();
    let db = server.database().connect().await;
    let count = async || {
        let rows = mail::Entity::find().filter(mail::Column::EmailKey.eq(CAROL));
        rows.count(&db).await.expect("reads")
    };
    for (n, expected) in [3, 6, 9, 10].into_iter().enumerate() {
        let tokens = visitor.register(&format!("user-{n}@example.com")).await;
        let actor = visitor.with(&tokens.access);
        for _ in 0..4 {
            accepted(&actor.change_email(CAROL, PASSWORD).await, "changeEmail");
        }
        assert_eq!(count().await, expected);
    }
}

#[tokio::test]
async fn a_mail_to_an_address_that_the_mail_server_does_not_support_is_dropped() {
    let (server, mails) = serve().await;
    server.anonymous().register("ädä@example.com").await;
    let db = server.database().connect().await;
    until_sent(&db).await;
    let rows = mail::Entity::find().all(&db).await.expect("reads");
    assert_eq!(rows.len(), 1);
    assert!(rows[0].attempts > 0);
    assert_eq!(mails.count(), 0);
}

#[tokio::test]
async fn an_address_that_has_an_account_is_not_revealed() {
    let (server, mails) = serve().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let ada = visitor.with(&ada.access);
    visitor.register(BOB).await;
    let free = ada.change_email(CAROL, PASSWORD).await;
    let taken = ada.change_email(" Bob@Example.com", PASSWORD).await;
    assert_eq!(free["data"], taken["data"]);
    accepted(&taken, "changeEmail");
    let db = server.database().connect().await;
    until_sent(&db).await;
    // The notice goes to the address of the account, not to its spelling in the request.
    assert_eq!(mails.mails_to("Bob@Example.com").len(), 0);
    let mut notices = mails.mails_to(BOB);
    notices.retain(|mail| mail.subject == TAKEN);
    assert_eq!(notices.len(), 1);
    assert!(!notices[0].text.contains("gtr_") && !notices[0].text.contains(ADA));
    assert_eq!(ada.who().await, user(ADA));
    // The request for the taken address has made the earlier token unusable, as any request does.
    let earlier = mails.token_for(CAROL, CHANGE).await;
    assert_eq!(code(&visitor.verify(&earlier).await), "UNAUTHENTICATED");
}

#[tokio::test]
async fn an_address_that_is_taken_in_the_meantime_is_not_replaced() {
    let (server, mails) = serve().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let bob = visitor.register(BOB).await;
    let [ada, bob] = [ada, bob].map(|tokens| visitor.with(&tokens.access));
    accepted(&ada.change_email(CAROL, PASSWORD).await, "changeEmail");
    accepted(&bob.change_email(CAROL, PASSWORD).await, "changeEmail");
    mails.nth_mail(CAROL, 2).await;
    let tokens: Vec<_> = mails.mails_to(CAROL).iter().map(Received::token).collect();
    let answers = join(visitor.verify(&tokens[0]), visitor.verify(&tokens[1])).await;
    let answers = <[Value; 2]>::from(answers);
    let won = answers.iter().position(|answer| answer["data"].is_object());
    let won = won.expect("a winner");
    accepted(&answers[won], "verifyEmail");
    assert_eq!(code(&answers[1 - won]), "UNAUTHENTICATED", "{answers:?}");
    let mut owners = Vec::new();
    for actor in [ada, bob] {
        owners.push(actor.who().await.expect("is signed in"));
    }
    assert_eq!(owners.iter().filter(|email| *email == CAROL).count(), 1);
}

#[tokio::test]
async fn a_change_of_the_address_needs_the_password_and_is_limited() {
    let (server, mails) = serve().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let ada = visitor.with(&ada.access);
    for email in ["", "carol", "a b@example.com"] {
        let answer = ada.change_email(email, PASSWORD).await;
        assert!(
            faults(&answer["data"]["changeEmail"])[0].ends_with(" email"),
            "{answer}"
        );
    }
    for _ in 0..5 {
        let answer = ada.change_email(CAROL, "a wrong password").await;
        assert_eq!(
            faults(&answer["data"]["changeEmail"]),
            ["INVALID currentPassword"]
        );
    }
    // The failures lock as those of a sign-in do.
    let locked = ada.change_email(CAROL, PASSWORD).await;
    assert_eq!(
        faults(&locked["data"]["changeEmail"]),
        ["INVALID currentPassword"]
    );
    server.pass(61);
    let db = server.database().connect().await;
    for n in 0..5 {
        let answer = ada
            .change_email(&format!("carol-{n}@example.com"), PASSWORD)
            .await;
        accepted(&answer, "changeEmail");
        // A mail that waits is dropped when the next one replaces its token.
        until_sent(&db).await;
    }
    let count = |n: usize| mails.mails_to(&format!("carol-{n}@example.com")).len();
    assert_eq!((0..5).map(count).sum::<usize>(), 3);
    assert_eq!(mails.mails_to(CAROL).len(), 0);

    // An idempotency key would store a hash of the password.
    let input = json!({ "email": CAROL, "currentPassword": PASSWORD });
    let query = "mutation($input: ChangeEmailInput!) { changeEmail(input: $input) { accepted } }";
    let request = ada.request(query, &json!({ "input": input }));
    let response = request.header("idempotency-key", "a-key").send().await;
    let answer: Value = response.expect("an answer").json().await.expect("JSON");
    assert_eq!(code(&answer), "BAD_USER_INPUT", "{answer}");
}
