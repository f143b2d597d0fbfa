//! The client that sent a request.

use std::net::{IpAddr, SocketAddr};

use axum::http::header::{FORWARDED, USER_AGENT};
use axum::http::{HeaderMap, HeaderName};
use gathering_schema::Client;
use ipnet::IpNet;

use super::write_guard::WriteGuard;
use super::ws::UpgradeTask;
use crate::telemetry::RequestId;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Maximum number of hops read from a forwarding header, starting with the nearest.
const MOST_HOPS: usize = 32;

/// The peer of a connection, and what its requests share.
pub struct Peer {
    address: SocketAddr,
    pub(crate) upgrade_task: UpgradeTask,
    /// Guards the events on an HTTP/1.1 connection.
    pub(crate) guard: Option<WriteGuard>,
}

impl Peer {
    /// The peer with this address. Events are guarded if the connection has one response at a time.
    pub fn new(address: SocketAddr, is_guarded: bool) -> Self {
        Self {
            address,
            upgrade_task: UpgradeTask::default(),
            guard: is_guarded.then(WriteGuard::default),
        }
    }
}

/// The client that sent a request.
pub(super) fn client(
    headers: &HeaderMap,
    id: &RequestId,
    peer: &Peer,
    trusted: &[IpNet],
) -> Client {
    let user_agent = headers
        .get(USER_AGENT)
        .and_then(|value| value.to_str().ok());
    Client {
        address: Some(origin(peer.address.ip(), headers, trusted)),
        user_agent: user_agent.map(str::to_owned),
        request_id: id.as_str().to_owned(),
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
    fn forwarding_headers_of_untrusted_peers_are_ignored() {
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
    fn the_nearest_untrusted_hop_is_the_client() {
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
    fn the_forwarded_header_is_supported() {
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
    fn contradicting_forwarding_headers_count_as_the_proxy() {
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
