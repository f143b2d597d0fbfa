//! The listener: accepts connections and serves HTTP/1.1 and HTTP/2 on them.
//!
//! A connection speaks HTTP/2 if it begins with the preface of HTTP/2 (RFC 9113, section 3.3, "prior knowledge"), as
//! proxies do. Every connection is limited in header size, in time and in number.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::HOST;
use axum::http::{HeaderValue, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use crate::config;
use crate::connections::ConnectionLimit;
use crate::http::write_guard::{GuardedStream, PREFACE_LENGTH};
use crate::http::{Peer, Routes};

/// Maximum size of a request's header, start line included, in bytes; a query by GET fits.
const HEADER_LIMIT: u32 = 64 << 10;

/// Maximum number of concurrent requests on an HTTP/2 connection.
const MAX_STREAMS: u32 = 100;

/// Bytes of a request body that an HTTP/2 client may send before the server reads them.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// What an HTTP/2 client sends first.
const PREFACE: &[u8; PREFACE_LENGTH] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The service of all connections.
pub(crate) struct App {
    /// Used until the graph is ready.
    pub(crate) starting: Routes,
    pub(crate) serving: OnceLock<Routes>,
}

/// The protocols, with their limits.
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl Protocols {
    fn new(settings: &config::Server) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(settings.header_timeout)
            .max_buf_size(HEADER_LIMIT as usize);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .enable_connect_protocol()
            .keep_alive_interval(settings.header_timeout)
            .keep_alive_timeout(settings.write_timeout)
            .max_header_list_size(HEADER_LIMIT)
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        Self { http1, http2 }
    }
}

/// Accepts connections until the stop signal, then notifies them and lets their requests finish.
pub(crate) async fn accept(
    listener: TcpListener,
    app: Arc<App>,
    settings: config::Server,
    connection_limit: ConnectionLimit,
    mut stopped: oneshot::Receiver<()>,
) {
    let room = Arc::new(Semaphore::new(settings.max_connections));
    let mut connections = JoinSet::new();
    let protocols = Arc::new(Protocols::new(&settings));
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, stream, address) = tokio::select! {
            biased;
            _ = &mut stopped => break,
            Some(_) = connections.join_next() => continue,
            (permit, accepted) = next => match accepted {
                Ok((stream, address)) => (permit, stream, address),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Out of file descriptors or memory: wait for other connections to close.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        configure(&stream, settings.write_timeout);
        let connection = Connection {
            app: Arc::clone(&app),
            protocols: Arc::clone(&protocols),
            address,
            draining: connection_limit.draining(),
        };
        let header_timeout = settings.header_timeout;
        connections.spawn(async move {
            let _permit = permit;
            if let Err(error) = connection.serve(stream, header_timeout).await {
                tracing::debug!(%error, "a connection failed");
            }
        });
    }
    drop(listener);
    connection_limit.drain();
    let finish = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(settings.drain, finish).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "requests were still running when the server stopped"
        );
    }
}

/// A connection that was accepted.
struct Connection<D> {
    app: Arc<App>,
    protocols: Arc<Protocols>,
    address: SocketAddr,
    /// Completes when the server drains.
    draining: D,
}

impl<D: Future<Output = ()>> Connection<D> {
    async fn serve(
        self,
        mut stream: TcpStream,
        header_timeout: Duration,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut draining = pin!(self.draining);
        let begin = tokio::time::timeout(header_timeout, beginning(&mut stream));
        let (beginning, length) = tokio::select! {
            beginning = begin => beginning??,
            () = draining.as_mut() => return Ok(()),
        };
        let is_http2 = beginning == *PREFACE;
        let peer = Arc::new(Peer::new(self.address, !is_http2));
        let io = TokioIo::new(GuardedStream::new(
            stream,
            beginning.into_iter().take(length),
            peer.guard.clone(),
        ));
        let this = Arc::clone(&peer);
        let app = self.app;
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (app, peer) = (Arc::clone(&app), Arc::clone(&this));
            // Boxed, because hyper reserves the memory of the future as long as the connection is open.
            Box::pin(async move {
                let routes = app.serving.get().unwrap_or(&app.starting);
                let request = with_host(request.map(Body::new));
                Ok::<_, Infallible>(routes.answer(request, &peer).await)
            })
        });
        // The two types of connection have the same methods and no trait in common.
        macro_rules! serve {
            ($connection:expr) => {{
                let mut connection = pin!($connection);
                tokio::select! {
                    served = connection.as_mut() => served,
                    () = draining => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            }};
        }
        let served = if is_http2 {
            // Boxed, because the task of every connection would reserve its memory.
            Box::pin(async { serve!(self.protocols.http2.serve_connection(io, service)) }).await
        } else {
            serve!(
                self.protocols
                    .http1
                    .serve_connection(io, service)
                    .with_upgrades()
            )
        };
        if let Some(work) = peer.upgrade_task.take() {
            work.await;
        }
        Ok(served?)
    }
}

/// The first bytes of a connection, and their number: the preface of HTTP/2, or fewer or other bytes.
async fn beginning(stream: &mut TcpStream) -> io::Result<([u8; PREFACE_LENGTH], usize)> {
    let (mut bytes, mut length) = ([0; PREFACE_LENGTH], 0);
    while length < PREFACE.len() && bytes[..length] == PREFACE[..length] {
        match stream.read(&mut bytes[length..]).await? {
            0 => break,
            read => length += read,
        }
    }
    Ok((bytes, length))
}

/// A request with the header `Host`, which HTTP/2 sends as `:authority`.
fn with_host(mut request: axum::extract::Request) -> axum::extract::Request {
    if request.version() == Version::HTTP_2
        && let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(HOST, host);
    }
    request
}

/// Configures a connection: data is sent without delay, and the operating system closes the connection if the client
/// does not acknowledge it in time.
fn configure(stream: &TcpStream, write_timeout: Duration) {
    let socket = SockRef::from(stream);
    let set = socket.set_tcp_nodelay(true);
    if let Err(error) = set.and_then(|()| socket.set_tcp_user_timeout(Some(write_timeout))) {
        tracing::debug!(%error, "cannot set the options of a connection");
    }
}
