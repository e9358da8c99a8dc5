//! What passes over a link, whichever kind it is: packets, the buffers they lie in, and what can go wrong.

use std::ops::Range;

use vsock_core::{HEADER_LEN, MAX_PAYLOAD};

use crate::queue::QueueError;
use vsock_guest_memory::slice::{self, Slices};

/// The bytes of a packet header as a number of the queue.
#[allow(clippy::cast_possible_truncation, reason = "44")]
pub(super) const HEADER_BYTES: u32 = HEADER_LEN as u32;

/// What a link knows its own packets by; stale ones are recognised and ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferToken {
    /// Head of the chain (device) or number of the buffer (driver).
    pub(super) index: u16,
    /// Counts the starts of the queue.
    pub(super) epoch: u32,
}

/// A packet from the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// The header, copied.
    pub header: [u8; HEADER_LEN],
    /// The pieces behind the header, in the list given to [`Link::next_inbound`](super::Link::next_inbound).
    pub payload: Range<usize>,
    /// Bytes in these pieces: what the header claims must not be more (it may be less).
    pub payload_len: u32,
    /// For [`Link::finish_inbound`](super::Link::finish_inbound).
    pub token: BufferToken,
    /// Descriptors looked at to find it: the other side chooses how many.
    pub steps: u32,
}

/// Room for one packet to the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundBuffer {
    /// The pieces for exactly the header, in the list given to [`Link::next_buffer`](super::Link::next_buffer).
    pub header: Range<usize>,
    /// The pieces for the payload.
    pub payload: Range<usize>,
    /// Bytes in the payload pieces: 1 to 65536, so that data always gets on.
    pub capacity: u32,
    /// What the link knows it by.
    pub token: BufferToken,
    /// Descriptors looked at to find it: the other side chooses how many.
    pub steps: u32,
}

/// Why a link cannot go on: the attachment must be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The other side broke the rules of a queue.
    #[error("queue {queue}: {error}")]
    Queue {
        /// Which queue.
        queue: usize,
        /// What was wrong.
        error: QueueError,
    },
    /// The memory behind the queues or buffers lost its backing.
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

/// Copies the header out of the pieces in `range`; returns it and the range behind it.
#[inline]
pub(super) fn take_header(
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
pub(super) fn split_header(slices: &mut Slices, start: usize) -> (Range<usize>, Range<usize>) {
    let middle = slices.cut(start, HEADER_LEN);
    let payload = slices.shorten(middle..slices.len(), MAX_PAYLOAD as usize);
    slices.truncate(payload.end);
    (start..middle, payload)
}
