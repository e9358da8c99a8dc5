//! The guest side of a node: links to guests, to a device, and to itself, and what goes from one guest to another.
//!
//! | file | what it is |
//! | --- | --- |
//! | `links.rs` | all links |
//! | `routes.rs`, `schedule.rs`, `quantum.rs` | which leads where; which has work; how much one may move before the next |
//! | `rate.rs`, `buffers.rs` | how many bytes may go over one in a second; what its receive buffers may have |
//! | `entry.rs` | one link: who is at the other end, its queues |
//! | `interface.rs` | the connections over it; every packet passes here |
//! | `users.rs` | what it and the users of its connections say to each other |
//! | `transceiver.rs`, `receiver.rs`, `sender.rs`, `connections.rs` | its parts |
//! | `filter.rs`, `ready.rs`, `store.rs`, `datagram.rs` | and theirs |
//! | `forward.rs` | packets from one guest to another |
//! | `cid_change.rs` | a guest gets another CID |
//! | `saved.rs`, also below others | links as plain data |
//!
//! Nothing here knows of programs but that they have turns as well: what their connections send and receive goes through
//! [`Sink`] and [`Source`].

mod buffers;
mod cid_change;
mod connections;
mod datagram;
mod entry;
mod filter;
mod forward;
mod interface;
mod quantum;
mod rate;
mod ready;
mod receiver;
mod routes;
mod saved;
mod schedule;
mod sender;
mod store;
mod transceiver;
mod users;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use vsock_core::{Address, Admission, Cid, Instant, Key, Limits, SecondaryMap, Slots};

pub(crate) use self::buffers::{Buffers, Held};
pub(crate) use self::cid_change::Ending;
pub use self::datagram::SavedIncoming;
pub(crate) use self::entry::NewUplink;
pub use self::entry::{Entry, SavedEntry};
pub use self::filter::{FormerCid, Role};
pub(crate) use self::forward::Forwarder;
pub use self::interface::{Budget, Interface, SavedInterface, SavedLink, Scratch};
pub(crate) use self::quantum::Quantum;
pub use self::receiver::{Drained, Drops};
use self::routes::Routes;
pub use self::saved::SavedLinks;
use self::schedule::Schedule;
pub(crate) use self::schedule::Who;
pub use self::sender::Sent;
pub use self::store::{SavedPacket, SavedSender};
pub use self::transceiver::Traffic;
pub use self::users::{End, Filled, Foreign, Offer, Payload, Sends, Sink, Source, Update};
use crate::context::Context;
use crate::events::{Event, Failure};
pub use crate::fault::{LinkFault, MemoryDead};
use crate::helper::Helper;
use crate::options::{AddError, GuestOptions};
use crate::reactor::{Owner, SourceId};
use vsock_virtio::link::Link;
use vsock_virtio::link::device::DeviceLink;
use vsock_virtio::link::loopback::LoopbackLink;
use vsock_virtio::spec::QUEUE_COUNT;
use vsock_virtio::sys::PeerCredentials;
use vsock_virtio::vhost_user::{BackendControl, ConfigSpace, Detach, FrontendError, QueueStart};

/// Ends of connections within a node, two of each: one listener with the longest backlog leaves room for as many others.
/// What they cost is bounded by the descriptors that programs may have.
const LOOPBACK_ENDS: usize = 16_384;

/// What a device says our CID is.
#[derive(Debug)]
pub(crate) struct CidRead {
    pub(crate) link: LinkId,
    result: Result<Cid, FrontendError>,
}

/// Asks a device what our CID is.
fn read_cid((link, config): (LinkId, Arc<ConfigSpace>)) -> CidRead {
    CidRead { link, result: config.cid(CONFIG_WAIT).map(Cid) }
}

fn limits_of(role: Role) -> Limits {
    match role {
        Role::Loopback => Limits { max_connections: LOOPBACK_ENDS, ..Limits::default() },
        Role::Guest(_) | Role::Uplink => Limits::default(),
    }
}

/// How long a device may take to say what our CID is.
const CONFIG_WAIT: Duration = Duration::from_secs(1);

/// Names a link for ever.
pub type LinkId = Key<Entry>;

/// All links of a node.
pub(crate) struct Links {
    entries: Slots<Entry>,
    pub(crate) routes: Routes,
    schedule: Schedule,
    /// Which link a descriptor belongs to.
    sources: SecondaryMap<Owner, LinkId>,
    /// Links that cannot go on, and why.
    faults: Vec<(LinkId, LinkFault)>,
    detach_reasons: HashMap<&'static str, u64>,
    /// Asks devices what our CID is.
    cid_reader: Helper<(LinkId, Arc<ConfigSpace>), CidRead>,
    cids_read: Receiver<CidRead>,
}

impl Links {
    /// The links of a new node: the one to itself.
    pub(crate) fn new(local: Cid, loopback: LoopbackLink, seed: u64) -> Self {
        let (link, role) = (Link::Loopback(loopback), Role::Loopback);
        let interface = Interface::new(link, role, local, limits_of(role), seed);
        let mut entries = Slots::new();
        let loopback = entries.insert(Entry::new(GuestOptions::default(), interface));
        let mut links = Self { entries, ..Self::around(Routes::new(local, loopback)) };
        links.schedule.add(loopback);
        links
    }

    /// One more link, which may have work.
    fn insert(&mut self, entry: Entry) -> LinkId {
        let id = self.entries.insert(entry);
        self.schedule.add(id);
        id
    }

    /// No links yet.
    fn around(routes: Routes) -> Self {
        let (cid_sender, cids_read) = channel();
        Self {
            entries: Slots::new(),
            routes,
            schedule: Schedule::default(),
            sources: SecondaryMap::new(),
            faults: Vec::new(),
            detach_reasons: HashMap::new(),
            cid_reader: Helper::new("vsock-cid", read_cid, cid_sender),
            cids_read,
        }
    }

    pub(crate) fn get(&self, id: LinkId) -> Option<&Entry> {
        self.entries.get(id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (LinkId, &Entry)> {
        self.entries.iter()
    }

    /// The connections of a link, which does not have its turn now.
    pub(crate) fn interface(&mut self, id: LinkId) -> Option<&mut Interface> {
        self.entries.get_mut(id)?.interface_mut()
    }

    /// Takes out the connections of a link for its turn. Meanwhile nothing but this turn can change them.
    pub(crate) fn take(&mut self, id: LinkId) -> Option<Box<Interface>> {
        self.entries.get_mut(id)?.interface.take()
    }

    /// Ends a turn that ended in a panic: nothing of the interface is kept. A guest, and this node itself, gets a new one,
    /// without connections and with all queues stopped; the link to a device does not, as the device would not know.
    pub(crate) fn renew(&mut self, cx: &mut Context, id: LinkId, torn: Box<Interface>) {
        let local = self.routes.local();
        let role = torn.role();
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.drop_interface(cx, torn);
        let link = match role {
            Role::Guest(_) => Link::Device(DeviceLink::new()),
            Role::Loopback => match LoopbackLink::new() {
                Ok(link) => Link::Loopback(link),
                Err(error) => return cx.failed(Failure::Loopback(error)),
            },
            Role::Uplink => return,
        };
        let seed = RandomState::new().hash_one(id.to_bits());
        entry.set_interface(Interface::new(link, role, local, limits_of(role), seed));
    }

    /// Ends the turn.
    pub(crate) fn put_back(&mut self, id: LinkId, interface: Box<Interface>) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.interface = Some(interface);
        }
    }

    /// The guest with this CID.
    pub(crate) fn guest(&self, cid: Cid) -> Option<&Entry> {
        self.get(self.routes.guest(cid)?)
    }

    /// The CID of a guest of this name.
    pub(crate) fn resolve(&self, name: &str) -> Option<Cid> {
        let is_meant = |id| self.get(id).is_some_and(|it| it.options().name == name);
        self.routes.guests().find(|&(_, id)| is_meant(id)).map(|(cid, _)| cid)
    }

    fn set_local(&mut self, cid: Cid) {
        self.routes.set_local(cid);
        for (_, entry) in self.entries.iter_mut() {
            if let Some(interface) = entry.interface_mut() {
                interface.set_local(cid);
            }
        }
    }

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
        if self.entries.values().any(|entry| entry.options().name == options.name) {
            return Err(AddError::NameInUse(options.name));
        }
        let (link, role) = (Link::Device(DeviceLink::new()), Role::Guest(cid));
        let local = self.routes.local();
        let interface = Interface::new(link, role, local, Limits::default(), seed);
        let mut entry = Entry::new(GuestOptions::default(), interface);
        entry.set_options(admission, options);
        let id = self.insert(entry);
        self.routes.add_guest(cid, id);
        Ok(id)
    }

    /// Whether a guest can have this CID.
    pub(crate) fn check_cid(&self, cid: Cid) -> Result<(), AddError> {
        if !cid.is_guest() || cid == self.routes.local() {
            return Err(AddError::BadCid(cid.0));
        }
        match self.entries.values().find(|entry| entry.guest() == Some(cid)) {
            Some(entry) => Err(AddError::CidInUse(cid.0, entry.options().name.clone())),
            None => Ok(()),
        }
    }

    /// Forgets a guest whose link is clear.
    pub(crate) fn remove(&mut self, id: LinkId) {
        self.routes.remove_guest(id);
        self.entries.remove(id);
        self.schedule.remove(id);
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
        let mut entry = Entry::uplink(cx, device, config, interface, socket)?;
        entry.set_features(features);
        let source = entry.device_source();
        let id = self.insert(entry);
        self.set_local(cid);
        self.routes.set_uplink(Some(id));
        if let Some(source) = source {
            self.sources.insert(source, id);
        }
        for queue in 0..QUEUE_COUNT {
            self.watch(cx, id, queue)?;
        }
        self.activate(id);
        Ok(())
    }

    /// Makes a guest what it is to be from now on.
    pub(crate) fn set_options(
        &mut self,
        admission: &mut Admission,
        id: LinkId,
        options: GuestOptions,
    ) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.set_options(admission, options);
            // It may be allowed more than before.
            self.activate(id);
        }
    }

    /// The control thread of a guest runs.
    pub(crate) fn set_control(&mut self, id: LinkId, control: BackendControl) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.control = Some(control);
        }
    }

    /// Nothing begins any more over a link.
    pub(crate) fn set_leaving(&mut self, id: LinkId) {
        self.routes.remove_guest(id);
        if let Some(entry) = self.entries.get_mut(id) {
            entry.is_leaving = true;
        }
    }

    /// A front end has attached.
    pub(crate) fn attached(&mut self, cx: &Context, id: LinkId, peer: PeerCredentials) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.attached(cx, peer);
        }
    }

    /// Writes down something about a link.
    pub(crate) fn note(&self, cx: &Context, id: LinkId, event: Event) {
        if let Some(entry) = self.get(id) {
            entry.note(cx, event);
        }
    }

    /// The features of both sides are known.
    pub(crate) fn set_features(&mut self, id: LinkId, features: u64) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.set_features(features);
        }
    }

    /// Which link a descriptor belongs to.
    pub(crate) fn of_source(&self, source: SourceId) -> Option<LinkId> {
        self.sources.get(source).copied()
    }

    fn watch(&mut self, cx: &mut Context, id: LinkId, queue: usize) -> std::io::Result<()> {
        let Some(entry) = self.entries.get_mut(id) else { return Ok(()) };
        if let Some(source) = entry.watch(cx, queue)? {
            self.sources.insert(source, id);
        }
        Ok(())
    }

    /// Starts a queue. True: its driver began anew, so the connections over the link are over.
    pub(crate) fn start_queue(
        &mut self,
        cx: &mut Context,
        id: LinkId,
        start: QueueStart,
    ) -> Result<bool, LinkFault> {
        let queue = start.index;
        let Some(entry) = self.entries.get_mut(id) else { return Ok(false) };
        let is_over = entry.start_queue(cx, start)?;
        entry.announce(cx);
        self.watch(cx, id, queue).map_err(LinkFault::Signal)?;
        self.activate(id);
        Ok(is_over)
    }

    /// A running queue has another call eventfd, or none.
    pub(crate) fn set_call(&mut self, id: LinkId, queue: usize, call: Option<OwnedFd>) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.set_call(queue, call);
        }
    }

    /// Stops a queue; where a successor goes on.
    pub(crate) fn stop_queue(&mut self, cx: &mut Context, id: LinkId, queue: usize) -> u16 {
        self.entries.get_mut(id).map_or(0, |entry| entry.stop_queue(cx, queue))
    }

    /// Stops all queues of a link and ends all connections over it.
    pub(crate) fn clear(&mut self, cx: &mut Context, id: LinkId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.clear(cx);
        }
    }

    /// The front end is gone, or has reset the device; the link is clear.
    pub(crate) fn detached(&mut self, cx: &Context, id: LinkId, reason: Detach) {
        if let Some(entry) = self.entries.get_mut(id) {
            *self.detach_reasons.entry(reason.counter()).or_default() += 1;
            entry.detached(cx, reason);
        }
    }

    /// A link cannot go on; it is ended as soon as nobody is in the middle of something.
    pub(crate) fn report_fault(&mut self, id: LinkId, fault: LinkFault) {
        if self.faults.iter().all(|(link, _)| *link != id) {
            self.faults.push((id, fault));
        }
    }

    /// A link that is to be ended.
    pub(crate) fn next_fault(&mut self) -> Option<(LinkId, LinkFault)> {
        self.faults.pop()
    }

    /// The other side of a link broke the rules, or its memory is gone: nothing of it is used any more. False: there is no
    /// control thread to end the attachment.
    pub(crate) fn broken(&mut self, cx: &mut Context, id: LinkId, fault: LinkFault) -> bool {
        self.entries.get_mut(id).is_none_or(|entry| entry.broken(cx, fault))
    }

    /// The device of a userspace guest has gone, and its connections with it.
    pub(crate) fn device_left(&mut self, cx: &mut Context, id: LinkId) {
        if self.routes.uplink() == Some(id) {
            self.routes.set_uplink(None);
            cx.note(self.routes.local(), Event::DeviceLeft);
        }
        if let Some(entry) = self.entries.get_mut(id) {
            entry.clear(cx);
            entry.hang_up(cx);
        }
    }

    /// Sends a datagram over a link; `None`: not both sides have negotiated them. False: there is no room for it.
    pub(crate) fn send_datagram(
        &mut self,
        id: LinkId,
        addresses: (Address, Address),
        payload: &[u8],
        scratch: &mut Scratch,
    ) -> Option<bool> {
        let interface = self.interface(id).filter(|it| it.filter().takes_datagrams())?;
        let sent = interface.send_datagram(addresses, payload, scratch);
        self.activate(id);
        Some(sent.unwrap_or_else(|fault| {
            self.report_fault(id, fault);
            false
        }))
    }

    /// A link has work.
    pub(crate) fn activate(&mut self, id: LinkId) {
        self.schedule.activate(id);
    }

    /// Programs ask for something.
    pub(crate) fn activate_programs(&mut self) {
        self.schedule.activate_programs();
    }

    /// Whether anybody has work.
    pub(crate) fn is_active(&self) -> bool {
        self.schedule.is_active()
    }

    /// Whether a link waits for its turn.
    pub(crate) fn is_waiting(&self, id: LinkId) -> bool {
        self.schedule.is_waiting(id)
    }

    /// Links that wait for their turn.
    pub(crate) fn waiting(&self) -> Vec<LinkId> {
        self.schedule.waiting()
    }

    /// How long to serve turns before we look whether others have come.
    pub(crate) fn round(&self) -> Duration {
        self.schedule.round()
    }

    /// Whose turn it is. The notifications of a link are off from now on.
    pub(crate) fn next_turn(&mut self) -> Option<Who> {
        self.schedule.next()
    }

    /// Somebody was served for this time.
    pub(crate) fn spend(&mut self, who: Who, time: Duration) {
        self.schedule.spend(who, time);
    }

    /// After a turn: whether there was anything to do in it. Chains of no use are work as well.
    pub(crate) fn note_work(&mut self, id: LinkId, now: Instant) -> bool {
        let interface = self.get(id).and_then(Entry::interface);
        let packets = interface.map_or(0, |it| it.traffic().packets() + it.link().stats().skipped);
        self.schedule.note_work(id, packets, now)
    }

    /// Whether there are links that do not notify us.
    pub(crate) fn has_unarmed(&self) -> bool {
        self.schedule.has_unarmed()
    }

    /// Looks at the links that do not notify us, and lets those do so that have been quiet for `window`.
    pub(crate) fn poll_unarmed(&mut self, now: Instant, window: Duration) {
        self.schedule.poll(&mut self.entries, now, window);
    }

    /// Since when the other side of a link can take something; now, if it cannot.
    pub(crate) fn receives_since(&self, id: LinkId, now: Instant) -> Instant {
        self.get(id).map_or(Instant::default(), |entry| entry.receives_since(now))
    }

    /// Gives a guest another CID; its configuration space has it already, and its connections have ended like this.
    pub(crate) fn change_cid(&mut self, id: LinkId, cid: Cid, ending: Ending) {
        if let Some(entry) = self.entries.get_mut(id)
            && let Some(interface) = entry.interface.as_deref_mut()
        {
            cid_change::change(interface, cid, ending);
            entry.options.cid = cid.0;
            self.routes.remove_guest(id);
            self.routes.add_guest(cid, id);
            self.activate(id);
        }
    }

    /// The CID of a userspace guest may have changed with a reset: asks the device. The event's buffer goes back only after the
    /// answer, and the device sends nothing before. False: it cannot be asked.
    pub(crate) fn ask_cid(&mut self, cx: &Context, id: LinkId) -> bool {
        let config = self.get(id).and_then(Entry::config);
        config.is_some_and(|config| self.cid_reader.give(cx, (id, config)))
    }

    /// What a device has answered.
    pub(crate) fn next_cid_read(&self) -> Option<CidRead> {
        self.cids_read.try_recv().ok()
    }

    /// What the device says our CID is; returns it. The link has its turns again.
    pub(crate) fn cid_read(&mut self, cx: &Context, read: CidRead) -> Option<Cid> {
        self.interface(read.link)?.set_awaits_cid(false);
        self.activate(read.link);
        match read.result {
            Ok(cid) => {
                self.set_local(cid);
                cx.note(cid, Event::Renumbered);
                Some(cid)
            }
            Err(error) => {
                cx.note(self.routes.local(), Event::Failed(Failure::ReadingCid(error)));
                None
            }
        }
    }

    /// How many attachments ended, by reason.
    pub(crate) fn detach_reasons(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.detach_reasons.iter().map(|(&reason, &count)| (reason, count))
    }
}
