//! From one guest to another: the relay's verdict, then one copy from guest memory to guest memory.
//!
//! Credit runs end to end between the two guests; the relay clamps what each announces, so that what finds no room in
//! the receiver's ring, and has to wait in this process, is bounded. A receiver that posts no buffers costs its own
//! flows their progress and nobody else's anything.

use vsock_core::admission::Act;
use vsock_core::relay::{RelayEvent, SavedRelay};
use vsock_core::saved::Unfit;
use vsock_core::{
    Admission, Cid, FlowKey, Header, Instant, Op, RawHeader, Relay, RelayLimits, Verdict,
};

use super::{Foreign, Interface, LinkId, Links, Scratch};

/// The flows between guests.
pub(crate) struct Forwarder {
    relay: Relay,
    scratch: Scratch,
    /// The link that a packet is just being written to.
    target: Option<LinkId>,
}

impl Forwarder {
    /// No flows; `seed` must be unknown to guests.
    pub(crate) fn new(seed: u64) -> Self {
        let relay = Relay::new(RelayLimits::default(), seed);
        Self { relay, scratch: Scratch::default(), target: None }
    }

    /// The flows as plain data. What a packet is being written to is nothing between two turns.
    pub(crate) fn save(&self, now: Instant) -> SavedRelay {
        self.relay.save(now)
    }

    /// Flows that go on where others were.
    pub(crate) fn restore(saved: SavedRelay, seed: u64, now: Instant) -> Result<Self, Unfit> {
        let relay = Relay::restore(saved, RelayLimits::default(), seed, now)?;
        Ok(Self { relay, scratch: Scratch::default(), target: None })
    }

    /// The relay, to look at.
    pub(crate) fn relay(&self) -> &Relay {
        &self.relay
    }

    /// Whether there is room for what one more packet of this guest may cause.
    pub(crate) fn accepts_packets(&self, from: Cid) -> bool {
        self.relay.accepts_packets(from)
    }

    /// Whether the relay has something to say to this guest.
    pub(crate) fn has_packet(&self, to: Cid) -> bool {
        self.relay.has_packet(to)
    }

    /// The next packet that the relay has for this guest.
    pub(crate) fn next_packet(&mut self, to: Cid) -> Option<RawHeader> {
        self.relay.next_packet(to)
    }

    /// Passes on a packet of the guest on `from` to the guest on `to`.
    pub(crate) fn forward(
        &mut self,
        (now, admission): (Instant, &Admission),
        links: &mut Links,
        (from, to): (LinkId, LinkId),
        packet: &Foreign<'_>,
    ) -> Verdict {
        let header = packet.header;
        let admit = || {
            let attempt =
                links.attempt_between(Act::Connect, from, (header.src, header.dst), header.kind);
            admission.decide(&attempt).limits().map(|_| ())
        };
        let verdict = self.relay.receive(now, header, admit);
        if let Verdict::Forward(header) = verdict {
            // What the relay has was caused before this packet, and must arrive before it.
            let is_free = !self.relay.has_packet(header.dst.cid) || {
                self.queue_resets(links, (to, header.dst.cid));
                !self.relay.has_packet(header.dst.cid)
            };
            self.target = Some(to);
            let passed = links.interface(to).map_or(Ok(true), |target| {
                target.forward(&header, packet, is_free, &mut self.scratch)
            });
            self.target = None;
            match passed {
                Ok(true) => {}
                Ok(false) => {
                    let _ = self.relay.reset_flow(&header);
                }
                // The receiver's fault must not end the sender's turn.
                Err(fault) => links.report_fault(to, fault),
            }
            links.activate(to);
        }
        self.activate_ready(links);
        verdict
    }

    /// What has become of a request of one guest to another.
    pub(crate) fn next_event(&mut self) -> Option<RelayEvent> {
        self.relay.next_event()
    }

    /// After a panic: the link to which a packet was just being written, if there is one.
    pub(crate) fn take_target(&mut self) -> Option<LinkId> {
        self.scratch = Scratch::default();
        self.target.take()
    }

    /// At the end of a turn: lets go of guest memory.
    pub(crate) fn release_memory(&mut self) {
        self.scratch.clear();
    }

    /// Bytes of a flow between guests are lost: it ends. False: there is none.
    pub(crate) fn lost(&mut self, links: &mut Links, header: &Header) -> bool {
        let is_relayed = self.relay.reset_flow(header);
        self.activate_ready(links);
        is_relayed
    }

    /// Does what is due.
    pub(crate) fn expire(&mut self, now: Instant, links: &mut Links) {
        self.relay.expire(now);
        self.activate_ready(links);
    }

    /// Serves the guests for which the relay has control packets.
    fn activate_ready(&mut self, links: &mut Links) {
        while let Some(cid) = self.relay.next_ready() {
            if let Some(id) = links.routes.guest(cid) {
                self.queue_resets(links, (id, cid));
                links.activate(id);
            }
        }
    }

    /// A guest can end flows with another as often as it likes, so resets wait among its packets, for its turn. A guest
    /// that has its turn itself gets those that it causes first of all.
    fn queue_resets(&mut self, links: &mut Links, (id, cid): (LinkId, Cid)) {
        if let Some(target) = links.interface(id) {
            self.relay.take_resets(cid, |reset| target.store_reset(reset.check().ok()));
        }
    }

    /// A guest's connections to other guests end: it was removed, or its device reset.
    pub(crate) fn forget(&mut self, links: &mut Links, guest: Cid) {
        self.relay.remove_guest(guest, |to, reset| {
            let Some(id) = links.routes.guest(to) else { return false };
            links.activate(id);
            // What the guest has sent may wait there; its end must not overtake that.
            links.interface(id).is_some_and(|target| target.store_reset(reset.check().ok()))
        });
        self.activate_ready(links);
    }

    /// The same, each with RST for the guest itself, too, as it cannot be told otherwise.
    pub(crate) fn reset(&mut self, links: &mut Links, interface: &mut Interface, guest: Cid) {
        interface.clear_store();
        // What the relay has for the guest is filed under its CID, for which nobody may ask any more.
        while let Some(packet) = self.relay.next_packet(guest) {
            interface.store_reset(packet.check().ok());
        }
        for flow in self.relay.flows() {
            let (ours, theirs) = match (flow.source, flow.destination) {
                (theirs, ours) | (ours, theirs) if theirs.cid == guest => (ours, theirs),
                _ => continue,
            };
            let reset = Header::outbound(FlowKey { ours, theirs }, flow.kind, Op::Rst);
            interface.store_reset(Some(reset));
        }
        self.forget(links, guest);
    }
}
