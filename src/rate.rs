//! Rate limits over HTTP: who sends a request, whether it is let in, and the headers that say how its client stands.
//!
//! Every request takes from the bucket of its address before anything of it is looked at. `X-RateLimit-*` tell of the
//! tightest bucket that a response has touched; `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers)
//! of the tightest of each tier.

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

/// The headers that tell of rate limits.
pub const HEADERS: [HeaderName; 5] = [
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
];

/// Most hops of a forwarding header that are looked at, from the nearest on.
const MOST_HOPS: usize = 32;

/// Lets requests in.
pub struct Gate {
    /// What decides.
    pub graph: Graph,
    /// Proxies whose word on where a request comes from is taken.
    pub trusted: Vec<IpNet>,
}

/// How a client stands with what a response has touched.
#[derive(Clone)]
pub struct Standings(pub Vec<QuotaStatus>);

/// Lets a request in, or answers it 429.
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
            // The bucket of all requests is told of where it comes to its end first.
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
    /// Who sends a request.
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

/// Where a request comes from: the nearest hop that is no trusted proxy. What lies behind that one is its own word.
///
/// A proxy appends to one of the two headers and passes the other on as its client sent it. Where there are both, only
/// what they agree on is the proxy's word; else the request counts as the proxy's own.
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
                // A hop that hides or garbles its address is not followed further.
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

/// The entries of a list header, the last first.
fn hops<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines: Vec<_> = headers.get_all(name).iter().collect();
    // What a client garbled says nothing of what a proxy has added behind it.
    lines.into_iter().rev().flat_map(|line| {
        let entries = line.as_bytes().rsplit(|byte| *byte == b',');
        entries.map(|entry| str::from_utf8(entry).unwrap_or("?"))
    })
}

/// The address of a hop of `Forwarded` (RFC 7239).
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

/// Writes the headers.
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
