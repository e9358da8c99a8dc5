//! What other threads may ask of a guest's control thread, and the device's configuration space.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use vhost::vhost_user::message::BackendReq;

use super::{Detach, message};

/// State that the control thread shares with the holders of its handle.
pub(super) struct Shared {
    /// Rung when there is an order.
    bell: OwnedFd,
    order: Mutex<Order>,
    cid: AtomicU32,
    /// Where the front end listens for requests of ours (SET_BACKEND_REQ_FD).
    channel: Mutex<Option<OwnedFd>>,
}

/// What the control thread is to do next.
#[derive(Default)]
pub(super) struct Order {
    /// End the thread.
    pub(super) stop: bool,
    /// End the thread, and leave everything as it is.
    pub(super) pause: bool,
    /// End the attachment, if there is one.
    pub(super) detach: Option<Detach>,
}

impl Shared {
    pub(super) fn new(cid: u32) -> std::io::Result<Self> {
        Ok(Self {
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            order: Mutex::default(),
            cid: AtomicU32::new(cid),
            channel: Mutex::default(),
        })
    }

    /// Becomes readable when there is an order.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The order given since the last call.
    pub(super) fn take_order(&self) -> Order {
        let mut count = [0; 8];
        // Fails only if nobody rang, and then there is no order either.
        let _ = rustix::io::read(&self.bell, &mut count);
        std::mem::take(&mut *lock(&self.order))
    }

    /// Drops an order to detach: it came for an attachment that ended by itself, or for none.
    pub(super) fn forget_detach(&self) {
        lock(&self.order).detach = None;
    }

    /// The end of the attachment that is ordered and not carried out; it stays ordered.
    pub(super) fn ordered_detach(&self) -> Option<Detach> {
        lock(&self.order).detach.clone()
    }

    /// The configuration space: le64 guest_cid, of which the upper half is zero.
    pub(super) fn config_space(&self) -> [u8; 8] {
        u64::from(self.cid()).to_le_bytes()
    }

    /// Where to announce changes of the configuration space from now on.
    pub(super) fn set_channel(&self, channel: Option<OwnedFd>) {
        *lock(&self.channel) = channel;
    }

    /// The CID in the configuration space.
    pub(super) fn cid(&self) -> u32 {
        self.cid.load(Ordering::SeqCst)
    }

    /// Takes out where changes are announced.
    pub(super) fn take_channel(&self) -> Option<OwnedFd> {
        lock(&self.channel).take()
    }

    fn give(&self, change: impl FnOnce(&mut Order)) {
        change(&mut lock(&self.order));
        // Fails only if the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

/// A panic elsewhere leaves these plain values as good as they were.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Orders to one guest's control thread; never waits for it, so the worker may use it.
#[derive(Clone)]
pub struct BackendControl {
    shared: Arc<Shared>,
}

impl BackendControl {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Changes the CID in the configuration space and tells the front end, if it listens for that.
    ///
    /// Returns whether it was told. A Linux guest keeps its old CID until it re-reads the configuration space, which
    /// it does on TRANSPORT_RESET or when its driver is bound again.
    ///
    /// # Errors
    /// The front end's channel is full or broken; the CID is changed all the same.
    pub fn set_cid(&self, cid: u32) -> std::io::Result<bool> {
        self.shared.cid.store(cid, Ordering::SeqCst);
        let channel = lock(&self.shared.channel);
        let Some(channel) = channel.as_ref() else {
            return Ok(false);
        };
        // No reply is asked for: the front end first reads the configuration space over the other socket.
        message::send_request(channel, BackendReq::CONFIG_CHANGE_MSG as u32)?;
        Ok(true)
    }

    /// Ends the attachment for `reason`, if there is one; the guest's socket takes the next front end.
    pub fn detach(&self, reason: Detach) {
        self.shared.give(|order| order.detach = Some(reason));
    }

    pub(super) fn pause(&self) {
        self.shared.give(|order| order.pause = true);
    }

    pub(super) fn stop(&self) {
        self.shared.give(|order| order.stop = true);
    }
}
