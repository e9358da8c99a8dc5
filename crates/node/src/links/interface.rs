//! One link with the connections over it: what comes in goes to whom it is for, what waits goes out by turns.
//!
//! ```text
//!               ┌─ receive ──► Receiver: filter, endpoint, run ──► Sink      payload, to users of connections;
//!   Transceiver ┤                                                            packets for others, datagrams
//!               └─ transmit ◄─ Sender: control, store, turns ◄──── Source    payload, from users of connections
//! ```
//!
//! Here are no sockets, no threads and no clock: users of connections are behind [`Sink`] and [`Source`], and the time is
//! an argument. Both directions have a [`Budget`], so that one link does not keep the others waiting.

mod saved;

use vsock_core::{Address, Cid, ConnectionId, Endpoint, Event, Header, Instant, Limits};

pub use self::saved::{SavedInterface, SavedLink};
use super::buffers::Buffers;
use super::connections::Connections;
use super::filter::{Filter, Role};
use super::rate::Rate;
use super::receiver::{Drained, Drops, Inflow, Receiver, Run};
use super::sender::{Outflow, Sender, Sent, send_datagram};
use super::store::Stored;
use super::transceiver::{Traffic, Transceiver};
use super::users::{Foreign, Sink, Source, Update};
use crate::fault::LinkFault;
use vsock_guest_memory::slice::Slices;
use vsock_virtio::link::{Link, OutboundBuffer};
use vsock_virtio::spec::TRANSPORT_RESET;

/// Packets taken in one turn.
const PACKETS_PER_TURN: usize = 256;

/// Steps after which a turn asks whether its time is over: a step takes some 25 ns, and so does the look at a clock.
const STEPS_PER_LOOK: u32 = 64;

/// Steps that a packet takes besides the descriptors of its chain.
const STEPS_OF_PACKET: u32 = 4;

/// Steps that passing on a packet takes, on average.
const STEPS_OF_FOREIGN: u32 = 16;

/// Steps that a call of a user takes, who makes system calls.
const STEPS_OF_CALL: u32 = STEPS_PER_LOOK;

/// What one turn may move, and for how long.
///
/// The other side chooses what a packet costs: how many descriptors its chain has, how many chains of no use stand before
/// it, what is done because of it. So a turn is not counted in packets and bytes alone. It counts steps, and every few of
/// them it asks its user whether its time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    turn: usize,
    bytes: usize,
    packets: usize,
    /// Steps since the last look at the time.
    steps: u32,
    /// Whether the link's rate counts.
    is_limited: bool,
}

impl Budget {
    /// A turn of so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { turn: bytes, bytes, packets: PACKETS_PER_TURN, steps: 0, is_limited: true }
    }

    /// The same, for what is left before a ring is stopped: later there is no time for it, whatever the link's rate.
    #[must_use]
    pub fn of_rest(bytes: usize) -> Self {
        Self { is_limited: false, ..Self::new(bytes) }
    }

    /// The link's rate allows so many bytes now. False: none at all.
    fn limit(&mut self, bytes: usize) -> bool {
        let is_open = bytes > 0 || !self.is_limited;
        if self.is_limited && is_open {
            self.turn = self.turn.min(bytes);
            self.bytes = self.bytes.min(bytes);
        }
        is_open
    }

    /// Bytes of a whole turn.
    pub(super) fn turn(&self) -> usize {
        self.turn
    }

    pub(super) fn has_bytes(&self) -> bool {
        self.bytes > 0
    }

    pub(super) fn has_packets(&self) -> bool {
        self.packets > 0 && self.bytes > 0
    }

    pub(super) fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    pub(super) fn spend_packet(&mut self, bytes: usize) {
        self.packets -= 1;
        self.spend(bytes);
    }

    /// A packet has been found in a chain, after so many descriptors. `is_over` says whether the turn's time is over.
    #[inline]
    pub(super) fn work_packet(&mut self, descriptors: u32, is_over: impl FnOnce() -> bool) {
        self.work(descriptors + STEPS_OF_PACKET, is_over);
    }

    /// A packet goes to somebody else: what that costs in his ring is for him to choose, up to a limit.
    pub(super) fn work_foreign(&mut self, is_data: bool, is_over: impl FnOnce() -> bool) {
        self.work(if is_data { STEPS_OF_FOREIGN } else { STEPS_OF_CALL }, is_over);
    }

    /// A user has been called.
    pub(super) fn work_call(&mut self, is_over: impl FnOnce() -> bool) {
        self.work(STEPS_OF_CALL, is_over);
    }

    #[inline]
    fn work(&mut self, steps: u32, is_over: impl FnOnce() -> bool) {
        self.steps += steps;
        if self.steps >= STEPS_PER_LOOK {
            self.steps = 0;
            if is_over() {
                self.bytes = 0;
            }
        }
    }
}

/// Lists for the time of one call, so that no packet allocates. Between calls they are empty, and hold no memory.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) slices: Slices,
    pub(super) pieces: Slices,
    pub(super) buffers: Vec<OutboundBuffer>,
    run: Run,
}

impl Scratch {
    /// For the next packets of a turn: memory stays held.
    pub(super) fn empty(&mut self) {
        self.slices.truncate(0);
        self.pieces.truncate(0);
        self.buffers.clear();
    }

    /// At the end of a turn: lets go of guest memory.
    pub(crate) fn clear(&mut self) {
        self.slices.clear();
        self.pieces.clear();
        self.buffers.clear();
    }
}

/// One link with the connections over it.
pub struct Interface {
    link: Transceiver,
    connections: Connections,
    receiver: Receiver,
    sender: Sender,
    rate: Rate,
    buffers: Buffers,
    /// Packets stay in the ring until there is room for the answers they may cause, or the rate allows more.
    is_paused: bool,
    /// Of a userspace guest: the device has been asked what our CID is.
    awaits_cid: bool,
    /// There was no time to send in the last turn.
    owes_sending: bool,
}

impl Interface {
    /// A link without connections. `local` is our CID; `seed` must be unknown to the other side.
    #[must_use]
    pub fn new(link: Link, role: Role, local: Cid, limits: Limits, seed: u64) -> Self {
        Self {
            link: Transceiver::new(link),
            connections: Connections::new(limits, seed),
            receiver: Receiver::new(Filter::new(role, local)),
            sender: Sender::default(),
            rate: Rate::default(),
            buffers: Buffers::default(),
            is_paused: false,
            awaits_cid: false,
            owes_sending: false,
        }
    }

    /// Takes what the other side has sent, up to a budget.
    ///
    /// # Errors
    /// The link cannot go on.
    pub fn receive<S: Sink>(
        &mut self,
        now: Instant,
        budget: &mut Budget,
        scratch: &mut Scratch,
        sink: &mut S,
    ) -> Result<Drained, LinkFault> {
        let Self { link, connections, receiver, rate, .. } = self;
        if !budget.limit(rate.incoming(now, link.traffic())) {
            return Ok(Drained::Limited);
        }
        let Scratch { slices, run, .. } = scratch;
        receiver.receive(&mut Inflow { link, connections, run, sink, budget, now }, slices)
    }

    /// Fills the ring with what waits, up to a budget.
    ///
    /// # Errors
    /// The link cannot go on.
    pub fn transmit<S: Source>(
        &mut self,
        now: Instant,
        budget: &mut Budget,
        scratch: &mut Scratch,
        source: &mut S,
    ) -> Result<Sent, LinkFault> {
        let Self { link, connections, sender, rate, .. } = self;
        let has_bytes = budget.limit(rate.outgoing(now, link.traffic()));
        let mut out = Outflow { link, connections, scratch, source, budget, now };
        let sent =
            if has_bytes { sender.transmit(&mut out) } else { sender.transmit_control(&mut out) };
        scratch.clear();
        sent
    }

    /// Takes a packet of another guest, with the header that the relay has made of its own. `is_free`: nothing of the
    /// relay's must go before it. False: there is no room for it.
    pub(super) fn forward(
        &mut self,
        header: &Header,
        packet: &Foreign<'_>,
        is_free: bool,
        scratch: &mut Scratch,
    ) -> Result<bool, LinkFault> {
        let is_free = is_free && (header.len == 0 || !self.rate.is_spent(self.link.traffic()));
        self.sender.forward(&mut self.link, header, packet, is_free, scratch)
    }

    /// Sends a datagram; false when there is no room for all of it, or the rate allows none.
    pub(super) fn send_datagram(
        &mut self,
        addresses: (Address, Address),
        payload: &[u8],
        scratch: &mut Scratch,
    ) -> Result<bool, LinkFault> {
        if self.rate.is_spent(self.link.traffic()) {
            return Ok(false);
        }
        let sent = send_datagram(&mut self.link, addresses, payload, scratch);
        scratch.clear();
        sent
    }

    /// Does what the user of a connection asks for by what it has done.
    pub fn update(&mut self, now: Instant, id: ConnectionId, update: Update) {
        self.connections.update(now, id, update);
    }

    /// What has happened to connections, to be carried out after every call.
    pub fn next_event(&mut self) -> Option<Event> {
        self.connections.endpoint.next_event()
    }

    /// When [`expire`](Self::expire) is due.
    pub(crate) fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let opens = self.rate.opens_at(now, self.link.traffic());
        self.connections.endpoint.deadline().into_iter().chain(opens).min()
    }

    /// Does what is due for connections; what the rate kept back goes on in the next turn.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.connections.endpoint.expire(now);
    }

    /// So many bytes may go over the link in a second each way; 0: as many as there are.
    pub(super) fn set_rate(&mut self, bytes_per_second: u64) {
        self.rate.set(bytes_per_second, self.link.traffic());
    }

    /// What the receive buffers of its connections have together.
    pub(crate) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// The connections.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.connections.endpoint
    }

    /// The connections, to begin, accept and change them.
    pub fn endpoint_mut(&mut self) -> &mut Endpoint {
        &mut self.connections.endpoint
    }

    /// Takes what the other side tells on the event queue, and sends what it is to be told there. True: all connections
    /// are gone.
    ///
    /// # Errors
    /// The link cannot go on.
    pub fn take_link_events(&mut self) -> Result<bool, LinkFault> {
        let mut is_reset = false;
        match self.link.link_mut() {
            Link::Driver(driver) => {
                while let Some(event) = driver.next_event()? {
                    is_reset |= event == TRANSPORT_RESET;
                }
            }
            Link::Device(device) => {
                device.awaits_reset()?;
            }
            Link::Loopback(_) => {}
        }
        Ok(is_reset)
    }

    /// Makes visible what was taken and sent, and signals the other side where it asks for it.
    ///
    /// # Errors
    /// The other side cannot be signalled, or its memory is gone.
    pub fn publish(&mut self) -> Result<(), LinkFault> {
        self.link.link_mut().publish().map_err(LinkFault::of_publish)
    }

    /// After a turn that ended like this: whether there is something to do at once. `accepts` is what the sink says of
    /// its room now.
    pub(crate) fn has_more(&mut self, taken: Drained, sent: Sent, accepts: bool) -> bool {
        let can_answer = self.connections.endpoint.accepts_packets() && accepts;
        // What waits in the ring is no work while its answers find no room: only room is.
        self.is_paused = match taken {
            Drained::Paused => !can_answer,
            Drained::Limited => true,
            Drained::Empty | Drained::Budget | Drained::Event => false,
        };
        let more_inbound = match taken {
            Drained::Empty => self.link.link().has_inbound(),
            Drained::Budget | Drained::Event => true,
            Drained::Paused => can_answer,
            Drained::Limited => false,
        };
        let has_event = self.connections.endpoint.has_event();
        let more_outbound = match sent {
            Sent::Budget => true,
            Sent::Limited => false,
            Sent::All | Sent::Full => self.has_outbound() && !self.sender.is_blocked,
        };
        more_inbound || more_outbound || has_event
    }

    /// Something waits for room in the ring.
    fn has_outbound(&self) -> bool {
        !self.is_idle() || !self.connections.ready.is_empty()
    }

    /// Nothing waits that is to be told to the other side, payload of our users aside.
    pub(crate) fn is_idle(&self) -> bool {
        !self.connections.endpoint.has_packet() && self.sender.store.is_empty()
    }

    /// Notifications on; true when there is work already.
    pub fn arm(&mut self) -> bool {
        if self.awaits_cid {
            return false;
        }
        let link = self.link.link_mut();
        if self.is_paused { link.arm_for_buffers() } else { link.arm() }
    }

    /// What [`arm`](Self::arm) would say, with notifications left off.
    #[must_use]
    pub fn has_news(&self) -> bool {
        let link = self.link.link();
        if self.awaits_cid {
            return false;
        }
        link.has_buffer_again() || (!self.is_paused && link.has_inbound())
    }

    /// Whether the device has been asked what our CID is, and has not answered.
    pub(crate) fn awaits_cid(&self) -> bool {
        self.awaits_cid
    }

    /// There was no time to send in this turn: the next one begins with that.
    pub(crate) fn set_owes_sending(&mut self) {
        self.owes_sending = true;
    }

    /// Whether this turn is for sending alone.
    pub(crate) fn take_owes_sending(&mut self) -> bool {
        std::mem::take(&mut self.owes_sending)
    }

    /// Until the device has answered, there is nothing to do here: turns end at once, and nothing is news.
    pub(crate) fn set_awaits_cid(&mut self, awaits: bool) {
        self.awaits_cid = awaits;
    }

    /// Notifications off while we are busy with it anyhow.
    pub fn disarm(&mut self) {
        self.sender.is_blocked = false;
        self.link.link_mut().disarm();
    }

    /// Ends all connections; nothing is sent.
    pub(crate) fn reset_all(&mut self) {
        self.connections.endpoint.reset_all();
        self.sender.store.clear();
    }

    /// Ends all connections, and asks anew, of whoever comes next, for what we have asked of the other side.
    pub(super) fn start_over(&mut self) {
        self.connections.endpoint.start_over();
        self.sender.store.clear();
    }

    /// Forgets what waits of other guests.
    pub(super) fn clear_store(&mut self) {
        self.sender.store.clear();
    }

    /// Keeps a packet that ends a connection of another guest behind what waits of that. False: there is no room for it.
    pub(super) fn store_reset(&mut self, header: Option<Header>) -> bool {
        header.is_some_and(|header| self.sender.store.push(Stored::new(header, Vec::new())))
    }

    /// What is on the other side.
    #[must_use]
    pub fn role(&self) -> Role {
        self.receiver.filter.role()
    }

    /// The addresses of both sides.
    pub(super) fn filter(&self) -> &Filter {
        &self.receiver.filter
    }

    /// The addresses of both sides, to change them.
    pub(super) fn filter_mut(&mut self) -> &mut Filter {
        &mut self.receiver.filter
    }

    /// Both sides have negotiated datagrams.
    pub(crate) fn takes_datagrams(&self) -> bool {
        self.receiver.filter.takes_datagrams()
    }

    /// We have another CID.
    pub(crate) fn set_local(&mut self, cid: Cid) {
        self.receiver.filter.set_local(cid);
    }

    /// The link, for all but its packets.
    #[must_use]
    pub fn link(&self) -> &Link {
        self.link.link()
    }

    /// The link, to start and stop its rings.
    pub(super) fn link_mut(&mut self) -> &mut Link {
        self.link.link_mut()
    }

    /// What went over the link.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.link.traffic()
    }

    /// What was not taken of what came.
    #[must_use]
    pub fn drops(&self) -> Drops {
        Drops { overflows: self.sender.overflows, ..self.receiver.drops }
    }

    /// Bytes of other guests that wait for room in the ring.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        self.sender.store.bytes()
    }
}
