//! The playground.

use std::io::Read;

use flate2::read::GzDecoder;

use super::*;

#[tokio::test]
async fn the_playground_has_a_strict_content_security_policy() {
    let server = TestServer::start().await;
    for path in ["/graphql", "/graphql?query={__typename}", "/"] {
        // A link on another site may open the page, because the page itself sends no operation.
        let request = server.request(Method::GET, path).header(ACCEPT, BROWSER);
        let response = send(request.header("Sec-Fetch-Site", "cross-site")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(content_type(&response), "text/html");
        let policy = response.headers()["content-security-policy"]
            .to_str()
            .expect("text")
            .to_owned();
        for part in [
            "default-src 'none'",
            "script-src 'self';",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe-eval"), "{policy}");
        assert!(response.text().await.expect("text").contains("Gathering"));
    }
}

#[tokio::test]
async fn the_playground_loads_only_embedded_assets() {
    let server = TestServer::start().await;
    let page = send(
        server
            .request(Method::GET, "/graphql")
            .header(ACCEPT, BROWSER),
    )
    .await;
    let page = page.text().await.expect("text");
    let assets: Vec<&str> = page
        .split('"')
        .filter(|part| part.starts_with("/graphql/assets/"))
        .collect();
    if assets.is_empty() {
        skip("needs Node: this build has no playground");
        assert!(
            page.contains("npm"),
            "the page must explain how to build the playground: {page}"
        );
        return;
    }
    assert!(
        !page.contains("//"),
        "the page must load nothing from another origin: {page}"
    );
    for asset in assets {
        let plain = server.get(asset).await;
        assert_eq!(plain.status(), StatusCode::OK, "{asset}");
        assert_eq!(
            plain.headers()["cache-control"],
            "public, max-age=31536000, immutable"
        );
        assert_eq!(plain.headers()["vary"], "Accept-Encoding");
        let kind = plain.headers()[CONTENT_TYPE]
            .to_str()
            .expect("text")
            .to_owned();
        let (_, extension) = asset.rsplit_once('.').expect("an extension");
        let expected = match extension {
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            _ => panic!("{asset} has an unknown extension"),
        };
        assert_eq!(kind, expected, "{asset}");

        let packed = server
            .request(Method::GET, asset)
            .header("accept-encoding", "br, gzip");
        let packed = send(packed).await;
        assert_eq!(packed.headers()["content-encoding"], "gzip", "{asset}");
        let (packed, plain) = (
            packed.bytes().await.expect("bytes"),
            plain.bytes().await.expect("bytes"),
        );
        assert!(packed.len() < plain.len(), "{asset}");
        let mut decoded = Vec::new();
        let read = GzDecoder::new(&packed[..]).read_to_end(&mut decoded);
        read.expect("is decoded");
        assert!(decoded == plain, "{asset}");
    }
    let unknown = server.get("/graphql/assets/index.js").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_playground_can_be_turned_off() {
    let server = TestServer::with(|config| config.server.playground = false).await;
    let response = send(
        server
            .request(Method::GET, "/graphql")
            .header(ACCEPT, "text/html"),
    )
    .await;
    assert_refused(response, StatusCode::NOT_ACCEPTABLE, "BAD_USER_INPUT").await;
    assert_eq!(server.get("/").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(send(post(&server, TYPENAME)).await.status(), StatusCode::OK);
}
