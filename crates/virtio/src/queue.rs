//! Split virtqueues (virtio 1.2, section 2.7), both sides.
//!
//! A virtqueue is three areas in memory that both sides share: a *descriptor table* (address, length, flags,
//! next), the *available ring* that only the driver writes (heads of chains it offers) and the *used ring* that
//! only the device writes (heads it is done with, and how many bytes it wrote). Both rings carry a free-running
//! 16-bit index that says how many entries were ever written.
//!
//! **Order of memory accesses.** Whoever adds entries writes them first and then the index with *release*; the
//! other side reads the index with *acquire* and then the entries. That is all it takes for data. Notifications
//! need more: "publish the index, then look whether the other side wants a signal" and "ask for a signal, then
//! look at the index once more" are a store followed by a load on each side, which only a full fence on *both*
//! sides keeps in order; without it both may miss each other and sleep for ever. So `publish` and `enable_*`
//! have one sequentially consistent fence each, once per batch and not per entry.
//!
//! **Notifications.** With EVENT_IDX each side writes the index at whose passing it wants to be signalled
//! (`used_event` by the driver, `avail_event` by the device); signals go out when a batch passes that index.
//! Without it each side has one flag that says "do not signal". We ask for signals only when we go idle.
//!
//! **Trust.** Nothing read from shared memory is believed: indexes are compared with what can be, descriptors
//! are copied once and the copy is checked, and what we must know for certain (free descriptors, chains in
//! flight) is kept in memory of our own. A queue whose other side breaks the rules gives [`QueueError`] once and
//! for ever; that is not the same as an empty queue, which is `None`.
//!
//! The area addresses are resolved once, in [`layout`], where all access to them lives.

mod device;
mod driver;
mod layout;

pub use device::{Chain, DeviceQueue, SavedQueue};
pub use driver::{DriverQueue, QueueFull};
pub use layout::{MAX_QUEUE_SIZE, QueueLayout};

use vsock_guest_memory::OutsideMemory;

/// Where a queue is and how it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Number of entries: a power of two, at most [`MAX_QUEUE_SIZE`].
    pub size: u16,
    /// Guest address of the descriptor table.
    pub desc: u64,
    /// Guest address of the available ring.
    pub avail: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// Index of the next available entry, as the front end says; a device goes on at the used index in memory.
    pub base: u16,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
}

/// How the other side (or the front end) broke the rules of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// Queue size zero, not a power of two or above [`MAX_QUEUE_SIZE`].
    #[error("queue size {0} is not a power of two from 1 to {MAX_QUEUE_SIZE}")]
    BadSize(u16),
    /// A ring area or a buffer is not in guest memory (or a ring area crosses regions or is not aligned).
    #[error(transparent)]
    OutsideMemory(#[from] OutsideMemory),
    /// More heads available or used than the queue has entries.
    #[error("ring index moved by {0}, more than the ring can hold")]
    TooManyHeads(u16),
    /// A descriptor index past the end of its table.
    #[error("descriptor index {0} is past the end of the table")]
    BadIndex(u16),
    /// A chain of more descriptors than its table has: a loop.
    #[error("descriptor chain does not end")]
    Loop,
    /// A readable descriptor behind a writable one.
    #[error("readable descriptor behind a writable one")]
    ReadableAfterWritable,
    /// An indirect descriptor inside an indirect table, with a next one, or of a wrong table size.
    #[error("indirect descriptor table is not allowed here or has a wrong size of {0}")]
    BadIndirect(u32),
    /// The buffers of one chain sum up to more than 32 bits, or to too many pieces.
    #[error("descriptor chain is too long")]
    TooLong,
    /// The device says it used a chain that is not in flight.
    #[error("used entry names chain {0}, which is not in flight")]
    BadUsedId(u32),
    /// The device says it wrote more than there was room for.
    #[error("used entry claims {0} bytes, more than the chain holds")]
    BadUsedLength(u32),
}
