//! What a back end tells the data plane: the one interface between control threads and the worker.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::Detach;
use crate::memory::GuestMemory;
use crate::ring::RingConfig;

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

/// Who is at the other end of a Unix socket, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id; 0 when the process is not visible in our pid namespace.
    pub pid: u32,
    /// Effective user id when it connected.
    pub uid: u32,
    /// Effective group id when it connected.
    pub gid: u32,
}

impl PeerCredentials {
    /// Asks the kernel who connected `socket` (`SO_PEERCRED`).
    ///
    /// Not through rustix: its process id cannot be zero, and zero is what a peer in another pid namespace has.
    pub fn of(socket: BorrowedFd<'_>) -> std::io::Result<Self> {
        let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "three words are no more than 12 bytes"
        )]
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: both pointers are to live locals, and `length` is the size of the first; the kernel writes no more
        // than that, and any bytes are a valid `ucred`.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut peer).cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self { pid: u32::try_from(peer.pid).unwrap_or(0), uid: peer.uid, gid: peer.gid })
    }
}
