//! What a back end tells the data plane: the one interface between control threads and the worker.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Detach;
use crate::memory::GuestMemory;
use crate::ring::RingConfig;
use crate::sys::PeerCredentials;

/// The data plane's end of one guest's device, called by the guest's control thread.
///
/// Every call returns after the worker has applied it: the control thread unmaps memory and answers the front end on
/// the strength of that. Order: `attached`, then anything but `attached`, then `detached`; any number of times. Rings
/// never run without memory, and are stopped before memory or features change and before `detached`.
pub trait Attachment: Send {
    /// A front end has spoken on the guest's socket and owns the device until `detached`.
    fn attached(&mut self, peer: PeerCredentials);

    /// Another front end spoke while one was attached; it has been closed.
    fn refused(&mut self, peer: PeerCredentials);

    /// This memory replaces the memory before; no ring runs now.
    fn set_memory(&mut self, memory: Arc<GuestMemory>);

    /// The driver took its features a while ago, and there is still no memory: its front end cannot share it.
    fn without_memory(&mut self) {}

    /// The virtio features the driver took (without the vhost-user bit 30); no ring runs now.
    fn set_features(&mut self, features: u64);

    /// Ring `index` is ready and enabled. The worker looks at it at once, whether kicked or not.
    ///
    /// `config` has been tried on the current memory. `kick` and `call` are duplicates: other processes, and the
    /// control thread, hold the same eventfds, so closing one does not take it out of an epoll set.
    fn start_ring(
        &mut self,
        index: usize,
        config: RingConfig,
        kick: OwnedFd,
        call: Option<OwnedFd>,
    );

    /// The running ring `index` has a new call eventfd, or none: the driver then polls.
    fn set_call(&mut self, index: usize, call: Option<OwnedFd>);

    /// Stops the running ring `index` and returns the index of the next available entry it would have taken.
    fn stop_ring(&mut self, index: usize) -> u16;

    /// The front end is gone or has reset the device: nothing of it may be used after this returns.
    ///
    /// After [`Detach::Reset`] the same front end stays: `attached` and `set_memory` follow at once.
    fn detached(&mut self, reason: Detach);
}
