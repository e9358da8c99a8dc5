//! One endpoint against packets made by hand. Two endpoints: `tests/two_endpoints.rs`.

mod closing;
mod credit;
mod limits;
mod opening;

use super::*;
use crate::address::Address;
use crate::admission::{Admission, Refusal};
use crate::packet::EOM;
use crate::state::CloseReason;
use alloc::vec::Vec;

const KEY: FlowKey = FlowKey { ours: Address::new(2, 5000), theirs: Address::new(3, 1024) };
/// The same connection seen by the peer.
const PEERS_KEY: FlowKey = FlowKey { ours: KEY.theirs, theirs: KEY.ours };
const STREAM: SocketType = SocketType::Stream;
const T0: Instant = Instant(1_000_000_000);
const BUFFER: u32 = 262_144;

/// An endpoint and the hand of its peer.
struct Bench {
    endpoint: Endpoint,
    now: Instant,
}

fn packet(op: Op) -> Header {
    Header { buf_alloc: BUFFER, ..Header::outbound(PEERS_KEY, STREAM, op) }
}

fn rw(len: u32) -> Header {
    Header { len, ..packet(Op::Rw) }
}

fn shutdown(flags: Shutdown) -> Header {
    Header { flags: flags.flags(), ..packet(Op::Shutdown) }
}

impl Bench {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self { endpoint: Endpoint::new(limits, 1), now: T0 }
    }

    /// A bench with one connection that the peer asked for.
    fn open() -> (Self, ConnectionId) {
        let mut bench = Self::new();
        let id = bench.offered();
        bench.endpoint.accept(id);
        assert_eq!(bench.ops(), [Op::Response]);
        (bench, id)
    }

    fn offered(&mut self) -> ConnectionId {
        self.hear(packet(Op::Request));
        match self.events()[..] {
            [Event::Offered { id, key: KEY, kind: STREAM }] => id,
            ref other => panic!("{other:?}"),
        }
    }

    fn refuse(&mut self, id: ConnectionId) {
        let refused = Admission::default().refuse(Refusal::NoListener);
        self.endpoint.refuse(id, refused);
    }

    fn connect(&mut self) -> ConnectionId {
        let id = self.endpoint.connect(self.now, KEY, STREAM, None).unwrap();
        assert_eq!(self.ops(), [Op::Request]);
        id
    }

    /// A packet without payload for our user.
    fn hear(&mut self, header: Header) {
        assert_eq!(self.receive(header), Received::Handled);
    }

    fn receive(&mut self, header: Header) -> Received {
        self.endpoint.receive(self.now, &header)
    }

    /// Lets time pass.
    fn wait(&mut self, wait: Duration) {
        self.now = self.now + wait;
        self.endpoint.expire(self.now);
    }

    fn packets(&mut self) -> Vec<RawHeader> {
        let mut packets = Vec::new();
        while self.endpoint.has_packet() {
            packets.push(self.endpoint.next_packet().expect("has_packet said so"));
        }
        assert_eq!(self.endpoint.next_packet(), None);
        packets
    }

    fn ops(&mut self) -> Vec<Op> {
        self.packets().iter().map(|packet| Op::from_wire(packet.op)).collect()
    }

    fn events(&mut self) -> Vec<Event> {
        core::iter::from_fn(|| self.endpoint.next_event()).collect()
    }

    fn state(&self, id: ConnectionId) -> &'static str {
        self.endpoint.info(id).map_or("gone", |info| info.state)
    }

    fn assert_over(&mut self, id: ConnectionId, reason: CloseReason, ops: &[Op]) {
        assert_eq!(self.events(), [Event::Closed { id, reason }]);
        assert_eq!(self.ops(), ops);
        assert_eq!(self.state(id), "gone");
        assert_eq!(self.endpoint.stats().connections, 0);
        self.wait(Duration::from_secs(3600));
        assert_eq!((self.events(), self.ops()), (Vec::new(), Vec::new()));
        assert_eq!(self.endpoint.deadline(), None);
    }

    fn offered_from(&mut self, port: u32) {
        self.hear(Header { src: Address::new(3, port), ..packet(Op::Request) });
        assert!(matches!(self.events()[..], [Event::Offered { .. }]));
    }
}
