//! The outgoing messages of a connection. Messages are combined into larger writes; events of a session that has ended
//! are no longer written.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, ready};

use axum::body::Bytes;
use futures_util::SinkExt;
use gathering_schema::Watch;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::protocol::{Close, End};
use crate::config::Config;

/// Maximum size of a piece of a message, in bytes. Longer messages are sent in pieces, so that the buffer is bounded,
/// and a slow client has the write timeout for each piece.
pub(super) const FRAGMENT: usize = 64 << 10;

/// Size up to which data that is ready is combined into one write, in bytes.
pub(super) const GATHERED: usize = 8 << 10;

pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A frame in the queue.
struct QueuedFrame {
    message: Message,
    length: usize,
    /// Whether it is part of an event, which must not be sent after the end of the session.
    is_event: bool,
    /// Whether it continues the message of the previous frame.
    continues: bool,
}

/// A socket with its queue of outgoing frames.
pub(super) struct Outbox {
    pub(super) socket: Socket,
    /// The session of the connection, once the client has authenticated with a token.
    pub(super) watch: Option<Watch>,
    queue: VecDeque<QueuedFrame>,
    /// Total size of the queued frames, in bytes.
    gathered: usize,
}

impl Outbox {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            watch: None,
            queue: VecDeque::new(),
            gathered: 0,
        }
    }

    /// Queues a message, and flushes if enough is queued.
    pub(super) async fn send(
        &mut self,
        config: &Config,
        text: Vec<u8>,
        is_event: bool,
    ) -> Result<(), End> {
        let mut rest = Bytes::from(text);
        let mut kind = Data::Text;
        loop {
            let piece = rest.split_to(rest.len().min(FRAGMENT));
            let is_last = rest.is_empty();
            let length = piece.len();
            let frame = Frame::message(piece, OpCode::Data(kind), is_last);
            self.add(QueuedFrame {
                message: Message::Frame(frame),
                length,
                is_event,
                continues: kind == Data::Continue,
            });
            if is_last {
                break;
            }
            kind = Data::Continue;
        }
        if self.gathered >= GATHERED {
            self.flush(config).await?;
        }
        Ok(())
    }

    /// Queues a ping frame of the WebSocket protocol.
    pub(super) fn ping(&mut self) {
        self.add(QueuedFrame {
            message: Message::Ping(Bytes::new()),
            length: 0,
            is_event: false,
            continues: false,
        });
    }

    fn add(&mut self, frame: QueuedFrame) {
        self.gathered += frame.length;
        self.queue.push_back(frame);
    }

    /// Waits until the socket has accepted all frames. The write timeout applies to each piece.
    pub(super) async fn flush(&mut self, config: &Config) -> Result<(), End> {
        let longest = config.subscriptions.message_bytes;
        let failed = loop {
            match timeout(config.server.write_timeout, self.hand_over()).await {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) => {}
                Ok(Err(Failure::Ended(end))) => break end,
                Ok(Err(Failure::Broken(error))) => {
                    break Close::of(&error, longest).map_or(End::Lost, End::Close);
                }
                Err(_) => break Close::slow().into(),
            }
        };
        // The remaining frames must not be sent after the failed ones.
        self.queue.clear();
        self.gathered = 0;
        Err(failed)
    }

    /// Writes the next frames and waits until the socket has accepted them. Returns whether the queue is empty.
    async fn hand_over(&mut self) -> Result<bool, Failure> {
        let mut frames = Vec::new();
        let (mut length, mut has_event) = (0, false);
        while let Some(next) = self.queue.front()
            && (frames.is_empty() || length + next.length <= FRAGMENT)
            && let Some(next) = self.queue.pop_front()
        {
            length += next.length;
            self.gathered -= next.length;
            has_event |= next.is_event;
            frames.push(next);
        }
        let watch = self.watch.clone().filter(|_| has_event);
        let mut frames = VecDeque::from(frames);
        let mut has_begun = false;
        let mut ended = pin!(ended(watch.as_ref()));
        let socket = &mut self.socket;
        let handed = poll_fn(|context| {
            let Some(watch) = &watch else {
                return write(socket, &mut frames, context).map(Some);
            };
            // The session cannot end between this check and the write.
            let written = watch.unless_ended(|| write(socket, &mut frames, context));
            let Some(written) = written else {
                return Poll::Ready(None);
            };
            has_begun = true;
            if written.is_pending() && ended.as_mut().poll(context).is_ready() {
                return Poll::Ready(None);
            }
            written.map(Some)
        });
        match handed.await {
            Some(Ok(())) => Ok(self.queue.is_empty()),
            Some(Err(error)) => Err(Failure::Broken(error)),
            // Part of an event is in the socket's buffer, because the client reads slowly. Only closing the connection
            // can discard it.
            None if has_begun => Err(Failure::Ended(End::Lost)),
            None => {
                for frame in frames.into_iter().rev() {
                    self.gathered += frame.length;
                    self.queue.push_front(frame);
                }
                self.leave_out_events()
            }
        }
    }

    /// Removes queued events. If part of an event is already sent, the connection must be closed.
    fn leave_out_events(&mut self) -> Result<bool, Failure> {
        let is_torn = self.queue.front().is_some_and(|next| next.continues);
        if is_torn {
            return Err(Failure::Ended(Close::revoked().into()));
        }
        self.queue.retain(|frame| !frame.is_event);
        self.gathered = self.queue.iter().map(|frame| frame.length).sum();
        Ok(false)
    }
}

/// Why frames were not written.
enum Failure {
    Ended(End),
    Broken(Error),
}

/// Writes frames until the socket is full.
fn write(
    socket: &mut Socket,
    frames: &mut VecDeque<QueuedFrame>,
    context: &mut Context<'_>,
) -> Poll<Result<(), Error>> {
    while !frames.is_empty() {
        ready!(socket.poll_ready_unpin(context))?;
        if let Some(frame) = frames.pop_front() {
            socket.start_send_unpin(frame.message)?;
        }
    }
    socket.poll_flush_unpin(context)
}

/// Completes when a session has ended; never without a session.
pub(super) async fn ended(watch: Option<&Watch>) {
    match watch {
        Some(watch) => watch.ended().await,
        None => pending().await,
    }
}
