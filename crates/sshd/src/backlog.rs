//! What a client has sent and nobody has read yet: bounded, without stopping the other direction.
//!
//! russh tells a client to go on as soon as data has arrived, whether or not the program that it is for has read it.
//! So the bound is set one layer below: while a connection's backlog is full, `Wire` receives nothing. Sending goes on.
//! A client's word that it has room for output comes in the same stream, though, behind its data; so more is received
//! while output waits for that word. Before it a client cannot have sent more than the windows of its channels, so two
//! programs that wait for each other (`cat` on both sides) get on.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::descriptor::Descriptor;
use crate::limits;

/// The bytes of one connection that wait to be read.
#[derive(Debug, Default)]
pub(crate) struct Backlog(Mutex<Count>);

#[derive(Debug, Default)]
struct Count {
    bytes: usize,
    outputs_waiting: usize,
    is_cut: bool,
    wire: Option<Waker>,
}

impl Backlog {
    fn count(&self) -> MutexGuard<'_, Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Count)) {
        let mut count = self.count();
        change(&mut count);
        if let Some(waker) = count.wire.take() {
            waker.wake();
        }
    }

    /// Ends the connection: its wire has an error from now on.
    pub(crate) fn cut(&self) {
        self.change(|count| count.is_cut = true);
    }

    /// Says that output waits for the client, until the returned value is dropped.
    pub(crate) fn output_waits(self: &Arc<Self>) -> OutputWaits {
        self.change(|count| count.outputs_waiting += 1);
        OutputWaits(Arc::clone(self))
    }
}

impl Count {
    fn is_full(&self) -> bool {
        let most = match self.outputs_waiting {
            0 => limits::BACKLOG,
            _ => limits::BACKLOG_WHILE_OUTPUT_WAITS,
        };
        self.bytes >= most
    }
}

/// See `Backlog::output_waits`.
pub(crate) struct OutputWaits(Arc<Backlog>);

impl Drop for OutputWaits {
    fn drop(&mut self) {
        self.0.change(|count| count.outputs_waiting -= 1);
    }
}

/// The bytes of one channel, in the order of their arrival, until they are read.
#[derive(Debug)]
pub(crate) struct Inbox {
    backlog: Arc<Backlog>,
    state: Mutex<InboxState>,
}

#[derive(Debug, Default)]
struct InboxState {
    bytes: VecDeque<u8>,
    /// No more will come.
    is_ended: bool,
    /// The client has said so, rather than closed the channel.
    is_whole: bool,
    /// Nobody will read any more: what comes is dropped.
    is_closed: bool,
    reader: Option<Waker>,
}

impl Inbox {
    pub(crate) fn new(backlog: &Arc<Backlog>) -> Arc<Inbox> {
        Arc::new(Inbox { backlog: Arc::clone(backlog), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what has arrived.
    pub(crate) fn push(&self, data: &[u8]) {
        let mut state = self.state();
        if state.is_closed || state.is_ended {
            return;
        }
        state.bytes.extend(data);
        self.backlog.change(|count| count.bytes += data.len());
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    /// Says that no more will come: the client has sent all.
    pub(crate) fn end(&self) {
        self.state().is_whole = true;
        self.break_off();
    }

    /// Whether the client has said that it has sent all.
    pub(crate) fn is_whole(&self) -> bool {
        self.state().is_whole
    }

    /// Says that no more will come, as the channel is closed. What is there can be read.
    pub(crate) fn break_off(&self) {
        let mut state = self.state();
        state.is_ended = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    /// Whether there is nothing to read any more, now or later.
    pub(crate) fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// Drops what is there, and all that comes.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        state.is_ended = true;
        let left = std::mem::take(&mut state.bytes).len();
        self.backlog.change(|count| count.bytes -= left);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    fn poll_read(
        &self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.state();
        if state.bytes.is_empty() {
            if state.is_ended {
                return Poll::Ready(Ok(()));
            }
            state.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let mut taken = 0;
        while buffer.remaining() > 0 && !state.bytes.is_empty() {
            let (front, _) = state.bytes.as_slices();
            let length = front.len().min(buffer.remaining());
            buffer.put_slice(&front[..length]);
            state.bytes.drain(..length);
            taken += length;
        }
        if state.bytes.is_empty() {
            state.bytes = VecDeque::new(); // a burst leaves no memory behind
        }
        self.backlog.change(|count| count.bytes -= taken);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.close();
    }
}

/// Reads an inbox.
#[derive(Debug)]
pub(crate) struct InboxReader(pub(crate) Arc<Inbox>);

impl AsyncRead for InboxReader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read(context, buffer)
    }
}

/// A connection's socket, which receives nothing while the backlog is full, and fails once it is cut.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) socket: Descriptor,
    pub(crate) backlog: Arc<Backlog>,
}

fn cut_error() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was cut")
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let is_full = {
            let mut count = self.backlog.count();
            if count.is_cut {
                return Poll::Ready(Err(cut_error()));
            }
            count.wire = Some(context.waker().clone());
            count.is_full()
        };
        if !is_full {
            return self.socket.poll_read_into(context, buffer);
        }
        // A client that is gone is noticed all the same.
        while let Poll::Ready(hung_up) = self.socket.poll_hung_up(context) {
            if hung_up? {
                return Poll::Ready(Err(cut_error()));
            }
        }
        Poll::Pending
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.backlog.count().is_cut {
            return Poll::Ready(Err(cut_error()));
        }
        self.socket.poll_write_from(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;

    use super::*;

    fn wire(backlog: &Arc<Backlog>) -> (Wire, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = Descriptor::new(OwnedFd::from(ours)).unwrap();
        (Wire { socket, backlog: Arc::clone(backlog) }, theirs)
    }

    async fn receives_nothing(wire: &mut Wire) -> bool {
        let mut byte = [0];
        tokio::time::timeout(Duration::from_millis(50), wire.read(&mut byte)).await.is_err()
    }

    #[tokio::test]
    async fn full_backlog_stops_receiving_until_it_is_read() {
        let backlog = Arc::default();
        let (mut wire, mut peer) = wire(&backlog);
        let inbox = Inbox::new(&backlog);
        inbox.push(&vec![7; limits::BACKLOG]);
        peer.write_all(b"more").unwrap();
        assert!(receives_nothing(&mut wire).await);
        let mut read = vec![0; limits::BACKLOG];
        InboxReader(Arc::clone(&inbox)).read_exact(&mut read).await.unwrap();
        assert_eq!(wire.read_u8().await.unwrap(), b'm');
    }

    #[tokio::test]
    async fn full_backlog_does_not_stop_receiving_while_output_waits() {
        let backlog = Arc::default();
        let (mut wire, mut peer) = wire(&backlog);
        let inbox = Inbox::new(&backlog);
        inbox.push(&vec![7; limits::BACKLOG]);
        peer.write_all(b"more").unwrap();
        let waits = backlog.output_waits();
        assert_eq!(wire.read_u8().await.unwrap(), b'm');
        drop(waits);
        assert!(receives_nothing(&mut wire).await);
        let _waits = backlog.output_waits();
        inbox.push(&vec![7; limits::BACKLOG_WHILE_OUTPUT_WAITS]);
        assert!(receives_nothing(&mut wire).await);
    }

    #[tokio::test]
    async fn full_backlog_notices_a_peer_that_hangs_up() {
        let backlog = Arc::default();
        let (mut wire, mut peer) = wire(&backlog);
        let inbox = Inbox::new(&backlog);
        inbox.push(&vec![7; limits::BACKLOG]);
        peer.write_all(b"more").unwrap();
        assert!(receives_nothing(&mut wire).await);
        drop(peer);
        assert!(wire.read_u8().await.is_err());
    }

    #[tokio::test]
    async fn closed_inbox_gives_its_bytes_back() {
        let backlog = Arc::default();
        let (mut wire, mut peer) = wire(&backlog);
        let inbox = Inbox::new(&backlog);
        inbox.push(&vec![7; limits::BACKLOG]);
        inbox.close();
        inbox.push(&vec![7; limits::BACKLOG]);
        peer.write_all(b"more").unwrap();
        assert_eq!(wire.read_u8().await.unwrap(), b'm');
    }

    #[tokio::test]
    async fn cut_wire_fails() {
        let backlog: Arc<Backlog> = Arc::default();
        let (mut wire, _peer) = wire(&backlog);
        assert!(receives_nothing(&mut wire).await);
        backlog.cut();
        assert!(wire.read_u8().await.is_err());
    }
}
