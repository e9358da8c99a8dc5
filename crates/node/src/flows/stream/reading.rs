//! From the program's socket: bytes into guest memory, messages into a buffer, and how each read ended.

use std::io;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::Stream;
use crate::flows::record;
use crate::links::End;
use vsock_guest_memory::slice::{self, Slice, TransferError};

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

impl Stream {
    /// The program has ended its data and all of it has been read. Asks the kernel only if the first can be true.
    pub(crate) fn is_at_end(&self) -> bool {
        let mut scratch = [0; 1];
        self.read_closed
            && matches!(
                recv(&self.fd, &mut scratch, RecvFlags::DONTWAIT | RecvFlags::PEEK),
                Ok((_, 0)) | Err(Errno::CONNRESET)
            )
    }

    /// Bytes of the program are there to be read.
    pub(crate) fn has_input(&self) -> bool {
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        matches!(recv(&self.fd, &mut [0; 1], flags), Ok((_, n)) if n > 0)
    }

    /// Reads up to the room in `into`, which may be guest memory.
    pub(crate) fn read(&mut self, into: &[Slice]) -> Result<Read, TransferError> {
        match self.fd.receive_into(into) {
            Ok(received) if received.len == 0 => {
                self.readable = false;
                Ok(Read::End)
            }
            Ok(received) => {
                // A short read leaves nothing behind unless the end is what comes next, or something had to end the read.
                self.readable = received.len == slice::total(into)
                    || received.had_descriptors
                    || self.urgent
                    || self.read_closed;
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
                (self.readable, self.urgent) = (false, false);
                Ok(Read::Empty)
            }
            Some(Errno::INTR) => Ok(Read::Empty),
            Some(Errno::TOOMANYREFS) => {
                self.readable = false;
                self.awaits_room = true;
                Ok(Read::Empty)
            }
            // The program closed with our data unread. What it sent itself came before.
            Some(Errno::CONNRESET | Errno::PIPE) => {
                self.readable = false;
                self.hung_up = true;
                Ok(Read::End)
            }
            Some(_) | None => Err(error),
        }
    }
}
