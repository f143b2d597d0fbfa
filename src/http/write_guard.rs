//! Guards the writes of an HTTP/1.1 connection against events of an ended session.
//!
//! hyper may hold events in its buffer that are not written yet. They must not be written once the response that ended
//! their session may have been sent. They cannot be removed one by one, so the connection is aborted. A stream passes
//! its next events to hyper only after the previous ones are written, so this affects clients that read slowly, and
//! others rarely.
//!
//! An HTTP/2 connection is shared, by a proxy even between users, and must not be aborted for one of its streams. There,
//! events that were passed to hyper may still be sent after the end of their session: at most one piece, and what fits
//! into the flow-control window of the stream.

use std::array;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::iter::Take;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use gathering_schema::Watch;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The guard of a connection's writes, shared by its socket and the stream that is sent on it.
#[derive(Clone, Default)]
pub(crate) struct WriteGuard(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Events passed to hyper and not yet written.
    held: Option<Held>,
    /// Wakes the stream once they are written.
    stream: Option<Waker>,
}

struct Held {
    watch: Watch,
    /// Wakes a blocked write when the session ends.
    ended: Option<BoxFuture<'static, ()>>,
}

impl WriteGuard {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers events of a session; call it when they are passed to hyper.
    pub(crate) fn hold(&self, watch: &Watch) {
        self.lock().held = Some(Held {
            watch: watch.clone(),
            ended: None,
        });
    }

    /// Waits until all registered events are written.
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

    /// Writes, unless this would send events of an ended session.
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

    /// Called once hyper's buffer is written completely.
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

/// Length of the preface of HTTP/2, which is read to choose the protocol.
pub(crate) const PREFACE_LENGTH: usize = 24;

/// A socket with guarded writes.
pub(crate) struct GuardedStream {
    stream: TcpStream,
    /// Bytes that were read already.
    beginning: Take<array::IntoIter<u8, PREFACE_LENGTH>>,
    guard: Option<WriteGuard>,
}

impl GuardedStream {
    /// A socket whose first bytes were read already.
    pub(crate) fn new(
        stream: TcpStream,
        beginning: Take<array::IntoIter<u8, PREFACE_LENGTH>>,
        guard: Option<WriteGuard>,
    ) -> Self {
        Self {
            stream,
            beginning,
            guard,
        }
    }

    fn pass<T>(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Self { stream, guard, .. } = self.get_mut();
        let stream = Pin::new(stream);
        match guard {
            Some(guard) => guard.pass(context, |context| write(stream, context)),
            None => write(stream, context),
        }
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.beginning.len() == 0 {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let room = buffer.remaining();
        for byte in self.beginning.by_ref().take(room) {
            buffer.put_slice(&[byte]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.pass(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.pass(context, |stream, context| {
            stream.poll_write_vectored(context, pieces)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes once its buffer is written.
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if let (Poll::Ready(Ok(())), Some(guard)) = (&flushed, &self.guard) {
            guard.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
