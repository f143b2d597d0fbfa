//! What is written on an HTTP connection, and what must not be written any more.
//!
//! The rule: events that hyper holds for a socket are not written once the answer to the end of their session may have
//! been sent. They cannot be taken back one by one, so the connection breaks. A stream gives hyper no more before it has
//! written what it was given, so this meets clients that read too slowly, and others by a rare chance.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use gathering_schema::Watch;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The guard of a connection's writes, shared by its socket and by the stream that is sent on it.
#[derive(Clone, Default)]
pub(crate) struct WriteGuard(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The events that were given and not written yet.
    held: Option<Held>,
    /// Waits until they are written.
    stream: Option<Waker>,
}

struct Held {
    watch: Watch,
    /// Wakes a write that waits for the socket when the session ends.
    ended: Option<BoxFuture<'static, ()>>,
}

impl WriteGuard {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called when events of a session are given to hyper.
    pub(crate) fn hold(&self, watch: &Watch) {
        self.lock().held = Some(Held {
            watch: watch.clone(),
            ended: None,
        });
    }

    /// Waits until the events that were given have been written.
    pub(crate) async fn written(&self) {
        poll_fn(|context| {
            let mut state = self.lock();
            if state.held.is_none() {
                return Poll::Ready(());
            }
            state.stream = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Writes, unless that would send events of a session that has ended.
    fn pass<T>(
        &self,
        context: &mut Context<'_>,
        write: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut state = self.lock();
        let Some(held) = &mut state.held else {
            drop(state);
            return write(context);
        };
        let watch = held.watch.clone();
        let Some(written) = watch.unless_ended(|| write(context)) else {
            return Poll::Ready(Err(ErrorKind::ConnectionAborted.into()));
        };
        if written.is_pending() {
            let ended = held
                .ended
                .get_or_insert_with(|| async move { watch.ended().await }.boxed());
            if ended.poll_unpin(context).is_ready() {
                return Poll::Ready(Err(ErrorKind::ConnectionAborted.into()));
            }
        }
        written
    }

    /// All that hyper was given has been written.
    fn flushed(&self) {
        let stream = {
            let mut state = self.lock();
            state.held = None;
            state.stream.take()
        };
        if let Some(stream) = stream {
            stream.wake();
        }
    }
}

impl fmt::Debug for WriteGuard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("WriteGuard").finish_non_exhaustive()
    }
}

/// A socket whose writes are guarded.
pub(crate) struct GuardedStream {
    pub(crate) stream: TcpStream,
    pub(crate) guard: WriteGuard,
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, guard } = self.get_mut();
        guard.pass(context, |context| {
            Pin::new(stream).poll_write(context, bytes)
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, guard } = self.get_mut();
        guard.pass(context, |context| {
            Pin::new(stream).poll_write_vectored(context, pieces)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when it has written everything.
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if let Poll::Ready(Ok(())) = flushed {
            self.guard.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
