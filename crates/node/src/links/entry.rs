//! One link as the node holds it: who is at the other end, and how its queues come, start, stop and go.
//!
//! What becomes of the connections over a link when it goes is the worker's to carry out: each call says whether there
//! is something of that kind to do.

mod saved;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use vsock_core::admission::GroupId;
use vsock_core::{Admission, Cid, Instant};

pub use self::saved::SavedEntry;
use super::buffers::BUFFER_LIMIT;
use super::{Interface, LinkFault, Role};
use crate::context::Context;
use crate::events::Event;
use crate::options::GuestOptions;
use crate::reactor::{Owner, SourceId};
use vsock_virtio::link::driver::DriverLink;
use vsock_virtio::link::{Link, LinkError};
use vsock_virtio::spec::F_DGRAM;
use vsock_virtio::spec::{EVENT_QUEUE, QUEUE_COUNT, RX_QUEUE, TX_QUEUE};
use vsock_virtio::sys::PeerCredentials;
use vsock_virtio::vhost_user::{BackendControl, ConfigSpace, Detach, QueueStart};

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

/// One link of the node.
pub struct Entry {
    /// What the guest was told to be; of another link, its socket.
    pub(super) options: GuestOptions,
    /// Its groups, as rules know them.
    groups: Vec<GroupId>,
    /// Its guest is about to be removed: nothing begins any more.
    pub(crate) is_leaving: bool,
    pub(super) front_end: Option<PeerCredentials>,
    /// Virtio features that both sides have.
    pub(super) features: u64,
    /// Since when the guest may receive: not while it is paused.
    receives_since: Instant,
    /// That the guest's driver is up has been said.
    is_announced: bool,
    /// How often the guest's driver came up.
    driver_starts: u64,
    /// The queues' eventfds, by queue.
    sources: [Option<SourceId>; QUEUE_COUNT],
    /// The control thread's handle, once it runs.
    pub(super) control: Option<BackendControl>,
    /// The vhost-user connection of a driver link.
    device: Option<(SourceId, OwnedFd)>,
    /// Where a userspace guest reads its CID.
    config: Option<Arc<ConfigSpace>>,
    /// Attachments ended because of a fault.
    pub(super) faults: u64,
    /// Not here while it has its turn.
    pub(super) interface: Option<Box<Interface>>,
}

impl Entry {
    pub(super) fn new(options: GuestOptions, interface: Interface) -> Self {
        Self::of(options, Some(Box::new(interface)))
    }

    fn of(options: GuestOptions, interface: Option<Box<Interface>>) -> Self {
        let mut entry = Self {
            options,
            groups: Vec::new(),
            is_leaving: false,
            front_end: None,
            features: 0,
            receives_since: Instant::default(),
            is_announced: false,
            driver_starts: 0,
            sources: [None; QUEUE_COUNT],
            control: None,
            device: None,
            config: None,
            faults: 0,
            interface,
        };
        entry.configure_interface();
        entry
    }

    /// The link of a userspace guest. Its queues are to be watched.
    pub(super) fn uplink(
        cx: &mut Context,
        device: OwnedFd,
        config: ConfigSpace,
        interface: Interface,
        socket: PathBuf,
    ) -> std::io::Result<Self> {
        let source = cx.sources.add(&device, Owner::Device)?;
        let options = GuestOptions { socket, ..GuestOptions::default() };
        let entry = Self::new(options, interface);
        Ok(Self { device: Some((source, device)), config: Some(Arc::new(config)), ..entry })
    }

    /// What the guest was told to be.
    pub(crate) fn options(&self) -> &GuestOptions {
        &self.options
    }

    /// The guest's groups, as rules know them.
    pub(crate) fn groups(&self) -> &[GroupId] {
        &self.groups
    }

    /// Makes a guest what it is to be from now on.
    pub(super) fn set_options(&mut self, admission: &mut Admission, options: GuestOptions) {
        self.groups = options.groups.iter().map(|name| admission.group(name)).collect();
        self.options = options;
        self.configure_interface();
    }

    /// What the settings of a link mean for its interface: of a new one, of one that is made anew after a panic, and of one
    /// that is restored.
    fn configure_interface(&mut self) {
        if let Some(interface) = &mut self.interface {
            let aliases = self.options.host_aliases.iter().copied().map(Cid).collect();
            interface.filter_mut().set_aliases(aliases);
            interface.set_rate(self.options.bytes_per_second);
            if interface.role().guest().is_some() {
                interface.buffers().set_limit(match self.options.buffer_limit_mib {
                    0 => BUFFER_LIMIT,
                    mebibytes => u64::from(mebibytes) << 20,
                });
            }
        }
    }

    /// Drops connections and queues as they are; only the descriptors are taken out of the reactor before.
    pub(super) fn drop_interface(&mut self, cx: &mut Context, torn: Box<Interface>) {
        self.interface = Some(torn);
        for queue in 0..QUEUE_COUNT {
            self.unwatch(cx, queue);
        }
        self.interface = None;
    }

    /// New connections in place of those that were dropped, and new queues, which are all stopped.
    pub(super) fn set_interface(&mut self, interface: Interface) {
        self.interface = Some(Box::new(interface));
        self.configure_interface();
    }

    /// The connections of the link; `None` while it has its turn.
    pub(crate) fn interface(&self) -> Option<&Interface> {
        self.interface.as_deref()
    }

    /// The same, to change them.
    pub(super) fn interface_mut(&mut self) -> Option<&mut Interface> {
        self.interface.as_deref_mut()
    }

    /// What is on the other side; `None` while it has its turn.
    fn role(&self) -> Option<Role> {
        self.interface().map(Interface::role)
    }

    /// The guest's CID; `None` if there is no guest behind the link.
    pub(crate) fn guest(&self) -> Option<Cid> {
        self.role().and_then(Role::guest)
    }

    /// The CID for records; `None` while it has its turn.
    fn label(&self) -> Option<Cid> {
        self.role().map(Role::label)
    }

    /// Virtio features that both sides have.
    pub(crate) fn features(&self) -> u64 {
        self.features
    }

    /// The features of both sides are known.
    pub(super) fn set_features(&mut self, features: u64) {
        self.features = features;
        if let Some(interface) = &mut self.interface {
            interface.filter_mut().set_takes_datagrams(features & F_DGRAM != 0);
        }
    }

    /// A front end has attached.
    pub(super) fn attached(&mut self, cx: &Context, peer: PeerCredentials) {
        self.front_end = Some(peer);
        self.note(cx, Event::Attached(peer));
    }

    /// Writes down something about the link.
    pub(crate) fn note(&self, cx: &Context, event: Event) {
        cx.note(self.label(), event);
    }

    /// Listens for the other side's signals on a queue that runs.
    pub(super) fn watch(
        &mut self,
        cx: &mut Context,
        queue: usize,
    ) -> std::io::Result<Option<SourceId>> {
        let fd = self.interface().and_then(|it| it.link().notify_fd(queue));
        let source = fd.map(|fd| cx.sources.add_input(fd, Owner::Queue)).transpose()?;
        self.sources[queue] = source;
        Ok(source)
    }

    /// The ids of its queues' eventfds.
    pub(super) fn sources(&self) -> impl Iterator<Item = SourceId> + use<> {
        self.sources.into_iter().flatten()
    }

    /// The id of the vhost-user connection of a driver link.
    pub(super) fn device_source(&self) -> Option<SourceId> {
        self.device.as_ref().map(|(source, _)| *source)
    }

    /// Takes a queue's eventfd out of the reactor; others hold it too, so closing it would not.
    fn unwatch(&mut self, cx: &mut Context, queue: usize) {
        let source = self.sources.get_mut(queue).and_then(Option::take);
        let fd = self.interface().and_then(|it| it.link().notify_fd(queue));
        if let (Some(source), Some(fd)) = (source, fd) {
            cx.sources.remove_shared(fd, source);
        }
    }

    /// Starts a queue, which is to be watched. True: its driver began anew, so the connections over the link are over.
    pub(super) fn start_queue(
        &mut self,
        cx: &mut Context,
        start: QueueStart,
    ) -> Result<bool, LinkFault> {
        let QueueStart { index: queue, memory, config, kick, call } = start;
        self.unwatch(cx, queue);
        let Some(interface) = self.interface.as_deref_mut() else { return Ok(false) };
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
        self.is_announced &= !is_over;
        if queue == RX_QUEUE {
            self.receives_since = cx.now;
        }
        Ok(is_over)
    }

    /// Says, once, that the guest's driver is up: both queues run.
    pub(super) fn announce(&mut self, cx: &Context) {
        let is_up = self.interface().is_some_and(|it| match it.link() {
            Link::Device(device) => device.is_running(RX_QUEUE) && device.is_running(TX_QUEUE),
            Link::Driver(_) | Link::Loopback(_) => false,
        });
        if is_up && !std::mem::replace(&mut self.is_announced, true) {
            self.driver_starts += 1;
            self.note(cx, Event::Running);
        }
    }

    /// A running queue has another call eventfd, or none.
    pub(super) fn set_call(&mut self, queue: usize, call: Option<OwnedFd>) {
        if let Some(Link::Device(device)) = self.interface_mut().map(Interface::link_mut) {
            device.set_call(queue, call);
        }
    }

    /// Stops a queue; where a successor goes on.
    pub(super) fn stop_queue(&mut self, cx: &mut Context, queue: usize) -> u16 {
        self.unwatch(cx, queue);
        match self.interface_mut().map(Interface::link_mut) {
            Some(Link::Device(device)) => device.stop_queue(queue),
            Some(Link::Driver(_) | Link::Loopback(_)) | None => 0,
        }
    }

    /// Stops all queues: nothing of the other side's is used any more.
    pub(super) fn stop_queues(&mut self, cx: &mut Context) {
        for queue in 0..QUEUE_COUNT {
            self.stop_queue(cx, queue);
        }
    }

    /// Stops all queues and ends all connections. What programs here have asked of a guest goes on: it is still known,
    /// and asked when its next driver comes.
    pub(super) fn clear(&mut self, cx: &mut Context) {
        self.stop_queues(cx);
        if let Some(interface) = &mut self.interface {
            match interface.role() {
                Role::Guest(_) => interface.start_over(),
                Role::Uplink | Role::Loopback => interface.reset_all(),
            }
        }
    }

    /// The front end is gone, or has reset the device; the link is clear.
    pub(super) fn detached(&mut self, cx: &Context, reason: Detach) {
        self.set_features(0);
        self.front_end = None;
        self.is_announced = false;
        self.faults += u64::from(reason.is_fault());
        if let Some(interface) = &mut self.interface {
            interface.filter_mut().forget_former();
            if let Link::Device(device) = interface.link_mut() {
                device.forget_driver();
            }
        }
        self.note(cx, Event::Detached(reason));
    }

    /// The other side of the link broke the rules, or its memory is gone: nothing of it is used any more. False: there is
    /// no control thread to end the attachment.
    pub(super) fn broken(&mut self, cx: &mut Context, fault: LinkFault) -> bool {
        self.stop_queues(cx);
        let reason = fault.as_detach();
        self.note(cx, Event::Fault(fault));
        // The control thread closes the front end's socket; `Detached` with this reason ends the connections.
        let control = self.control.as_ref();
        control.map(|control| control.detach(reason)).is_some()
    }

    /// Ends the vhost-user connection of a driver link, so that the device knows, if it did not begin.
    pub(super) fn hang_up(&mut self, cx: &mut Context) {
        if let Some((source, fd)) = self.device.take() {
            // Whoever joined holds it too, so closing our copy would neither end it nor take it out of the set.
            let _ = rustix::net::shutdown(&fd, rustix::net::Shutdown::Both);
            cx.sources.remove_shared(fd.as_fd(), source);
        }
    }

    /// Since when the other side can take something; now, if it cannot.
    pub(super) fn receives_since(&self, now: Instant) -> Instant {
        match self.interface().map(Interface::link) {
            Some(Link::Device(device)) if !device.is_running(RX_QUEUE) => now,
            Some(Link::Device(_)) => self.receives_since,
            Some(Link::Driver(_) | Link::Loopback(_)) | None => Instant::default(),
        }
    }

    /// Where a userspace guest reads its CID.
    pub(super) fn config(&self) -> Option<Arc<ConfigSpace>> {
        self.config.clone()
    }

    /// Whether it leads, or led, to a device.
    pub(crate) fn is_uplink(&self) -> bool {
        self.config.is_some()
    }

    /// Process id of the front end; 0: there is none, or it cannot be seen.
    pub(crate) fn front_end_pid(&self) -> u32 {
        self.front_end.map_or(0, |peer| peer.pid)
    }

    /// Whether a front end is attached.
    pub(crate) fn is_attached(&self) -> bool {
        self.front_end.is_some()
    }

    /// How often the guest's driver came up: a boot, a reset, a rebind. A pause and a resume is none.
    pub(crate) fn driver_starts(&self) -> u64 {
        self.driver_starts
    }

    /// Attachments ended because of a fault.
    pub(crate) fn faults(&self) -> u64 {
        self.faults
    }
}
