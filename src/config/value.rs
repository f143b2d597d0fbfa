//! The notation of values that only the configuration has.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use gathering_settings::{Setting, Value};
use ipnet::IpNet;

/// Origins, as browsers send them in the header `Origin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins(pub Vec<String>);

impl Setting for Origins {
    fn expected(&self) -> String {
        "* or origins such as https://app.example.com, separated by commas".to_owned()
    }
    fn set(&mut self, text: &str) -> bool {
        let entries = text
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty());
        let entries: Vec<_> = entries.map(str::to_owned).collect();
        let is_origin = |entry: &String| {
            url::Url::parse(entry).is_ok_and(|url| url.origin().ascii_serialization() == *entry)
        };
        let fits = entries == ["*"] || entries.iter().all(is_origin);
        if fits {
            self.0 = entries;
        }
        fits
    }
    fn show(&self) -> Value {
        Value::String(self.0.join(","))
    }
}

/// IP networks in CIDR notation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks(pub Vec<IpNet>);

impl Setting for Networks {
    fn expected(&self) -> String {
        "addresses or networks such as 10.0.0.0/8, separated by commas".to_owned()
    }
    fn set(&mut self, text: &str) -> bool {
        let entries = text
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty());
        let network = |entry: &str| {
            let address = || entry.parse::<IpAddr>().map(IpNet::from).ok();
            entry.parse().ok().or_else(address)
        };
        let networks: Option<Vec<IpNet>> = entries.map(network).collect();
        networks.map(|networks| self.0 = networks).is_some()
    }
    fn show(&self) -> Value {
        let networks: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        Value::String(networks.join(","))
    }
}

/// A share, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(pub f64);

impl Setting for Ratio {
    fn expected(&self) -> String {
        "a number from 0.0 to 1.0, with a decimal point".to_owned()
    }
    fn set(&mut self, text: &str) -> bool {
        let ratio = text.parse().ok();
        let ratio = ratio.filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.map(|ratio| self.0 = ratio).is_some()
    }
    fn show(&self) -> Value {
        Value::Float(self.0)
    }
}

/// The URL of a collector of traces. It contains no secret.
#[derive(Clone, Debug, Default)]
pub struct CollectorUrl(String);

impl CollectorUrl {
    /// The URL that receives traces; `None` if no collector is configured.
    pub fn traces(&self) -> Option<url::Url> {
        let mut url = url::Url::parse(&self.0).ok()?;
        let base = url.path().trim_end_matches('/');
        let path = format!("{}/v1/traces", base.trim_end_matches("/v1/traces"));
        url.set_path(&path);
        Some(url)
    }
}

impl std::str::FromStr for CollectorUrl {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let fits = |url: url::Url| {
            ["http", "https"].contains(&url.scheme())
                && url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        };
        let fits = text.is_empty() || url::Url::parse(text).is_ok_and(fits);
        fits.then(|| Self(text.to_owned())).ok_or(())
    }
}

impl Setting for CollectorUrl {
    fn expected(&self) -> String {
        "a URL such as http://127.0.0.1:4318, without a password or a query".to_owned()
    }
    fn set(&mut self, text: &str) -> bool {
        text.parse().map(|url| *self = url).is_ok()
    }
    fn show(&self) -> Value {
        Value::String(self.0.clone())
    }
    fn is_secret(&self) -> bool {
        // A rejected URL may contain a password.
        true
    }
}

/// A text that is never displayed.
#[derive(Clone, Default)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Setting for Secret {
    fn expected(&self) -> String {
        "a text".to_owned()
    }
    fn set(&mut self, text: &str) -> bool {
        text.clone_into(&mut self.0);
        true
    }
    fn show(&self) -> Value {
        Value::String(if self.0.is_empty() { "" } else { "***" }.to_owned())
    }
    fn is_secret(&self) -> bool {
        true
    }
}

/// The location of the database. Displayed without its password.
#[derive(Clone, Default)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The whole URL, password included.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether this is PostgreSQL; it is SQLite otherwise.
    pub fn is_postgres(&self) -> bool {
        self.0.starts_with("postgres")
    }

    fn parsed(&self) -> Option<url::Url> {
        url::Url::parse(&self.0).ok()
    }

    /// The SQLite database in this file.
    pub fn sqlite(file: &Path) -> Self {
        // SQLx decodes percent signs and ends the path at a question mark.
        let path = file.display().to_string();
        Self(format!(
            "sqlite://{}",
            path.replace('%', "%25").replace('?', "%3F")
        ))
    }
}

impl std::str::FromStr for DatabaseUrl {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let url = Self(text.to_owned());
        // A special character in the password that is not percent-encoded would split the URL in another place and
        // reveal a part of the password.
        let is_whole = |parsed: url::Url| {
            let rest = [Some(parsed.path()), parsed.query()];
            parsed.fragment().is_none() && !rest.iter().flatten().any(|part| part.contains('@'))
        };
        let fits = match text.split_once(':') {
            None => text.is_empty(),
            Some(("sqlite", place)) => {
                !place.contains(":memory:") && !place.contains("mode=memory")
            }
            Some(("postgres" | "postgresql", _)) => url.parsed().is_some_and(is_whole),
            Some(_) => false,
        };
        fits.then_some(url).ok_or(())
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(mut url) = self.parsed().filter(|_| self.is_postgres()) else {
            return f.write_str(&self.0);
        };
        if url.password().is_some() && url.set_password(Some("***")).is_err() {
            return f.write_str("postgres://***");
        }
        let masked: Vec<String> = url
            .query_pairs()
            .map(|(key, value)| {
                let value = if key.contains("pass") {
                    "***".into()
                } else {
                    value
                };
                format!("{key}={value}")
            })
            .collect();
        url.set_query((!masked.is_empty()).then(|| masked.join("&")).as_deref());
        write!(f, "{url}")
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Setting for DatabaseUrl {
    fn expected(&self) -> String {
        "sqlite:// with the path of a file, or a URL such as postgres://user:password@host/database with characters \
         like # and / in the password percent-encoded"
            .to_owned()
    }
    fn set(&mut self, text: &str) -> bool {
        text.parse().map(|url| *self = url).is_ok()
    }
    fn show(&self) -> Value {
        Value::String(self.to_string())
    }
    fn is_secret(&self) -> bool {
        true
    }
}

/// How a connection to a mail server is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// Not at all.
    None,
    /// STARTTLS, without which no mail is sent.
    Required,
    /// TLS from the start.
    Immediate,
}

/// A mail server.
#[derive(Clone, PartialEq, Eq)]
pub struct MailServer {
    /// The host.
    pub host: String,
    /// The port.
    pub port: u16,
    /// How the connection is encrypted.
    pub encryption: Encryption,
    /// The user and the password.
    pub credentials: Option<(String, String)>,
}

/// The URL of a mail server. Displayed without its password.
#[derive(Clone, Default)]
pub struct MailUrl(String);

impl MailUrl {
    /// The server; `None` if none is configured.
    pub fn server(&self) -> Option<MailServer> {
        let url = url::Url::parse(&self.0).ok()?;
        let decode = |text: &str| {
            let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
            decoded.ok().map(std::borrow::Cow::into_owned)
        };
        let host = match url.host()? {
            url::Host::Domain(name) => decode(name)?,
            url::Host::Ipv4(address) => address.to_string(),
            url::Host::Ipv6(address) => address.to_string(),
        };
        let address = host.parse::<IpAddr>();
        let is_local = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        let encryption = match (url.scheme(), url.query()) {
            ("smtps", None) => Encryption::Immediate,
            ("smtp", None) if is_local => Encryption::None,
            ("smtp", None | Some("tls=required")) => Encryption::Required,
            ("smtp", Some("tls=none")) => Encryption::None,
            _ => return None,
        };
        let usual = if encryption == Encryption::Immediate {
            465
        } else {
            587
        };
        let credentials = match url.password() {
            Some(password) => Some((decode(url.username())?, decode(password)?)),
            None if url.username().is_empty() => None,
            None => return None,
        };
        let is_whole = url.fragment().is_none() && ["", "/"].contains(&url.path());
        is_whole.then(|| MailServer {
            host,
            port: url.port().unwrap_or(usual),
            encryption,
            credentials,
        })
    }
}

impl fmt::Display for MailUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(mut url) = url::Url::parse(&self.0) else {
            return Ok(());
        };
        if url.password().is_some() && url.set_password(Some("***")).is_err() {
            return f.write_str("smtp://***");
        }
        write!(f, "{url}")
    }
}

impl fmt::Debug for MailUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for MailUrl {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let url = Self(text.to_owned());
        let fits = text.is_empty() || url.server().is_some();
        fits.then_some(url).ok_or(())
    }
}

impl Setting for MailUrl {
    fn expected(&self) -> String {
        "a URL such as smtp://user:password@host:587 or smtps://user:password@host with special characters in the \
         password percent-encoded, and at most the parameter tls=none or tls=required"
            .to_owned()
    }
    fn set(&mut self, text: &str) -> bool {
        text.parse().map(|url| *self = url).is_ok()
    }
    fn show(&self) -> Value {
        Value::String(self.to_string())
    }
    fn is_secret(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_traces_is_added_to_the_url_of_a_collector() {
        for (url, traces) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("https://host/otlp/", "https://host/otlp/v1/traces"),
            ("http://host/v1/traces", "http://host/v1/traces"),
        ] {
            let url: CollectorUrl = url.parse().expect("fits");
            assert_eq!(url.traces().as_ref().map(url::Url::as_str), Some(traces));
        }
        let none: CollectorUrl = "".parse().expect("fits");
        assert_eq!(none.traces(), None);
        for url in [
            "host:4318",
            "grpc://host",
            "http://me:secret@host",
            "http://host/?key=1",
        ] {
            assert!(url.parse::<CollectorUrl>().is_err(), "{url}");
        }
    }

    #[test]
    fn passwords_in_urls_are_masked() {
        for (url, shown) in [
            ("postgres://me@host/db", "postgres://me@host/db"),
            (
                "postgres://me:p%40ss@host:5433/db",
                "postgres://me:***@host:5433/db",
            ),
            (
                "postgresql://host/db?user=me&password=secret",
                "postgresql://host/db?user=me&password=***",
            ),
            ("postgres://me:a@b@host/db", "postgres://me:***@host/db"),
        ] {
            let url: DatabaseUrl = url.parse().expect("fits");
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
        }
        for url in [
            "postgres://me:a#b@host/db",
            "postgres://me:1/b@host/db",
            "postgres://me:1?b@host/db",
            "sqlite::memory:",
            "mysql://host/db",
        ] {
            assert!(url.parse::<DatabaseUrl>().is_err(), "{url}");
        }
    }

    #[test]
    fn urls_of_mail_servers_are_parsed_and_masked() {
        use Encryption::{Immediate, None as Plain, Required};
        for (url, shown, port, encryption) in [
            (
                "smtp://mail.example.com",
                "smtp://mail.example.com",
                587,
                Required,
            ),
            (
                "smtp://mail.example.com:25?tls=none",
                "smtp://mail.example.com:25?tls=none",
                25,
                Plain,
            ),
            (
                "smtp://localhost:1025",
                "smtp://localhost:1025",
                1025,
                Plain,
            ),
            ("smtp://[::1]", "smtp://[::1]", 587, Plain),
            (
                "smtp://127.0.0.1?tls=required",
                "smtp://127.0.0.1?tls=required",
                587,
                Required,
            ),
            (
                "smtps://me%40example.com:p%40ss@mail.example.com",
                "smtps://me%40example.com:***@mail.example.com",
                465,
                Immediate,
            ),
        ] {
            let parsed: MailUrl = url.parse().expect("fits");
            let server = parsed.server().expect("a server");
            assert_eq!(
                (server.port, server.encryption),
                (port, encryption),
                "{url}"
            );
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(format!("{parsed:?}"), shown);
            let credentials = ("me@example.com".to_owned(), "p@ss".to_owned());
            let expected = url.contains("p%40ss").then_some(credentials);
            assert_eq!(server.credentials, expected);
        }
        let none: MailUrl = "".parse().expect("fits");
        assert!(none.server().is_none());
        for url in [
            "mail.example.com",
            "http://mail.example.com",
            "smtp://me@mail.example.com",
            "smtp://me:a#b@mail.example.com",
            "smtp://me:a/b@mail.example.com",
            "smtp://mail.example.com?tls=maybe",
            "smtps://mail.example.com?tls=none",
            "smtp://",
        ] {
            assert!(url.parse::<MailUrl>().is_err(), "{url}");
        }
    }
}
