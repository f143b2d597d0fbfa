//! A proxy in front of PostgreSQL that counts round trips.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use url::Url;

use super::database::Database;

/// The code of the message that asks for TLS, which has no type.
const TLS_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();

/// Counts the messages after which the client waits for the server: `Sync` and `Query`. A `Sync` without a message before
/// it is not counted: with it the pool tests a connection that a caller has returned.
#[derive(Clone, Default)]
pub(crate) struct RoundTrips(Arc<AtomicU64>);

impl RoundTrips {
    /// Starts a proxy in front of the database. Returns the URL of the database behind it.
    pub(crate) async fn proxy(&self, database: &Database) -> Url {
        let (listener, url, target) = database.proxy().await;
        let counted = self.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(target.clone()).await.expect("connects");
                let (from_client, mut to_client) = client.into_split();
                let (mut from_server, to_server) = server.into_split();
                tokio::spawn(async move { copy(&mut from_server, &mut to_client).await });
                tokio::spawn(counted.clone().pass_on(from_client, to_server));
            }
        });
        url
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    async fn pass_on(self, mut client: OwnedReadHalf, mut server: OwnedWriteHalf) {
        // The first messages have no type: an optional request for TLS, which the server refuses, and the startup.
        let (mut has_started, mut is_alone) = (false, true);
        loop {
            let mut head = Vec::new();
            if has_started {
                let Ok(kind) = client.read_u8().await else {
                    return;
                };
                head.push(kind);
            }
            let Ok(length) = client.read_u32().await else {
                return;
            };
            head.extend(length.to_be_bytes());
            let mut body = vec![0; length as usize - 4];
            if client.read_exact(&mut body).await.is_err() {
                return;
            }
            if has_started {
                let is_end = head[0] == b'S';
                if head[0] == b'Q' || (is_end && !is_alone) {
                    self.0.fetch_add(1, Ordering::Relaxed);
                }
                is_alone = is_end;
            }
            has_started |= !body.starts_with(&TLS_REQUEST);
            head.extend(body);
            if server.write_all(&head).await.is_err() {
                return;
            }
        }
    }
}
