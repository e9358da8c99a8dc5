//! One link of the node: its rings, the connections over it, and what waits to go out.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::io;

use rustix::io::Errno;
use vsock_core::connection::Connection;
use vsock_core::{Cid, ConnectionId, Endpoint, Header, Instant, Limits, SecondaryMap};

use super::datagrams::Arriving;
use super::renumber::Former;
use crate::link::{Link, LinkError, QUEUE_COUNT};
use crate::options::GuestOptions;
use crate::reactor::Token;
use crate::slice::TransferError;
use crate::vhost_user::{BackendControl, ConfigSpace, Detach, PeerCredentials};

/// Packets of one other guest that may wait for room here, in bytes, headers counted: flows that keep to their credit
/// never reach it. Each sender has its own, so that none can use up what another needs.
const LIMIT_PER_SENDER: usize = 64 << 20;

/// Ends of connections within a node, two of each: one listener with the longest backlog leaves room for as many others.
/// What they cost is bounded by the descriptors that programs may have.
const LOOPBACK_ENDS: usize = 16_384;

/// Entries of ended flows below this number are not worth a clean-up.
const FEW: usize = 64;

/// What a stored packet costs besides its payload.
const STORED_COST: usize = 128;

/// Why a link cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkFault {
    /// What the other side wrote into a ring makes no sense.
    #[error(transparent)]
    Ring(#[from] LinkError),
    /// The file behind guest memory was made shorter.
    #[error("guest memory is gone: the file behind it was truncated")]
    MemoryDead,
    /// The other side could not be signalled.
    #[error("the other side's eventfd failed: {0}")]
    Signal(io::Error),
    /// A fault of ours; only this link is ended.
    #[error("internal error while serving the link")]
    Panic,
}

impl LinkFault {
    /// The same for the control thread, which counts it and closes the front end's socket.
    pub(crate) fn as_detach(&self) -> Detach {
        match self {
            Self::Ring(LinkError::Ring { queue, error }) => {
                Detach::RingBroken { index: *queue, fault: error.to_string() }
            }
            Self::Ring(LinkError::MemoryDead) => Detach::MemoryDead,
            Self::MemoryDead => Detach::MemoryDead,
            Self::Signal(error) => Detach::Socket(error.kind()),
            Self::Panic => Detach::Internal,
        }
    }
}

/// A packet of another guest that found no room in the ring.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) sent: usize,
}

/// Packets that wait for room, in order.
#[derive(Debug, Default)]
pub(crate) struct Store {
    packets: VecDeque<Stored>,
    bytes: usize,
    /// Of these, by sender.
    by_sender: BTreeMap<Cid, usize>,
}

impl Store {
    pub(crate) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn front(&mut self) -> Option<&mut Stored> {
        self.packets.front_mut()
    }

    pub(crate) fn pop(&mut self) {
        if let Some(stored) = self.packets.pop_front() {
            let cost = stored.payload.len() + STORED_COST;
            self.bytes -= cost;
            if let Entry::Occupied(mut sender) = self.by_sender.entry(stored.header.src.cid) {
                *sender.get_mut() -= cost;
                if *sender.get() == 0 {
                    sender.remove();
                }
            }
        }
    }

    /// Keeps a packet; `false`: there is no room for it.
    pub(crate) fn push(&mut self, stored: Stored) -> bool {
        let cost = stored.payload.len() + STORED_COST;
        let sender = self.by_sender.entry(stored.header.src.cid).or_default();
        if *sender + cost > LIMIT_PER_SENDER {
            return false;
        }
        *sender += cost;
        self.bytes += cost;
        self.packets.push_back(stored);
        true
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What a link is for.
#[derive(Debug)]
pub(crate) enum Role {
    /// We are the device of the guest with this CID.
    Guest(Cid),
    /// We are the driver; all others are behind this link.
    Uplink,
    /// Both ends of its connections are here.
    Loopback,
}

/// What went over a link since it was made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) packets_in: u64,
    pub(crate) packets_out: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// Packets that could not be understood.
    pub(crate) malformed: u64,
    /// Packets that named a source other than their sender.
    pub(crate) spoofed: u64,
    /// Packets from a CID that the guest had before, for connections that are over.
    pub(crate) late: u64,
    /// Packets to a destination that does not exist or may not be reached.
    pub(crate) unroutable: u64,
    /// Forwarded packets that found no room to wait.
    pub(crate) overflows: u64,
    /// Attachments ended because of a fault.
    pub(crate) faults: u64,
}

/// One link with everything that belongs to it.
pub(crate) struct LinkSlot {
    pub(crate) role: Role,
    /// What the guest was told to be; of another link, its name and socket.
    pub(crate) options: GuestOptions,
    pub(crate) link: Link,
    pub(crate) endpoint: Endpoint,
    /// The flow of each connection.
    flows: SecondaryMap<Connection, Token>,
    /// Connections whose flows have something to send, each once. Those that ended are passed over: unlike a token, an
    /// id is never used again.
    ready: VecDeque<ConnectionId>,
    pub(crate) store: Store,
    pub(crate) is_active: bool,
    /// Its guest is about to be removed: nothing begins any more.
    pub(crate) is_leaving: bool,
    /// Among those whose notifications are to be turned on again.
    pub(crate) is_unarmed: bool,
    /// No room in the ring to the other side; its next kick will tell.
    pub(crate) is_blocked: bool,
    /// Its packets stay in the ring until there is room for the answers they may cause.
    pub(crate) is_paused: bool,
    /// Since when its guest may receive: not while the guest is paused.
    pub(crate) receives_since: Instant,
    /// When the last packet came or went, and how many had by then.
    pub(crate) worked_at: Instant,
    packets_then: u64,
    pub(crate) deadline: Option<Instant>,
    pub(crate) front_end: Option<PeerCredentials>,
    /// That the guest's driver is up has been said.
    pub(crate) is_announced: bool,
    pub(crate) features: u64,
    /// Entries of the rings' eventfds, by ring.
    pub(crate) ring_sources: [Option<Token>; QUEUE_COUNT],
    pub(crate) hybrid_door: Option<Token>,
    pub(crate) control: Option<BackendControl>,
    /// Where a userspace guest reads its CID.
    pub(crate) config: Option<ConfigSpace>,
    /// A datagram that has not come whole.
    pub(crate) arriving: Arriving,
    /// The guest's CID before it was given another.
    pub(crate) former: Option<Former>,
    pub(crate) traffic: Traffic,
}

impl LinkSlot {
    pub(crate) fn new(options: GuestOptions, role: Role, link: Link, seed: u64) -> Self {
        let limits = match role {
            Role::Guest(_) | Role::Uplink => Limits::default(),
            Role::Loopback => Limits { max_connections: LOOPBACK_ENDS, ..Limits::default() },
        };
        Self {
            role,
            options,
            link,
            endpoint: Endpoint::new(limits, seed),
            flows: SecondaryMap::new(),
            ready: VecDeque::new(),
            store: Store::default(),
            is_active: false,
            is_leaving: false,
            is_unarmed: false,
            is_blocked: false,
            is_paused: false,
            receives_since: Instant::default(),
            worked_at: Instant::default(),
            packets_then: 0,
            deadline: None,
            front_end: None,
            is_announced: false,
            features: 0,
            ring_sources: [None; QUEUE_COUNT],
            hybrid_door: None,
            control: None,
            config: None,
            arriving: Arriving::default(),
            former: None,
            traffic: Traffic::default(),
        }
    }

    /// The guest's CID; `None` if there is no guest behind the link.
    pub(crate) fn guest(&self) -> Option<Cid> {
        match self.role {
            Role::Guest(cid) => Some(cid),
            Role::Uplink | Role::Loopback => None,
        }
    }

    /// Whether its guest and another's may talk to each other.
    pub(crate) fn shares_group(&self, other: &Self) -> bool {
        !self.is_leaving && self.options.shares_group(&other.options)
    }

    /// The CID for records and listings.
    pub(crate) fn label(&self) -> u32 {
        match self.role {
            Role::Guest(cid) => cid.0,
            Role::Uplink => Cid::HOST.0,
            Role::Loopback => Cid::LOCAL.0,
        }
    }

    /// Whether an endpoint that is full of answers may leave packets in the ring until some of them are out. A link
    /// to ourselves must take them in: nobody else makes room there, and it holds fewer than there are answers.
    pub(crate) fn can_pause(&self) -> bool {
        !matches!(self.role, Role::Loopback)
    }

    /// Notifications on; true when there is work already.
    pub(crate) fn arm(&mut self) -> bool {
        self.is_unarmed = false;
        if self.is_paused { self.link.arm_for_space() } else { self.link.arm() }
    }

    /// After a turn: whether there was anything to do in it.
    pub(crate) fn note_work(&mut self, now: Instant) -> bool {
        let packets = self.traffic.packets_in + self.traffic.packets_out;
        let had_work = packets != self.packets_then;
        if had_work {
            self.packets_then = packets;
            self.worked_at = now;
        }
        had_work
    }

    /// What [`arm`](Self::arm) would say, with notifications left off.
    pub(crate) fn has_news(&self) -> bool {
        self.link.has_space_again() || (!self.is_paused && self.link.has_inbound())
    }

    /// Notifications off while we are busy with it anyhow.
    pub(crate) fn disarm(&mut self) {
        self.is_blocked = false;
        self.link.disarm();
    }

    /// Something of ours waits for the ring.
    pub(crate) fn has_outbound(&self) -> bool {
        self.endpoint.has_packet() || !self.store.is_empty() || !self.ready.is_empty()
    }

    /// The next flow with something to send.
    pub(crate) fn next_ready(&mut self) -> Option<Token> {
        loop {
            let id = self.ready.pop_front()?;
            if let Some(token) = self.flow_of(id) {
                return Some(token);
            }
        }
    }

    /// Some flow waits for its turn.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// A flow has something to send, after the others.
    pub(crate) fn push_ready(&mut self, id: ConnectionId) {
        if self.ready.len() > FEW + 2 * self.flows.len() {
            let mut ready = std::mem::take(&mut self.ready);
            ready.retain(|&id| self.flow_of(id).is_some());
            self.ready = ready;
        }
        self.ready.push_back(id);
    }

    /// A flow whose turn found no room keeps its place.
    pub(crate) fn push_ready_first(&mut self, id: ConnectionId) {
        self.ready.push_front(id);
    }

    /// Which flow a connection's packets are for.
    pub(crate) fn flow_of(&self, id: ConnectionId) -> Option<Token> {
        self.flows.get(id).copied()
    }

    /// Ties a connection to its flow.
    pub(crate) fn tie(&mut self, id: ConnectionId, token: Token) {
        self.flows.insert(id, token);
    }

    /// Unties it.
    pub(crate) fn untie(&mut self, id: ConnectionId) {
        self.flows.remove(id);
    }
}

/// A transfer between a program's socket and guest memory failed: the link's fault, or only this flow's.
pub(crate) fn sort_transfer(error: TransferError) -> Result<io::Error, LinkFault> {
    match error {
        TransferError::MemoryDead => Err(LinkFault::MemoryDead),
        TransferError::Io(error) => Ok(error),
    }
}

/// Publishing failed: its memory is gone, or its eventfd.
pub(crate) fn sort_signal(error: io::Error) -> LinkFault {
    match Errno::from_io_error(&error) {
        Some(Errno::FAULT) => LinkFault::MemoryDead,
        Some(_) | None => LinkFault::Signal(error),
    }
}
