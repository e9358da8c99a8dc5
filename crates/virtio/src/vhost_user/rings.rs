//! What a front end has said about one ring, and when that is enough to run it.
//!
//! A ring runs when it has a size, addresses, a kick eventfd and is enabled; in which order these come differs from
//! front end to front end. Addresses are kept as the front end's own (user) addresses and translated at every start,
//! because they outlive the memory table they were first used with.

mod saved;

use std::os::fd::OwnedFd;

use vhost::vhost_user::message::VhostUserVringAddr;

pub use self::saved::SavedRing;
use super::Detach;
use crate::queue::{MAX_QUEUE_SIZE, QueueConfig};
use vsock_guest_memory::GuestMemory;

/// Where the three parts of a ring are, in the front end's address space.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Parts {
    desc: u64,
    avail: u64,
    used: u64,
}

/// One ring as the front end has set it up so far.
#[derive(Default)]
pub(super) struct RingSetup {
    /// 0 while not set.
    size: u16,
    parts: Option<Parts>,
    /// Where to go on: SET_VRING_BASE, or where the ring was when it last stopped.
    base: u16,
    /// Its kick eventfd; a ring without one is stopped.
    pub(super) kick: Option<OwnedFd>,
    /// Its call eventfd; without one the driver polls.
    pub(super) call: Option<OwnedFd>,
    /// What SET_VRING_ENABLE said last, if anything.
    pub(super) enabled: Option<bool>,
    /// Whether the data plane was given it and not told to stop it: nobody else keeps this.
    pub(super) running: bool,
}

impl RingSetup {
    /// SET_VRING_NUM.
    pub(super) fn set_size(&mut self, index: usize, size: u32) -> Result<(), Detach> {
        let new = u16::try_from(size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE)
            .ok_or(Detach::RingSize { index, size })?;
        self.change(index, self.size == new)?;
        self.size = new;
        Ok(())
    }

    /// SET_VRING_ADDR.
    pub(super) fn set_parts(
        &mut self,
        index: usize,
        addr: VhostUserVringAddr,
    ) -> Result<(), Detach> {
        let new = Parts { desc: addr.descriptor, avail: addr.available, used: addr.used };
        self.change(index, self.parts == Some(new))?;
        self.parts = Some(new);
        Ok(())
    }

    /// SET_VRING_BASE.
    pub(super) fn set_base(&mut self, index: usize, base: u16) -> Result<(), Detach> {
        self.change(index, false)?;
        self.base = base;
        Ok(())
    }

    /// A running ring is frozen: what it was built from cannot change under the worker.
    fn change(&self, index: usize, same: bool) -> Result<(), Detach> {
        if self.running && !same { Err(Detach::RingRunning(index)) } else { Ok(()) }
    }

    /// The ring has stopped at `base`.
    pub(super) fn stopped(&mut self, base: u16) {
        self.running = false;
        self.base = base;
    }

    /// Where the ring goes on when it starts.
    pub(super) fn base(&self) -> u16 {
        self.base
    }

    /// Whether everything is there that a running ring needs; `default` is for rings never enabled or disabled.
    pub(super) fn is_ready(&self, default: bool) -> bool {
        self.size != 0
            && self.parts.is_some()
            && self.kick.is_some()
            && self.enabled.unwrap_or(default)
    }

    /// The ring in guest addresses, if all of it lies in `memory`.
    pub(super) fn locate(&self, memory: &GuestMemory, event_idx: bool) -> Option<QueueConfig> {
        let parts = self.parts?;
        let place = |user: u64, len: u64, align: usize| {
            let guest = memory.user_to_guest(user)?;
            memory.check_area(guest, len, align).is_ok().then_some(guest)
        };
        let size = u64::from(self.size);
        Some(QueueConfig {
            size: self.size,
            desc: place(parts.desc, 16 * size, 16)?,
            // Both rings end with one more word each, for EVENT_IDX.
            avail: place(parts.avail, 6 + 2 * size, 2)?,
            used: place(parts.used, 6 + 8 * size, 4)?,
            base: self.base,
            event_idx,
        })
    }
}
