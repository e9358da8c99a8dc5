//! One turn of one link: who takes what comes over it, and who gives what goes out.

use vsock_core::admission::Act;
use vsock_core::{
    Address, Cid, CloseReason, ConnectionId, Endpoint, Event, Header, Instant, Op, RawHeader,
    Verdict,
};

use crate::context::Context;
use crate::events;
use crate::flow_log::FlowLog;
use crate::flows::Flows;
use crate::links::{
    Budget, Drained, Filled, Foreign, Forwarder, Interface, LinkFault, LinkId, Links, MemoryDead,
    Offer, Payload, Role, Scratch, Sent, Sink, Source, Update,
};
use crate::programs::{Asked, Programs};
use vsock_guest_memory::slice::Slice;

/// All that a link whose turn it is may have to do with. The link itself is not among `links` meanwhile.
pub(crate) struct Turn<'a> {
    pub(crate) cx: &'a mut Context,
    pub(crate) links: &'a mut Links,
    pub(crate) forwarder: &'a mut Forwarder,
    pub(crate) flows: &'a mut Flows,
    pub(crate) programs: &'a mut Programs,
    pub(crate) id: LinkId,
    /// The guest behind it.
    pub(crate) guest: Option<Cid>,
    /// When the time of the turn is over.
    pub(crate) until: Instant,
}

impl Turn<'_> {
    /// All of it: what came, what that caused, what can go out, one signal. If the first has taken all the time, sending is
    /// the next turn. True: there is more.
    pub(crate) fn serve(
        &mut self,
        interface: &mut Interface,
        quantum: usize,
        scratch: &mut Scratch,
    ) -> Result<bool, LinkFault> {
        if self.take_link_events(interface)? {
            // Nothing is taken, sent or signalled before our CID is known.
            return Ok(false);
        }
        let drained = if interface.take_owes_sending() {
            Drained::Budget
        } else {
            self.receive(interface, Budget::new(quantum), scratch)?
        };
        let sent = if self.is_time_over() {
            interface.set_owes_sending();
            Sent::Budget
        } else {
            self.transmit(interface, Budget::new(quantum), scratch)?
        };
        interface.publish()?;
        Ok(interface.has_more(drained, sent, self.accepts_packets()))
    }

    /// What the device tells a userspace guest (its connections are gone), and what we have to tell a guest. True: our CID is
    /// not known.
    fn take_link_events(&mut self, interface: &mut Interface) -> Result<bool, LinkFault> {
        if !interface.awaits_cid() && interface.take_link_events()? {
            self.reset_silently(interface);
            let is_asked = self.links.ask_cid(self.cx, self.id);
            interface.set_awaits_cid(is_asked);
        }
        Ok(interface.awaits_cid())
    }

    /// Takes what the other side has sent.
    pub(crate) fn receive(
        &mut self,
        interface: &mut Interface,
        mut budget: Budget,
        scratch: &mut Scratch,
    ) -> Result<Drained, LinkFault> {
        if !self.settle(interface) {
            // What has happened must be carried out before anything more is taken.
            return Ok(Drained::Budget);
        }
        loop {
            let drained = interface.receive(self.cx.now, &mut budget, scratch, self);
            let is_settled = self.settle(interface);
            let is_event = matches!(drained, Ok(Drained::Event));
            if is_event && is_settled && !self.is_time_over() {
                continue;
            }
            self.forwarder.release_memory();
            return drained.map(|drained| if is_settled { drained } else { Drained::Budget });
        }
    }

    /// Fills the ring with what waits.
    pub(crate) fn transmit(
        &mut self,
        interface: &mut Interface,
        mut budget: Budget,
        scratch: &mut Scratch,
    ) -> Result<Sent, LinkFault> {
        let sent = interface.transmit(self.cx.now, &mut budget, scratch, self);
        self.settle(interface);
        sent
    }

    /// Carries out what has happened to connections, each at the cost of some system calls. False: the time of the turn is
    /// over, and there is more.
    fn settle(&mut self, interface: &mut Interface) -> bool {
        while let Some(event) = interface.next_event() {
            self.carry_out(interface, event);
            if self.is_time_over() {
                return !interface.endpoint().has_event();
            }
        }
        true
    }

    fn settle_all(&mut self, interface: &mut Interface) {
        while let Some(event) = interface.next_event() {
            self.carry_out(interface, event);
        }
    }

    fn carry_out(&mut self, interface: &mut Interface, event: Event) {
        if let Event::Offered { id: connection, key, kind } = event {
            let asked = Asked { link: self.id, connection, key, kind };
            return self.programs.offered(self.cx, self.links, self.flows, interface, asked);
        }
        if let Some((parties, greeting)) = self.flows.on_event(self.cx, self.id, interface, event) {
            let log = FlowLog { cx: self.cx, links: self.links };
            let at = (self.id, interface.role().label());
            log.opened(at, &parties, greeting.handshake());
        }
    }

    fn is_time_over(&self) -> bool {
        self.cx.clock() >= self.until
    }

    /// Connections have ended: their flows, and those to other guests, follow.
    pub(crate) fn connections_ended(&mut self, interface: &mut Interface) {
        self.settle_all(interface);
        if let Some(guest) = self.guest {
            self.forwarder.forget(self.links, guest);
        }
    }

    /// A guest asks for a CID that no other guest has. The link's endpoint answers.
    fn refuse_unroutable(&mut self, request: &Header) {
        let way = (request.src, request.dst);
        let attempt = self.links.attempt_between(Act::Connect, self.id, way, request.kind);
        if let Err(reason) = self.cx.admission.decide(&attempt).limits() {
            let refused = self.cx.admission.refuse(reason);
            FlowLog { cx: self.cx, links: self.links }.refused_between(request, refused);
        }
    }

    /// Ends all connections; nothing is sent over the link.
    pub(crate) fn reset_silently(&mut self, interface: &mut Interface) {
        interface.reset_all();
        self.connections_ended(interface);
    }

    /// Ends all connections of a guest that cannot be told otherwise: RST for each, to all who have a part in it.
    pub(crate) fn reset_all(&mut self, interface: &mut Interface) {
        let ids: Vec<ConnectionId> = interface.endpoint().connections().map(|it| it.id).collect();
        for id in ids {
            interface.endpoint_mut().reset(id);
            let closed = Event::Closed { id, reason: CloseReason::LinkGone };
            self.flows.on_event(self.cx, self.id, interface, closed);
        }
        if let Some(guest) = self.guest {
            self.forwarder.reset(self.links, interface, guest);
        }
    }
}

impl Sink for Turn<'_> {
    #[inline]
    fn payload(&mut self, id: ConnectionId, payload: Payload<'_>) -> Result<Update, MemoryDead> {
        self.flows.deliver(self.cx, (self.id, id), payload)
    }

    #[inline]
    fn is_over(&self) -> bool {
        self.is_time_over()
    }

    #[inline]
    fn accepts_packets(&self) -> bool {
        self.guest.is_none_or(|cid| self.forwarder.accepts_packets(cid))
    }

    fn foreign(&mut self, packet: &Foreign<'_>) -> bool {
        let header = packet.header;
        let to = self.links.routes.guest(header.dst.cid).filter(|to| *to != self.id);
        let Some(to) = to else {
            if header.op == Op::Request {
                self.refuse_unroutable(header);
            }
            return false;
        };
        let way = (self.id, to);
        let at = (self.cx.now, &self.cx.admission);
        if let Verdict::Refuse(reason) = self.forwarder.forward(at, self.links, way, packet) {
            let refused = self.cx.admission.refuse(reason);
            FlowLog { cx: self.cx, links: self.links }.refused_between(header, refused);
        }
        true
    }

    fn foreign_lost(&mut self, header: &Header) -> bool {
        self.forwarder.lost(self.links, header)
    }

    fn datagram(&mut self, from: Address, to: Address, bytes: &[u8], is_ours: bool) {
        let role = self.guest.map_or(Role::Uplink, Role::Guest);
        let way = (from, to);
        self.programs.datagram(self.cx, self.links, (self.id, role), way, bytes, is_ours);
    }

    fn datagram_lost(&mut self) {
        self.programs.datagram_lost();
    }

    fn spoofed(&mut self, source: u64) {
        self.cx.note(self.guest, events::Event::Spoofed { source });
    }
}

impl Source for Turn<'_> {
    #[inline]
    fn is_over(&self) -> bool {
        self.is_time_over()
    }

    fn next(&mut self, id: ConnectionId, endpoint: &Endpoint) -> Offer {
        self.flows.next(self.cx, (self.id, id), endpoint)
    }

    fn fill(&mut self, id: ConnectionId, pieces: &[Slice]) -> Result<Filled, MemoryDead> {
        self.flows.fill(self.cx, (self.id, id), pieces)
    }

    fn stalled(&mut self, id: ConnectionId) -> Update {
        self.flows.stalled(self.cx, (self.id, id))
    }

    fn has_packet(&self) -> bool {
        self.guest.is_some_and(|cid| self.forwarder.has_packet(cid))
    }

    fn next_packet(&mut self) -> Option<RawHeader> {
        self.forwarder.next_packet(self.guest?)
    }
}
