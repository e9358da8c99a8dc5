//! Links come and go: front ends of guests attach over vhost-user, a userspace guest joins a device, both leave.
//!
//! What becomes of the connections over a link when it goes is the worker's to carry out: each call says whether there
//! is something of that kind to do.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use vsock_core::{Admission, Cid, Instant, Limits};

use super::cid_change::check_range;
use super::{Entry, Interface, LinkFault, LinkId, Links, Role};
use crate::context::Context;
use crate::link::device::DeviceLink;
use crate::link::driver::DriverLink;
use crate::link::{EVENT_QUEUE, Link, LinkError, QUEUE_COUNT, RX_QUEUE, TX_QUEUE};
use crate::options::GuestOptions;
use crate::reactor::{Owner, SourceId};
use crate::spec::F_DGRAM;
use crate::sys::PeerCredentials;
use crate::vhost_user::{BackendControl, ConfigSpace, Detach, QueueStart};

/// What the link of a userspace guest is made of.
pub(crate) struct NewUplink {
    pub(crate) link: DriverLink,
    pub(crate) cid: Cid,
    pub(crate) features: u64,
    /// The vhost-user connection.
    pub(crate) device: OwnedFd,
    pub(crate) config: ConfigSpace,
    pub(crate) socket: PathBuf,
    pub(crate) seed: u64,
}

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

/// Who is at the other end of a link, and its rings.
#[derive(Default)]
pub(crate) struct Attachment {
    pub(crate) front_end: Option<PeerCredentials>,
    /// Virtio features that both sides have.
    pub(crate) features: u64,
    /// Since when the guest may receive: not while it is paused.
    pub(super) receives_since: Instant,
    /// That the guest's driver is up has been said.
    is_announced: bool,
    /// The rings' eventfds, by ring.
    rings: [Option<SourceId>; QUEUE_COUNT],
    /// The control thread's handle, once it runs.
    control: Option<BackendControl>,
    /// The vhost-user connection of a driver link.
    device: Option<(SourceId, OwnedFd)>,
    /// Where a userspace guest reads its CID.
    pub(crate) config: Option<ConfigSpace>,
    /// Attachments ended because of a fault.
    pub(crate) faults: u64,
}

impl Links {
    /// A guest whose front end may attach from now on.
    pub(crate) fn add_guest(
        &mut self,
        admission: &mut Admission,
        options: GuestOptions,
        seed: u64,
    ) -> Result<LinkId, AddError> {
        let cid = Cid(options.cid);
        self.check_cid(cid)?;
        options.check()?;
        if self.entries.values().any(|entry| entry.options.name == options.name) {
            return Err(AddError::NameInUse(options.name));
        }
        let link = Link::Device(DeviceLink::new());
        let role = Role::Guest(cid);
        let interface = Interface::new(link, role, self.local, Limits::default(), seed);
        let id = self.entries.insert(Entry::new(GuestOptions::default(), interface));
        self.set_options(admission, id, options);
        self.routes.insert(cid, id);
        Ok(id)
    }

    /// Makes a guest what it is to be from now on.
    pub(crate) fn set_options(
        &mut self,
        admission: &mut Admission,
        id: LinkId,
        options: GuestOptions,
    ) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        if let Some(interface) = &mut entry.interface {
            let aliases = options.host_aliases.iter().copied().map(Cid).collect();
            interface.filter_mut().set_aliases(aliases);
        }
        entry.groups = options.groups.iter().map(|name| admission.group(name)).collect();
        entry.options = options;
    }

    /// Whether a guest can have this CID.
    pub(crate) fn check_cid(&self, cid: Cid) -> Result<(), AddError> {
        check_range(cid, self.local)?;
        match self.entries.values().find(|entry| entry.guest() == Some(cid)) {
            Some(entry) => Err(AddError::CidInUse(cid.0, entry.options.name.clone())),
            None => Ok(()),
        }
    }

    /// Nothing leads to this guest any more.
    pub(crate) fn close_routes(&mut self, id: LinkId) {
        self.routes.retain(|_, to| *to != id);
    }

    /// The other side's features are known.
    pub(crate) fn set_features(&mut self, id: LinkId, features: u64) {
        let Some(entry) = self.get_mut(id) else { return };
        entry.attachment.features = features;
        if let Some(interface) = &mut entry.interface {
            interface.filter_mut().set_takes_datagrams(features & F_DGRAM != 0);
        }
    }

    /// The control thread runs.
    pub(crate) fn set_control(&mut self, id: LinkId, control: BackendControl) {
        if let Some(entry) = self.get_mut(id) {
            entry.attachment.control = Some(control);
        }
    }

    /// A front end has attached.
    pub(crate) fn attached(&mut self, cx: &Context, id: LinkId, peer: PeerCredentials) {
        let Some(entry) = self.get_mut(id) else { return };
        entry.attachment.front_end = Some(peer);
        self.note(cx, id, "attached", format!("by pid {}", peer.pid));
    }

    /// Writes down something about a link.
    pub(crate) fn note(
        &self,
        cx: &Context,
        id: LinkId,
        kind: &'static str,
        text: impl Into<String>,
    ) {
        let interface = self.get(id).and_then(Entry::interface);
        cx.note(kind, interface.map_or(Cid::ANY, |it| it.role().label()), text);
    }

    /// The link of a userspace guest: everything that is not here is behind it.
    pub(crate) fn add_uplink(
        &mut self,
        cx: &mut Context,
        uplink: NewUplink,
    ) -> std::io::Result<()> {
        let NewUplink { link, cid, features, device, config, socket, seed } = uplink;
        let link = Link::Driver(link);
        let interface = Interface::new(link, Role::Uplink, cid, Limits::default(), seed);
        let options = GuestOptions { socket, ..GuestOptions::default() };
        let id = self.entries.insert(Entry::new(options, interface));
        self.set_local(cid);
        self.set_features(id, features);
        self.default_route = Some(id);
        let source = cx.sources.add(&device, Owner::Device)?;
        self.sources.insert(source, id);
        if let Some(entry) = self.get_mut(id) {
            entry.attachment.config = Some(config);
            entry.attachment.device = Some((source, device));
        }
        for queue in 0..QUEUE_COUNT {
            self.watch_ring(cx, id, queue)?;
        }
        self.activate(id);
        Ok(())
    }

    /// Which link a descriptor belongs to.
    pub(crate) fn of_source(&self, source: SourceId) -> Option<LinkId> {
        self.sources.get(source).copied()
    }

    /// Listens for the other side's signals on a ring.
    fn watch_ring(&mut self, cx: &mut Context, id: LinkId, queue: usize) -> std::io::Result<()> {
        let Some(entry) = self.entries.get_mut(id) else { return Ok(()) };
        let Some(fd) = entry.interface().and_then(|it| it.link().notify_fd(queue)) else {
            return Ok(());
        };
        let source = cx.sources.add_input(fd, Owner::Ring)?;
        entry.attachment.rings[queue] = Some(source);
        self.sources.insert(source, id);
        Ok(())
    }

    /// Takes a ring's eventfd out of the reactor; others hold it too, so closing it would not.
    fn unwatch_ring(&mut self, cx: &mut Context, id: LinkId, queue: usize) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let source = entry.attachment.rings.get_mut(queue).and_then(Option::take);
        let fd = entry.interface().and_then(|it| it.link().notify_fd(queue));
        if let (Some(source), Some(fd)) = (source, fd) {
            cx.sources.remove_shared(fd, source);
            self.sources.remove(source);
        }
    }

    /// Starts a ring. True: its driver began anew, so the connections over the link are over.
    pub(crate) fn start_queue(
        &mut self,
        cx: &mut Context,
        id: LinkId,
        start: QueueStart,
    ) -> Result<bool, LinkFault> {
        let QueueStart { index: queue, memory, config, kick, call } = start;
        self.unwatch_ring(cx, id, queue);
        let Some(interface) = self.interface(id) else { return Ok(false) };
        let Link::Device(device) = interface.link_mut() else { return Ok(false) };
        let stopped_at = device.stop_queue(queue);
        device
            .start_queue(queue, &memory, &config, kick, call)
            .map_err(|error| LinkError::Queue { queue, error })?;
        let is_anew = queue == TX_QUEUE && stopped_at != device.base(queue);
        // The driver began anew (reboot, rebind), or forgets its connections when it reads the event: it knows none of
        // its old ones, and its CID.
        let is_over = is_anew || (queue == EVENT_QUEUE && device.is_reset_due());
        if is_over {
            interface.start_over();
            interface.filter_mut().forget_former();
        }
        if let Some(entry) = self.get_mut(id) {
            entry.attachment.is_announced &= !is_over;
            if queue == RX_QUEUE {
                entry.attachment.receives_since = cx.now;
            }
        }
        self.watch_ring(cx, id, queue).map_err(LinkFault::Signal)?;
        self.announce(cx, id);
        self.activate(id);
        Ok(is_over)
    }

    /// Says, once, that the guest's driver is up: both rings run.
    fn announce(&mut self, cx: &Context, id: LinkId) {
        let Some(entry) = self.get_mut(id) else { return };
        let is_up = entry.interface().is_some_and(|it| match it.link() {
            Link::Device(device) => device.is_running(RX_QUEUE) && device.is_running(TX_QUEUE),
            Link::Driver(_) | Link::Loopback(_) => false,
        });
        if is_up && !std::mem::replace(&mut entry.attachment.is_announced, true) {
            self.note(cx, id, "running", "its driver is up");
        }
    }

    /// A running ring has another call eventfd, or none.
    pub(crate) fn set_call(&mut self, id: LinkId, queue: usize, call: Option<OwnedFd>) {
        if let Some(Link::Device(device)) = self.interface(id).map(Interface::link_mut) {
            device.set_call(queue, call);
        }
    }

    /// Stops a ring; where a successor goes on.
    pub(crate) fn stop_queue(&mut self, cx: &mut Context, id: LinkId, queue: usize) -> u16 {
        self.unwatch_ring(cx, id, queue);
        match self.interface(id).map(Interface::link_mut) {
            Some(Link::Device(device)) => device.stop_queue(queue),
            Some(Link::Driver(_) | Link::Loopback(_)) | None => 0,
        }
    }

    /// Stops all rings: nothing of the other side's is used any more.
    pub(crate) fn stop_queues(&mut self, cx: &mut Context, id: LinkId) {
        for queue in 0..QUEUE_COUNT {
            self.stop_queue(cx, id, queue);
        }
    }

    /// Stops all rings and ends all connections. What programs here have asked of a guest goes on: it is still known, and
    /// asked when its next driver comes.
    pub(crate) fn clear(&mut self, cx: &mut Context, id: LinkId) {
        self.stop_queues(cx, id);
        if let Some(interface) = self.interface(id) {
            match interface.role() {
                Role::Guest(_) => interface.start_over(),
                Role::Uplink | Role::Loopback => interface.reset_all(),
            }
        }
    }

    /// The front end is gone, or has reset the device; the link is clear.
    pub(crate) fn detached(&mut self, cx: &Context, id: LinkId, reason: &Detach) {
        self.set_features(id, 0);
        let Some(entry) = self.get_mut(id) else { return };
        entry.attachment.front_end = None;
        entry.attachment.is_announced = false;
        entry.attachment.faults += u64::from(reason.is_fault());
        if let Some(interface) = &mut entry.interface {
            interface.filter_mut().forget_former();
            if let Link::Device(device) = interface.link_mut() {
                device.forget_driver();
            }
        }
        *self.detach_reasons.entry(reason.counter()).or_default() += 1;
        // What the front end did wrong is a warning in the log; that it went away is not.
        let kind = if reason.is_fault() { "fault" } else { "detached" };
        self.note(cx, id, kind, reason.to_string());
    }

    /// The other side of a link broke the rules, or its memory is gone: nothing of it is used any more. False: there is no
    /// control thread to end the attachment.
    pub(crate) fn broken(&mut self, cx: &mut Context, id: LinkId, fault: &LinkFault) -> bool {
        self.stop_queues(cx, id);
        self.note(cx, id, "fault", fault.to_string());
        match self.get(id).and_then(|entry| entry.attachment.control.as_ref()) {
            // The control thread closes the front end's socket; `Detached` with this reason ends the connections.
            Some(control) => {
                control.detach(fault.as_detach());
                true
            }
            None => false,
        }
    }

    /// The device of a userspace guest has gone, and its connections with it.
    pub(crate) fn device_left(&mut self, cx: &mut Context, id: LinkId) {
        self.clear(cx, id);
        if self.default_route == Some(id) {
            self.default_route = None;
            cx.note("detached", self.local, "the device hung up");
        }
        let Some(entry) = self.entries.get_mut(id) else { return };
        // So that the device knows, if it did not begin.
        if let Some((source, fd)) = entry.attachment.device.take() {
            // Whoever joined holds it too, so closing our copy would neither end it nor take it out of the set.
            let _ = rustix::net::shutdown(&fd, rustix::net::Shutdown::Both);
            cx.sources.remove_shared(fd.as_fd(), source);
            self.sources.remove(source);
        }
    }

    /// Forgets a guest whose link is clear.
    pub(crate) fn remove(&mut self, id: LinkId) {
        self.close_routes(id);
        self.entries.remove(id);
        self.active.retain(|&active| active != id);
        self.unarmed.retain(|&served| served != id);
    }
}
