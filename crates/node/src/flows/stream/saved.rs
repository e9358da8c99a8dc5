//! A program's socket and what it has not taken yet, as plain data.
//!
//! What epoll has said of the socket is not saved: it is said again when a successor listens to it.

use vsock_core::SocketType;
use vsock_core::saved::{Unfit, check};

use super::{Backlog, Stream};
use crate::flows::backlog::{Bytes, Messages, SavedBacklog};
use crate::host::socket::ProgramSocket;
use vsock_virtio::saved::{SavedFd, SavedFds};

/// A [`Stream`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedStream {
    /// The socket.
    pub fd: SavedFd,
    /// The program receives no more.
    pub discarding: bool,
    /// What it has not taken.
    pub backlog: SavedBacklog,
}

impl Stream {
    /// As plain data.
    pub(in crate::flows) fn save<'a>(&'a self, fds: &mut SavedFds<'a>) -> SavedStream {
        let backlog = match &self.backlog {
            Backlog::Bytes(bytes) => bytes.save(),
            Backlog::Messages(messages) => messages.save(),
        };
        SavedStream { fd: fds.add(&self.fd), discarding: self.discarding, backlog }
    }

    /// A stream that goes on where another was, with its socket `fd`.
    pub(in crate::flows) fn restore(
        saved: SavedStream,
        fd: ProgramSocket,
        kind: SocketType,
    ) -> Result<Self, Unfit> {
        let SavedStream { fd: _, discarding, backlog } = saved;
        let backlog = match (backlog, kind) {
            (SavedBacklog::Bytes(bytes), SocketType::Stream) => {
                Backlog::Bytes(Bytes::restore(bytes))
            }
            (SavedBacklog::Messages { whole, partial }, SocketType::SeqPacket) => {
                Backlog::Messages(Messages::restore(whole, partial)?)
            }
            (SavedBacklog::Bytes(_) | SavedBacklog::Messages { .. }, _) => {
                return Err(Unfit::State);
            }
        };
        // Whether there is an unread mark is found out before the next one.
        let stream = Self { discarding, backlog, has_mark: true, ..Self::new(fd, kind) };
        check(!discarding || stream.backlog() == 0, Unfit::State)?;
        Ok(stream)
    }
}
