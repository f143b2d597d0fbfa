//! Which responses are compressed, and that a compressed body is the plain one.

use std::io::Read;

use flate2::read::GzDecoder;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, VARY,
};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::events::replay;
use crate::support::server::TestServer;

/// A query with a long answer.
const LONG: &str = "{ __schema { types { name description } } }";

/// A query with an answer below 1 KiB.
const SHORT: &str = "{ __typename }";

async fn ask(server: &TestServer, accept_encoding: &str, query: &str) -> Response {
    let request = server.request(Method::POST, "/graphql");
    let request = request.header(ACCEPT_ENCODING, accept_encoding);
    let request = request.json(&json!({ "query": query }));
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK, "{accept_encoding}");
    response
}

fn coding(response: &Response) -> &str {
    let coding = response.headers().get(CONTENT_ENCODING);
    coding.map_or("", |coding| coding.to_str().expect("text"))
}

/// Which request headers the response varies by.
fn varies_by(response: &Response) -> Vec<String> {
    let lines = response.headers().get_all(VARY).iter();
    let lines = lines.map(|line| line.to_str().expect("text").to_lowercase());
    lines
        .flat_map(|line| line.split(", ").map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

fn decode(coding: &str, body: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let read = match coding {
        "gzip" => GzDecoder::new(body).read_to_end(&mut plain),
        "br" => brotli::Decompressor::new(body, 4 << 10).read_to_end(&mut plain),
        "zstd" => zstd::Decoder::new(body)
            .expect("a decoder")
            .read_to_end(&mut plain),
        other => panic!("an unknown coding: {other}"),
    };
    read.expect("is decoded");
    plain
}

#[tokio::test]
async fn a_compressed_body_is_the_plain_one_in_every_coding() {
    let server = TestServer::start().await;
    let plain = ask(&server, "identity", LONG).await;
    assert_eq!(coding(&plain), "");
    assert_eq!(varies_by(&plain), ["accept", "accept-encoding"]);
    let length = plain.headers()[CONTENT_LENGTH].to_str().expect("text");
    let length: usize = length.parse().expect("a number");
    let content_type = plain.headers()[CONTENT_TYPE].clone();
    let plain = plain.bytes().await.expect("bytes");
    assert_eq!(plain.len(), length);
    for name in ["gzip", "br", "zstd"] {
        let response = ask(&server, name, LONG).await;
        assert_eq!(coding(&response), name);
        assert_eq!(varies_by(&response), ["accept", "accept-encoding"]);
        assert_eq!(response.headers()[CONTENT_TYPE], content_type);
        // The length of the plain body is not that of this one.
        assert_eq!(response.headers().get(CONTENT_LENGTH), None, "{name}");
        let body = response.bytes().await.expect("bytes");
        assert!(body.len() < plain.len() / 2, "{name}: {}", body.len());
        assert!(decode(name, &body) == plain, "{name}");
    }
}

#[tokio::test]
async fn the_client_chooses_and_is_always_answered() {
    let server = TestServer::start().await;
    for (accept_encoding, expected) in [
        ("gzip;q=0.5, br", "br"),
        ("gzip;q=0", ""),
        ("deflate", ""),
        ("gzip, identity;q=0", "gzip"),
        // Neither can be kept, and the operation has run: the body is plain.
        ("identity;q=0", ""),
        ("*;q=0", ""),
        ("lzma, *;q=0.0", ""),
    ] {
        let response = ask(&server, accept_encoding, LONG).await;
        assert_eq!(coding(&response), expected, "{accept_encoding}");
        if expected.is_empty() {
            let body: Value = response.json().await.expect("JSON");
            assert!(body["data"].is_object(), "{accept_encoding}");
        }
    }
}

#[tokio::test]
async fn a_short_body_is_not_compressed() {
    let server = TestServer::start().await;
    let response = ask(&server, "gzip, br, zstd", SHORT).await;
    assert_eq!(coding(&response), "");
    let length = response.headers()[CONTENT_LENGTH].clone();
    let body = response.text().await.expect("text");
    assert_eq!(body, r#"{"data":{"__typename":"Query"}}"#);
    assert_eq!(length, body.len().to_string());
}

#[tokio::test]
async fn streams_are_not_compressed_however_long() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let subscription = replay(&server, 2).await;
    for (accept, end) in [
        ("text/event-stream", "\n\n"),
        ("multipart/mixed;subscriptionSpec=1.0", "--graphql"),
    ] {
        for query in [LONG, &subscription] {
            let request = server.request(Method::POST, "/graphql").bearer_auth(&token);
            let request = request.header(ACCEPT, accept);
            let request = request.header(ACCEPT_ENCODING, "gzip, br, zstd");
            let request = request.json(&json!({ "query": query }));
            let mut response = request.send().await.expect("an answer");
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(coding(&response), "", "{accept}");
            assert_eq!(varies_by(&response), ["accept"], "{accept}");
            let mut text = String::new();
            while !text.contains("\"data\":") || !text.ends_with(end) {
                let piece = response.chunk().await.expect("a piece");
                let piece = piece.unwrap_or_else(|| panic!("ends early: {text}"));
                text.push_str(&String::from_utf8_lossy(&piece));
                if text.ends_with("--\r\n") {
                    break;
                }
            }
        }
    }
}
