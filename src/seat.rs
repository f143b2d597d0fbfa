//! What stays open: WebSocket connections, and streams of answers over HTTP.
//!
//! The rule: each has a seat, and seats are counted, for each client and for the whole server. A seat is given back when
//! it is dropped, whatever ended it, so nothing can be left behind. Whoever sits is told when the server drains.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gathering_schema::Client;
use tokio::sync::watch;

use crate::config;

/// The seats of a server; clones share them.
#[derive(Clone, Debug)]
pub struct Seats(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    most_per_client: usize,
    /// How many each client has. Who has none is not in here.
    taken: Mutex<HashMap<Option<IpAddr>, usize>>,
    gauges: [AtomicI64; Gauge::ALL.len()],
    ends: [AtomicU64; ENDS.len()],
    draining: watch::Sender<bool>,
}

/// What is counted while it is open.
#[derive(Clone, Copy, Debug)]
pub enum Gauge {
    /// WebSocket connections.
    Connections,
    /// Operations under way on WebSocket connections.
    WebSocket,
    /// Streams of Server-Sent Events.
    Events,
    /// Streams of multipart answers.
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

/// How a WebSocket connection can end: the code that it is closed with, or that the client closes it, or that it breaks.
const ENDS: [&str; 16] = [
    "1002", "1007", "1009", "1011", "1012", "1013", "4400", "4401", "4403", "4406", "4408", "4409",
    "4429", "client", "lost", "other",
];

/// Why there is no seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The client has as many as one may have.
    Client(usize),
    /// The server has no more.
    Server,
    /// The server is about to stop.
    Draining,
}

impl Full {
    /// The reason for people, short enough for a WebSocket's close frame.
    pub fn reason(self) -> String {
        match self {
            Self::Client(most) => {
                format!("Your address has {most} connections open, and may not have more.")
            }
            Self::Server => "The server has no room for further connections now.".to_owned(),
            Self::Draining => RESTART.to_owned(),
        }
    }
}

/// What whoever sits is told when the server drains.
pub const RESTART: &str = "The server is restarting. Connect again.";

/// A place among what stays open.
#[derive(Debug)]
pub struct Seat {
    seats: Seats,
    client: Option<IpAddr>,
}

/// Counts something as long as it is kept.
#[derive(Debug)]
pub struct Counted(Seats, Gauge);

impl Seats {
    /// All seats, free.
    pub fn new(settings: &config::Subscriptions) -> Self {
        Self(Arc::new(Inner {
            most: settings.connections,
            most_per_client: settings.connections_per_client,
            taken: Mutex::default(),
            gauges: Default::default(),
            ends: Default::default(),
            draining: watch::Sender::new(false),
        }))
    }

    /// Gives a client a seat.
    ///
    /// # Errors
    /// There is none for this client now.
    pub fn take(&self, client: &Client) -> Result<Seat, Full> {
        let inner = &*self.0;
        if *inner.draining.borrow() {
            return Err(Full::Draining);
        }
        let client = client.address.map(network);
        let mut taken = inner.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.values().sum::<usize>() >= inner.most {
            return Err(Full::Server);
        }
        let own = taken.get(&client).copied().unwrap_or_default();
        if own >= inner.most_per_client {
            return Err(Full::Client(inner.most_per_client));
        }
        taken.insert(client, own + 1);
        Ok(Seat {
            seats: self.clone(),
            client,
        })
    }

    /// Counts one more until what is returned is dropped.
    pub fn count(&self, gauge: Gauge) -> Counted {
        self.0.gauges[gauge as usize].fetch_add(1, Ordering::Relaxed);
        Counted(self.clone(), gauge)
    }

    /// How many there are now.
    pub fn counted(&self, gauge: Gauge) -> i64 {
        self.0.gauges[gauge as usize].load(Ordering::Relaxed)
    }

    /// Counts the end of a WebSocket connection.
    pub fn ended(&self, how: &str) {
        let place = ENDS.iter().position(|known| *known == how);
        let place = place.unwrap_or(ENDS.len() - 1);
        self.0.ends[place].fetch_add(1, Ordering::Relaxed);
    }

    /// How often WebSocket connections have ended, by how.
    pub fn ends(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let numbers = self.0.ends.iter().map(|n| n.load(Ordering::Relaxed));
        ENDS.into_iter().zip(numbers)
    }

    /// Tells whoever sits that the server is about to stop, and gives no further seats.
    pub fn drain(&self) {
        self.0.draining.send_replace(true);
    }

    /// Ends when the server drains.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut draining = self.0.draining.subscribe();
        async move {
            // Without a sender there is no server any more.
            let _ = draining.wait_for(|draining| *draining).await;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let taken = &self.seats.0.taken;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut own) = taken.entry(self.client) {
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

/// What one party usually has at its disposal: an IPv4 address, or the first 64 bits of an IPv6 address.
fn network(address: IpAddr) -> IpAddr {
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

    fn seats(connections: usize, connections_per_client: usize) -> Seats {
        Seats::new(&config::Subscriptions {
            connections,
            connections_per_client,
            ..config::Subscriptions::default()
        })
    }

    #[test]
    fn a_client_has_its_own_number_and_the_server_a_number_for_all() {
        let seats = seats(3, 2);
        let (one, other, third) = (
            client("192.0.2.1"),
            client("192.0.2.2"),
            client("192.0.2.3"),
        );
        let held = [seats.take(&one), seats.take(&one)];
        assert_eq!(seats.take(&one).err(), Some(Full::Client(2)));
        let last = seats.take(&other);
        assert!(last.is_ok());
        assert_eq!(seats.take(&third).err(), Some(Full::Server));
        drop(held);
        assert!(seats.take(&one).is_ok());
        assert!(seats.take(&third).is_ok());
    }

    #[test]
    fn the_neighbours_of_an_ipv6_network_are_one_client() {
        let seats = seats(10, 1);
        let _held = seats.take(&client("2001:db8:1:2::1"));
        assert!(seats.take(&client("2001:db8:1:2:ffff::9")).is_err());
        assert!(seats.take(&client("2001:db8:1:3::1")).is_ok());
    }

    #[test]
    fn a_server_that_drains_seats_nobody() {
        let seats = seats(10, 10);
        seats.drain();
        let refused = seats.take(&client("192.0.2.1"));
        assert_eq!(refused.err(), Some(Full::Draining));
    }
}
