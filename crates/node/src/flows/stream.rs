//! The host's end of a connection: one Unix socket, and what the guest sent that its program has not taken yet.
//!
//! Bytes go straight between the socket and guest memory whenever the socket takes them; only what does not fit is
//! kept here. How much that can be is bounded by the credit we announced, which the core enforces on every packet,
//! so nothing here needs a limit of its own.
//!
//! All calls are non-blocking and raise no SIGPIPE, whatever flags the program set on its side. Readiness is
//! edge-triggered: `readable` and `writable` hold what epoll said last and are taken back on `EAGAIN`.

mod delivery;
mod reading;
mod saved;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{RecvFlags, SendFlags, Shutdown, send};
use vsock_core::SocketType;

use self::delivery::Backlog;
pub(crate) use self::delivery::{Taken, reads_no_more};
pub(crate) use self::reading::Read;
pub use self::saved::SavedStream;
use super::backlog::{Bytes, Messages};
use crate::host::client::has_hung_up;
use crate::host::socket::ProgramSocket;
use crate::host::wire::{MAX_EXTRA, MESSAGE_LEN};
use crate::reactor::Readiness;

/// One connection's Unix socket with its backlog.
#[derive(Debug)]
pub(crate) struct Stream {
    fd: ProgramSocket,
    /// epoll said so and no `EAGAIN` came since.
    pub(crate) readable: bool,
    writable: bool,
    /// The program has sent an urgent byte, and no `EAGAIN` came since: a short read is not the last one.
    urgent: bool,
    /// The program has shut down or closed its sending half: a short read is not the last one.
    read_closed: bool,
    /// The program has closed the socket.
    pub(crate) hung_up: bool,
    discarding: bool,
    /// Something happened, and that may have been more than the data there is to read.
    may_have_stopped: bool,
    /// What is there to be read has descriptors, and waits until these can be received.
    awaits_room: bool,
    /// A mark was sent that the program may not have read.
    has_mark: bool,
    /// A record waits until the program has read what was sent before.
    pub(crate) awaits_reader: bool,
    backlog: Backlog,
}

impl Stream {
    /// Takes over one end of a connected Unix socket that carries `kind`.
    pub(crate) fn new(fd: ProgramSocket, kind: SocketType) -> Self {
        let backlog = match kind {
            SocketType::Stream => Backlog::Bytes(Bytes::default()),
            SocketType::SeqPacket | SocketType::Datagram => Backlog::Messages(Messages::default()),
        };
        Self {
            fd,
            readable: true,
            writable: true,
            urgent: false,
            read_closed: false,
            hung_up: false,
            discarding: false,
            may_have_stopped: false,
            awaits_room: false,
            has_mark: false,
            awaits_reader: false,
            backlog,
        }
    }

    /// The socket, for registration.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Gives the socket back; for a connection that never opened.
    pub(crate) fn into_fd(self) -> ProgramSocket {
        self.fd
    }

    /// Whether something was left unread until descriptors can be received; once.
    pub(crate) fn take_awaits_room(&mut self) -> bool {
        std::mem::take(&mut self.awaits_room)
    }

    /// The first words to the program, before any bytes of the connection; then takes out the `held` bytes of its
    /// request that kept the socket from being writable.
    pub(crate) fn greet(&mut self, held: usize, words: &[u8]) -> io::Result<()> {
        let sent = send(&self.fd, words, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        if sent != words.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        if held == 0 { Ok(()) } else { self.release(held) }
    }

    /// Takes out the `held` bytes of the request that kept the socket from being writable: the program is connected.
    pub(crate) fn release(&mut self, held: usize) -> io::Result<()> {
        let mut scratch = [0; MESSAGE_LEN + MAX_EXTRA];
        self.fd.receive(&mut scratch[..held.min(MESSAGE_LEN + MAX_EXTRA)], RecvFlags::empty())?;
        Ok(())
    }

    /// The program has closed the socket, and not only ended its data. epoll may not have told yet: asked at the end of
    /// the data, so that a close is told to the other side as one, and not as a half close first.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.hung_up = self.hung_up || has_hung_up(&self.fd);
        self.hung_up
    }

    /// Remembers what epoll said; false if it was nothing new, and no data either that would explain it.
    pub(crate) fn note(&mut self, ready: Readiness) -> bool {
        let is_news = (ready.readable && !self.readable)
            || (ready.writable && !self.writable)
            || (ready.read_closed && !self.read_closed)
            || (ready.hung_up && !self.hung_up);
        self.readable |= ready.readable;
        self.writable |= ready.writable;
        self.urgent |= ready.urgent;
        self.read_closed |= ready.read_closed;
        self.hung_up |= ready.hung_up;
        // What comes in while there is more to read is no news but most likely the cause. And a full socket is not
        // written to, so that no write finds out.
        self.may_have_stopped |= ready.readable && !(is_news && self.writable);
        is_news || ready.readable
    }

    /// Something happened that data did not explain for certain; once.
    pub(crate) fn take_suspicion(&mut self) -> bool {
        std::mem::take(&mut self.may_have_stopped)
    }

    /// The guest will send no more: the program reads the end once it has read the rest.
    pub(crate) fn end_of_data(&self) {
        // Fails only when the program has closed already.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
    }

    /// The guest takes no more: the program's writes give EPIPE.
    pub(crate) fn refuse_data(&self) {
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Read);
    }

    /// The connection is over: the program reads the end and cannot write.
    ///
    /// Closing a Unix socket with unread data would read as ECONNRESET on the program's side, where vsock gives an end
    /// of data; so what nobody will read any more is taken out first. The shutdown lets nothing new in, so that ends.
    /// Whether the program has closed is not asked: once we have shut both halves, epoll tells of a hang-up in any case.
    pub(crate) fn finish(self) {
        self.fd.finish();
    }
}

#[cfg(test)]
mod tests;
