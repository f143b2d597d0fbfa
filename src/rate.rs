//! Rate limits over HTTP: the client's address, the limit per address, and the response headers.
//!
//! Every request takes a token from the bucket of its address before any other work. `X-RateLimit-*` describe the
//! bucket with the least remaining tokens among those that the request used; `RateLimit` and `RateLimit-Policy`
//! (draft-ietf-httpapi-ratelimit-headers) describe that of each tier.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{FORWARDED, USER_AGENT};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use gathering_schema::rate_limit::QuotaStatus;
use gathering_schema::{Client, Graph};
use ipnet::IpNet;

use crate::http::{self, Peer};
use crate::telemetry::RequestId;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The rate limit headers.
pub const HEADERS: [HeaderName; 5] = [
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
];

/// Maximum number of hops read from a forwarding header, starting with the nearest.
const MOST_HOPS: usize = 32;

/// The rate limit per address.
pub struct Gate {
    /// The graph, with the rate limiter.
    pub graph: Graph,
    /// Trusted proxies, whose forwarding headers are used.
    pub trusted: Vec<IpNet>,
}

/// The quotas that a response has used.
#[derive(Clone)]
pub struct Standings(pub Vec<QuotaStatus>);

/// Admits a request, or responds with 429.
pub async fn admit(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let client = gate.client(&request);
    let route = match request.uri().path() {
        path if path.starts_with("/health") => "/health",
        "/metrics" => "/metrics",
        _ => "/graphql",
    };
    match gate.graph.admit(&client, route).await {
        Ok(entered) => {
            request.extensions_mut().insert(client);
            let mut response = next.run(request).await;
            let touched = response.extensions_mut().remove::<Standings>();
            let mut standings = touched.map(|touched| touched.0).unwrap_or_default();
            // The bucket of the address is reported only if it has the least remaining tokens.
            let is_refused = standings.iter().any(|standing| standing.retry_in.is_some());
            let left = standings.iter().map(|standing| standing.remaining).min();
            let is_tighter =
                |entered: &QuotaStatus| left.is_none_or(|left| entered.remaining < left);
            let entered = entered.into_iter().filter(is_tighter);
            standings.extend(entered.filter(|_| !is_refused));
            tell(&standings, response.headers_mut());
            response
        }
        Err(answer) => {
            let standings = answer.standings().to_vec();
            let mut response = http::refused(request, &answer).await;
            tell(&standings, response.headers_mut());
            response
        }
    }
}

impl Gate {
    /// The client that sent a request.
    fn client(&self, request: &Request) -> Client {
        let headers = request.headers();
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
        let user_agent = headers
            .get(USER_AGENT)
            .and_then(|value| value.to_str().ok());
        let request_id = request
            .extensions()
            .get::<RequestId>()
            .map(RequestId::as_str);
        Client {
            address: peer.map(|peer| origin(peer, headers, &self.trusted)),
            user_agent: user_agent.map(str::to_owned),
            request_id: request_id.unwrap_or_default().to_owned(),
        }
    }
}

/// The client's address: that of the nearest hop that is not a trusted proxy. Entries before that hop are not
/// trustworthy.
///
/// A proxy appends to one of the two headers and forwards the other one unchanged. If both are present and disagree,
/// the proxy's own address is used.
fn origin(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    if !is_trusted(&peer) {
        return peer;
    }
    let follow = |name: &HeaderName, node: fn(&str) -> Option<IpAddr>| {
        headers.contains_key(name).then(|| {
            let mut nearest = peer;
            for hop in hops(headers, name).take(MOST_HOPS) {
                // Stop at a hop without a valid address.
                let Some(address) = node(hop) else {
                    break;
                };
                nearest = address.to_canonical();
                if !is_trusted(&nearest) {
                    break;
                }
            }
            nearest
        })
    };
    match (
        follow(&FORWARDED, forwarded_for),
        follow(&X_FORWARDED_FOR, address),
    ) {
        (Some(one), Some(other)) if one != other => peer,
        (one, other) => one.or(other).unwrap_or(peer),
    }
}

/// The entries of a list header, last one first.
fn hops<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines: Vec<_> = headers.get_all(name).iter().collect();
    // An invalid entry from a client must not hide the valid ones that proxies appended.
    lines.into_iter().rev().flat_map(|line| {
        let entries = line.as_bytes().rsplit(|byte| *byte == b',');
        entries.map(|entry| str::from_utf8(entry).unwrap_or("?"))
    })
}

/// The address in an entry of `Forwarded` (RFC 7239).
fn forwarded_for(hop: &str) -> Option<IpAddr> {
    let node = hop.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then_some(value)
    });
    node.and_then(address)
}

/// The address of a node such as `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1` or `"[2001:db8::1]:4711"`.
fn address(node: &str) -> Option<IpAddr> {
    let node = node.trim().trim_matches('"');
    if let Some((inside, _)) = node.strip_prefix('[').and_then(|node| node.split_once(']')) {
        return inside.parse().ok();
    }
    let bare = node.parse().ok();
    bare.or_else(|| node.rsplit_once(':')?.0.parse().ok())
}

/// Writes the rate limit headers.
fn tell(standings: &[QuotaStatus], headers: &mut HeaderMap) {
    let Some(tightest) = standings.iter().min_by_key(|standing| standing.remaining) else {
        return;
    };
    let mut tiers: Vec<&QuotaStatus> = Vec::new();
    for standing in standings {
        match tiers.iter_mut().find(|known| known.tier == standing.tier) {
            Some(known) if known.remaining > standing.remaining => *known = standing,
            Some(_) => {}
            None => tiers.push(standing),
        }
    }
    let policies = tiers.iter().map(|standing| {
        let (name, limit) = (standing.tier.name(), standing.limit);
        format!("\"{name}\";q={limit};w=60")
    });
    let states = tiers.iter().map(|standing| {
        let (name, remaining) = (standing.tier.name(), standing.remaining);
        format!("\"{name}\";r={remaining};t={}", standing.seconds())
    });
    let list = |items: Vec<String>| items.join(", ");
    let reset =
        tightest.reset_at.timestamp() + i64::from(tightest.reset_at.timestamp_subsec_nanos() > 0);
    let values = [
        tightest.limit.to_string(),
        tightest.remaining.to_string(),
        reset.to_string(),
        list(states.collect()),
        list(policies.collect()),
    ];
    for (name, value) in HEADERS.into_iter().zip(values) {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(peer: &str, lines: &[(HeaderName, &str)]) -> String {
        let trusted = ["10.0.0.0/8", "2001:db8:f::/48"].map(|net| net.parse().expect("a network"));
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, value.parse().expect("a header"));
        }
        origin(peer.parse().expect("an address"), &headers, &trusted).to_string()
    }

    #[test]
    fn a_stranger_is_taken_at_their_address_and_not_at_their_word() {
        assert_eq!(
            from("192.0.2.1", &[(X_FORWARDED_FOR, "198.51.100.7")]),
            "192.0.2.1"
        );
        assert_eq!(
            from("::ffff:192.0.2.1", &[(FORWARDED, "for=198.51.100.7")]),
            "192.0.2.1"
        );
    }

    #[test]
    fn the_nearest_hop_that_is_no_trusted_proxy_is_the_client() {
        let xff = |value| from("10.0.0.1", &[(X_FORWARDED_FOR, value)]);
        assert_eq!(xff("198.51.100.7"), "198.51.100.7");
        assert_eq!(xff("203.0.113.9, 198.51.100.7, 10.1.1.1"), "198.51.100.7");
        assert_eq!(xff("198.51.100.7:4711"), "198.51.100.7");
        assert_eq!(xff("2001:db8::1"), "2001:db8::1");
        assert_eq!(xff("[2001:db8::1]:4711"), "2001:db8::1");
        assert_eq!(xff("203.0.113.9, unknown"), "10.0.0.1");
        assert_eq!(xff("198.51.100.7, garbage, 10.1.1.1"), "10.1.1.1");
        assert_eq!(xff("caf\u{e9}, 198.51.100.7, 10.1.1.1"), "198.51.100.7");
        assert_eq!(xff("198.51.100.7, caf\u{e9}"), "10.0.0.1");
        assert_eq!(xff(""), "10.0.0.1");
        let lines = [
            (X_FORWARDED_FOR, "203.0.113.9"),
            (X_FORWARDED_FOR, "198.51.100.7"),
        ];
        assert_eq!(from("10.0.0.1", &lines), "198.51.100.7");
        let many = vec!["198.51.100.7"; 100].join(", ");
        assert_eq!(xff(&many), "198.51.100.7");
        let own = format!("198.51.100.7{}", ", 10.9.9.9".repeat(100));
        assert_eq!(xff(&own), "10.9.9.9");
    }

    #[test]
    fn the_standard_header_is_read_too() {
        let forwarded = |value| from("10.0.0.1", &[(FORWARDED, value)]);
        assert_eq!(forwarded("for=198.51.100.7;proto=https"), "198.51.100.7");
        assert_eq!(
            forwarded(r#"proto=https;For="[2001:db8::1]:4711""#),
            "2001:db8::1"
        );
        assert_eq!(
            forwarded("for=203.0.113.9, for=198.51.100.7;by=10.0.0.1"),
            "198.51.100.7"
        );
        assert_eq!(forwarded("for=_hidden"), "10.0.0.1");
        assert_eq!(forwarded("by=10.0.0.2"), "10.0.0.1");
    }

    #[test]
    fn a_header_that_the_proxy_passed_on_moves_nobody() {
        let both = |standard, usual| {
            from(
                "10.0.0.1",
                &[(FORWARDED, standard), (X_FORWARDED_FOR, usual)],
            )
        };
        assert_eq!(both("for=198.51.100.7", "198.51.100.7"), "198.51.100.7");
        assert_eq!(both("for=203.0.113.9", "198.51.100.7"), "10.0.0.1");
        assert_eq!(both("for=198.51.100.7", "203.0.113.9"), "10.0.0.1");
    }
}
