//! The keys that sign access tokens: configured, or generated and stored in the data directory (SQLite).
//!
//! Several instances must share their keys, so with PostgreSQL they must be configured. The file has one key per line;
//! the first one signs. It is replaced atomically, so readers never see a partial file.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use base64::{Engine, prelude::BASE64_STANDARD};
use gathering_schema::auth::{Keys, WeakKey};

use crate::StartError;
use crate::config::Config;
use crate::db::make_folder;

const FILE: &str = "signing-keys";

const HOW: &str = "at least 32 random bytes, such as the output of `openssl rand -base64 48`";

/// Loads the keys of a server.
///
/// # Errors
/// A key is missing or weak, or the file cannot be used.
pub fn load(config: &Config) -> Result<Keys, StartError> {
    let signing = config.auth.signing_key.expose();
    let further = config.auth.verification_keys.expose();
    let further: Vec<_> = further
        .split(',')
        .map(str::trim)
        .filter(|key| !key.is_empty())
        .collect();
    if !signing.is_empty() {
        return Keys::new(signing.as_bytes(), &further).map_err(|weak| {
            let why = match weak {
                WeakKey::Short => "too short",
                WeakKey::Monotonous => "too easy to guess",
            };
            StartError::new(format!(
                "auth.signing_key or one of auth.verification_keys is {why}: use {HOW}"
            ))
        });
    }
    if config.database.url.is_postgres() {
        return Err(StartError::new(format!(
            "auth.signing_key is missing: set GATHERING__AUTH__SIGNING_KEY to {HOW}, the same on every instance"
        )));
    }
    let lines = read_or_make(&config.data.dir)?;
    let [signing, former @ ..] = lines.as_slice() else {
        return Err(unusable(&config.data.dir, "it is empty"));
    };
    let further: Vec<_> = former.iter().map(String::as_str).chain(further).collect();
    Keys::new(signing.as_bytes(), &further)
        .map_err(|_| unusable(&config.data.dir, "one of its keys is weak"))
}

/// Checks the keys of a server, without generating one.
///
/// # Errors
/// As for [`load`].
pub fn check(config: &Config) -> Result<(), StartError> {
    let is_configured = !config.auth.signing_key.expose().is_empty();
    let will_be_generated = !config.database.url.is_postgres()
        && !is_configured
        && !config.data.dir.join(FILE).exists();
    if will_be_generated {
        return Ok(());
    }
    load(config).map(drop)
}

/// Adds a new key to the file, which signs from the next start on; tokens of the previous key stay valid.
///
/// # Errors
/// The keys are configured, or the file cannot be written.
pub fn rotate(config: &Config) -> Result<(), StartError> {
    if !config.auth.signing_key.expose().is_empty() || config.database.url.is_postgres() {
        return Err(StartError::new(
            "the keys of this server are configured, not generated: add the new key to auth.verification_keys on all instances \
             and restart them, then make it auth.signing_key and the old key a verification key, and restart them again",
        ));
    }
    let folder = &config.data.dir;
    let former = read_or_make(folder)?;
    let former = former.first().map_or("", String::as_str);
    let created = make().and_then(|key| {
        let file = write(folder, &format!("{key}\n{former}\n"))?;
        file.persist(folder.join(FILE)).map_err(io::Error::from)
    });
    created
        .map(drop)
        .map_err(|error| unusable(folder, &error.to_string()))
}

fn read_or_make(folder: &Path) -> Result<Vec<String>, StartError> {
    let path = folder.join(FILE);
    let read = || fs::read_to_string(&path);
    let text = read().or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
        make_folder(folder)?;
        let file = write(folder, &format!("{}\n", make()?))?;
        // If another process was faster, its key is used.
        match file.persist_noclobber(&path) {
            Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
            _ => read(),
        }
    });
    let text = text.map_err(|error| unusable(folder, &error.to_string()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// A temporary file that only its owner may read.
fn write(folder: &Path, text: &str) -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    Ok(file)
}

fn make() -> io::Result<String> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    Ok(BASE64_STANDARD.encode(random))
}

fn unusable(folder: &Path, why: &str) -> StartError {
    let path = folder.join(FILE);
    StartError::new(format!(
        "the signing key in {} cannot be used ({why}): set another folder in data.dir, or set auth.signing_key",
        path.display()
    ))
}
