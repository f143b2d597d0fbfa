//! Passwords: hashed with argon2id, off the async threads, with limited concurrency.
//!
//! The minimum parameters are those of OWASP's password storage cheat sheet: 19 MiB, two passes, one lane. A check
//! takes as long for a nonexistent account as for an existing one.

use std::{
    ops::RangeInclusive,
    sync::{Arc, OnceLock},
};

use argon2::{
    Algorithm, Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier, Version,
    password_hash,
};
use tokio::{sync::Semaphore, task::spawn_blocking};
use unicode_normalization::UnicodeNormalization;
use uuid::Uuid;

use crate::{
    error::Error,
    input::{Check, UserErrorCode},
};

/// Minimum and maximum length of a password, in characters.
const LENGTH: RangeInclusive<usize> = 8..=128;

/// Maximum number of queued checks; further ones are refused with `UNAVAILABLE`.
const WAITING: usize = 256;

gathering_settings::settings! {
    /// The cost of a hash, and the number of concurrent computations.
    pub struct Hashing {
        /// Memory of one argon2id hash, in KiB; at least the minimum that OWASP recommends.
        memory: u32 = 19_456, from 19_456, to 1 << 20;
        /// Passes of one argon2id hash over its memory; at least the minimum that OWASP recommends.
        passes: u32 = 2, from 2, to 100;
        /// Maximum number of passwords hashed at the same time; each uses its memory and one processor.
        parallel: usize = 2, from 1, to 256;
    }
}

/// Hashes passwords and checks them.
pub(super) struct Passwords {
    argon2: Argon2<'static>,
    /// The hash of a random password, for nonexistent accounts.
    decoy: OnceLock<String>,
    running: Arc<Semaphore>,
    waiting: Semaphore,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PasswordMatch {
    Wrong,
    Right,
    /// Correct, but hashed with less effort than is configured now.
    Outdated,
}

/// Whether a password has at least this many characters, in the form in which it is hashed.
fn has(password: &str, characters: usize) -> bool {
    password.nfc().nth(characters - 1).is_some()
}

/// Checks a new password.
pub(crate) fn check_password(check: &mut Check, field: &str, value: &str) {
    let (least, most) = RangeInclusive::into_inner(LENGTH);
    if value.is_empty() {
        check.required(field);
    } else if !has(value, least) {
        let message = format!("`{field}` must have at least {least} characters.");
        check.fault(field, UserErrorCode::TooShort, message);
    } else if has(value, most + 1) {
        check.too_long(field, most);
    }
}

/// The form in which a password is hashed, independent of how a keyboard composes letters (as `OpaqueString` of RFC
/// 8265).
fn normalized(password: &str) -> String {
    password.nfc().collect()
}

impl Passwords {
    /// # Errors
    /// The parameters are out of argon2's bounds.
    pub(super) fn new(hashing: &Hashing) -> Result<Self, argon2::Error> {
        let params = Params::new(hashing.memory, hashing.passes, 1, None)?;
        Ok(Self {
            argon2: Argon2::new(Algorithm::Argon2id, Version::V0x13, params),
            decoy: OnceLock::new(),
            running: Arc::new(Semaphore::new(hashing.parallel)),
            waiting: Semaphore::new(WAITING),
        })
    }

    /// The hash of a password, as a PHC string.
    ///
    /// # Errors
    /// `UNAVAILABLE` if too many checks are queued.
    pub(super) async fn hash(&self, password: &str) -> Result<String, Error> {
        let (argon2, password) = (self.argon2.clone(), normalized(password));
        self.compute(move || hash(&argon2, &password))
            .await?
            .map_err(broken)
    }

    /// Whether a password matches a hash. Without a hash it never matches, but takes as long.
    ///
    /// # Errors
    /// `UNAVAILABLE` if too many checks are queued.
    pub(super) async fn verify(
        &self,
        password: &str,
        hashed: Option<&str>,
    ) -> Result<PasswordMatch, Error> {
        let decoy = if let Some(decoy) = self.decoy.get() {
            decoy
        } else {
            let decoy = self.hash(&Uuid::new_v4().to_string()).await?;
            self.decoy.get_or_init(|| decoy)
        };
        let exists = hashed.is_some();
        let hashed = hashed.unwrap_or(decoy).to_owned();
        // No account has a longer password. Avoid spending more time on it.
        let fits = !has(password, LENGTH.end() + 1);
        let password = if fits {
            normalized(password)
        } else {
            String::new()
        };
        let argon2 = self.argon2.clone();
        let result = self
            .compute(move || {
                let hashed = PasswordHash::new(&hashed)?;
                match argon2.verify_password(password.as_bytes(), &hashed) {
                    Ok(()) if is_outdated(&argon2, &hashed) => Ok(PasswordMatch::Outdated),
                    Ok(()) => Ok(PasswordMatch::Right),
                    Err(password_hash::Error::PasswordInvalid) => Ok(PasswordMatch::Wrong),
                    Err(error) => Err(error),
                }
            })
            .await?
            .map_err(broken)?;
        Ok(if exists && fits {
            result
        } else {
            PasswordMatch::Wrong
        })
    }

    /// Computes off the async threads. A computation that has started runs to its end, and counts as running until
    /// then, even if its request is cancelled.
    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let busy = || Error::unavailable("Too many sign-ins. Try again in a moment.");
        let _waiting = self.waiting.try_acquire().map_err(|_| busy())?;
        let running = Arc::clone(&self.running).acquire_owned().await;
        let running = running.map_err(|_| busy())?;
        let done = spawn_blocking(move || {
            let _running = running;
            work()
        });
        done.await.map_err(|error| {
            tracing::error!(%error, "cannot hash a password");
            Error::internal()
        })
    }
}

fn hash(argon2: &Argon2<'_>, password: &str) -> password_hash::Result<String> {
    argon2
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
}

fn is_outdated(argon2: &Argon2<'_>, hashed: &PasswordHash) -> bool {
    let params = argon2.params();
    Params::try_from(hashed)
        .is_ok_and(|stored| stored.m_cost() < params.m_cost() || stored.t_cost() < params.t_cost())
}

fn broken(error: password_hash::Error) -> Error {
    tracing::error!(%error, "cannot use a password hash");
    Error::internal()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passwords(memory: u32, passes: u32) -> Passwords {
        let hashing = Hashing {
            memory,
            passes,
            parallel: 2,
        };
        Passwords::new(&hashing).expect("within bounds")
    }

    #[tokio::test]
    async fn a_password_matches_only_its_own_hash() {
        let passwords = passwords(64, 1);
        let hashed = passwords.hash("caf\u{e9} at noon").await.expect("hashes");
        assert!(
            hashed.starts_with("$argon2id$v=19$m=64,t=1,p=1$"),
            "{hashed}"
        );
        for (password, expected) in [
            ("caf\u{e9} at noon", PasswordMatch::Right),
            ("cafe\u{301} at noon", PasswordMatch::Right),
            ("cafe at noon", PasswordMatch::Wrong),
            ("", PasswordMatch::Wrong),
        ] {
            let found = passwords.verify(password, Some(&hashed)).await;
            assert_eq!(found.expect("checks"), expected, "{password}");
        }
        let long = "x".repeat(1 << 20);
        let hashed = passwords.hash("").await.expect("hashes");
        for hashed in [None, Some(hashed.as_str())] {
            let found = passwords.verify(&long, hashed).await;
            assert_eq!(found.expect("checks"), PasswordMatch::Wrong);
        }
    }

    #[tokio::test]
    async fn a_hash_with_weaker_parameters_is_outdated() {
        let hashed = passwords(64, 1)
            .hash("correct horse")
            .await
            .expect("hashes");
        for (memory, passes, expected) in [
            (64, 1, PasswordMatch::Right),
            (32, 1, PasswordMatch::Right),
            (128, 1, PasswordMatch::Outdated),
            (64, 2, PasswordMatch::Outdated),
        ] {
            let found = passwords(memory, passes)
                .verify("correct horse", Some(&hashed))
                .await;
            assert_eq!(
                found.expect("checks"),
                expected,
                "{memory} KiB, {passes} passes"
            );
        }
    }
}
