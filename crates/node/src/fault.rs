//! Why a link is ended, and whose fault it was.

use std::io;

use rustix::io::Errno;

use vsock_guest_memory::slice::TransferError;
use vsock_virtio::link::LinkError;
use vsock_virtio::vhost_user::Detach;

/// Why a link cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LinkFault {
    /// What the other side wrote into a ring makes no sense.
    #[error(transparent)]
    Ring(#[from] LinkError),
    /// The file behind guest memory was made shorter.
    #[error("guest memory is gone: the file behind it was truncated")]
    MemoryDead,
    /// The other side could not be signalled.
    #[error("the other side's eventfd failed: {0}")]
    Signal(io::Error),
    /// A fault of ours; only this link is ended.
    #[error("internal error while serving the link")]
    Panic,
}

impl LinkFault {
    /// The same for the control thread, which counts it and closes the front end's socket.
    pub(crate) fn as_detach(&self) -> Detach {
        match self {
            Self::Ring(LinkError::Queue { queue, error }) => {
                Detach::RingBroken { index: *queue, fault: error.to_string() }
            }
            Self::Ring(LinkError::MemoryDead) | Self::MemoryDead => Detach::MemoryDead,
            Self::Signal(error) => Detach::Socket(error.kind()),
            Self::Panic => Detach::Internal,
        }
    }

    /// Publishing failed: the memory is gone, or the eventfd.
    pub(crate) fn of_publish(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::FAULT) => Self::MemoryDead,
            Some(_) | None => Self::Signal(error),
        }
    }
}

/// The memory of the link is gone in the middle of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryDead;

impl From<MemoryDead> for LinkFault {
    fn from(_: MemoryDead) -> Self {
        Self::MemoryDead
    }
}

/// A transfer between a program's socket and guest memory failed: the link's fault, or only this socket's.
pub(crate) fn sort_transfer(error: TransferError) -> Result<io::Error, MemoryDead> {
    match error {
        TransferError::MemoryDead => Err(MemoryDead),
        TransferError::Io(error) => Ok(error),
    }
}
