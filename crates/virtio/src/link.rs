//! The packet path between one node and the other side of its virtqueues, device or driver.
//!
//! Both ends of a virtio-vsock link do the same four things, and only differ in who owns the buffers:
//!
//! | | as device | as driver |
//! | --- | --- | --- |
//! | inbound packet | a chain of the tx queue | a used buffer of the rx queue |
//! | done with it | chain given back, length 0 | buffer offered again |
//! | buffer for an outbound packet | a chain of the rx queue | a free buffer of our own |
//! | send | chain given back, length 44 + payload | buffer offered in the tx queue |
//!
//! (A node's link to itself, [`loopback`], does all four alone.)
//!
//! So [`Link`] has one set of methods, and nothing above it asks which kind it is. All methods only touch memory;
//! nothing is visible to the other side and no signal is sent before [`publish`](Link::publish), once per batch.
//!
//! Pieces of packets are appended to a scratch list of the caller and named by ranges in it; the list is cleared
//! by the caller between batches. The 44 header bytes are copied once, before anything is decided on them.

pub mod device;
pub mod driver;
pub mod loopback;
mod packet;

use std::io;
use std::os::fd::BorrowedFd;

use vsock_core::HEADER_LEN;

use self::device::DeviceLink;
use self::driver::DriverLink;
use self::loopback::LoopbackLink;
pub use self::packet::{BufferToken, Inbound, LinkError, LinkStats, OutboundBuffer};
use crate::spec::QUEUE_COUNT;
use vsock_guest_memory::slice::{Slice, Slices};

/// One side of a virtio-vsock link.
#[allow(clippy::large_enum_variant)] // there is one per guest, and it never moves
pub enum Link {
    /// We are the device: a guest's front end gave us its queues.
    Device(DeviceLink),
    /// We are the driver: the queues are ours.
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
    /// none (or the queue is stopped). Chains that cannot hold a header are completed and counted on the way; after
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
    pub fn finish_inbound(&mut self, token: BufferToken) {
        either!(self, link => link.finish_inbound(token));
    }

    /// Reserves a buffer for the next outbound packet; its pieces are appended to `slices`. `None` when there is
    /// none now; the next [`arm`](Self::arm) then also asks to be told of new room.
    ///
    /// # Errors
    /// The other side broke the rules, or its memory is gone.
    #[inline]
    pub fn next_buffer(
        &mut self,
        slices: &mut Slices,
    ) -> Result<Option<OutboundBuffer>, LinkError> {
        either!(self, link => link.next_buffer(slices))
    }

    /// Gives the last `n` reserved buffers back unused.
    pub fn return_buffers(&mut self, n: u16) {
        either!(self, link => link.return_buffers(n));
    }

    /// Sends the packet in a buffer, whose payload (`len` bytes, at most its capacity) is already written. Call in
    /// the order the buffers were reserved. `slices` is the list that was given to [`next_buffer`](Self::next_buffer).
    #[inline]
    pub fn send(
        &mut self,
        buffer: &OutboundBuffer,
        slices: &[Slice],
        header: &[u8; HEADER_LEN],
        len: u32,
    ) {
        either!(self, link => link.send(buffer, slices, header, len));
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

    /// Asks for signals when there is something inbound, and (after a failed [`next_buffer`](Self::next_buffer))
    /// when there is room again. True when there is already: do not sleep.
    pub fn arm(&mut self) -> bool {
        either!(self, link => link.arm())
    }

    /// As [`arm`](Self::arm), but for somebody who takes nothing inbound for now (because the answers would have
    /// no room): only new room is signalled, and what is inbound is no reason to stay awake.
    pub fn arm_for_buffers(&mut self) -> bool {
        match self {
            Self::Device(link) => link.arm_for_buffers(),
            Self::Driver(link) => link.arm_for_buffers(),
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
    pub fn has_buffer_again(&self) -> bool {
        either!(self, link => link.has_buffer_again())
    }

    /// Asks for no signals while we look at the queues anyway, and forgets that there was no buffer: who still needs
    /// some tries again before the next [`arm`](Self::arm).
    pub fn disarm(&mut self) {
        either!(self, link => link.disarm());
    }

    /// The fd that the other side signals for this queue: to be watched edge-triggered, never read. It changes
    /// with every start of the queue.
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
