//! The packet path between one node and the other side of its rings, device or driver.
//!
//! Both ends of a virtio-vsock link do the same four things, and only differ in who owns the buffers:
//!
//! | | as device | as driver |
//! | --- | --- | --- |
//! | inbound packet | a chain of the tx queue | a used buffer of the rx queue |
//! | done with it | chain given back, length 0 | buffer offered again |
//! | space for an outbound packet | a chain of the rx queue | a free buffer of our own |
//! | send | chain given back, length 44 + payload | buffer offered in the tx queue |
//!
//! (A node's link to itself, [`loopback`](crate::loopback), does all four alone.)
//!
//! So [`Link`] has one set of methods, and nothing above it asks which kind it is. All methods only touch memory;
//! nothing is visible to the other side and no signal is sent before [`publish`](Link::publish), once per batch.
//!
//! Pieces of packets are appended to a scratch list of the caller and named by ranges in it; the list is cleared
//! by the caller between batches. The 44 header bytes are copied once, before anything is decided on them.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use crate::device::DeviceLink;
use crate::driver::DriverLink;
use crate::loopback::LoopbackLink;
use crate::ring::RingError;
use crate::slice::{self, Slice, Slices};
pub use crate::spec::{EVENT_QUEUE, QUEUE_COUNT, RX_QUEUE, TRANSPORT_RESET, TX_QUEUE};
pub(crate) use vsock_core::{HEADER_LEN, MAX_PAYLOAD};

/// The bytes of a packet header as a number of the ring.
#[allow(clippy::cast_possible_truncation, reason = "44")]
pub(crate) const HEADER_BYTES: u32 = HEADER_LEN as u32;

/// What a link knows its own packets by; stale ones are recognised and ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Head of the chain (device) or number of the buffer (driver).
    pub(crate) index: u16,
    /// Counts the starts of the ring.
    pub(crate) epoch: u32,
}

/// A packet from the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// The header, copied.
    pub header: [u8; HEADER_LEN],
    /// The pieces behind the header, in the list given to [`Link::next_inbound`].
    pub payload: Range<usize>,
    /// Bytes in these pieces: what the header claims must not be more (it may be less).
    pub payload_len: u32,
    /// For [`Link::finish_inbound`].
    pub token: Token,
}

/// Room for one packet to the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// The pieces for exactly the header, in the list given to [`Link::next_space`].
    pub header: Range<usize>,
    /// The pieces for the payload.
    pub payload: Range<usize>,
    /// Bytes in the payload pieces: 1 to 65536, so that data always gets on.
    pub capacity: u32,
    /// What the link knows it by.
    pub token: Token,
}

/// Why a link cannot go on: the attachment must be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The other side broke the rules of a ring.
    #[error("queue {queue}: {error}")]
    Ring {
        /// Which queue.
        queue: usize,
        /// What was wrong.
        error: RingError,
    },
    /// The memory behind the rings or buffers lost its backing.
    #[error("guest memory is not backed by its file any more")]
    MemoryDead,
}

/// What a link counted since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkStats {
    /// Chains or buffers completed without a look, because no header fits or they have parts that the other side
    /// must not offer there.
    pub skipped: u64,
    /// Signals (kicks or calls) sent.
    pub signals: u64,
}

/// One side of a virtio-vsock link.
#[allow(clippy::large_enum_variant)] // there is one per guest, and it never moves
pub enum Link {
    /// We are the device: a guest's front end gave us its rings.
    Device(DeviceLink),
    /// We are the driver: the rings are ours.
    Driver(DriverLink),
    /// We are both.
    Loopback(LoopbackLink),
}

/// Hands a call on to whichever kind it is.
macro_rules! either {
    ($link:expr, $inner:ident => $call:expr) => {
        match $link {
            Link::Device($inner) => $call,
            Link::Driver($inner) => $call,
            Link::Loopback($inner) => $call,
        }
    };
}

impl Link {
    /// The next packet from the other side; its payload pieces are appended to `slices`. `None` when there is
    /// none (or the ring is stopped). Chains that cannot hold a header are completed and counted on the way; after
    /// many in a row it is `None` as well, while [`has_inbound`](Self::has_inbound) says that there is more.
    ///
    /// # Errors
    /// The other side broke the rules, or its memory is gone.
    #[inline]
    pub fn next_inbound(&mut self, slices: &mut Slices) -> Result<Option<Inbound>, LinkError> {
        either!(self, link => link.next_inbound(slices))
    }

    /// The other side's memory has lost its backing: what was read of it lately may be zeros that nobody wrote.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        match self {
            Self::Device(device) => device.is_dead(),
            Self::Driver(_) | Self::Loopback(_) => false,
        }
    }

    /// We are done with an inbound packet. Call in the order the packets came.
    #[inline]
    pub fn finish_inbound(&mut self, token: Token) {
        either!(self, link => link.finish_inbound(token));
    }

    /// Reserves room for the next outbound packet; its pieces are appended to `slices`. `None` when there is
    /// none now; the next [`arm`](Self::arm) then also asks to be told of new room.
    ///
    /// # Errors
    /// The other side broke the rules, or its memory is gone.
    #[inline]
    pub fn next_space(&mut self, slices: &mut Slices) -> Result<Option<Space>, LinkError> {
        either!(self, link => link.next_space(slices))
    }

    /// Gives the last `n` reserved spaces back unused.
    pub fn return_spaces(&mut self, n: u16) {
        either!(self, link => link.return_spaces(n));
    }

    /// Sends the packet in a space, whose payload (`len` bytes, at most its capacity) is already written. Call in
    /// the order the spaces were reserved. `slices` is the list that was given to [`next_space`](Self::next_space).
    #[inline]
    pub fn send(&mut self, space: &Space, slices: &[Slice], header: &[u8; HEADER_LEN], len: u32) {
        either!(self, link => link.send(space, slices, header, len));
    }

    /// Makes everything finished and sent since the last time visible, and signals the other side where it asked
    /// for it.
    ///
    /// # Errors
    /// The signal could not be written (its reader is gone), or EFAULT: the memory is gone.
    pub fn publish(&mut self) -> io::Result<()> {
        match self {
            Self::Device(link) => link.publish(),
            Self::Driver(link) => link.publish(),
            Self::Loopback(_) => Ok(()),
        }
    }

    /// Asks for signals when there is something inbound, and (after a failed [`next_space`](Self::next_space))
    /// when there is room again. True when there is already: do not sleep.
    pub fn arm(&mut self) -> bool {
        either!(self, link => link.arm())
    }

    /// As [`arm`](Self::arm), but for somebody who takes nothing inbound for now (because the answers would have
    /// no room): only new room is signalled, and what is inbound is no reason to stay awake.
    pub fn arm_for_space(&mut self) -> bool {
        match self {
            Self::Device(link) => link.arm_for_space(),
            Self::Driver(link) => link.arm_for_space(),
            // Who has not taken in what it sent makes no room: there is no such caller.
            Self::Loopback(link) => link.arm(),
        }
    }

    /// What [`arm`](Self::arm) would find, without asking for signals: for somebody who looks again and again.
    #[must_use]
    pub fn has_inbound(&self) -> bool {
        either!(self, link => link.has_inbound())
    }

    /// There was no room, and now there is some; the other half of what [`arm`](Self::arm) would find.
    #[must_use]
    pub fn has_space_again(&self) -> bool {
        either!(self, link => link.has_space_again())
    }

    /// Asks for no signals while we look at the rings anyway, and forgets that there was no space: who still needs
    /// some tries again before the next [`arm`](Self::arm).
    pub fn disarm(&mut self) {
        either!(self, link => link.disarm());
    }

    /// The fd that the other side signals for this queue: to be watched edge-triggered, never read. It changes
    /// with every start of the ring.
    #[must_use]
    pub fn notify_fd(&self, queue: usize) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Device(link) => link.notify_fd(queue),
            Self::Driver(link) => link.notify_fd(queue),
            Self::Loopback(_) => None,
        }
    }

    /// The fds of all queues that run.
    #[must_use]
    pub fn notify_fds(&self) -> Vec<BorrowedFd<'_>> {
        (0..QUEUE_COUNT).filter_map(|queue| self.notify_fd(queue)).collect()
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        either!(self, link => link.stats())
    }
}

/// Copies the header out of the pieces in `range`; returns it and the range behind it.
#[inline]
pub(crate) fn take_header(
    slices: &mut Slices,
    range: Range<usize>,
) -> ([u8; HEADER_LEN], Range<usize>) {
    let mut header = [0; HEADER_LEN];
    slice::copy_out(&slices[range.clone()], &mut header);
    (header, slices.advance(range, HEADER_LEN))
}

/// Splits the pieces from `start` to the end of the list behind the header; at least a header must fit. The
/// payload is cut to what one packet may have.
#[inline]
pub(crate) fn split_header(slices: &mut Slices, start: usize) -> (Range<usize>, Range<usize>) {
    let middle = slices.cut(start, HEADER_LEN);
    let payload = slices.shorten(middle..slices.len(), MAX_PAYLOAD as usize);
    slices.truncate(payload.end);
    (start..middle, payload)
}
