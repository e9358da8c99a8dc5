//! Invariant: whatever a peer sends and a user does, in any order, an endpoint keeps to its limits, never announces a
//! packet it does not have, hands payload only to connections that live and within what it announced, and has nothing
//! left when its link is gone.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use vsock_core::{
    Address, Admission, ConnectionId, Endpoint, Event, FlowKey, Instant, Key, Limits, RawHeader,
    Received, Refusal, Shutdown, SocketType,
};

#[derive(Debug, Arbitrary)]
enum Step {
    Packet {
        port: u8,
        to: u8,
        op: u8,
        seqpacket: bool,
        len: u16,
        flags: u8,
        buf_alloc: u32,
        fwd_cnt: u32,
        malformed: bool,
    },
    Connect {
        port: u8,
        to: u8,
        seqpacket: bool,
        timeout: u8,
    },
    Accept(u8),
    Refuse(u8),
    ShutDown(u8, u8),
    Close(u8),
    Reset(u8),
    Consume(u8, u16),
    Buffer(u8, u32),
    Send(u8, u16),
    Stall(u8),
    Speak(u8),
    Wait(u16),
    LinkGone,
}

const LIMITS: Limits = Limits {
    buf_alloc: 65536,
    max_connections: 12,
    max_half_open: 5,
    max_replies: 6,
    connect_timeout: Duration::from_secs(2),
    close_timeout: Duration::from_secs(8),
};

const fn kind(seqpacket: bool) -> SocketType {
    if seqpacket { SocketType::SeqPacket } else { SocketType::Stream }
}

fn key(port: u8, to: u8) -> FlowKey {
    FlowKey { ours: Address::new(2, (to % 4).into()), theirs: Address::new(3, (port % 8).into()) }
}

struct World {
    endpoint: Endpoint,
    now: Instant,
    /// Connections as their user knows them.
    known: Vec<ConnectionId>,
}

impl World {
    fn id(&self, index: u8) -> ConnectionId {
        // One that never was, if there is none.
        let some = self.known.get(usize::from(index) % self.known.len().max(1));
        some.copied().unwrap_or_else(|| Key::from_bits(index.into()).expect("a small number"))
    }

    fn step(&mut self, step: Step) {
        let (endpoint, now) = (&mut self.endpoint, self.now);
        match step {
            Step::Packet { port, to, op, seqpacket, len, flags, buf_alloc, fwd_cnt, malformed } => {
                let key = key(port, to);
                let raw = RawHeader {
                    src_cid: key.theirs.cid.0.into(),
                    dst_cid: key.ours.cid.0.into(),
                    src_port: key.theirs.port.0,
                    dst_port: key.ours.port.0,
                    len: len.into(),
                    kind: kind(seqpacket).to_wire(),
                    op: (op % 10).into(),
                    flags: flags.into(),
                    buf_alloc,
                    fwd_cnt,
                };
                match raw.check() {
                    Ok(header) if !malformed => {
                        if let Received::Data(id) = endpoint.receive(now, &header) {
                            let info = endpoint.info(id).expect("data for a dead connection");
                            assert!(info.unread >= header.len);
                            assert!(info.unread <= 1 << 20, "{info:?}");
                        }
                    }
                    _ => endpoint.receive_unusable(&raw),
                }
            }
            Step::Connect { port, to, seqpacket, timeout } => {
                let timeout = (timeout > 0).then(|| Duration::from_millis(timeout.into()));
                if let Ok(id) = endpoint.connect(now, key(port, to), kind(seqpacket), timeout) {
                    self.known.push(id);
                }
            }
            Step::Accept(id) => self.endpoint.accept(self.id(id)),
            Step::Refuse(id) => {
                let refused = Admission::default().refuse(Refusal::NoListener);
                self.endpoint.refuse(self.id(id), refused);
            }
            Step::ShutDown(id, how) => {
                self.endpoint.shut_down(now, self.id(id), Shutdown::from_flags(how.into()));
            }
            Step::Close(id) => self.endpoint.close(now, self.id(id)),
            Step::Reset(id) => self.endpoint.reset(self.id(id)),
            Step::Consume(id, bytes) => {
                let id = self.id(id);
                let before = self.endpoint.info(id).map_or(0, |info| info.unread);
                self.endpoint.consumed(id, bytes.into(), 1);
                let after = self.endpoint.info(id).map_or(0, |info| info.unread);
                assert!(after <= before);
            }
            Step::Buffer(id, bytes) => self.endpoint.set_buf_alloc(self.id(id), bytes % (1 << 20)),
            Step::Send(id, len) => {
                let id = self.id(id);
                let window = self.endpoint.window(id);
                let header = self.endpoint.data_header(id, len.into(), 0);
                let allowed = len > 0 && u32::from(len) <= window.bytes && window.packets > 0;
                assert_eq!(header.is_some(), allowed);
            }
            Step::Stall(id) => self.endpoint.wants_to_send(now, self.id(id)),
            Step::Speak(count) => {
                for _ in 0..count {
                    if !self.endpoint.has_packet() {
                        break;
                    }
                    assert!(self.endpoint.next_packet().is_some(), "announced and not there");
                }
            }
            Step::Wait(millis) => {
                self.now = now + Duration::from_millis(millis.into());
                self.endpoint.expire(self.now);
                assert!(self.endpoint.deadline().is_none_or(|at| at > self.now));
            }
            Step::LinkGone => {
                self.endpoint.reset_all();
                assert!(!self.endpoint.has_packet());
                assert_eq!(self.endpoint.stats().connections, 0);
            }
        }
    }

    fn settle(&mut self) {
        while let Some(event) = self.endpoint.next_event() {
            match event {
                Event::Offered { id, .. } => self.known.push(id),
                Event::Closed { id, .. } => {
                    assert!(self.endpoint.info(id).is_none(), "closed and still there");
                    self.known.retain(|known| *known != id);
                }
                Event::Connected { .. } | Event::Writable { .. } | Event::TheirsShutDown { .. } => {
                }
            }
        }
        let count = self.endpoint.connections().count();
        assert!(count <= LIMITS.max_connections);
        assert_eq!(count as u64, self.endpoint.stats().connections);
        for info in self.endpoint.connections() {
            assert!(info.credit <= info.peer_buf_alloc.min(info.buf_alloc));
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let endpoint = Endpoint::new(LIMITS, 7);
    let mut world = World { endpoint, now: Instant(1), known: Vec::new() };
    for step in steps {
        world.step(step);
        world.settle();
    }
    let mut spoken = 0;
    while world.endpoint.has_packet() {
        assert!(world.endpoint.next_packet().is_some());
        spoken += 1;
        assert!(spoken < 10_000, "no end to it");
    }
    world.step(Step::LinkGone);
    world.settle();
    assert_eq!(world.endpoint.deadline(), None);
});
