//! A ring's set-up as plain data.

use std::os::fd::OwnedFd;

use vsock_core::saved::{Unfit, check};

use super::{Parts, RingSetup};
use crate::queue::MAX_QUEUE_SIZE;
use crate::saved::{Fds, SavedFd, SavedFds};
use crate::sys::is_eventfd;
use crate::vhost_user::call::{Call, Signals};

/// What a front end has said about one ring, as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedRing {
    /// Its size; 0 while not set.
    pub size: u16,
    /// Descriptor table, available ring and used ring, in the front end's address space.
    pub parts: Option<[u64; 3]>,
    /// Where it goes on when it starts.
    pub base: u16,
    /// Its kick eventfd.
    pub kick: Option<SavedFd>,
    /// The eventfd on which the worker signals its driver.
    pub call: Option<SavedFd>,
    /// The front end's file to which such signals are passed on, if that is not the eventfd.
    pub relayed_to: Option<SavedFd>,
    /// What SET_VRING_ENABLE said last.
    pub enabled: Option<bool>,
    /// The data plane runs it.
    pub running: bool,
}

impl RingSetup {
    /// As plain data.
    pub(in super::super) fn save<'a>(&'a self, fds: &mut SavedFds<'a>) -> SavedRing {
        let Self { size, parts, base, kick, call, enabled, running } = self;
        SavedRing {
            size: *size,
            parts: parts.map(|Parts { desc, avail, used }| [desc, avail, used]),
            base: *base,
            kick: kick.as_ref().map(|fd| fds.add(fd)),
            call: call.as_ref().map(|call| fds.add(call.eventfd())),
            relayed_to: call.as_ref().and_then(Call::relayed_to).map(|fd| fds.add(fd)),
            enabled: *enabled,
            running: *running,
        }
    }

    /// From plain data.
    pub(in super::super) fn restore(saved: SavedRing, fds: &mut Fds) -> Result<Self, Unfit> {
        let SavedRing { size, parts, base, kick, call, relayed_to, enabled, running } = saved;
        let is_size = size == 0 || (size.is_power_of_two() && size <= MAX_QUEUE_SIZE);
        check(is_size, Unfit::Queue)?;
        let mut take = |place: Option<SavedFd>| place.map(|place| fds.take(place)).transpose();
        let (kick, call, relayed_to) = (take(kick)?, take(call)?, take(relayed_to)?);
        check(kick.as_ref().is_none_or(is_known_eventfd), Unfit::Descriptor)?;
        check(call.is_some() || relayed_to.is_none(), Unfit::Descriptor)?;
        let signals = Signals::of_this_kernel();
        let call =
            call.map(|call| Call::restore(call, relayed_to, signals).ok_or(Unfit::Descriptor));
        let call = call.transpose()?;
        let parts = parts.map(|[desc, avail, used]| Parts { desc, avail, used });
        let ring = Self { size, parts, base, kick, call, enabled, running };
        // What runs was ready to.
        check(!running || ring.is_ready(true), Unfit::State)?;
        Ok(ring)
    }
}

fn is_known_eventfd(fd: &OwnedFd) -> bool {
    is_eventfd(fd).is_ok_and(|is_eventfd| is_eventfd)
}
