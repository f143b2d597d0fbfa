//! Passwords: hashed with argon2id, off the async threads, with limited concurrency.
//!
//! The minimum parameters are those of OWASP's password storage cheat sheet: 19 MiB, two passes, one lane.
//!
//! Every check does the same work, for a nonexistent account and for one whose hash has the parameters of an earlier
//! configuration: a check of a weaker hash is followed by hashes without a use, until the work is that of the strongest
//! parameters among the configured ones and those seen so far.

use std::{
    ops::RangeInclusive,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
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
    /// The work of a check: that of the strongest parameters so far.
    work: AtomicU64,
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
            work: AtomicU64::new(work(&params)),
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
        let padding = self.padding(&hashed);
        let result = self
            .compute(move || {
                for params in padding {
                    pad(&params, password.as_bytes())?;
                }
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

    /// The hashes that a check of this hash needs in addition, so that it does the same work as any other check.
    fn padding(&self, hashed: &str) -> Vec<Params> {
        let stored = PasswordHash::new(hashed)
            .ok()
            .and_then(|hashed| Params::try_from(&hashed).ok());
        let own = stored.as_ref().map_or(0, work);
        let all = self.work.fetch_max(own, Ordering::Relaxed).max(own);
        padding(self.argon2.params().m_cost(), all - own)
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

/// The work of a hash: its passes over its memory, in KiB. Hashes have one lane.
fn work(params: &Params) -> u64 {
    u64::from(params.m_cost()) * u64::from(params.t_cost())
}

/// Parameters of hashes that together do this work, with at most this memory.
fn padding(memory: u32, work: u64) -> Vec<Params> {
    let memory = u64::from(memory);
    let parts = [(memory, work / memory), (work % memory, 1)];
    let parts = parts.into_iter().filter_map(|(memory, passes)| {
        let [memory, passes] = [memory, passes].map(u32::try_from);
        // Argon2 has minimums; less work than they need does not show.
        Params::new(memory.ok()?, passes.ok()?, 1, None).ok()
    });
    parts.collect()
}

/// Does the work of a hash.
fn pad(params: &Params, password: &[u8]) -> password_hash::Result<()> {
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone());
    argon2.hash_password(password).map(drop)
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

    /// The work of a check of this hash.
    fn work_of_check(passwords: &Passwords, hashed: &str) -> u64 {
        let stored = PasswordHash::new(hashed).expect("a hash");
        let stored = Params::try_from(&stored).expect("parameters");
        let padding = passwords.padding(hashed);
        let memory = passwords.argon2.params().m_cost();
        assert!(padding.iter().all(|params| params.m_cost() <= memory));
        work(&stored) + padding.iter().map(work).sum::<u64>()
    }

    #[tokio::test]
    async fn a_check_of_a_hash_with_other_parameters_does_the_work_of_any_other() {
        let passwords = passwords(128, 5);
        // The check of a nonexistent account.
        passwords.verify("x", None).await.expect("checks");
        let decoy = passwords.decoy.get().expect("a decoy").clone();
        assert_eq!(work_of_check(&passwords, &decoy), 640);
        for (memory, passes) in [(128, 5), (128, 2), (64, 5), (64, 1), (8, 1), (200, 3)] {
            let hashed = self::passwords(memory, passes)
                .hash("x")
                .await
                .expect("hashes");
            assert_eq!(work_of_check(&passwords, &hashed), 640, "{memory} {passes}");
        }
        // Stronger hashes of an earlier configuration raise the work of all checks.
        let stronger = self::passwords(256, 4).hash("x").await.expect("hashes");
        for hashed in [&stronger, &decoy] {
            assert_eq!(work_of_check(&passwords, hashed), 1_024);
            let found = passwords.verify("y", Some(hashed)).await;
            assert_eq!(found.expect("checks"), PasswordMatch::Wrong);
        }
    }
}
