//! The protocol core's part: headers in and out, credit, relaying.

use vsock_core::{
    Address, Cid, ConnectionId, Endpoint, Event, FlowKey, Header, Instant, Limits, Op, Port,
    RawHeader, Received, Relay, RelayLimits, SocketType, Verdict,
};

use crate::{PACKETS, Path, broken};

const GUEST: Address = Address { cid: Cid(3), port: Port(1024) };
const OTHER: Address = Address { cid: Cid(4), port: Port(22) };
const HOST: Address = Address { cid: Cid::HOST, port: Port(5000) };
const NOW: Instant = Instant(1);
const BUFFER: u32 = 262_144;
const LEN: u32 = 4096;
/// How often the peer tells that it has read.
const PACKETS_PER_UPDATE: u32 = 16;

fn packet(from: Address, to: Address, op: Op) -> Header {
    let key = FlowKey { ours: from, theirs: to };
    let mut header = Header::outbound(key, SocketType::Stream, op);
    header.buf_alloc = BUFFER;
    header
}

fn data(from: Address, to: Address) -> Header {
    let mut header = packet(from, to, Op::Rw);
    header.len = LEN;
    header
}

/// The peer has read everything up to here.
fn update(from: Address, to: Address, fwd_cnt: u32) -> Header {
    let mut header = packet(from, to, Op::CreditUpdate);
    header.fwd_cnt = fwd_cnt;
    header
}

/// An endpoint with a connection that the guest has opened.
fn open() -> (Endpoint, ConnectionId) {
    let mut endpoint = Endpoint::new(Limits::default(), 1);
    let _ = endpoint.receive(NOW, &packet(GUEST, HOST, Op::Request));
    let Some(Event::Offered { id, .. }) = endpoint.next_event() else { broken("no offer") };
    endpoint.accept(id);
    while endpoint.next_packet().is_some() {}
    (endpoint, id)
}

/// Data comes in, and is read at once.
pub(crate) struct Receive {
    endpoint: Endpoint,
    bytes: [u8; 44],
}

impl Receive {
    pub(crate) fn new() -> Self {
        Self { endpoint: open().0, bytes: data(GUEST, HOST).raw().encode() }
    }
}

impl Path for Receive {
    fn step(&mut self) {
        for _ in 0..PACKETS {
            let bytes = std::hint::black_box(&self.bytes);
            let Ok(header) = RawHeader::parse(bytes).check() else { broken("malformed") };
            let Received::Data(id) = self.endpoint.receive(NOW, &header) else { broken("no data") };
            self.endpoint.consumed(id, header.len, 1);
            while let Some(packet) = self.endpoint.next_packet() {
                std::hint::black_box(packet.encode());
            }
        }
    }
}

/// Data goes out, and the peer tells from time to time that it has read it.
pub(crate) struct Send {
    endpoint: Endpoint,
    id: ConnectionId,
    sent: u32,
}

impl Send {
    pub(crate) fn new() -> Self {
        let (endpoint, id) = open();
        Self { endpoint, id, sent: 0 }
    }
}

impl Path for Send {
    fn step(&mut self) {
        for number in 0..PACKETS {
            if self.endpoint.window(self.id).bytes < LEN {
                broken("no credit");
            }
            let Some(header) = self.endpoint.data_header(self.id, LEN, 0) else {
                broken("no header")
            };
            std::hint::black_box(header.encode());
            self.sent = self.sent.wrapping_add(LEN);
            if number + 1 == PACKETS {
                let _ = self.endpoint.receive(NOW, &update(GUEST, HOST, self.sent));
            }
        }
    }
}

/// Data from one guest to another.
pub(crate) struct Forward {
    relay: Relay,
    sent: u32,
    packets: u32,
}

impl Forward {
    pub(crate) fn new() -> Self {
        let mut path = Self { relay: Relay::new(RelayLimits::default(), 1), sent: 0, packets: 0 };
        path.pass(&packet(GUEST, OTHER, Op::Request));
        path.pass(&packet(OTHER, GUEST, Op::Response));
        path
    }

    fn pass(&mut self, header: &Header) {
        match self.relay.receive(NOW, header, || Ok(())) {
            Verdict::Forward(header) => {
                std::hint::black_box(header.encode());
            }
            Verdict::Drop | Verdict::Refuse(_) => broken("dropped"),
        }
    }
}

impl Path for Forward {
    fn step(&mut self) {
        for _ in 0..PACKETS {
            self.pass(&data(GUEST, OTHER));
            self.sent = self.sent.wrapping_add(LEN);
            self.packets += 1;
            if self.packets.is_multiple_of(PACKETS_PER_UPDATE) {
                self.pass(&update(OTHER, GUEST, self.sent));
            }
        }
    }
}
