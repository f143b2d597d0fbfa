//! The playground: `GraphiQL` at `/graphql`, served from the binary.
//!
//! Its page may load only its own assets and connect only to its own server. A server that was built without Node has
//! no assets and serves a page with a notice.

use std::borrow::Cow;
use std::io::Read;

use axum::body::Bytes;
use axum::extract::Path;
use axum::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, VARY,
};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{Html, IntoResponse, Redirect, Response};
use flate2::read::GzDecoder;
use serde_json::json;
use tokio::task::spawn_blocking;

/// The content of a file of the built front end.
#[derive(Clone, Copy)]
enum Content {
    Plain(&'static [u8]),
    Gzip(&'static [u8]),
}

impl Content {
    fn decode(self) -> Cow<'static, [u8]> {
        match self {
            Self::Plain(bytes) => Cow::Borrowed(bytes),
            Self::Gzip(bytes) => {
                let mut plain = Vec::new();
                if let Err(error) = GzDecoder::new(bytes).read_to_end(&mut plain) {
                    tracing::error!(%error, "a file of the playground cannot be decompressed");
                }
                Cow::Owned(plain)
            }
        }
    }
}

// `ASSETS`: path and content of each file, sorted by path; empty if the front end was not built.
include!(concat!(env!("OUT_DIR"), "/playground.rs"));

const MISSING: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>Gathering</title>\
    <h1>The playground is not included in this build</h1>\
    <p>This server was built without Node, or without access to the npm registry. \
    The API is complete: send requests to <code>POST /graphql</code>.</p>\
    <p>To build the playground, install Node 20.19 or newer and run in the project's folder:</p>\
    <pre>npm --prefix web ci\nnpm --prefix web run build\ncargo build --release</pre>";

/// The editor positions its lines with `style` attributes and adds its theme as `<style>` elements, so inline styles
/// are allowed. Scripts are loaded only from files.
const POLICY: &str = "default-src 'none'; script-src 'self'; worker-src 'self'; connect-src 'self'; \
    style-src 'self' 'unsafe-inline'; font-src 'self' data:; img-src 'self' data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Redirects a browser to the playground.
pub async fn home() -> Redirect {
    Redirect::temporary("/graphql")
}

/// The user as whom the playground signs its visitors in; for temporary servers.
#[derive(Clone, Debug)]
pub struct SignIn {
    /// The e-mail address.
    pub email: String,
    /// The password.
    pub password: String,
}

/// The page of the playground, or a page that explains why it is missing.
#[derive(Clone)]
pub struct Page(Bytes);

/// Builds the page, with the credentials for its script to sign in.
pub fn page(sign_in: Option<&SignIn>) -> Page {
    let plain = find("index.html").map_or(MISSING.as_bytes().into(), |(_, page)| page.decode());
    let (Some(sign_in), Ok(text)) = (sign_in, str::from_utf8(&plain)) else {
        return Page(plain.into_owned().into());
    };
    let json = json!({ "email": sign_in.email, "password": sign_in.password }).to_string();
    let json = json
        .replace('&', "&amp;")
        .replace('"', "&quot;")
        .replace('<', "&lt;");
    let meta = format!(r#"<meta name="gathering-demo" content="{json}"></head>"#);
    Page(text.replacen("</head>", &meta, 1).into())
}

impl Page {
    /// Returns the page as a response.
    pub fn response(&self) -> Response {
        let headers = [
            (CONTENT_SECURITY_POLICY, POLICY),
            (CACHE_CONTROL, "no-cache"),
            (VARY, "Accept"),
            (
                HeaderName::from_static("cross-origin-opener-policy"),
                "same-origin",
            ),
        ];
        (headers, Html(self.0.clone())).into_response()
    }
}

/// Serves a file of the page. Its name contains a hash of its content, so it may be cached forever.
pub async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let Some((path, content)) = find(&format!("assets/{name}")) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let shared = [
        (CONTENT_TYPE, content_type(path)),
        (CACHE_CONTROL, "public, max-age=31536000, immutable"),
        (VARY, "Accept-Encoding"),
    ];
    match content {
        Content::Plain(bytes) => (shared, bytes).into_response(),
        Content::Gzip(bytes) if takes_gzip(&headers) => {
            (shared, [(CONTENT_ENCODING, "gzip")], bytes).into_response()
        }
        Content::Gzip(_) => match spawn_blocking(move || content.decode()).await {
            Ok(plain) => (shared, plain.into_owned()).into_response(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        },
    }
}

fn find(path: &str) -> Option<(&'static str, Content)> {
    let place = ASSETS
        .binary_search_by_key(&path, |(known, _)| *known)
        .ok()?;
    Some(ASSETS[place])
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim() == "gzip")
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("ttf") => "font/ttf",
        Some("woff2") => "font/woff2",
        _ => "application/octet-stream",
    }
}
