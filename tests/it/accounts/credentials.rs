//! E-mail addresses and passwords: normalization, length limits, and hashing.

use gathering_entity::user as users;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use serde_json::Value;

use crate::support::account;
use crate::support::account::ADA;
use crate::support::actor::{code, faults};
use crate::support::database::PASSWORD;
use crate::support::server::TestServer;

#[tokio::test]
async fn addresses_that_differ_in_case_or_unicode_form_are_one_account() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    for (one, others) in [
        (
            "Ada@Example.com",
            vec![
                "ada@example.com",
                "ADA@EXAMPLE.COM",
                "\u{a0}ada@example.com\n",
            ],
        ),
        // Compatibility forms: full width, circled, superscript, and a ligature.
        (
            "mia@example.com",
            vec![
                "\u{ff2d}\u{ff29}\u{ff21}@example.com",
                "mia@example\u{ff0e}com",
                "\u{24dc}ia@example.com",
                "mi\u{1d43}@example.com",
            ],
        ),
        (
            "o\u{fb03}ce@example.com",
            vec!["office@example.com", "O\u{fb03}CE@EXAMPLE.COM"],
        ),
        // Precomposed and combining accents.
        (
            "zo\u{eb}@example.com",
            vec![
                "zoe\u{308}@example.com",
                "ZO\u{cb}@example.com",
                "ZOE\u{308}@EXAMPLE.COM",
            ],
        ),
        (
            "\u{1ed9}@example.com",
            vec![
                "o\u{323}\u{302}@example.com",
                "o\u{302}\u{323}@example.com",
                "O\u{302}\u{323}@example.com",
            ],
        ),
        (
            "\u{212a}im@example.com",
            vec!["kim@example.com", "KIM@example.com"],
        ),
        // Letters without a single-character uppercase form, and the two lowercase forms of sigma.
        (
            "\u{1f0}an@example.com",
            vec!["J\u{30c}AN@EXAMPLE.COM", "j\u{30c}an@example.com"],
        ),
        (
            "\u{3bd}\u{3af}\u{3ba}\u{3bf}\u{3c2}@example.com",
            vec!["\u{39d}\u{38a}\u{39a}\u{39f}\u{3a3}@EXAMPLE.COM"],
        ),
    ] {
        account::tokens(&visitor.try_register(one, PASSWORD).await["data"]["register"]);
        for other in others {
            let again = visitor.try_register(other, PASSWORD).await;
            assert_eq!(
                faults(&again["data"]["register"]),
                ["TAKEN email"],
                "{other:?}"
            );
            let here = visitor.login(other, PASSWORD).await;
            assert_eq!(
                visitor.with(&here.access).who().await,
                account::user(one),
                "{other:?}"
            );
        }
    }
    // These addresses are not registered.
    for email in [
        "ad a@example.com",
        "adas@example.com",
        "zoe@example.com",
        "ada@example.co",
    ] {
        assert_eq!(
            code(&visitor.try_login(email, PASSWORD).await),
            "UNAUTHENTICATED",
            "{email}"
        );
    }
}

#[tokio::test]
async fn a_password_has_8_to_128_characters_of_any_kind() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let refused = async |password: &str| -> String {
        let answer = visitor.try_register(ADA, password).await;
        let payload = &answer["data"]["register"];
        assert_eq!(payload["accessToken"], Value::Null, "{password:?}");
        let faults = faults(payload);
        assert_eq!(faults.len(), 1);
        let code = faults[0].strip_suffix(" password");
        code.expect("a fault of the password").to_owned()
    };
    assert_eq!(refused("").await, "REQUIRED");
    for short in [
        "\u{1f642}",
        "1234567",
        &"\u{1f642}".repeat(7),
        "\u{1f469}\u{200d}\u{1f680}",
        &"e\u{301}".repeat(7),
    ] {
        assert_eq!(refused(short).await, "TOO_SHORT", "{short:?}");
    }
    for long in [
        " ".repeat(200),
        "x".repeat(129),
        "x".repeat(1_000_000),
        "e\u{301}".repeat(129),
        "\u{301}".repeat(500_000),
    ] {
        assert_eq!(refused(&long).await, "TOO_LONG");
    }
    for (n, fits) in [
        " ".repeat(8),
        "\u{1f642}".repeat(8),
        "x".repeat(128),
        "\u{1f642}".repeat(128),
        "e\u{301}".repeat(128),
        " leads and trails ".to_owned(),
        "\0\u{1}\u{7f}\n\r\t\\\"".to_owned(),
        "password".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let email = format!("user{n}@example.com");
        account::tokens(&visitor.try_register(&email, fits).await["data"]["register"]);
        visitor.login(&email, fits).await;
        // Every character is significant.
        let shorter: String = fits.chars().skip(1).collect();
        for other in [fits.trim(), &shorter, &format!("{fits} ")] {
            if other != fits {
                assert_eq!(
                    code(&visitor.try_login(&email, other).await),
                    "UNAUTHENTICATED",
                    "{fits:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_password_matches_in_every_unicode_normalization_form() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let composed = "p\u{e4}ssw\u{f6}rd \u{1ed9}";
    let decomposed = "pa\u{308}sswo\u{308}rd o\u{302}\u{323}";
    for (n, one, other) in [
        (0, composed.to_owned(), decomposed.to_owned()),
        (1, decomposed.to_owned(), composed.to_owned()),
        (2, "\u{e9}".repeat(128), "e\u{301}".repeat(128)),
        (3, "e\u{301}".repeat(128), "\u{e9}".repeat(128)),
    ] {
        let email = format!("user{n}@example.com");
        account::tokens(&visitor.try_register(&email, &one).await["data"]["register"]);
        visitor.login(&email, &other).await;
    }
    // Different characters make a different password.
    for other in [
        "passwo\u{308}rd \u{1ed9}",
        "P\u{e4}ssw\u{f6}rd \u{1ed9}",
        "p\u{e4}ssw\u{f6}rd\u{a0}\u{1ed9}",
    ] {
        assert_eq!(
            code(&visitor.try_login("user0@example.com", other).await),
            "UNAUTHENTICATED"
        );
    }
}

async fn stored(server: &TestServer) -> String {
    let find = users::Entity::find().filter(users::Column::EmailKey.eq(ADA));
    let db = server.database().connect().await;
    find.one(&db)
        .await
        .expect("reads")
        .expect("a user")
        .password_hash
}

#[tokio::test]
async fn a_sign_in_rehashes_the_password_after_the_cost_was_raised() {
    let two = TestServer::start().await;
    two.anonymous().register(ADA).await;
    let before = stored(&two).await;
    assert!(
        before.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
        "{before}"
    );
    two.anonymous().login(ADA, PASSWORD).await;
    assert_eq!(stored(&two).await, before);

    let three = two
        .beside(|config| config.auth.policy.hashing.passes = 3)
        .await;
    assert_eq!(
        code(&three.anonymous().try_login(ADA, "a wrong password").await),
        "UNAUTHENTICATED"
    );
    assert_eq!(stored(&two).await, before);
    let session = three.anonymous().login(ADA, PASSWORD).await;
    let after = stored(&two).await;
    assert!(
        after.starts_with("$argon2id$v=19$m=19456,t=3,p=1$"),
        "{after}"
    );

    // A lower cost does not rehash the password, and the session stays valid.
    two.anonymous().login(ADA, PASSWORD).await;
    assert_eq!(stored(&two).await, after);
    assert_eq!(
        two.anonymous().with(&session.access).who().await,
        account::user(ADA)
    );
}
