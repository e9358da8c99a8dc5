//! Links come and go: front ends of guests attach over vhost-user, a userspace guest joins a device, both leave.
//!
//! A guest's control thread speaks through [`GuestPort`]; every call runs on the worker's thread, between two rounds,
//! and has been carried out when it returns.

use std::path::PathBuf;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use vsock_core::Cid;

use super::Worker;
use super::link_slot::{LinkFault, LinkSlot, Role};
use super::source::{LinkId, NOWHERE, Source};
use crate::link::{EVENT_QUEUE, Link, QUEUE_COUNT, RX_QUEUE, TX_QUEUE};
use crate::mailbox::Mailbox;
use crate::options::GuestOptions;
use crate::ring::RingError;
use crate::vhost_user::{Attachment, BackendControl, Change, ConfigSpace, Detach, RingStart};

/// Why there is no such guest.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The CID is taken.
    #[error("CID {0} belongs to guest {1:?} already")]
    CidInUse(u32, String),
    /// The name is taken.
    #[error("there is a guest {0:?} already")]
    NameInUse(String),
    /// Not a CID a guest can have.
    #[error("{0} is not a CID for a guest (3 to 4294967294)")]
    BadCid(u32),
    /// The kernel said no.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Worker {
    /// A guest whose front end may attach from now on.
    pub(crate) fn add_guest(
        &mut self,
        options: GuestOptions,
        hybrid: Option<(PathBuf, UnixListener)>,
        seed: u64,
    ) -> Result<LinkId, AddError> {
        let cid = Cid(options.cid);
        self.check_cid(cid)?;
        options.check()?;
        if self.links.iter().any(|(_, slot)| slot.options.name == options.name) {
            return Err(AddError::NameInUse(options.name));
        }
        let link = Link::Device(crate::device::DeviceLink::new());
        let id = self.links.insert(LinkSlot::new(options, Role::Guest(cid), link, seed));
        if let Err(error) = self.set_hybrid(id, hybrid) {
            self.links.remove(id);
            return Err(error.into());
        }
        self.routes.insert(cid, id);
        Ok(id)
    }

    /// Forgets a guest; its control thread has ended, so its rings are stopped.
    pub(crate) fn remove_link(&mut self, id: LinkId) {
        // First of all, so that no program starts anew over it.
        self.routes.retain(|_, to| *to != id);
        self.clear_link(id);
        self.forget_connections(id);
        let Some(slot) = self.links.try_remove(id) else { return };
        if let Some(deadline) = slot.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        if let Some(door) = slot.hybrid_door {
            self.end_source(door);
        }
        let mut waiting = Vec::new();
        for (token, source) in &mut self.sources {
            if let Source::Flow(flow) = source
                && flow.link == id
            {
                // The next link may get the same number, and its connections the same ids.
                flow.link = NOWHERE;
            } else if matches!(source, Source::HybridClient(client) if client.link == id) {
                waiting.push(token);
            }
        }
        for token in waiting {
            self.end_source(token);
        }
        self.active.retain(|&active| active != id);
        self.unarmed.retain(|&served| served != id);
    }

    /// The link of a userspace guest: everything that is not here is behind it.
    pub(crate) fn add_uplink(
        &mut self,
        link: crate::driver::DriverLink,
        cid: Cid,
        features: u64,
        (device, config): (OwnedFd, ConfigSpace),
        socket: PathBuf,
        seed: u64,
    ) -> std::io::Result<()> {
        self.set_local(cid);
        let options = GuestOptions { socket, ..GuestOptions::default() };
        let mut slot = LinkSlot::new(options, Role::Uplink, Link::Driver(link), seed);
        slot.features = features;
        slot.config = Some(config);
        let id = self.links.insert(slot);
        self.default_route = Some(id);
        self.watch(Source::Device(id, device))?;
        for queue in 0..QUEUE_COUNT {
            self.watch_ring(id, queue)?;
        }
        self.activate(id);
        Ok(())
    }

    /// The device of a userspace guest has gone: its connections end.
    pub(crate) fn device_left(&mut self, id: LinkId) {
        if self.default_route == Some(id) {
            self.default_route = None;
            self.journal.write("detached", self.local.0, "the device hung up");
        }
        self.clear_link(id);
        self.hang_up(id);
    }

    /// Ends the vhost-user connection of a driver link, so that the device knows if it did not begin.
    fn hang_up(&mut self, id: LinkId) {
        let mut ended = None;
        for (token, source) in &self.sources {
            if let Source::Device(link, fd) = source
                && *link == id
            {
                // Whoever joined holds it too, so closing our copy would neither end it nor take it out of the set.
                let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
                self.reactor.forget(fd.as_fd());
                ended = Some(token);
            }
        }
        if let Some(token) = ended {
            self.end_source(token);
        }
    }

    /// Listens for the other side's signals on a ring.
    fn watch_ring(&mut self, id: LinkId, queue: usize) -> std::io::Result<()> {
        let token = self.sources.insert(Source::Ring(id));
        let slot = &mut self.links[id];
        let watched = match slot.link.notify_fd(queue) {
            Some(fd) => self.reactor.watch_input(fd, token),
            None => Ok(()),
        };
        slot.ring_sources[queue] = Some(token);
        watched
    }

    /// Takes a ring's eventfd out of the reactor; others hold it too, so closing it would not.
    fn unwatch_ring(&mut self, id: LinkId, queue: usize) {
        let Some(slot) = self.links.get_mut(id) else { return };
        let Some(token) = slot.ring_sources.get_mut(queue).and_then(Option::take) else { return };
        if let Some(fd) = slot.link.notify_fd(queue) {
            self.reactor.forget(fd);
        }
        self.end_source(token);
    }

    fn start_ring(
        &mut self,
        id: LinkId,
        RingStart { index: queue, memory, config, kick, call }: RingStart,
    ) -> Result<(), RingError> {
        self.unwatch_ring(id, queue);
        let Some(slot) = self.links.get_mut(id) else { return Ok(()) };
        let Link::Device(device) = &mut slot.link else { return Ok(()) };
        let stopped_at = device.stop_ring(queue);
        device.start_ring(queue, &memory, &config, kick, call)?;
        let is_anew = queue == TX_QUEUE && stopped_at != device.base(queue);
        if is_anew || (queue == EVENT_QUEUE && device.is_reset_due()) {
            // The driver began anew (reboot, rebind), or forgets its connections when it reads the event: it knows none
            // of its old ones, and its CID.
            self.forget_driver(id);
            if let Some(slot) = self.links.get_mut(id) {
                slot.former = None;
                slot.is_announced = false;
            }
        }
        if queue == RX_QUEUE
            && let Some(slot) = self.links.get_mut(id)
        {
            slot.receives_since = self.now;
        }
        if let Err(error) = self.watch_ring(id, queue) {
            self.break_link(id, &LinkFault::Signal(error));
        }
        self.announce(id);
        self.activate(id);
        Ok(())
    }

    /// Says, once, that the guest's driver is up: both rings run.
    fn announce(&mut self, id: LinkId) {
        let Some(slot) = self.links.get_mut(id) else { return };
        if let Link::Device(device) = &slot.link
            && !slot.is_announced
            && device.is_running(RX_QUEUE)
            && device.is_running(TX_QUEUE)
        {
            slot.is_announced = true;
            self.journal.write("running", slot.label(), "its driver is up");
        }
    }

    fn stop_ring(&mut self, id: LinkId, queue: usize) -> u16 {
        self.unwatch_ring(id, queue);
        match self.links.get_mut(id).map(|slot| &mut slot.link) {
            Some(Link::Device(device)) => device.stop_ring(queue),
            Some(Link::Driver(_) | Link::Loopback(_)) | None => 0,
        }
    }

    /// Ends all connections over a link; nothing is sent over it.
    pub(super) fn forget_connections(&mut self, id: LinkId) {
        if let Some(slot) = self.links.get_mut(id) {
            slot.endpoint.reset_all();
        }
        self.tell_of_ended(id);
    }

    /// A guest's driver is gone, and its connections with it. What programs here have asked of the guest goes on: it is
    /// still known, and asked when its next driver comes.
    fn forget_driver(&mut self, id: LinkId) {
        if let Some(slot) = self.links.get_mut(id) {
            slot.endpoint.start_over();
        }
        self.tell_of_ended(id);
    }

    fn tell_of_ended(&mut self, id: LinkId) {
        let Some(slot) = self.links.get_mut(id) else { return };
        slot.store.clear();
        let guest = slot.guest();
        self.settle(id);
        if let Some(cid) = guest {
            self.forget_relayed(cid);
        }
        self.note_deadline(id);
    }

    fn stop_rings(&mut self, id: LinkId) {
        for queue in 0..QUEUE_COUNT {
            self.stop_ring(id, queue);
        }
    }

    fn clear_link(&mut self, id: LinkId) {
        self.stop_rings(id);
        match self.links.get(id).map(|slot| &slot.role) {
            Some(Role::Guest(_)) => self.forget_driver(id),
            Some(Role::Uplink | Role::Loopback) | None => self.forget_connections(id),
        }
    }

    fn detached(&mut self, id: LinkId, reason: &Detach) {
        self.hear_out(id, TX_QUEUE);
        self.clear_link(id);
        let Some(slot) = self.links.get_mut(id) else { return };
        slot.front_end = None;
        slot.is_announced = false;
        slot.features = 0;
        slot.former = None;
        if let Link::Device(device) = &mut slot.link {
            device.forget_driver();
        }
        let cid = slot.label();
        if reason.is_fault() {
            slot.traffic.faults += 1;
        }
        *self.detach_reasons.entry(reason.counter()).or_default() += 1;
        // What the front end did wrong is a warning in the log; that it went away is not.
        let kind = if reason.is_fault() { "fault" } else { "detached" };
        self.journal.write(kind, cid, reason.to_string());
    }

    /// The other side of a link broke the rules, or its memory is gone: nothing of it is used any more.
    pub(crate) fn break_link(&mut self, id: LinkId, fault: &LinkFault) {
        self.stop_rings(id);
        let Some(slot) = self.links.get_mut(id) else { return };
        let cid = slot.label();
        self.journal.write("fault", cid, fault.to_string());
        match &slot.control {
            // The control thread closes the front end's socket; `Detached` with this reason ends the connections.
            Some(control) => control.detach(fault.as_detach()),
            None => self.device_left(id),
        }
    }
}

/// What a front end does whose memory is not shared: it gives up without a word.
const NO_MEMORY: &str = "its driver is up, but its hypervisor shares no memory with us: \
    QEMU needs the arguments that `vsock qemu-args` prints, share=on among them";

/// A guest's control thread as seen by the worker, and the other way round.
pub(crate) struct GuestPort {
    mailbox: Mailbox<Worker>,
    link: LinkId,
}

impl GuestPort {
    pub(crate) fn new(mailbox: Mailbox<Worker>, link: LinkId) -> Self {
        Self { mailbox, link }
    }

    /// Runs on the worker's thread. A worker that has stopped uses nothing of the guest any more, so there is nothing
    /// left to do then, and the answer is the harmless one.
    fn call<R: Default + Send + 'static>(
        &self,
        request: impl FnOnce(&mut Worker, LinkId) -> R + Send + 'static,
    ) -> R {
        let link = self.link;
        self.mailbox.call(move |worker| request(worker, link)).unwrap_or_default()
    }
}

impl Attachment for GuestPort {
    fn apply(&mut self, change: Change) {
        self.call(move |worker, id| worker.apply(id, change));
    }

    fn stop_ring(&mut self, index: usize) -> u16 {
        self.call(move |worker, id| {
            worker.hear_out(id, index);
            worker.stop_ring(id, index)
        })
    }
}

impl Worker {
    /// What the front end of the guest on link `id` has said or done.
    fn apply(&mut self, id: LinkId, change: Change) {
        let Some(slot) = self.links.get_mut(id) else { return };
        let cid = slot.label();
        match change {
            Change::Attached(peer) => {
                slot.front_end = Some(peer);
                self.journal.write("attached", cid, format!("by pid {}", peer.pid));
            }
            Change::Refused(peer) => {
                let text = format!("pid {} also wants to be the front end", peer.pid);
                self.journal.write("refused", cid, text);
            }
            Change::WithoutMemory => self.journal.write("no-memory", cid, NO_MEMORY),
            Change::Features(features) => slot.features = features,
            Change::StartRing(start) => {
                let queue = start.index;
                if let Err(error) = self.start_ring(id, start) {
                    let fault = crate::link::LinkError::Ring { queue, error };
                    self.break_link(id, &LinkFault::Ring(fault));
                }
            }
            Change::SetCall { index, call } => {
                if let Link::Device(device) = &mut slot.link {
                    device.set_call(index, call);
                }
            }
            Change::Detached(reason) => self.detached(id, &reason),
        }
    }
}

impl LinkSlot {
    /// For the control thread's handle, once it runs.
    pub(crate) fn set_control(&mut self, control: BackendControl) {
        self.control = Some(control);
    }
}
