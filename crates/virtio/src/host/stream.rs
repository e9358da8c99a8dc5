//! The host's end of a connection: one Unix socket, and what the guest sent that its program has not taken yet.
//!
//! Bytes go straight between the socket and guest memory whenever the socket takes them; only what does not fit is
//! kept here. How much that can be is bounded by the credit we announced, which the core enforces on every packet,
//! so nothing in this file needs a limit of its own.
//!
//! All calls are non-blocking and raise no SIGPIPE, whatever flags the program set on its side. Readiness is
//! edge-triggered: `readable` and `writable` hold what epoll said last and are taken back on `EAGAIN`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send};
use vsock_core::SocketType;

pub(crate) use super::backlog::End;
use super::backlog::{Bytes, Messages};
use super::client::has_hung_up;
use super::wire::{MAX_EXTRA, MESSAGE_LEN};
use super::{record, room};
use crate::reactor::Readiness;
use crate::slice::{self, Slice, TransferError};

/// Bytes handed over at once after which it pays to ask whether the program has read them.
const MUCH: usize = 128 * 1024;

/// How a read from the program's socket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// So many bytes came.
    Bytes(usize),
    /// Nothing there now; an event will tell.
    Empty,
    /// The program will send no more.
    End,
}

/// What the program's socket took of what the guest sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Bytes that no longer occupy the buffer we announced.
    pub(crate) bytes: u32,
    /// Packets likewise.
    pub(crate) packets: u32,
    /// The program reads no more: everything from now on is discarded.
    pub(crate) refused: bool,
}

/// One connection's Unix socket with its backlog.
#[derive(Debug)]
pub(crate) struct Stream {
    fd: OwnedFd,
    /// epoll said so and no `EAGAIN` came since.
    pub(crate) readable: bool,
    writable: bool,
    /// The program has shut down or closed its sending half: a short read is not the last one.
    read_closed: bool,
    /// The program has closed the socket.
    pub(crate) hung_up: bool,
    discarding: bool,
    /// Something happened, and that may have been more than the data there is to read.
    may_refuse: bool,
    backlog: Backlog,
}

/// What became of data offered to the socket at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// It took so many bytes; of a message, all.
    Now(usize),
    /// Nothing for now.
    Later,
    /// The program reads no more.
    Never,
}

#[derive(Debug)]
enum Backlog {
    Bytes(Bytes),
    Messages(Messages),
}

fn narrow(n: usize) -> u32 {
    // Never more than the credit we announced, which is a u32.
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Stream {
    /// Takes over one end of a connected Unix socket that carries `kind`.
    pub(crate) fn new(fd: OwnedFd, kind: SocketType) -> Self {
        let backlog = match kind {
            SocketType::Stream => Backlog::Bytes(Bytes::default()),
            SocketType::SeqPacket | SocketType::Datagram => Backlog::Messages(Messages::default()),
        };
        Self {
            fd,
            readable: true,
            writable: true,
            read_closed: false,
            hung_up: false,
            discarding: false,
            may_refuse: false,
            backlog,
        }
    }

    /// The socket, for registration.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Gives the socket back; for a connection that never opened.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The first words to the program, before any bytes of the connection; then takes out the `held` bytes of its
    /// request that kept the socket from being writable.
    pub(crate) fn greet(&mut self, held: usize, words: &[u8]) -> io::Result<()> {
        let sent = send(&self.fd, words, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        if sent != words.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut scratch = [0; MESSAGE_LEN + MAX_EXTRA];
        let held = &mut scratch[..held.min(MESSAGE_LEN + MAX_EXTRA)];
        if !held.is_empty() {
            recv(&self.fd, held, RecvFlags::DONTWAIT)?;
        }
        Ok(())
    }

    /// The program has ended its data and all of it has been read. Asks the kernel only if the first can be true.
    pub(crate) fn is_at_end(&self) -> bool {
        let mut scratch = [0; 1];
        self.read_closed
            && matches!(
                recv(&self.fd, &mut scratch, RecvFlags::DONTWAIT | RecvFlags::PEEK),
                Ok((_, 0)) | Err(Errno::CONNRESET)
            )
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
        self.read_closed |= ready.read_closed;
        self.hung_up |= ready.hung_up;
        // What comes in while there is more to read is no news but most likely the cause. And a full socket is not
        // written to, so that no write finds out.
        self.may_refuse |= ready.readable && !(is_news && self.writable);
        is_news || ready.readable
    }

    /// Something happened that data did not explain for certain; once.
    pub(crate) fn take_suspicion(&mut self) -> bool {
        std::mem::take(&mut self.may_refuse)
    }

    /// Asks whether the program has shut down its reading half, and discards what waits for it then.
    ///
    /// epoll has no flag for this: it wakes us with nothing new. (Or together with something new, and where there is
    /// room the next write finds out.) An empty write puts nothing into a stream; into a socket of messages it would.
    pub(crate) fn refuses(&mut self) -> Option<Taken> {
        if self.discarding || !matches!(self.backlog, Backlog::Bytes(_)) {
            return None;
        }
        let empty = send(&self.fd, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        (empty == Err(Errno::PIPE)).then(|| self.stop())
    }

    /// The program receives no more: discards what waits for it, and all that comes.
    pub(crate) fn stop(&mut self) -> Taken {
        self.discarding = true;
        let mut taken = Taken::default();
        self.discard(&mut taken);
        taken
    }

    /// No more of the guest's waits here than the start of a message that may never end.
    pub(crate) fn is_flushed(&self) -> bool {
        match &self.backlog {
            Backlog::Bytes(bytes) => bytes.is_empty(),
            Backlog::Messages(messages) => messages.is_empty(),
        }
    }

    /// Bytes of the guest's that wait here.
    pub(crate) fn backlog(&self) -> usize {
        match &self.backlog {
            Backlog::Bytes(bytes) => bytes.len(),
            Backlog::Messages(messages) => messages.len(),
        }
    }

    /// The program has not kept up, after `len` bytes were handed to it at once: some wait here, or much is unread.
    pub(crate) fn is_behind(&self, len: usize) -> bool {
        !self.is_flushed() || (len >= MUCH && room::is_half_taken(self.fd()))
    }

    /// Reads up to the room in `into`, which may be guest memory.
    pub(crate) fn read(&mut self, into: &[Slice]) -> Result<Read, TransferError> {
        match slice::recvmsg(self.fd.as_fd(), into, 0) {
            Ok(received) if received.len == 0 => {
                self.readable = false;
                Ok(Read::End)
            }
            Ok(received) => {
                // A short read leaves nothing behind unless the end is what comes next.
                self.readable = received.len == slice::total(into) || self.read_closed;
                Ok(Read::Bytes(received.len))
            }
            Err(TransferError::Io(error)) => self.read_failed(error).map_err(TransferError::Io),
            Err(dead) => Err(dead),
        }
    }

    /// Reads the next message into `scratch`, and whether it ends a record; `Bytes(n)` with `n` greater than its
    /// length means it did not fit.
    pub(crate) fn read_message(&mut self, scratch: &mut [u8]) -> io::Result<(Read, End)> {
        let read = match record::receive(&self.fd, scratch) {
            // An empty message, which vsock cannot carry, reads as the end does; there may be more behind it.
            Ok((0, _)) if !self.is_at_end() => Read::Empty,
            Ok((0, _)) => {
                self.readable = false;
                Read::End
            }
            Ok((n, true)) => return Ok((Read::Bytes(n), End::Record)),
            Ok((n, false)) => return Ok((Read::Bytes(n), End::Message)),
            Err(error) => self.read_failed(error)?,
        };
        Ok((read, End::None))
    }

    fn read_failed(&mut self, error: io::Error) -> io::Result<Read> {
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => {
                self.readable = false;
                Ok(Read::Empty)
            }
            Some(Errno::INTR) => Ok(Read::Empty),
            // The program closed with our data unread. What it sent itself came before.
            Some(Errno::CONNRESET | Errno::PIPE) => {
                self.readable = false;
                self.hung_up = true;
                Ok(Read::End)
            }
            Some(_) | None => Err(error),
        }
    }

    /// Hands the payload of `packets` packets to the program, with what ends there (messages only).
    pub(crate) fn deliver(
        &mut self,
        payload: &[Slice],
        packets: u32,
        end: End,
    ) -> Result<Taken, TransferError> {
        let len = slice::total(payload);
        if self.discarding {
            return Ok(Taken { bytes: narrow(len), packets, refused: true });
        }
        let direct = self.writable
            && match &self.backlog {
                Backlog::Bytes(bytes) => bytes.is_empty(),
                // A record goes out with its mark, by way of the backlog.
                Backlog::Messages(messages) => {
                    messages.is_empty() && !messages.has_partial() && end == End::Message
                }
            };
        let sent = if direct { self.send_now(payload)? } else { Sent::Later };
        let written = match sent {
            Sent::Now(n) => n,
            Sent::Later => 0,
            Sent::Never => return Ok(Taken { bytes: narrow(len), packets, refused: true }),
        };
        match &mut self.backlog {
            Backlog::Bytes(bytes) => {
                if written < len {
                    bytes.append(payload, written);
                    // A Unix socket takes less than all only when it is full.
                    self.writable &= !direct;
                }
                // Bytes lie in one row: their packets cost nothing once copied.
                Ok(Taken { bytes: narrow(written), packets, refused: false })
            }
            Backlog::Messages(_) if matches!(sent, Sent::Now(_)) => {
                Ok(Taken { bytes: narrow(len), packets, refused: false })
            }
            Backlog::Messages(messages) => {
                messages.append(payload, packets, end);
                Ok(self.flush()?)
            }
        }
    }

    fn send_now(&mut self, payload: &[Slice]) -> Result<Sent, TransferError> {
        match slice::sendmsg(self.fd.as_fd(), payload, 0) {
            Ok(n) => Ok(Sent::Now(n)),
            Err(TransferError::Io(error)) => {
                let gone = self.write_failed(error, slice::total(payload))?;
                Ok(if gone { Sent::Never } else { Sent::Later })
            }
            Err(dead) => Err(dead),
        }
    }

    /// Offers the backlog to the program's socket again.
    pub(crate) fn flush(&mut self) -> io::Result<Taken> {
        let mut taken = Taken::default();
        while self.writable && !self.is_flushed() {
            let (front, ends_record) = match &self.backlog {
                Backlog::Bytes(bytes) => (bytes.front(), false),
                Backlog::Messages(messages) => messages.front().unwrap_or_default(),
            };
            let len = front.len();
            let sent = if ends_record {
                record::send_record(&self.fd, front)
            } else {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                send(&self.fd, front, flags).map_err(io::Error::from)
            };
            match sent {
                Ok(n) => self.sent(n, &mut taken),
                Err(error) => {
                    if self.write_failed(error, len)? {
                        self.discard(&mut taken);
                    }
                }
            }
        }
        Ok(taken)
    }

    fn sent(&mut self, n: usize, taken: &mut Taken) {
        match &mut self.backlog {
            Backlog::Bytes(bytes) => {
                bytes.take(n);
                taken.bytes += narrow(n);
            }
            Backlog::Messages(messages) => {
                let (bytes, packets) = messages.take();
                taken.bytes += narrow(bytes);
                taken.packets += packets;
            }
        }
    }

    /// Writing `len` bytes failed. True when the program reads no more; false when it may be tried again.
    fn write_failed(&mut self, error: io::Error, len: usize) -> io::Result<bool> {
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => {
                self.writable = false;
                Ok(false)
            }
            Some(Errno::INTR) => Ok(false),
            Some(Errno::MSGSIZE) if room::for_message(&self.fd, len) => Ok(false),
            Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                self.discarding = true;
                Ok(true)
            }
            Some(_) | None => Err(error),
        }
    }

    fn discard(&mut self, taken: &mut Taken) {
        taken.refused = true;
        taken.bytes += narrow(self.backlog());
        match &mut self.backlog {
            Backlog::Bytes(bytes) => *bytes = Bytes::default(),
            Backlog::Messages(messages) => {
                taken.packets += messages.packets();
                *messages = Messages::default();
            }
        }
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
    pub(crate) fn finish(self) {
        // A program that has closed already sees nothing of it.
        if !self.hung_up {
            finish(&self.fd);
        }
    }
}

/// Ends a Unix socket so that what we wrote last can be read, and the end after it.
pub(crate) fn finish(fd: &OwnedFd) {
    let _ = rustix::net::shutdown(fd, Shutdown::Both);
    let mut scratch = [0u8; 16384];
    while matches!(recv(fd, &mut scratch, RecvFlags::DONTWAIT), Ok((_, n)) if n > 0) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    fn stream() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Stream::new(ours.into(), SocketType::Stream), theirs)
    }

    #[test]
    fn finished_stream_with_unread_data_reads_as_end_not_as_reset() {
        let (stream, mut program) = stream();
        program.write_all(b"never read").unwrap();
        stream.finish();
        assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
        let error = program.write(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn closed_stream_is_told_from_a_half_closed_one_before_any_event() {
        let (mut stream, program) = stream();
        program.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!stream.is_closed());
        drop(program);
        assert!(stream.is_closed());
    }

    #[test]
    fn full_socket_told_of_data_and_shut_rd_by_one_event_finds_both() {
        let (mut stream, mut program) = stream();
        let reactor = crate::reactor::Reactor::new().unwrap();
        reactor.watch(stream.fd(), 0).unwrap();
        while send(&stream.fd, &[0; 4096], SendFlags::DONTWAIT).is_ok() {}
        let (mut events, mut happened) = (crate::reactor::Events::new(), Vec::new());
        let no_time = Some(std::time::Duration::ZERO);
        reactor.wait(no_time, &mut events, &mut happened).unwrap();
        (stream.readable, stream.writable) = (false, false);
        happened.clear();
        program.write_all(b"enough").unwrap();
        program.shutdown(std::net::Shutdown::Read).unwrap();
        reactor.wait(no_time, &mut events, &mut happened).unwrap();
        assert_eq!(happened.len(), 1);
        assert!(stream.note(happened[0]));
        assert!(stream.take_suspicion() && stream.refuses().is_some());
    }

    #[test]
    fn read_after_half_close_gives_the_rest_then_the_end() {
        let (mut stream, mut program) = stream();
        program.write_all(b"last words").unwrap();
        program.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(stream.note(Readiness {
            token: 0,
            readable: true,
            writable: true,
            read_closed: true,
            hung_up: false,
        }));
        let mut scratch = [0; 64];
        assert_eq!(stream.read_message(&mut scratch).unwrap(), (Read::Bytes(10), End::Message));
        assert!(stream.readable);
        assert_eq!(stream.read_message(&mut scratch).unwrap(), (Read::End, End::None));
    }
}
