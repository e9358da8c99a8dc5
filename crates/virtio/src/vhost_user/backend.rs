//! The control thread of one guest: owns its listening socket and serves one front end after the other.
//!
//! There is one thread per guest because a front end may stall at any byte, and because a request is answered only
//! after the data plane has applied it; a slow guest then waits for itself alone. The thread sleeps in `poll` and has
//! a small stack, so a thousand idle guests cost memory for a thousand small stacks and no time.
//!
//! It also writes to those files of its front end that the worker must not touch (`call.rs`).
//!
//! Whoever connects may say nothing: tools and tests knock at sockets to see whether somebody is there. So a
//! connection becomes *the* attachment only with its first byte (`accept.rs`).

mod saved;

use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::message::VhostUserProtocolFeatures;

pub use self::saved::{Paused, SavedBackend, SavedFrontEnd};
use super::accept::{Probe, Probes};
use super::control::{BackendControl, Shared};
use super::handler::Handler;
use super::message::Inbox;
use super::{Attachment, Detach, F_PROTOCOL_FEATURES};
use crate::joinable::Joinable;
use crate::spec::{F_DGRAM, F_EVENT_IDX, F_INDIRECT_DESC, F_RING_RESET, F_SEQPACKET, F_VERSION_1};
use crate::starter::Starter;
use crate::sys::check_signals;
use vsock_guest_memory::MemoryPolicy;

/// Enough for parsing and for the calls into the data plane, which only post and wait.
const STACK: usize = 128 * 1024;

/// Messages served in one go, so that a front end which never stops talking cannot keep us from stopping.
const BATCH: usize = 64;

/// How long the listener is left alone after it could not accept (no fds left).
const PAUSE: Duration = Duration::from_millis(100);

/// How long a thread may take to stop when its handle is dropped.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a guest's device offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendOptions {
    /// The guest's CID, as in the configuration space.
    pub cid: u32,
    /// Offer SOCK_SEQPACKET to the guest.
    pub seqpacket: bool,
    /// Let the front end add and remove memory regions one by one (CONFIGURE_MEM_SLOTS).
    ///
    /// For guests with more than 8 regions (hot-plugged memory). QEMU then remembers what it has sent and does not
    /// send it to a restarted back end, so such a guest can no longer be healed by a reboot, only by replugging.
    pub memory_slots: bool,
    /// What to do with memory that its owner can shrink.
    pub memory_policy: MemoryPolicy,
    /// Take memory in files of any file system. The first look at a page may then take as long as that file system
    /// pleases, and everybody waits.
    pub file_memory: bool,
    /// Bytes of memory at most.
    pub memory_limit: u64,
}

/// What a guest's memory may be at most, if nothing else is said: more than any guest of today has, and little enough that
/// dozens of front ends that claim so much leave others room.
pub const MEMORY_LIMIT: u64 = 1 << 40;

impl BackendOptions {
    /// The usual device with this CID: SEQPACKET on, memory slots off, memory of up to [`MEMORY_LIMIT`] bytes in memory files.
    #[must_use]
    pub fn new(cid: u32) -> Self {
        Self {
            cid,
            seqpacket: true,
            memory_slots: false,
            memory_policy: MemoryPolicy::default(),
            file_memory: false,
            memory_limit: MEMORY_LIMIT,
        }
    }

    /// The virtio features offered.
    pub(super) fn features(&self) -> u64 {
        let seqpacket = if self.seqpacket { F_SEQPACKET | F_DGRAM } else { 0 };
        // Resetting one ring needs nothing of us: it reaches us as GET_VRING_BASE and a new set-up.
        let rings = F_INDIRECT_DESC | F_EVENT_IDX | F_RING_RESET;
        F_VERSION_1 | rings | F_PROTOCOL_FEATURES | seqpacket
    }

    /// The vhost-user protocol features offered.
    ///
    /// STATUS, in-band notifications and the rest are not served. CONFIG is what QEMU insists on.
    pub(super) fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut features = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::RESET_DEVICE;
        features.set(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS, self.memory_slots);
        features
    }
}

/// Serves front ends on `listener` until the handle is stopped or dropped, in a thread that `starter` starts.
///
/// # Errors
/// The thread or its eventfd could not be made.
pub fn spawn(
    listener: UnixListener,
    options: BackendOptions,
    attachment: Box<dyn Attachment>,
    starter: &Starter,
) -> std::io::Result<BackendHandle> {
    listener.set_nonblocking(true)?;
    let shared = Arc::new(Shared::new(options.cid)?);
    let guest = Guest {
        listener,
        shared: Arc::clone(&shared),
        handler: Handler::new(options, Arc::clone(&shared), attachment),
        attached: None,
        probes: Probes::default(),
        is_listening: true,
    };
    start(Box::new(guest), starter)
}

/// Begins to serve front ends, or goes on with it.
fn start(guest: Box<Guest>, starter: &Starter) -> std::io::Result<BackendHandle> {
    let control = BackendControl::new(Arc::clone(&guest.shared));
    // Found out once for the process, by calls that the new thread does not have. It asks again, and then says so.
    let _ = check_signals();
    let builder = std::thread::Builder::new().name(format!("vhost-{}", guest.shared.cid()));
    let thread = Joinable::spawn_by(starter, builder.stack_size(STACK), move || guest.run())?;
    Ok(BackendHandle { control, thread: Some(thread) })
}

/// A running control thread; stops it when dropped.
///
/// Stopping waits for the thread, and the thread may be waiting for the worker inside an [`Attachment`] call: the
/// worker itself must not do it. A front end can make the thread wait as well: a descriptor that it sent may take long to
/// close, or its memory's file system long to answer. So the wait has a deadline. A thread that is left behind ends
/// its attachment as soon as it goes on.
pub struct BackendHandle {
    control: BackendControl,
    thread: Option<Joinable<Option<Box<Guest>>>>,
}

impl BackendHandle {
    /// A sender of orders to this thread, for whoever needs one.
    #[must_use]
    pub fn control(&self) -> BackendControl {
        self.control.clone()
    }

    /// See [`BackendControl::set_cid`].
    ///
    /// # Errors
    /// The front end's channel is full or broken.
    pub fn set_cid(&self, cid: u32) -> std::io::Result<bool> {
        self.control.set_cid(cid)
    }

    /// Tells the thread to stop and does not wait; for who stops many.
    pub fn tell_to_stop(&self) {
        self.control.stop();
    }

    /// Ends the attachment (if any) with [`Detach::Stopped`], closes the socket and waits for the thread until
    /// `deadline`. False: the thread is left behind.
    #[must_use]
    pub fn stop(mut self, deadline: Instant) -> bool {
        self.join(deadline)
    }

    /// Ends the thread between two messages of its front end, to which nothing is said.
    ///
    /// As with [`stop`](Self::stop), the worker itself must not call this, and must be running. A front end that makes its
    /// thread wait makes this wait.
    ///
    /// # Errors
    /// The thread has ended by itself.
    pub fn pause(mut self) -> Result<Paused, Self> {
        self.control.pause();
        let guest = self.thread.take().and_then(Joinable::wait).flatten();
        guest.map(Paused::new).ok_or(self)
    }

    fn join(&mut self, deadline: Instant) -> bool {
        let Some(thread) = self.thread.take() else { return true };
        self.control.stop();
        thread.join(deadline)
    }
}

impl Drop for BackendHandle {
    fn drop(&mut self) {
        // One that is left behind holds nothing that anybody waits for.
        let _ = self.join(Instant::now() + PATIENCE);
    }
}

/// The attached front end.
struct Attached {
    socket: UnixStream,
    inbox: Inbox,
}

/// All that the control thread has.
struct Guest {
    listener: UnixListener,
    shared: Arc<Shared>,
    handler: Handler,
    attached: Option<Attached>,
    probes: Probes,
    /// False while the listener is left alone.
    is_listening: bool,
}

impl Guest {
    /// Serves until it is told to stop or to pause; what is left then of a guest that pauses.
    fn run(mut self: Box<Self>) -> Option<Box<Self>> {
        loop {
            self.wait();
            let order = self.shared.take_order();
            if order.stop {
                self.detach(Detach::Stopped);
                return None;
            }
            if let Some(reason) = order.detach {
                self.detach(reason);
            }
            if order.pause {
                return Some(self);
            }
            self.relay();
            self.handler.complain();
            if self.handler.pause().is_some() {
                continue;
            }
            // The attached one first: if it has just left, the next may be knocking already.
            let is_drained = self.serve();
            self.is_listening = self.probes.accept(&self.listener).is_ok();
            if is_drained {
                self.look_at_probes();
            }
        }
    }

    /// Sleeps until somebody says something.
    fn wait(&self) {
        let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![readable(self.shared.bell())];
        fds.extend(self.handler.to_relay().map(readable));
        let rest = self.handler.pause();
        if rest.is_none() {
            fds.extend(self.is_listening.then(|| PollFd::new(&self.listener, PollFlags::IN)));
            fds.extend(self.attached.iter().map(|one| PollFd::new(&one.socket, PollFlags::IN)));
            fds.extend(self.probes.iter().map(|probe| PollFd::new(&probe.socket, PollFlags::IN)));
        }
        let pause = (!self.is_listening).then_some(PAUSE);
        let timeout = pause.into_iter().chain(rest).chain(self.handler.patience()).min();
        let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
        // Interrupted or out of memory: everything is looked at, nothing is taken for granted.
        let _ = poll(&mut fds, timeout.as_ref());
    }

    /// Passes signals on to a front end that has no eventfds for them.
    fn relay(&mut self) {
        if let Err(reason) = self.handler.relay() {
            self.detach(reason);
        }
    }

    /// Serves the attached front end; `false` if it may have more to say.
    fn serve(&mut self) -> bool {
        let Some(attached) = &mut self.attached else {
            return true;
        };
        let handler = &mut self.handler;
        // What a front end can make panic must end that front end, not the switch.
        let result = catch_unwind(AssertUnwindSafe(|| serve_batch(attached, handler)));
        match result.unwrap_or(Err(Detach::Internal)) {
            Ok(is_drained) => is_drained,
            Err(reason) => {
                self.detach(reason);
                true
            }
        }
    }

    fn detach(&mut self, reason: Detach) {
        let handler = &mut self.handler;
        // The worker has let go either way once the call is over.
        let _ = catch_unwind(AssertUnwindSafe(|| handler.detach(reason)));
        self.attached = None;
    }

    /// Takes the first probe that speaks, sends away those that speak too late, forgets those that left.
    fn look_at_probes(&mut self) {
        for Probe { socket, peer } in self.probes.take_speaking() {
            if self.attached.is_some() {
                self.handler.refuse(peer);
                continue;
            }
            // What was ordered before this one came was not meant for it.
            self.shared.forget_detach();
            self.handler.attach(peer);
            self.attached = Some(Attached { socket, inbox: Inbox::default() });
            self.serve();
        }
    }
}

/// Handles what messages are there; `false` if there may be more.
fn serve_batch(attached: &mut Attached, handler: &mut Handler) -> Result<bool, Detach> {
    for _ in 0..BATCH {
        if handler.pause().is_some() {
            return Ok(false);
        }
        let Some(message) = attached.inbox.receive(&attached.socket)? else {
            return Ok(true);
        };
        handler.handle(message, &attached.socket)?;
    }
    Ok(false)
}
