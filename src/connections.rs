//! The limit of long-lived connections: WebSocket connections, and response streams over HTTP.
//!
//! Each of them holds a permit. Permits are counted per client and for the whole server, and are released on drop, so
//! none can leak. Holders are notified when the server drains.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gathering_schema::Client;
use tokio::sync::watch;

use crate::config;

/// The connection limit of a server; clones share it.
#[derive(Clone, Debug)]
pub struct ConnectionLimit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    most_per_client: usize,
    /// Number of permits per client; clients without one are not in the map.
    in_use: Mutex<HashMap<Option<IpAddr>, usize>>,
    gauges: [AtomicI64; Gauge::ALL.len()],
    ends: [AtomicU64; ENDS.len()],
    draining: watch::Sender<bool>,
}

/// A gauge of open connections or operations.
#[derive(Clone, Copy, Debug)]
pub enum Gauge {
    /// WebSocket connections.
    Connections,
    /// Running operations on WebSocket connections.
    WebSocket,
    /// Streams of Server-Sent Events.
    Events,
    /// Streams of multipart responses.
    Multipart,
}

impl Gauge {
    const ALL: [Self; 4] = [
        Self::Connections,
        Self::WebSocket,
        Self::Events,
        Self::Multipart,
    ];
}

/// How a WebSocket connection can end: the server's close code, `client` (closed by the client), `lost` (connection
/// lost) or `other`.
const ENDS: [&str; 16] = [
    "1002", "1007", "1009", "1011", "1012", "1013", "4400", "4401", "4403", "4406", "4408", "4409",
    "4429", "client", "lost", "other",
];

/// Why no permit is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The client has reached its limit.
    Client(usize),
    /// The server has reached its limit.
    Server,
    /// The server is shutting down.
    Draining,
}

impl Full {
    /// The message, short enough for a WebSocket close frame.
    pub fn reason(self) -> String {
        match self {
            Self::Client(most) => {
                format!("Connection limit reached: {most} connections from your address.")
            }
            Self::Server => "Connection limit of the server reached.".to_owned(),
            Self::Draining => RESTART.to_owned(),
        }
    }
}

/// The close reason when the server drains.
pub const RESTART: &str = "The server is restarting. Please reconnect.";

/// A permit for one connection; released on drop.
#[derive(Debug)]
pub struct ConnectionPermit {
    limit: ConnectionLimit,
    client: Option<IpAddr>,
}

/// Counts one unit of a gauge until it is dropped.
#[derive(Debug)]
pub struct Counted(ConnectionLimit, Gauge);

impl ConnectionLimit {
    /// Creates the limit with no permits in use.
    pub fn new(settings: &config::Subscriptions) -> Self {
        Self(Arc::new(Inner {
            most: settings.connections,
            most_per_client: settings.connections_per_client,
            in_use: Mutex::default(),
            gauges: Default::default(),
            ends: Default::default(),
            draining: watch::Sender::new(false),
        }))
    }

    /// Acquires a permit for a client.
    ///
    /// # Errors
    /// No permit is available for this client.
    pub fn acquire(&self, client: &Client) -> Result<ConnectionPermit, Full> {
        let inner = &*self.0;
        if *inner.draining.borrow() {
            return Err(Full::Draining);
        }
        let client = client.address.map(network);
        let mut in_use = inner.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        if in_use.values().sum::<usize>() >= inner.most {
            return Err(Full::Server);
        }
        let own = in_use.get(&client).copied().unwrap_or_default();
        if own >= inner.most_per_client {
            return Err(Full::Client(inner.most_per_client));
        }
        in_use.insert(client, own + 1);
        Ok(ConnectionPermit {
            limit: self.clone(),
            client,
        })
    }

    /// Increments a gauge until the returned value is dropped.
    pub fn count(&self, gauge: Gauge) -> Counted {
        self.0.gauges[gauge as usize].fetch_add(1, Ordering::Relaxed);
        Counted(self.clone(), gauge)
    }

    /// The current value of a gauge.
    pub fn counted(&self, gauge: Gauge) -> i64 {
        self.0.gauges[gauge as usize].load(Ordering::Relaxed)
    }

    /// Counts the end of a WebSocket connection.
    pub fn ended(&self, how: &str) {
        let place = ENDS.iter().position(|known| *known == how);
        let place = place.unwrap_or(ENDS.len() - 1);
        self.0.ends[place].fetch_add(1, Ordering::Relaxed);
    }

    /// Number of ended WebSocket connections, by how they ended.
    pub fn ends(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let numbers = self.0.ends.iter().map(|n| n.load(Ordering::Relaxed));
        ENDS.into_iter().zip(numbers)
    }

    /// Notifies all holders that the server is shutting down, and grants no further permits.
    pub fn drain(&self) {
        self.0.draining.send_replace(true);
    }

    /// Completes when the server drains.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut draining = self.0.draining.subscribe();
        async move {
            // If the sender is dropped, the server is gone.
            let _ = draining.wait_for(|draining| *draining).await;
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let in_use = &self.limit.0.in_use;
        let mut in_use = in_use.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut own) = in_use.entry(self.client) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.gauges[self.1 as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// The network that one party usually controls: an IPv4 address, or the first 64 bits of an IPv6 address.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> Client {
        Client {
            address: Some(address.parse().expect("an address")),
            ..Client::default()
        }
    }

    fn connections(connections: usize, connections_per_client: usize) -> ConnectionLimit {
        ConnectionLimit::new(&config::Subscriptions {
            connections,
            connections_per_client,
            ..config::Subscriptions::default()
        })
    }

    #[test]
    fn connections_are_limited_per_client_and_per_server() {
        let connections = connections(3, 2);
        let (one, other, third) = (
            client("192.0.2.1"),
            client("192.0.2.2"),
            client("192.0.2.3"),
        );
        let held = [connections.acquire(&one), connections.acquire(&one)];
        assert_eq!(connections.acquire(&one).err(), Some(Full::Client(2)));
        let last = connections.acquire(&other);
        assert!(last.is_ok());
        assert_eq!(connections.acquire(&third).err(), Some(Full::Server));
        drop(held);
        assert!(connections.acquire(&one).is_ok());
        assert!(connections.acquire(&third).is_ok());
    }

    #[test]
    fn an_ipv6_64_network_counts_as_one_client() {
        let connections = connections(10, 1);
        let _held = connections.acquire(&client("2001:db8:1:2::1"));
        assert!(
            connections
                .acquire(&client("2001:db8:1:2:ffff::9"))
                .is_err()
        );
        assert!(connections.acquire(&client("2001:db8:1:3::1")).is_ok());
    }

    #[test]
    fn a_draining_server_grants_no_permits() {
        let connections = connections(10, 10);
        connections.drain();
        let refused = connections.acquire(&client("192.0.2.1"));
        assert_eq!(refused.err(), Some(Full::Draining));
    }
}
