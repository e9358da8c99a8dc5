//! A device's end of a link as plain data.
//!
//! Saved between two turns, when no chain is in use. The memory is saved by its owner, the guest's control thread.

use std::sync::Arc;

use vsock_core::saved::{Unfit, check, check_counts};

use super::queue::RunningQueue;
use super::{DeviceLink, ResetHandshake};
use crate::link::packet::LinkStats;
use crate::queue::{DeviceQueue, MAX_QUEUE_SIZE, SavedQueue};
use crate::saved::{Fds, SavedFd, SavedFds};
use crate::spec::QUEUE_COUNT;
use vsock_guest_memory::GuestMemory;

/// A [`DeviceLink`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedDevice {
    /// Its queues that run.
    pub queues: [Option<SavedRunningQueue>; QUEUE_COUNT],
    /// Where each stopped queue would go on.
    pub bases: [u16; QUEUE_COUNT],
    /// How far the driver is with TRANSPORT_RESET.
    pub reset: SavedReset,
    /// The driver's queues have run in this attachment.
    pub knows_driver: bool,
    /// The driver is to be told TRANSPORT_RESET when the front end hands over the event queue.
    pub owes_reset: bool,
    /// Counters.
    pub stats: LinkStats,
}

/// A queue that runs, as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedRunningQueue {
    /// The queue.
    pub queue: SavedQueue,
    /// Signalled by the driver.
    pub kick: SavedFd,
    /// Signals the driver, if it does not poll.
    pub call: Option<SavedFd>,
}

/// How far a driver is with TRANSPORT_RESET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedReset {
    /// It has handled all.
    Done,
    /// The event is still to be sent.
    Pending,
    /// It has handled the event when it offers so many event buffers.
    Sent(u16),
}

impl DeviceLink {
    /// As plain data.
    #[must_use]
    pub fn save<'a>(&'a self, fds: &mut SavedFds<'a>) -> SavedDevice {
        let queues = self.queues.each_ref().map(|queue| {
            let RunningQueue { virtqueue, kick, call, .. } = queue.as_ref()?;
            let (kick, call) = (fds.add(kick), call.as_ref().map(|call| fds.add(call)));
            Some(SavedRunningQueue { queue: virtqueue.save(), kick, call })
        });
        SavedDevice {
            queues,
            bases: self.bases,
            reset: match self.reset {
                ResetHandshake::Done => SavedReset::Done,
                ResetHandshake::Pending => SavedReset::Pending,
                ResetHandshake::Sent(buffers) => SavedReset::Sent(buffers),
            },
            knows_driver: self.knows_driver,
            owes_reset: self.owes_reset,
            stats: self.stats,
        }
    }

    /// A link that goes on where another was. `None` for memory: it could not be mapped again, so the queues stay stopped,
    /// and whoever restores the link ends the attachment.
    ///
    /// # Errors
    /// The saved state cannot be.
    pub fn restore(
        saved: SavedDevice,
        memory: Option<&Arc<GuestMemory>>,
        fds: &mut Fds,
    ) -> Result<Self, Unfit> {
        let SavedDevice { queues, bases, reset, knows_driver, owes_reset, stats } = saved;
        check_counts([stats.skipped, stats.signals])?;
        let reset = match reset {
            SavedReset::Done => ResetHandshake::Done,
            SavedReset::Pending => ResetHandshake::Pending,
            SavedReset::Sent(buffers) => {
                check(buffers <= MAX_QUEUE_SIZE, Unfit::Queue)?;
                ResetHandshake::Sent(buffers)
            }
        };
        let mut link = Self { bases, reset, knows_driver, owes_reset, stats, ..Self::default() };
        for (place, saved) in link.queues.iter_mut().zip(queues) {
            let Some(SavedRunningQueue { queue, kick, call }) = saved else { continue };
            let kick = fds.take(kick)?;
            let call = call.map(|call| fds.take(call)).transpose()?;
            if let Some(memory) = memory {
                let virtqueue = DeviceQueue::restore(Arc::clone(memory), &queue)?;
                *place = Some(RunningQueue::new(virtqueue, kick, call));
            }
        }
        Ok(link)
    }
}
