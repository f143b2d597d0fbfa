//! The playground: `GraphiQL` at `/graphql`, served from the binary.
//!
//! Its page may load only its own assets and connect only to its own server. A server that was built without Node has
//! no assets and serves a page with a notice.

use axum::body::Bytes;
use axum::extract::Path;
use axum::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, VARY,
};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{Html, IntoResponse, Redirect, Response};
use serde_json::json;

/// A file of the built front end.
struct Asset {
    /// The path relative to the front end's root.
    path: &'static str,
    plain: &'static [u8],
    gzip: Option<&'static [u8]>,
}

// `ASSETS`, sorted by path; empty if the front end was not built.
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
    let plain = find("index.html").map_or(MISSING.as_bytes(), |page| page.plain);
    let (Some(sign_in), Ok(text)) = (sign_in, str::from_utf8(plain)) else {
        return Page(Bytes::from_static(plain));
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
    let Some(asset) = find(&format!("assets/{name}")) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let shared = [
        (CONTENT_TYPE, content_type(asset.path)),
        (CACHE_CONTROL, "public, max-age=31536000, immutable"),
        (VARY, "Accept-Encoding"),
    ];
    match asset.gzip {
        Some(gzip) if takes_gzip(&headers) => {
            (shared, [(CONTENT_ENCODING, "gzip")], gzip).into_response()
        }
        _ => (shared, asset.plain).into_response(),
    }
}

fn find(path: &str) -> Option<&'static Asset> {
    ASSETS
        .binary_search_by_key(&path, |asset| asset.path)
        .ok()
        .map(|place| &ASSETS[place])
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
