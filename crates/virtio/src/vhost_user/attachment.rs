//! What a back end tells the data plane: the one interface between control threads and the worker.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Detach;
use crate::queue::QueueConfig;
use crate::sys::PeerCredentials;
use vsock_guest_memory::GuestMemory;

/// The data plane's end of one guest's device, called by the guest's control thread.
///
/// Every call returns after the worker has applied it: the control thread unmaps memory and answers the front end on
/// the strength of that. Which rings run is the control thread's affair: the data plane runs what it was given until it
/// is told to stop.
pub trait Attachment: Send {
    /// Applies what the front end has said or done. Order: [`Attached`](Change::Attached), then anything but that, then
    /// [`Detached`](Change::Detached); any number of times.
    fn apply(&mut self, change: Change);

    /// Stops the running ring `index` and returns the index of the next available entry it would have taken.
    fn stop_queue(&mut self, index: usize) -> u16;
}

/// One thing that a front end says or does.
#[derive(Debug)]
pub enum Change {
    /// A front end has spoken on the guest's socket and owns the device until `Detached`.
    Attached(PeerCredentials),
    /// Another front end spoke while one was attached; it has been closed.
    Refused(PeerCredentials),
    /// The driver took its features a while ago, and there is still no memory: its front end cannot share it.
    WithoutMemory,
    /// The virtio features the driver took (without the vhost-user bit 30); no ring runs now.
    Features(u64),
    /// A ring is ready and enabled. The worker looks at it at once, whether kicked or not.
    StartQueue(QueueStart),
    /// The running ring `index` has a new call eventfd, or none: the driver then polls.
    SetCall {
        /// The ring.
        index: usize,
        /// Its new call eventfd.
        call: Option<OwnedFd>,
    },
    /// The front end is gone or has reset the device: rings that run are stopped, and nothing of it is used after this.
    ///
    /// After [`Detach::Reset`] the same front end stays: `Attached` follows at once.
    Detached(Detach),
}

/// All that a ring needs to run.
#[derive(Debug)]
pub struct QueueStart {
    /// Which ring.
    pub index: usize,
    /// The memory that it and its buffers lie in.
    pub memory: Arc<GuestMemory>,
    /// Where it lies; has been tried on the memory.
    pub config: QueueConfig,
    /// Signalled by the driver. A duplicate, like `call`: other processes, and the control thread, hold the same
    /// eventfd, so closing this one does not take it out of an epoll set.
    pub kick: OwnedFd,
    /// Signals the driver; without one the driver polls.
    pub call: Option<OwnedFd>,
}
