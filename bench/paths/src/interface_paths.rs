//! The whole way of a packet that carries bytes of a connection: from the source at one end of a link to the sink at the
//! other, with what both cores do for it, and the credit that comes back.

use std::os::fd::OwnedFd;

use vsock_core::{
    Address, Cid, ConnectionId, Endpoint, Event, FlowKey, Instant, Limits, Port, SocketType,
};
use vsock_guest_memory::slice::{self, Slice};
use vsock_node::links::{
    Budget, Drained, Filled, Interface, MemoryDead, Offer, Payload, Role, Scratch, Sends, Sink,
    Source, Update,
};
use vsock_virtio::link::driver::DriverOptions;

use crate::ring_paths::{Pair, must};
use crate::{PACKETS, Path, broken};

const NOW: Instant = Instant(1);
const GUEST: Cid = Cid(3);
const PAYLOAD: usize = 4096;
const TURN: usize = 1 << 20;

/// Takes everything, and sends what is left.
#[derive(Default)]
struct User {
    left: usize,
    taken: usize,
}

impl Sink for User {
    fn payload(&mut self, _: ConnectionId, payload: Payload<'_>) -> Result<Update, MemoryDead> {
        let len = slice::total(payload.pieces);
        self.taken += len;
        let bytes = u32::try_from(len).unwrap_or(u32::MAX);
        Ok(Update { bytes, packets: payload.packets, ..Update::default() })
    }
}

impl Source for User {
    fn next(&mut self, _: ConnectionId, _: &Endpoint) -> Offer {
        if self.left > 0 { Offer::Bytes } else { Offer::Nothing(Update::default()) }
    }

    fn fill(&mut self, _: ConnectionId, pieces: &[Slice]) -> Result<Filled, MemoryDead> {
        let bytes = slice::total(pieces).min(self.left);
        self.left -= bytes;
        let sends = if self.left > 0 { Sends::More } else { Sends::Nothing };
        Ok(Filled { bytes, update: Update::sends(sends) })
    }

    fn stalled(&mut self, _: ConnectionId) -> Update {
        Update::default()
    }
}

/// One end of the link.
struct End {
    interface: Interface,
    user: User,
}

impl End {
    fn send(&mut self, scratch: &mut Scratch) {
        must(self.interface.transmit(NOW, &mut Budget::new(TURN), scratch, &mut self.user));
        must(self.interface.publish());
    }

    fn receive(&mut self, scratch: &mut Scratch) -> Option<Event> {
        let mut budget = Budget::new(TURN);
        let mut event = None;
        loop {
            let interface = &mut self.interface;
            let drained = must(interface.receive(NOW, &mut budget, scratch, &mut self.user));
            while let Some(next) = self.interface.next_event() {
                event = Some(next);
            }
            if drained != Drained::Event {
                break;
            }
        }
        must(self.interface.publish());
        event
    }
}

/// Both ends of a link, with a connection from one to the other.
pub(crate) struct Interfaces {
    from: End,
    to: End,
    id: ConnectionId,
    scratch: Scratch,
    _signals: Vec<OwnedFd>,
}

impl Interfaces {
    pub(crate) fn new(to_device: bool) -> Self {
        let payload = u32::try_from(PAYLOAD).unwrap_or(u32::MAX);
        let options =
            DriverOptions { rx_payload: payload, tx_payload: payload, ..DriverOptions::default() };
        let Pair { device, driver, signals } = Pair::new(&options);
        let limits = Limits::default();
        let host = Interface::new(device, Role::Guest(GUEST), Cid::HOST, limits, 1);
        let guest = Interface::new(driver, Role::Uplink, GUEST, limits, 2);
        let end = |interface| End { interface, user: User::default() };
        let (mut from, mut to, ours, theirs) = if to_device {
            (end(guest), end(host), GUEST, Cid::HOST)
        } else {
            (end(host), end(guest), Cid::HOST, GUEST)
        };
        let at = |cid, port| Address { cid, port: Port(port) };
        let key = FlowKey { ours: at(ours, 1024), theirs: at(theirs, 5000) };
        let connected = from.interface.endpoint_mut().connect(NOW, key, SocketType::Stream, None);
        let Ok(id) = connected else { broken("no attempt") };
        let mut scratch = Scratch::default();
        from.send(&mut scratch);
        let Some(Event::Offered { id: offered, .. }) = to.receive(&mut scratch) else {
            broken("no offer")
        };
        to.interface.endpoint_mut().accept(offered);
        to.send(&mut scratch);
        if from.receive(&mut scratch) != Some(Event::Connected { id }) {
            broken("no connection");
        }
        Self { from, to, id, scratch, _signals: signals }
    }
}

impl Path for Interfaces {
    fn step(&mut self) {
        self.from.user.left = PACKETS * PAYLOAD;
        self.from.interface.update(NOW, self.id, Update::sends(Sends::More));
        self.from.send(&mut self.scratch);
        self.to.receive(&mut self.scratch);
        self.to.send(&mut self.scratch);
        self.from.receive(&mut self.scratch);
        if std::mem::take(&mut self.to.user.taken) != PACKETS * PAYLOAD {
            broken("not all has come");
        }
    }
}
