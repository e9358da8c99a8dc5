//! One flow between two guests: who may send how much, and which directions are shut.

use super::FlowId;
use crate::address::{Address, FlowKey, SocketType};
use crate::credit::{Acknowledged, Flight, is_after};
use crate::packet::{Header, Op, RawHeader, Shutdown};
use crate::time::Instant;

/// Bytes of credit per packet that a STREAM sender may have unacknowledged. Linux senders know
/// of no such bound and some write byte by byte, so it is generous.
const BYTES_PER_STREAM_PACKET: u32 = 16;
/// The same for SEQPACKET, whose receivers admit a packet per 576 bytes.
const BYTES_PER_MESSAGE_PACKET: u32 = 128;
/// The least budget of packets, however small the credit.
const MIN_PACKETS: u32 = 1024;

/// Which guest a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The guest that asked for the flow.
    Source,
    /// The guest that was asked.
    Destination,
}

impl Side {
    const fn index(self) -> usize {
        match self {
            Self::Source => 0,
            Self::Destination => 1,
        }
    }

    pub(super) const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// What one guest sends to the other.
#[derive(Debug, Default)]
struct Way {
    flight: Flight,
    /// The highest position that an announcement of the receiver, as passed on, allowed.
    edge: u32,
    /// The receiver's buffer as last passed on.
    announced: u32,
    /// What the sender of this way has shut.
    shut: Shutdown,
    /// The receiver has been asked for news and has not said anything since.
    is_asked: bool,
    bytes: u64,
    packets: u64,
}

/// Why payload cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excess {
    /// More bytes than announced.
    Bytes,
    /// More packets than the budget allows.
    Packets,
}

/// A frozen snapshot of one flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// Names the flow for ever.
    pub id: FlowId,
    /// Socket type.
    pub kind: SocketType,
    /// Who asked for it.
    pub source: Address,
    /// Who was asked.
    pub destination: Address,
    /// Name of its state.
    pub state: &'static str,
    /// Payload bytes from source to destination.
    pub bytes_out: u64,
    /// Payload bytes from destination to source.
    pub bytes_in: u64,
    /// RW packets from source to destination.
    pub packets_out: u64,
    /// RW packets from destination to source.
    pub packets_in: u64,
    /// When it was asked for.
    pub opened_at: Instant,
    /// The most credit that is passed on, either way.
    pub grant: u32,
}

/// One flow, inside; [`FlowInfo`] is what is to be seen of it.
#[derive(Debug)]
pub struct Flow {
    pub(super) source: Address,
    pub(super) destination: Address,
    pub(super) kind: SocketType,
    pub(super) is_answered: bool,
    /// Whether the source has proved that it takes the flow as open.
    pub(super) is_source_heard: bool,
    /// The most credit that is passed on, either way.
    pub(super) grant: u32,
    ways: [Way; 2],
    pub(super) deadline: Option<Instant>,
    pub(super) opened_at: Instant,
}

impl Flow {
    pub(super) fn new(request: &Header, grant: u32, now: Instant) -> Self {
        Self {
            source: request.src,
            destination: request.dst,
            kind: request.kind,
            is_answered: false,
            is_source_heard: false,
            grant,
            ways: [Way::default(), Way::default()],
            deadline: None,
            opened_at: now,
        }
    }

    pub(super) fn side_of(&self, sender: Address) -> Side {
        if sender == self.source { Side::Source } else { Side::Destination }
    }

    pub(super) fn address(&self, side: Side) -> Address {
        match side {
            Side::Source => self.source,
            Side::Destination => self.destination,
        }
    }

    /// A packet to one side that says it comes from the other.
    pub(super) fn packet_to(&self, side: Side, op: Op) -> Header {
        let key = FlowKey { ours: self.address(side.other()), theirs: self.address(side) };
        Header::outbound(key, self.kind, op)
    }

    /// The RST that ends the flow for one side.
    pub(super) fn reset_to(&self, side: Side) -> RawHeader {
        self.packet_to(side, Op::Rst).raw()
    }

    /// Takes the credit fields of a packet of one side and returns what may be passed on of
    /// them. `false`: it claimed to have consumed what was never sent.
    pub(super) fn clamp(&mut self, from: Side, header: &Header) -> (Header, bool) {
        let way = &mut self.ways[from.other().index()];
        way.is_asked = false;
        let is_possible = way.flight.acknowledge(header.fwd_cnt) != Acknowledged::Impossible;
        way.announced = header.buf_alloc.min(self.grant);
        let edge = way.flight.acked().wrapping_add(way.announced);
        if is_after(edge, way.edge) {
            way.edge = edge;
        }
        let fwd_cnt = way.flight.acked();
        (Header { buf_alloc: way.announced, fwd_cnt, ..*header }, is_possible)
    }

    /// Accounts for payload of one side.
    #[inline]
    pub(super) fn send(&mut self, from: Side, len: u32) -> Result<(), Excess> {
        let budget = self.packet_budget();
        let way = &mut self.ways[from.index()];
        if len > way.edge.wrapping_sub(way.flight.sent()) {
            return Err(Excess::Bytes);
        }
        if way.flight.packets() >= budget {
            return Err(Excess::Packets);
        }
        way.flight.record(len, budget);
        way.bytes += u64::from(len);
        way.packets += 1;
        Ok(())
    }

    fn packet_budget(&self) -> u32 {
        let cost = match self.kind {
            SocketType::Stream => BYTES_PER_STREAM_PACKET,
            SocketType::SeqPacket | SocketType::Datagram => BYTES_PER_MESSAGE_PACKET,
        };
        (self.grant / cost).max(MIN_PACKETS)
    }

    /// A CREDIT_REQUEST to the receiver of one side's packets, when many are unacknowledged:
    /// Linux keeps its news to itself while the window is wide, whatever it has consumed.
    #[inline]
    pub(super) fn question(&mut self, from: Side) -> Option<RawHeader> {
        let half = self.packet_budget() / 2;
        let way = &mut self.ways[from.index()];
        if way.is_asked || way.flight.packets() < half {
            return None;
        }
        way.is_asked = true;
        let back = &self.ways[from.other().index()];
        let (buf_alloc, fwd_cnt) = (back.announced, back.flight.acked());
        let header = self.packet_to(from.other(), Op::CreditRequest);
        Some(Header { buf_alloc, fwd_cnt, ..header }.raw())
    }

    /// Adds to what one side has shut and returns all of it.
    pub(super) fn shut_down(&mut self, from: Side, flags: Shutdown) -> Shutdown {
        let way = &mut self.ways[from.index()];
        way.shut = way.shut.with(flags);
        way.shut
    }

    pub(super) fn shut(&self, side: Side) -> Shutdown {
        self.ways[side.index()].shut
    }

    pub(super) fn info(&self, id: FlowId) -> FlowInfo {
        let [there, back] = &self.ways;
        let state = if !self.is_answered {
            "connecting"
        } else if there.shut.is_both() || back.shut.is_both() {
            "closing"
        } else if there.shut.is_none() && back.shut.is_none() {
            "open"
        } else {
            "half-closed"
        };
        FlowInfo {
            id,
            kind: self.kind,
            source: self.source,
            destination: self.destination,
            state,
            bytes_out: there.bytes,
            bytes_in: back.bytes,
            packets_out: there.packets,
            packets_in: back.packets,
            opened_at: self.opened_at,
            grant: self.grant,
        }
    }
}
