//! Access tokens: signed statements of who signed in, valid for minutes.
//!
//! They are JSON Web Tokens (RFC 7519) in the profile of RFC 9068, signed with HMAC-SHA-256 only. A key is identified
//! by its own hash (`kid`), so that a signing key and verification keys can coexist during a key rotation. A token
//! identifies its user but contains no permissions, which are read from the database.

use std::{
    sync::{Arc, Once},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use gathering_entity::mail::MailPurpose;
use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{Error as JwtError, ErrorKind},
};
use sea_orm::ActiveEnum;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    cache::{Cache, CacheStats},
    text,
};

/// Minimum length of a signing key in bytes: the length of the hash.
const SHORTEST_KEY: usize = 32;

/// Minimum number of distinct bytes in a signing key. 32 random bytes have more, even in hexadecimal.
const FEWEST_BYTES: usize = 8;

/// How far the clock of the signing instance may be ahead of this one, in seconds.
const CLOCK_SKEW: i64 = 30;

/// Maximum length of a token, in bytes; issued tokens are half as long.
const LONGEST_TOKEN: usize = 1024;

const MEDIA_TYPE: &str = "at+jwt";

/// Separates the key of the tokens in mails from the signing key.
const MAIL_KEY: &[u8] = b"gathering tokens in mails";

/// The start of every token in a mail, for secret scanners.
const MAIL_PREFIX: &str = "gtr_";

/// Why a text cannot be a signing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeakKey {
    /// It is shorter than the hash.
    Short,
    /// It has too few distinct bytes, like a typed text.
    Monotonous,
}

/// The signing key, and all keys that are accepted.
#[derive(Clone)]
pub struct Keys(Arc<[Key]>);

struct Key {
    id: String,
    sign: EncodingKey,
    verify: DecodingKey,
    /// The key of the tokens in mails.
    mail: [u8; 32],
}

/// The claims of a token.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Claims {
    iss: String,
    aud: String,
    /// The user.
    pub(super) sub: Uuid,
    /// The id of the token.
    pub(super) jti: Uuid,
    /// The session for which the token was issued.
    pub(super) sid: Uuid,
    iat: i64,
    pub(super) exp: i64,
    /// The user's `token_version` when the token was issued.
    pub(super) ver: i32,
}

impl Claims {
    /// When the token expires.
    pub(super) fn expires_at(&self) -> DateTime<Utc> {
        DateTime::from_timestamp(self.exp, 0).unwrap_or_default()
    }
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenError {
    /// It has expired.
    Expired,
    /// It was not issued by this server, or was modified.
    Invalid,
}

impl Keys {
    /// Keys, of which the first one signs.
    ///
    /// # Errors
    /// One of them is too easy to guess.
    pub fn new(signing: &[u8], verifying: &[impl AsRef<[u8]>]) -> Result<Self, WeakKey> {
        install();
        let all = std::iter::once(signing).chain(verifying.iter().map(AsRef::as_ref));
        Ok(Self(all.map(Key::new).collect::<Result<_, _>>()?))
    }

    /// A random key that ends with the process.
    ///
    /// # Errors
    /// The system's random number generator failed.
    pub fn random() -> Result<Self, getrandom::Error> {
        install();
        let mut secret = [0; SHORTEST_KEY];
        getrandom::fill(&mut secret)?;
        Ok(Self([Key::of(&secret)].into()))
    }

    /// The token of a mail under each key, that of the signing key first. It is computed from the purpose and the id of
    /// the mail, so that any instance can send the mail although the database has only the hash of the token.
    pub(super) fn mail_tokens(
        &self,
        purpose: MailPurpose,
        mail: Uuid,
    ) -> impl Iterator<Item = String> {
        let message = [purpose.to_value().as_bytes(), mail.as_bytes()].concat();
        self.0.iter().map(move |key| {
            // HMAC pads a shorter key with zeros.
            let mut block = [0; 64];
            block[..key.mail.len()].copy_from_slice(&key.mail);
            let mut mac = HmacSha256::new(&block.into());
            mac.update(&message);
            format!("{MAIL_PREFIX}{}", text::hex(&mac.finalize().into_bytes()))
        })
    }

    fn find(&self, id: &str) -> Option<&Key> {
        self.0.iter().find(|key| key.id == id)
    }
}

impl Key {
    fn new(secret: &[u8]) -> Result<Self, WeakKey> {
        if secret.len() < SHORTEST_KEY {
            return Err(WeakKey::Short);
        }
        let mut bytes = secret.to_vec();
        bytes.sort_unstable();
        bytes.dedup();
        let repeats = |period| {
            secret
                .iter()
                .zip(&secret[period..])
                .all(|(one, next)| one == next)
        };
        if bytes.len() < FEWEST_BYTES || (1..=secret.len() / 2).any(repeats) {
            return Err(WeakKey::Monotonous);
        }
        Ok(Self::of(secret))
    }

    fn of(secret: &[u8]) -> Self {
        Self {
            id: BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(secret)[..9]),
            sign: EncodingKey::from_secret(secret),
            verify: DecodingKey::from_secret(secret),
            mail: Sha256::new()
                .chain_update(MAIL_KEY)
                .chain_update(secret)
                .finalize()
                .into(),
        }
    }
}

/// Issues and decodes access tokens.
pub(super) struct TokenSigner {
    keys: Keys,
    issuer: String,
    /// What a token must contain.
    validation: Validation,
    audience: String,
    /// The claims of tokens whose signature was verified, by the SHA-256 of the token.
    verified: Cache<[u8; 32], Arc<Claims>>,
}

impl TokenSigner {
    /// `verified` is the maximum number of tokens whose claims are cached for their `lifetime`.
    pub(super) fn new(
        keys: Keys,
        issuer: String,
        audience: String,
        verified: u64,
        lifetime: Duration,
    ) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[&issuer]);
        validation.set_audience(&[&audience]);
        validation.set_required_spec_claims(&["iss", "aud", "sub", "exp"]);
        // Checked against the server's clock.
        validation.validate_exp = false;
        Self {
            keys,
            issuer,
            validation,
            audience,
            verified: Cache::new(verified, Some(lifetime)),
        }
    }

    /// Statistics of the cache of verified tokens.
    pub(super) fn verified(&self) -> CacheStats {
        self.verified.stats()
    }

    /// Issues a token for a user's session.
    pub(super) fn sign(
        &self,
        (user, version): (Uuid, i32),
        session: Uuid,
        now: DateTime<Utc>,
        expires_at: DateTime<Utc>,
    ) -> Result<String, JwtError> {
        let Some(key) = self.keys.0.first() else {
            return Err(ErrorKind::InvalidKeyFormat.into());
        };
        let mut header = Header::new(Algorithm::HS256);
        header.typ = Some(MEDIA_TYPE.to_owned());
        header.kid = Some(key.id.clone());
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            sub: user,
            jti: Uuid::now_v7(),
            sid: session,
            iat: now.timestamp(),
            exp: expires_at.timestamp(),
            ver: version,
        };
        jsonwebtoken::encode(&header, &claims, &key.sign)
    }

    /// The claims of a token, if it was issued by this server and is valid at `now`.
    pub(super) fn read(&self, token: &str, now: DateTime<Utc>) -> Result<Arc<Claims>, TokenError> {
        if token.len() > LONGEST_TOKEN {
            return Err(TokenError::Invalid);
        }
        let digest = <[u8; 32]>::from(Sha256::digest(token));
        let known = self.verified.get(&digest);
        let claims = match &known {
            Some(claims) => Arc::clone(claims),
            None => Arc::new(self.verify(token)?),
        };
        let now = now.timestamp();
        if claims.iat > now + CLOCK_SKEW || claims.exp <= claims.iat {
            return Err(TokenError::Invalid);
        }
        if claims.exp <= now {
            return Err(TokenError::Expired);
        }
        if known.is_none() {
            self.verified.insert(digest, Arc::clone(&claims));
        }
        Ok(claims)
    }

    /// The claims of a token with a valid signature, at whatever time it is valid.
    fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        let invalid = |_| TokenError::Invalid;
        let header = jsonwebtoken::decode_header(token).map_err(invalid)?;
        if header.typ.as_deref() != Some(MEDIA_TYPE) {
            return Err(TokenError::Invalid);
        }
        let key = header.kid.and_then(|id| self.keys.find(&id));
        let key = key.ok_or(TokenError::Invalid)?;
        let decoded = jsonwebtoken::decode(token, &key.verify, &self.validation);
        Ok(decoded.map_err(invalid)?.claims)
    }
}

type HmacSha256 = Hmac<Sha256>;

/// The only algorithm. The library's own collections of algorithms depend on RSA or a C library.
struct Hs256(HmacSha256);

impl Hs256 {
    fn new(algorithm: Algorithm, secret: &[u8]) -> Result<Self, JwtError> {
        if algorithm != Algorithm::HS256 {
            return Err(ErrorKind::InvalidAlgorithm.into());
        }
        let mac = HmacSha256::new_from_slice(secret).map_err(|_| ErrorKind::InvalidKeyFormat)?;
        Ok(Self(mac))
    }
}

impl signature::Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        let mut mac = self.0.clone();
        mac.update(message);
        Ok(mac.finalize().into_bytes().to_vec())
    }
}

impl signature::Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let mut mac = self.0.clone();
        mac.update(message);
        mac.verify_slice(signature)
            .map_err(|_| signature::Error::new())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

fn install() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: |algorithm, key| {
            let signer = Hs256::new(*algorithm, key.as_bytes())?;
            Ok(Box::new(signer))
        },
        verifier_factory: |algorithm, key| {
            let verifier = Hs256::new(*algorithm, key.try_get_as_bytes()?)?;
            Ok(Box::new(verifier))
        },
        key_utils: KeyUtils::new_unimplemented(),
    };
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only if another provider is installed, and no other code in this process signs such tokens.
        let _ = PROVIDER.install_default();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"0123456789abcdefghijklmnopqrstuv";
    const OTHER: &[u8] = b"vutsrqponmlkjihgfedcba9876543210";
    const NONE: [&[u8]; 0] = [];

    fn signer(signing: &[u8], verifying: &[&[u8]]) -> TokenSigner {
        TokenSigner::new(
            Keys::new(signing, verifying).expect("strong keys"),
            "gathering".to_owned(),
            "api".to_owned(),
            10,
            Duration::from_mins(15),
        )
    }

    fn sign(signer: &TokenSigner, now: DateTime<Utc>) -> String {
        let until = now + Duration::from_mins(15);
        signer
            .sign((Uuid::max(), 3), Uuid::max(), now, until)
            .expect("signs")
    }

    fn forged(header: &str, claims: &serde_json::Value, key: &[u8]) -> String {
        let text = format!(
            "{}.{}",
            BASE64_URL_SAFE_NO_PAD.encode(header),
            BASE64_URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let mut mac = HmacSha256::new_from_slice(key).expect("any length");
        mac.update(text.as_bytes());
        let signature = BASE64_URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
        format!("{text}.{signature}")
    }

    #[test]
    fn a_token_is_valid_from_its_issue_to_its_expiry() {
        let signer = signer(KEY, &[]);
        let now = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        let token = sign(&signer, now);
        let at = |seconds: i64| signer.read(&token, now + chrono::TimeDelta::seconds(seconds));
        assert_eq!(at(0).expect("good").ver, 3);
        assert!(at(899).is_ok());
        assert_eq!(at(900).err(), Some(TokenError::Expired));
        assert!(at(-CLOCK_SKEW).is_ok());
        assert_eq!(at(-CLOCK_SKEW - 1).err(), Some(TokenError::Invalid));
    }

    #[test]
    fn keys_can_be_rotated_without_rejecting_valid_tokens() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        let [old, both, new] = [signer(KEY, &[]), signer(OTHER, &[KEY]), signer(OTHER, &[])];
        assert!(both.read(&sign(&old, now), now).is_ok());
        assert!(both.read(&sign(&new, now), now).is_ok());
        assert!(old.read(&sign(&both, now), now).is_err());
        assert!(new.read(&sign(&old, now), now).is_err());
    }

    #[test]
    fn forged_tokens_are_rejected() {
        let signer = signer(KEY, &[]);
        let now = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        let id = &signer.keys.0[0].id;
        let genuine = |iss: &str, aud: &str| {
            serde_json::json!({ "iss": iss, "aud": aud, "sub": Uuid::max(), "jti": Uuid::max(), "sid": Uuid::max(),
                "iat": now.timestamp(), "exp": now.timestamp() + 900, "ver": 0 })
        };
        let claims = genuine("gathering", "api");
        let header = |alg: &str| format!(r#"{{"alg":"{alg}","typ":"at+jwt","kid":"{id}"}}"#);
        let good = forged(&header("HS256"), &claims, KEY);
        assert!(signer.read(&good, now).is_ok());

        let unsigned = good.rsplit_once('.').expect("three parts").0;
        let none = forged(&header("none"), &claims, KEY);
        let mut cases = vec![
            String::new(),
            "a.b.c".to_owned(),
            unsigned.to_owned(),
            format!("{unsigned}."),
            good[..good.len() - 1].to_owned(),
            none.clone(),
            format!("{}.", none.rsplit_once('.').expect("three parts").0),
            forged(&header("HS384"), &claims, KEY),
            forged(&header("RS256"), &claims, KEY),
            forged(&header("HS256"), &claims, OTHER),
            forged(&header("HS256"), &genuine("gathering", "elsewhere"), KEY),
            forged(&header("HS256"), &genuine("elsewhere", "api"), KEY),
            forged(r#"{"alg":"HS256","typ":"at+jwt"}"#, &claims, KEY),
            forged(r#"{"alg":"HS256","typ":"at+jwt","kid":"x"}"#, &claims, KEY),
            forged(&header("HS256").replace("at+jwt", "JWT"), &claims, KEY),
            format!("{good}{}", "A".repeat(LONGEST_TOKEN)),
        ];
        for missing in ["iss", "aud", "sub", "jti", "sid", "iat", "exp", "ver"] {
            let mut claims = claims.clone();
            claims.as_object_mut().expect("an object").remove(missing);
            cases.push(forged(&header("HS256"), &claims, KEY));
        }
        for token in cases {
            assert_eq!(
                signer.read(&token, now).err(),
                Some(TokenError::Invalid),
                "{token}"
            );
        }
    }

    #[test]
    fn a_weak_key_is_rejected() {
        assert_eq!(Keys::new(b"short", &NONE).err(), Some(WeakKey::Short));
        for typed in [
            "a".repeat(64),
            "change me, please! ".repeat(3),
            "secret".repeat(9),
        ] {
            let weak = Keys::new(typed.as_bytes(), &NONE).err();
            assert_eq!(weak, Some(WeakKey::Monotonous), "{typed}");
        }
        assert_eq!(Keys::new(KEY, &[b"short"]).err(), Some(WeakKey::Short));
    }
}
