//! The guest side of a node: links to guests, to a device, and to itself, and what goes from one guest to another.
//!
//! | file | what it is |
//! | --- | --- |
//! | `mod.rs` | all links: which leads where, which has work |
//! | `interface.rs` | one link with the connections over it; every packet passes here |
//! | `users.rs` | what it and the users of its connections say to each other |
//! | `transceiver.rs`, `receiver.rs`, `sender.rs`, `connections.rs` | its parts |
//! | `filter.rs`, `ready.rs`, `store.rs`, `datagram.rs` | and theirs |
//! | `attachment.rs` | the rings of a link: how they come, start, stop and go |
//! | `forward.rs` | packets from one guest to another |
//! | `cid_change.rs` | a guest gets another CID |
//! | `quantum.rs` | how much one link may move before the next has its turn |
//!
//! Nothing here knows of programs: what their connections send and receive goes through [`Sink`] and [`Source`].

mod attachment;
mod cid_change;
mod connections;
mod datagram;
mod fault;
mod filter;
mod forward;
mod interface;
mod quantum;
mod ready;
mod receiver;
mod sender;
mod store;
mod transceiver;
mod users;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};

use vsock_core::admission::GroupId;
use vsock_core::{Address, Cid, Instant, Key, Limits, SecondaryMap, Slots};

pub use self::attachment::AddError;
pub(crate) use self::attachment::{Attachment, NewUplink};
pub(crate) use self::cid_change::Ending;
pub(crate) use self::fault::sort_transfer;
pub use self::fault::{LinkFault, MemoryDead};
pub use self::filter::Role;
pub(crate) use self::forward::Forwarder;
pub use self::interface::{Budget, Interface, Scratch};
pub(crate) use self::quantum::Quantum;
pub use self::receiver::{Drained, Drops};
pub use self::sender::Sent;
pub use self::transceiver::Traffic;
pub use self::users::{End, Filled, Foreign, Offer, Payload, Sends, Sink, Source, Update};
use crate::link::loopback::LoopbackLink;
use crate::link::{Link, RX_QUEUE};
use crate::options::GuestOptions;
use crate::reactor::Owner;

/// Ends of connections within a node, two of each: one listener with the longest backlog leaves room for as many others.
/// What they cost is bounded by the descriptors that programs may have.
const LOOPBACK_ENDS: usize = 16_384;

/// Names a link for ever.
pub(crate) type LinkId = Key<Entry>;

/// One link of the node.
pub(crate) struct Entry {
    /// What the guest was told to be; of another link, its socket.
    pub(crate) options: GuestOptions,
    /// Its groups, as rules know them.
    pub(crate) groups: Vec<GroupId>,
    /// Its guest is about to be removed: nothing begins any more.
    pub(crate) is_leaving: bool,
    /// Its rings, and who brought them.
    pub(crate) attachment: Attachment,
    /// Not here while it has its turn.
    interface: Option<Box<Interface>>,
    /// Among those with work.
    is_active: bool,
    /// Among those whose notifications are to be turned on again.
    is_unarmed: bool,
    /// When the last packet came or went, and how many had by then.
    worked_at: Instant,
    packets_then: u64,
}

impl Entry {
    fn new(options: GuestOptions, interface: Interface) -> Self {
        Self {
            options,
            groups: Vec::new(),
            is_leaving: false,
            attachment: Attachment::default(),
            interface: Some(Box::new(interface)),
            is_active: false,
            is_unarmed: false,
            worked_at: Instant::default(),
            packets_then: 0,
        }
    }

    /// The connections of the link; `None` while it has its turn.
    pub(crate) fn interface(&self) -> Option<&Interface> {
        self.interface.as_deref()
    }

    /// The guest's CID; `None` if there is no guest behind the link.
    pub(crate) fn guest(&self) -> Option<Cid> {
        self.interface().and_then(|it| it.role().guest())
    }
}

/// All links of a node.
pub(crate) struct Links {
    /// The CID whose sockets are here.
    local: Cid,
    entries: Slots<Entry>,
    /// Which link leads to a CID.
    routes: HashMap<Cid, LinkId>,
    /// Where all other CIDs are (a userspace guest's only way out).
    default_route: Option<LinkId>,
    /// The link of the node to itself.
    loopback: LinkId,
    active: VecDeque<LinkId>,
    /// Served since the last sleep, notifications off.
    unarmed: Vec<LinkId>,
    /// Which link a descriptor belongs to.
    sources: SecondaryMap<Owner, LinkId>,
    /// Links that cannot go on, and why.
    faults: Vec<(LinkId, LinkFault)>,
    detach_reasons: HashMap<&'static str, u64>,
}

impl Links {
    /// The links of a new node: the one to itself.
    pub(crate) fn new(local: Cid, loopback: LoopbackLink, seed: u64) -> Self {
        let limits = Limits { max_connections: LOOPBACK_ENDS, ..Limits::default() };
        let link = Link::Loopback(loopback);
        let interface = Interface::new(link, Role::Loopback, local, limits, seed);
        let mut entries = Slots::new();
        let loopback = entries.insert(Entry::new(GuestOptions::default(), interface));
        Self {
            local,
            entries,
            routes: HashMap::new(),
            default_route: None,
            loopback,
            active: VecDeque::new(),
            unarmed: Vec::new(),
            sources: SecondaryMap::new(),
            faults: Vec::new(),
            detach_reasons: HashMap::new(),
        }
    }

    /// The CID whose sockets are here.
    pub(crate) fn local(&self) -> Cid {
        self.local
    }

    fn set_local(&mut self, cid: Cid) {
        self.local = cid;
        for (_, entry) in self.entries.iter_mut() {
            if let Some(interface) = &mut entry.interface {
                interface.filter_mut().set_local(cid);
            }
        }
    }

    /// The link of the node to itself.
    pub(crate) fn loopback(&self) -> LinkId {
        self.loopback
    }

    /// The link to the device, on a userspace guest.
    pub(crate) fn uplink(&self) -> Option<LinkId> {
        self.default_route
    }

    pub(crate) fn get(&self, id: LinkId) -> Option<&Entry> {
        self.entries.get(id)
    }

    pub(crate) fn get_mut(&mut self, id: LinkId) -> Option<&mut Entry> {
        self.entries.get_mut(id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (LinkId, &Entry)> {
        self.entries.iter()
    }

    /// The connections of a link, which does not have its turn now.
    pub(crate) fn interface(&mut self, id: LinkId) -> Option<&mut Interface> {
        self.entries.get_mut(id)?.interface.as_deref_mut()
    }

    /// Takes out the connections of a link for its turn. Meanwhile nothing but this turn can change them.
    pub(crate) fn take(&mut self, id: LinkId) -> Option<Box<Interface>> {
        self.entries.get_mut(id)?.interface.take()
    }

    /// Ends the turn.
    pub(crate) fn put_back(&mut self, id: LinkId, interface: Box<Interface>) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.interface = Some(interface);
        }
    }

    /// Which link leads to a CID; `None`: guests may have it, and none has.
    pub(crate) fn route(&self, cid: Cid) -> Option<LinkId> {
        if cid == self.local || cid == Cid::LOCAL {
            return Some(self.loopback);
        }
        self.routes.get(&cid).copied().or(self.default_route)
    }

    /// The link of the guest with this CID.
    pub(crate) fn guest_link(&self, cid: Cid) -> Option<LinkId> {
        self.routes.get(&cid).copied()
    }

    /// The guest with this CID.
    pub(crate) fn guest(&self, cid: Cid) -> Option<&Entry> {
        self.get(self.guest_link(cid)?)
    }

    /// The CID of a guest of this name.
    pub(crate) fn resolve(&self, name: &str) -> Option<Cid> {
        let mut guests = self.routes.iter();
        guests
            .find(|&(_, &id)| self.get(id).is_some_and(|it| it.options.name == name))
            .map(|(&cid, _)| cid)
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

    /// Puts a link among those to serve in this or the next round.
    pub(crate) fn activate(&mut self, id: LinkId) {
        if let Some(entry) = self.entries.get_mut(id)
            && !entry.is_active
        {
            entry.is_active = true;
            self.active.push_back(id);
        }
    }

    /// How many links have work.
    pub(crate) fn active(&self) -> usize {
        self.active.len()
    }

    /// The next link with work, whose notifications are off from now on.
    pub(crate) fn next_active(&mut self) -> Option<LinkId> {
        while let Some(id) = self.active.pop_front() {
            let Some(entry) = self.entries.get_mut(id) else { continue };
            entry.is_active = false;
            if !std::mem::replace(&mut entry.is_unarmed, true) {
                self.unarmed.push(id);
            }
            return Some(id);
        }
        None
    }

    /// After a turn: whether there was anything to do in it.
    pub(crate) fn note_work(&mut self, id: LinkId, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        let packets = entry.interface().map_or(0, |it| it.traffic().packets());
        let had_work = packets != entry.packets_then;
        if had_work {
            entry.packets_then = packets;
            entry.worked_at = now;
        }
        had_work
    }

    /// Whether there are links that do not notify us.
    pub(crate) fn has_unarmed(&self) -> bool {
        !self.unarmed.is_empty()
    }

    /// Looks at the links that do not notify us, and lets those do so that have been quiet for long enough. Also while
    /// other links have work: nobody else tells us of these.
    pub(crate) fn poll_unarmed(&mut self, now: Instant, window: std::time::Duration) {
        debug_assert!(self.unarmed.len() <= self.entries.len(), "each link once");
        let mut unarmed = std::mem::take(&mut self.unarmed);
        unarmed.retain(|&id| {
            let Some(entry) = self.entries.get_mut(id) else { return false };
            let Some(interface) = &mut entry.interface else { return entry.is_unarmed };
            if entry.is_active {
                return entry.is_unarmed;
            }
            let is_quiet = now.since(entry.worked_at) >= window;
            let has_work = if is_quiet {
                entry.is_unarmed = false;
                interface.arm()
            } else {
                interface.has_news()
            };
            let is_unarmed = entry.is_unarmed;
            if has_work {
                self.activate(id);
            }
            is_unarmed
        });
        self.unarmed = unarmed;
    }

    /// Since when the other side of a link can take something; now, if it cannot.
    pub(crate) fn receives_since(&self, id: LinkId, now: Instant) -> Instant {
        let Some(entry) = self.get(id) else { return Instant::default() };
        match entry.interface().map(Interface::link) {
            Some(Link::Device(device)) if !device.is_running(RX_QUEUE) => now,
            Some(Link::Device(_)) => entry.attachment.receives_since,
            Some(Link::Driver(_) | Link::Loopback(_)) | None => Instant::default(),
        }
    }

    /// How many attachments ended, by reason.
    pub(crate) fn detach_reasons(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.detach_reasons.iter().map(|(&reason, &count)| (reason, count))
    }
}
