//! One flow between two guests: its state, and who may send how much.

use super::state::{Input, Packet, Side, State};
use super::{FlowId, RelayLimits};
use crate::address::{Address, Cid, FlowKey, SocketType};
use crate::credit::{Acknowledged, Flight, Position, SavedFlight};
use crate::packet::{EOM, Header, Op, RawHeader, Shutdown};
use crate::saved::{Unfit, ago, check, check_counts, due, left};
use crate::time::{Duration, Instant};

/// Bytes of credit per packet that a STREAM sender may have unacknowledged. Linux senders know
/// of no such bound and some write byte by byte, so it is generous.
const BYTES_PER_STREAM_PACKET: u32 = 16;
/// The same for SEQPACKET, whose receivers admit a packet per 576 bytes.
const BYTES_PER_MESSAGE_PACKET: u32 = 128;
/// The least budget of packets, however small the credit.
const MIN_PACKETS: u32 = 1024;

/// What one guest sends to the other.
#[derive(Debug, Default)]
struct Way {
    flight: Flight,
    /// The highest position that an announcement of the receiver, as passed on, allowed.
    edge: Position,
    /// The receiver's buffer as last passed on.
    announced: u32,
    /// The receiver has been asked for news and has not said anything since.
    is_asked: bool,
    bytes: u64,
    packets: u64,
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
    pub(super) state: State,
    /// The most credit that is passed on, either way.
    grant: u32,
    /// The most packets that either side may have unacknowledged; follows from the grant.
    budget: u32,
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
            state: State::Closed,
            grant,
            budget: packet_budget(request.kind, grant),
            ways: [Way::default(), Way::default()],
            deadline: None,
            opened_at: now,
        }
    }

    pub(super) fn side_of(&self, sender: Address) -> Side {
        if sender == self.source { Side::Source } else { Side::Destination }
    }

    /// The side that this guest is.
    pub(super) fn side_at(&self, guest: Cid) -> Option<Side> {
        [Side::Source, Side::Destination].into_iter().find(|side| self.address(*side).cid == guest)
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

    /// Takes the credit fields of a packet of one side, and leaves in the header what is to be
    /// passed on of them. `false`: it claimed to have consumed what was never sent.
    #[inline]
    pub(super) fn clamp(&mut self, from: Side, header: &mut Header) -> bool {
        let way = &mut self.ways[from.other().index()];
        way.is_asked = false;
        let is_possible = way.flight.acknowledge(header.fwd_cnt) != Acknowledged::Impossible;
        way.announced = header.buf_alloc.min(self.grant);
        let edge = way.flight.acked() + way.announced;
        if edge.is_after(way.edge) {
            way.edge = edge;
        }
        header.buf_alloc = way.announced;
        header.fwd_cnt = way.flight.acked().0;
        if header.op == Op::Shutdown {
            // Bits that the specification does not name go no further.
            header.flags = Shutdown::from_flags(header.flags).flags();
        }
        is_possible
    }

    /// What a packet of one side means. Payload within credit is accounted for.
    #[inline]
    pub(super) fn input(&mut self, from: Side, header: &Header) -> Input {
        let packet = match header.op {
            Op::Request => Packet::Request,
            Op::Response => Packet::Response,
            Op::Rst => Packet::Rst,
            Op::Shutdown => Packet::Shutdown(Shutdown::from_flags(header.flags)),
            Op::Rw => self.payload(from, header),
            Op::CreditUpdate => Packet::CreditUpdate,
            Op::CreditRequest => Packet::CreditRequest,
            Op::Invalid | Op::Unknown => Packet::Unknown,
        };
        Input::Packet { from, packet, is_proof: header.op == Op::Rw || header.fwd_cnt != 0 }
    }

    fn payload(&mut self, from: Side, header: &Header) -> Packet {
        let ends_message = self.kind == SocketType::SeqPacket && header.flags & EOM != 0;
        if header.len == 0 && !ends_message {
            return Packet::RwEmpty;
        }
        let budget = self.budget;
        let way = &mut self.ways[from.index()];
        if header.len > way.edge - way.flight.sent() {
            return Packet::RwOverCredit;
        }
        if way.flight.packets() >= budget {
            return Packet::RwOverPackets;
        }
        way.flight.record(header.len, budget);
        way.bytes += u64::from(header.len);
        way.packets += 1;
        Packet::Rw
    }

    pub(super) const fn grant(&self) -> u32 {
        self.grant
    }

    /// The flow has got more credit out of the budget of its guests.
    pub(super) fn raise_grant(&mut self, more: u32) {
        self.grant += more;
        self.budget = packet_budget(self.kind, self.grant);
    }

    /// A CREDIT_REQUEST to the receiver of one side's packets, when many are unacknowledged:
    /// Linux keeps its news to itself while the window is wide, whatever it has consumed.
    #[inline]
    pub(super) fn question(&mut self, from: Side) -> Option<RawHeader> {
        let half = self.budget / 2;
        let way = &mut self.ways[from.index()];
        if way.is_asked || way.flight.packets() < half {
            return None;
        }
        way.is_asked = true;
        let back = &self.ways[from.other().index()];
        let (buf_alloc, fwd_cnt) = (back.announced, back.flight.acked().0);
        let header = self.packet_to(from.other(), Op::CreditRequest);
        Some(Header { buf_alloc, fwd_cnt, ..header }.raw())
    }

    pub(super) fn info(&self, id: FlowId) -> FlowInfo {
        let [there, back] = &self.ways;
        FlowInfo {
            id,
            kind: self.kind,
            source: self.source,
            destination: self.destination,
            state: self.state.name(),
            bytes_out: there.bytes,
            bytes_in: back.bytes,
            packets_out: there.packets,
            packets_in: back.packets,
            opened_at: self.opened_at,
            grant: self.grant,
        }
    }
}

/// What one guest sends to the other, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedWay {
    /// What is in flight.
    pub flight: SavedFlight,
    /// The highest position that an announcement of the receiver, as passed on, allowed.
    pub edge: u32,
    /// The receiver's buffer as last passed on.
    pub announced: u32,
    /// The receiver has been asked for news and has not said anything since.
    pub is_asked: bool,
    /// Payload bytes passed on.
    pub bytes: u64,
    /// RW packets passed on.
    pub packets: u64,
}

impl Way {
    fn save(&self) -> SavedWay {
        let Self { edge, announced, is_asked, bytes, packets, .. } = *self;
        SavedWay { flight: self.flight.save(), edge: edge.0, announced, is_asked, bytes, packets }
    }

    fn restore(saved: &SavedWay, grant: u32) -> Result<Self, Unfit> {
        let SavedWay { announced, is_asked, bytes, packets, .. } = *saved;
        let edge = Position(saved.edge);
        let flight = Flight::restore(&saved.flight)?;
        let is_allowed = edge.is_at_or_after(flight.sent()) && announced <= grant;
        check(is_allowed, Unfit::Credit)?;
        check_counts([bytes, packets])?;
        Ok(Self { flight, edge, announced, is_asked, bytes, packets })
    }
}

/// A [`Flow`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedFlow {
    /// Who asked for it.
    pub source: Address,
    /// Who was asked.
    pub destination: Address,
    /// Socket type.
    pub kind: SocketType,
    /// Its state.
    pub state: State,
    /// The most credit that is passed on, either way.
    pub grant: u32,
    /// From source to destination, and back.
    pub ways: [SavedWay; 2],
    /// The time until it ends.
    pub deadline: Option<Duration>,
    /// How long ago it was asked for.
    pub age: Duration,
}

impl Flow {
    pub(super) fn save(&self, now: Instant) -> SavedFlow {
        let [there, back] = &self.ways;
        SavedFlow {
            source: self.source,
            destination: self.destination,
            kind: self.kind,
            state: self.state,
            grant: self.grant,
            ways: [there.save(), back.save()],
            deadline: left(self.deadline, now),
            age: now.since(self.opened_at),
        }
    }

    pub(super) fn restore(
        saved: &SavedFlow,
        limits: &RelayLimits,
        now: Instant,
    ) -> Result<Self, Unfit> {
        let SavedFlow { source, destination, kind, state, grant, .. } = *saved;
        check(source.cid != destination.cid, Unfit::Address)?;
        check(kind != SocketType::Datagram, Unfit::State)?;
        // Without a deadline it would wait for ever.
        let is_waiting = state.is_asked() || state.is_closing();
        check(state != State::Closed, Unfit::State)?;
        check(!is_waiting || saved.deadline.is_some(), Unfit::State)?;
        check(grant <= limits.max_flow_credit.max(limits.min_flow_credit), Unfit::Credit)?;
        let [there, back] = &saved.ways;
        Ok(Self {
            source,
            destination,
            kind,
            state,
            grant,
            budget: packet_budget(kind, grant),
            ways: [Way::restore(there, grant)?, Way::restore(back, grant)?],
            deadline: due(saved.deadline, now),
            opened_at: ago(saved.age, now),
        })
    }
}

fn packet_budget(kind: SocketType, grant: u32) -> u32 {
    let cost = match kind {
        SocketType::Stream => BYTES_PER_STREAM_PACKET,
        SocketType::SeqPacket | SocketType::Datagram => BYTES_PER_MESSAGE_PACKET,
    };
    (grant / cost).max(MIN_PACKETS)
}
