//! GraphQL over HTTP: the refusals, status codes and headers of `/graphql`, and the playground.

mod body;
mod http2;
mod method;
mod negotiation;
mod playground;
mod site;
mod token;

use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::server::TestServer;
use crate::support::skip::skip;
use crate::support::wait::within;

const JSON: &str = "application/json";

const RESPONSE: &str = "application/graphql-response+json";

const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

const TYPENAME: &str = r#"{"query":"{ __typename }"}"#;

const ATELIER: &str = "circle_01ke6p4zk8e03r000000000001";

fn post(server: &TestServer, body: impl Into<reqwest::Body>) -> RequestBuilder {
    let request = server.request(Method::POST, "/graphql");
    request.header(CONTENT_TYPE, JSON).body(body)
}

/// A GET request with these parameters, which are encoded here.
fn get(server: &TestServer, parameters: &[(&str, &str)]) -> RequestBuilder {
    let encoded = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(parameters)
        .finish();
    server.request(Method::GET, &format!("/graphql?{encoded}"))
}

async fn send(request: RequestBuilder) -> Response {
    request.send().await.expect("an answer")
}

async fn body(response: Response) -> Value {
    response.json().await.expect("JSON")
}

fn content_type(response: &Response) -> &str {
    let value = response.headers()[CONTENT_TYPE].to_str().expect("text");
    value
        .strip_suffix("; charset=utf-8")
        .expect("the charset is named")
}

/// Asserts a request error with this status and code, in the media type that applies to every status, and returns its
/// message.
async fn assert_refused(response: Response, status: StatusCode, code: &str) -> String {
    assert_eq!(response.status(), status);
    assert_eq!(content_type(&response), RESPONSE);
    let body = body(response).await;
    assert_eq!(body["errors"][0]["extensions"]["code"], code, "{body}");
    assert!(body.get("data").is_none(), "{body}");
    let message = body["errors"][0]["message"].as_str().expect("a message");
    for engine in ["serde", "expected `", "invalid type", "async", "Error("] {
        assert!(!message.contains(engine), "{message}");
    }
    message.to_owned()
}

/// Sends these bytes and returns the response up to the end of its headers.
async fn raw(server: &TestServer, request: &str) -> String {
    let address = server.url("");
    let address = address.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let request = request.replace("HOST", address);
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 4096];
        let read = within("more of an answer", stream.read(&mut part)).await;
        let n = read.expect("reads");
        assert_ne!(n, 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&part[..n]);
    }
    String::from_utf8(answer).expect("text")
}
