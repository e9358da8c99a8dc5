//! To the program's socket: at once what it takes, by way of the backlog the rest, and nothing once it reads no more.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::Stream;
use crate::flows::backlog::{Bytes, Messages};
use crate::flows::{record, room};
use crate::links::End;
use vsock_guest_memory::slice::{self, Slice, TransferError};
use vsock_virtio::sys::is_read_no_more;

/// Messages handed over at once before others have their turn.
const MESSAGES_AT_ONCE: usize = 32;

/// Bytes handed over at once after which it pays to ask whether the program has read them.
const MUCH: usize = 128 * 1024;

/// What the program's socket took of what the guest sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Bytes that no longer occupy the buffer we announced.
    pub(crate) bytes: u32,
    /// Packets likewise.
    pub(crate) packets: u32,
    /// The program reads no more: everything from now on is discarded.
    pub(crate) stops_receiving: bool,
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

/// What the program has not taken yet.
#[derive(Debug)]
pub(super) enum Backlog {
    Bytes(Bytes),
    Messages(Messages),
}

fn narrow(n: usize) -> u32 {
    // Never more than the credit we announced, which is a u32.
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A write failed like this because the program has shut down its reading half, or closed.
pub(crate) fn reads_no_more(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN))
}

impl Stream {
    /// Hands the payload of `packets` packets to the program, with what ends there (messages only).
    pub(crate) fn deliver(
        &mut self,
        payload: &[Slice],
        packets: u32,
        end: End,
    ) -> Result<Taken, TransferError> {
        let len = slice::total(payload);
        if self.discarding {
            return Ok(Taken { bytes: narrow(len), packets, stops_receiving: true });
        }
        let direct = self.takes_at_once(end);
        let sent = if direct { self.send_now(payload)? } else { Sent::Later };
        let written = match sent {
            Sent::Now(n) => n,
            Sent::Later => 0,
            Sent::Never => return Ok(Taken { bytes: narrow(len), packets, stops_receiving: true }),
        };
        match &mut self.backlog {
            Backlog::Bytes(bytes) => {
                if written < len {
                    bytes.append(payload, written);
                    // A Unix socket takes less than all only when it is full.
                    self.writable &= !direct;
                }
                // Bytes lie in one row: their packets cost nothing once copied.
                Ok(Taken { bytes: narrow(written), packets, stops_receiving: false })
            }
            Backlog::Messages(_) if matches!(sent, Sent::Now(_)) => {
                Ok(Taken { bytes: narrow(len), packets, stops_receiving: false })
            }
            Backlog::Messages(messages) => {
                messages.append(payload, packets, end);
                Ok(self.flush()?)
            }
        }
    }

    /// Nothing is in the way of what ends like this: the socket is not full, and nothing waits before it.
    fn takes_at_once(&self, end: End) -> bool {
        self.writable
            && match &self.backlog {
                Backlog::Bytes(bytes) => bytes.is_empty(),
                // A record goes out with its mark, by way of the backlog.
                Backlog::Messages(messages) => {
                    messages.is_empty() && !messages.has_partial() && end == End::Message
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

    /// Offers the backlog to the program's socket again, or some of it ([`has_more`](Self::has_more)).
    pub(crate) fn flush(&mut self) -> io::Result<Taken> {
        let mut taken = Taken::default();
        for _ in 0..MESSAGES_AT_ONCE {
            if !self.has_more() {
                break;
            }
            let (front, ends_record) = match &self.backlog {
                Backlog::Bytes(bytes) => (bytes.front(), false),
                Backlog::Messages(messages) => messages.front().unwrap_or_default(),
            };
            if ends_record && self.has_mark && !room::is_all_read(self.fd()) {
                // Who reads what is there makes the socket writable.
                self.writable = false;
                self.awaits_reader = true;
                break;
            }
            self.awaits_reader = false;
            let len = front.len();
            let sent = if ends_record {
                record::send_record(&self.fd, front)
            } else {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                send(&self.fd, front, flags).map_err(io::Error::from)
            };
            match sent {
                Ok(n) => {
                    self.has_mark |= ends_record;
                    self.sent(n, &mut taken);
                }
                Err(error) => {
                    if self.write_failed(error, len)? {
                        self.discard(&mut taken);
                    }
                }
            }
        }
        Ok(taken)
    }

    /// Whether the socket may take more of the backlog.
    pub(crate) fn has_more(&self) -> bool {
        self.writable && !self.is_flushed()
    }

    /// Asks whether the program still reads, if a record waits for that: no write finds out. To be asked now and then, and
    /// not when epoll tells of something: the question itself makes the socket writable once more.
    pub(crate) fn look_at_reader(&mut self) -> Taken {
        if self.awaits_reader && is_read_no_more(self.fd()) {
            self.stop()
        } else {
            Taken::default()
        }
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
            Some(_) if reads_no_more(&error) => {
                self.discarding = true;
                Ok(true)
            }
            Some(_) | None => Err(error),
        }
    }

    /// Asks whether the program has shut down its reading half, and discards what waits for it then.
    ///
    /// epoll has no flag for this: it wakes us with nothing new. (Or together with something new, and where there is
    /// room the next write finds out.) An empty write puts nothing into a stream; into a socket of messages it would.
    pub(crate) fn stops_receiving(&mut self) -> Option<Taken> {
        if self.discarding || !matches!(self.backlog, Backlog::Bytes(_)) {
            return None;
        }
        let empty = send(&self.fd, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        // One that has closed is told as such, behind what it has sent.
        (empty == Err(Errno::PIPE) && !self.is_closed()).then(|| self.stop())
    }

    /// The program receives no more: discards what waits for it, and all that comes.
    pub(crate) fn stop(&mut self) -> Taken {
        self.discarding = true;
        self.awaits_reader = false;
        let mut taken = Taken::default();
        self.discard(&mut taken);
        taken
    }

    fn discard(&mut self, taken: &mut Taken) {
        taken.stops_receiving = true;
        taken.bytes += narrow(self.backlog());
        match &mut self.backlog {
            Backlog::Bytes(bytes) => *bytes = Bytes::default(),
            Backlog::Messages(messages) => {
                taken.packets += messages.packets();
                *messages = Messages::default();
            }
        }
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
}
