//! Reads the configuration from its file and from the environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use gathering_schema::Trust;
use gathering_schema::auth::TOKEN_PLACE;
use gathering_settings::{Group, Key, Value};
use tracing_subscriber::EnvFilter;

use super::Config;
use super::value::DatabaseUrl;
use crate::StartError;

/// Variables with names outside the scheme `GATHERING__SECTION__KEY`, and the keys that they set.
const ALIASES: [(&str, &str); 3] = [
    ("DATABASE_URL", "database.url"),
    ("REDIS_URL", "redis.url"),
    ("GATHERING_DEMO_PASSWORD", "demo.password"),
];

impl Config {
    /// Reads the TOML file (`GATHERING_CONFIG` if `file` is `None`) and the environment, and checks every value.
    ///
    /// # Errors
    /// The file cannot be read, a key is unknown, or a value is invalid.
    pub fn load(file: Option<&Path>) -> Result<Self, StartError> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the environment is read only here"
        )]
        Self::read(file, std::env::vars_os())
    }

    fn read(
        file: Option<&Path>,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, StartError> {
        let environment: BTreeMap<String, OsString> = environment
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .collect();
        let mut config = Self::default();

        let named = environment
            .get("GATHERING_CONFIG")
            .filter(|path| !path.is_empty());
        if let Some(file) = file.or(named.map(Path::new)) {
            config.apply_file(file)?;
        }
        for (name, key) in ALIASES {
            if let Some(value) = environment.get(name) {
                config.apply_variable(name, key, value)?;
            }
        }
        for (name, value) in &environment {
            // Variables with one underscore are ignored: Kubernetes sets some for a service of this name.
            if let Some(path) = name.strip_prefix("GATHERING__") {
                config.apply_variable(name, &path.to_lowercase().replace("__", "."), value)?;
            }
        }
        config.check()?;

        if config.data.dir.as_os_str().is_empty() {
            let path = |name: &str| {
                environment
                    .get(name)
                    .filter(|path| !path.is_empty())
                    .map(PathBuf::from)
            };
            let home = || path("HOME").map(|home| home.join(".local/share"));
            if let Some(data) = path("XDG_DATA_HOME").or_else(home) {
                config.data.dir = data.join("gathering");
            }
        }
        if config.database.url.expose().is_empty() {
            config.database.url = DatabaseUrl::sqlite(&config.data.dir.join("gathering.db"));
        }
        Ok(config)
    }

    fn apply_file(&mut self, file: &Path) -> Result<(), StartError> {
        let name = file.display();
        let text = std::fs::read_to_string(file).map_err(|error| {
            StartError::new(format!(
                "cannot read the configuration file {name}: {error}"
            ))
        })?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error
                .span()
                .map_or(1, |span| text[..span.start].lines().count().max(1));
            StartError::new(format!("{name}, line {line}: {}", error.message()))
        })?;
        for (section, value) in table {
            let entries = match value {
                Value::Table(entries) => entries,
                value => toml::Table::from_iter([(String::new(), value)]),
            };
            if entries.is_empty() && !self.has_section(&section) {
                return Err(StartError::new(format!(
                    "{name}: [{section}] is not a section"
                )));
            }
            for (key, value) in entries {
                let path = format!("{section}.{key}");
                let path = path.trim_end_matches('.');
                self.set(path, &Given::Typed(value)).map_err(|problem| {
                    StartError::new(match problem {
                        Problem::Unknown(None) => format!("{name}: {path} is not a key"),
                        Problem::Unknown(Some(near)) => {
                            format!("{name}: {path} is not a key; did you mean {near}?")
                        }
                        Problem::Unfit(why) => format!("{name}: {path} {why}"),
                    })
                })?;
            }
        }
        Ok(())
    }

    fn apply_variable(
        &mut self,
        name: &str,
        path: &str,
        value: &OsString,
    ) -> Result<(), StartError> {
        let value = value
            .to_str()
            .ok_or_else(|| StartError::new(format!("{name} is not valid UTF-8")))?;
        self.set(path, &Given::Text(value.to_owned()))
            .map_err(|problem| {
                StartError::new(match problem {
                    Problem::Unknown(None) => {
                        format!("{name} is not a known variable; `gathering config` lists them")
                    }
                    Problem::Unknown(Some(near)) => {
                        let near = near.to_uppercase().replace('.', "__");
                        format!("{name} is not a known variable; did you mean GATHERING__{near}?")
                    }
                    Problem::Unfit(why) => format!("{name} {why}"),
                })
            })
    }

    fn has_section(&mut self, section: &str) -> bool {
        let keys = self.keys();
        let sections = keys.iter().filter_map(|key| key.path.split_once('.'));
        sections.map(|(section, _)| section).any(|of| of == section)
    }

    fn set(&mut self, path: &str, given: &Given) -> Result<(), Problem> {
        let mut keys = self.keys();
        let Some(key) = keys.iter_mut().find(|key| key.path == path) else {
            return Err(Problem::Unknown(nearest(path, &keys)));
        };
        let (text, shown) = match given {
            Given::Text(text) => (Some(text.clone()), format!("{text:?}")),
            Given::Typed(value) => {
                let text = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                (
                    value.same_type(&key.value.show()).then_some(text),
                    value.to_string(),
                )
            }
        };
        if let Some(text) = text {
            if key.value.set(&text) {
                return key.check_bounds().map_err(Problem::Unfit);
            }
            if let Some(problem) = key.value.problem(&text) {
                return Err(Problem::Unfit(problem));
            }
        }
        let found = if key.value.is_secret() {
            String::new()
        } else {
            format!(", not {shown}")
        };
        Err(Problem::Unfit(format!(
            "must be {}{found}",
            key.value.expected()
        )))
    }

    fn check(&self) -> Result<(), StartError> {
        let refuse = |text: &str| Err(StartError::new(text));
        if self.database.min_connections > self.database.max_connections {
            return refuse("database.min_connections must not be above database.max_connections");
        }
        if self.graphql.trusted_documents != Trust::Any
            && self.graphql.manifest.as_os_str().is_empty()
        {
            return refuse(
                "graphql.trusted_documents requires graphql.manifest, the file of the documents",
            );
        }
        let (complexity, cost) = (self.graphql.limits.complexity, self.limits.cost);
        if cost > 0 && u64::from(cost) < complexity {
            return refuse(
                "limits.cost must not be below graphql.complexity, the cost of the largest operation; 0 sets no limit",
            );
        }
        if let Some(class) = self.limits.classes.with_cost_below(complexity) {
            return Err(StartError::new(format!(
                "limits.classes: the cost of the class {class:?} must not be below graphql.complexity, the cost of the largest operation"
            )));
        }
        if !(8..=128).contains(&self.demo.password.expose().chars().count()) {
            return refuse("demo.password (GATHERING_DEMO_PASSWORD) must have 8 to 128 characters");
        }
        let links = &self.mail.links;
        for (key, link) in [
            ("reset_link", &links.reset_link),
            ("verify_link", &links.verify_link),
        ] {
            if !link.contains(TOKEN_PLACE) || link.contains(char::is_whitespace) {
                return Err(StartError::new(format!(
                    "mail.{key} must be a link with {TOKEN_PLACE} in the place of the token, not {link:?}"
                )));
            }
        }
        if let Err(error) = EnvFilter::try_new(&self.log.filter) {
            return Err(StartError::new(format!(
                "log.filter {:?}: {error}",
                self.log.filter
            )));
        }
        Ok(())
    }
}

/// A value from one source.
enum Given {
    /// From the file: the type must be that of the key.
    Typed(Value),
    /// From the environment: always text.
    Text(String),
}

/// Why a key cannot be set.
enum Problem {
    /// The key is unknown; the text is the most similar key.
    Unknown(Option<String>),
    /// The value is invalid; the text follows the key's name.
    Unfit(String),
}

/// The most similar key: by path, or by name in any section.
fn nearest(path: &str, keys: &[Key<'_>]) -> Option<String> {
    let name = last_of(path);
    let likeness = |key: &Key<'_>| {
        let whole = strsim::normalized_damerau_levenshtein(path, &key.path);
        let last = strsim::normalized_damerau_levenshtein(name, last_of(&key.path));
        (whole.max(last), whole)
    };
    let ((score, _), key) = (keys.iter())
        .map(|key| (likeness(key), key))
        .max_by(|(a, _), (b, _)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)))?;
    (score > 0.6).then(|| key.path.clone())
}

/// The name of a key without its section.
fn last_of(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(environment: &[(&str, &str)]) -> Result<Config, StartError> {
        let environment = environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        Config::read(None, environment)
    }

    #[test]
    fn every_default_is_within_its_bounds_and_can_be_parsed() {
        for key in Config::default().keys() {
            assert!(key.check_bounds().is_ok(), "{}", key.path);
            let text = key.value.show();
            let text = text
                .as_str()
                .map_or_else(|| text.to_string(), str::to_owned);
            assert!(key.value.set(&text), "{} = {text}", key.path);
        }
    }

    #[test]
    fn the_most_specific_variable_wins() {
        let own = ("GATHERING__DATABASE__URL", "sqlite://own.db");
        let config = read(&[("DATABASE_URL", "sqlite://shared.db"), own]).expect("fits");
        assert_eq!(config.database.url.expose(), "sqlite://own.db");
        let other = ("GATHERING_SERVICE_HOST", "10.0.0.1");
        assert!(read(&[other]).is_ok());
    }

    #[test]
    fn the_default_database_is_in_the_data_directory() {
        let url = |environment: &[_]| read(environment).expect("fits").database.url.to_string();
        assert_eq!(
            url(&[("HOME", "/home/me")]),
            "sqlite:///home/me/.local/share/gathering/gathering.db"
        );
        assert_eq!(
            url(&[("HOME", "/home/me"), ("XDG_DATA_HOME", "/data")]),
            "sqlite:///data/gathering/gathering.db"
        );
        assert_eq!(
            url(&[("GATHERING__DATA__DIR", "/srv/50%?")]),
            "sqlite:///srv/50%25%3F/gathering.db"
        );
    }

    #[test]
    fn values_are_checked_against_each_other() {
        for (environment, key) in [
            (
                [("GATHERING__DATABASE__MIN_CONNECTIONS", "21")],
                "database.min_connections",
            ),
            (
                [("GATHERING__GRAPHQL__TRUSTED_DOCUMENTS", "enforce")],
                "graphql.manifest",
            ),
            ([("GATHERING__LIMITS__COST", "19999")], "limits.cost"),
            (
                [("GATHERING__LIMITS__CLASSES", "{ a = { reed = 1 } }")],
                "GATHERING__LIMITS__CLASSES has an invalid class `a`: `reed`",
            ),
            ([("GATHERING_DEMO_PASSWORD", "short")], "demo.password"),
            (
                [("GATHERING__MAIL__RESET_LINK", "https://example.com/")],
                "mail.reset_link",
            ),
            ([("GATHERING__LOG__FILTER", "a=b=c")], "log.filter"),
        ] {
            let error = read(&environment).expect_err("is refused").to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
