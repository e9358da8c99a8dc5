//! Packets of one guest that wait for room in the ring of another, in order; control packets of a flow are merged.
//!
//! A guest may send control packets without end, as they need no credit. They say what is, so one that waits can say the
//! newest, and a flow has few of them here, however many its sender sends:
//!
//! - **CREDIT_UPDATE** is never kept beside another packet of its flow. Every header carries its sender's credit, and the
//!   receiver believes the packet that came last: Linux takes its `buf_alloc` and `fwd_cnt` as they are, also when they are
//!   lower than before. So news must not overtake a packet of its flow that waits: the older fields in that one would undo
//!   it, and a receiver that has filled the older window would wait for ever. But it may travel in the last one of
//!   them: those fields are replaced. They are newer, as the relay lets no `fwd_cnt` go back; nothing behind them
//!   is older; and they arrive no later than a packet of their own would.
//! - **CREDIT_REQUEST** asks for what the receiver has consumed, and one that waits asks the same. A CREDIT_UPDATE that
//!   waits becomes one: it says the same, and asks.
//! - **SHUTDOWN** adds directions to those that are shut, so one that waits shuts these, too.
//! - **REQUEST** that is repeated while the first waits is the same attempt.
//!
//! A packet merges with one of its kind only if no RW, RESPONSE or RST of the flow has been queued since, and a REQUEST
//! only if no SHUTDOWN has been: the answer to a CREDIT_REQUEST must cover the payload before it, payload must not come
//! after the SHUTDOWN that ends it, and what follows a RST belongs to another connection. CREDIT_REQUEST and SHUTDOWN may
//! pass each other, as neither changes what the other means.

use std::collections::{BTreeMap, VecDeque};

use vsock_core::{Cid, Header, Op, Port};

use super::TURN;

/// What a stored packet costs besides its payload: its place in the queue and that of its flow in the index, each with
/// room to grow.
const STORED_COST: usize = 256;

/// A packet that waits.
#[derive(Debug)]
pub(in super::super) struct Stored {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
    pub(super) sent: usize,
}

impl Stored {
    pub(in super::super) fn new(header: Header, payload: Vec<u8>) -> Self {
        Self { header, payload, sent: 0 }
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    pub(super) fn sender(&self) -> Cid {
        self.header.src.cid
    }

    pub(super) fn cost(&self) -> usize {
        self.payload.len() + STORED_COST
    }

    /// The header of the part that fits `room`.
    pub(in super::super) fn next_piece(&self, room: u32) -> Header {
        // `sent` is at most the payload's length, which came from a u32.
        self.header.piece(u32::try_from(self.sent).unwrap_or(u32::MAX), room)
    }

    /// The next `len` bytes, which are sent then.
    pub(in super::super) fn take(&mut self, len: usize) -> &[u8] {
        let start = self.sent;
        self.sent += len;
        &self.payload[start..self.sent]
    }

    /// Nothing of it is left. A header without payload goes out once.
    pub(super) fn is_sent(&self) -> bool {
        self.sent >= self.payload.len()
    }
}

/// Where packets of a flow wait that later ones may merge with. Packets have numbers in the order in which they came.
#[derive(Clone, Copy, Debug, Default)]
struct Tail {
    /// The last one of the flow.
    last: u64,
    /// Those with which one of the same kind may merge.
    request: Option<u64>,
    credit: Option<u64>,
    shutdown: Option<u64>,
}

impl Tail {
    /// The one with which a packet like this may merge.
    fn twin(&self, op: Op) -> Option<u64> {
        match op {
            Op::CreditUpdate => Some(self.last),
            Op::CreditRequest => self.credit,
            Op::Shutdown => self.shutdown,
            Op::Request => self.request,
            Op::Response | Op::Rst | Op::Rw | Op::Invalid | Op::Unknown => None,
        }
    }

    /// The same with a packet behind it.
    fn with(self, number: u64, op: Op) -> Self {
        let (tail, this) = (Self { last: number, ..self }, Some(number));
        match op {
            Op::CreditUpdate | Op::CreditRequest => Self { credit: this, ..tail },
            Op::Shutdown => Self { shutdown: this, request: None, ..tail },
            Op::Request => Self { request: this, last: number, ..Self::default() },
            Op::Response | Op::Rst | Op::Rw | Op::Invalid | Op::Unknown => {
                Self { last: number, ..Self::default() }
            }
        }
    }
}

/// Packets of one sender.
#[derive(Debug)]
pub(super) struct Queue {
    packets: VecDeque<Stored>,
    /// The number of the first one.
    first: u64,
    /// By source and destination port: the flows of which packets wait that may get newer credit. A RST ends its flow.
    tails: BTreeMap<(Port, Port), Tail>,
    bytes: usize,
    /// What is left of the sender's turn; below zero, what it must skip.
    left: i64,
}

impl Default for Queue {
    fn default() -> Self {
        Self { packets: VecDeque::new(), first: 0, tails: BTreeMap::new(), bytes: 0, left: TURN }
    }
}

fn flow(header: &Header) -> (Port, Port) {
    (header.src.port, header.dst.port)
}

impl Queue {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Stored> {
        self.packets.iter()
    }

    pub(super) fn left(&self) -> i64 {
        self.left
    }

    pub(super) fn set_left(&mut self, left: i64) {
        self.left = left;
    }

    /// Whether the next packet may go in the sender's turn.
    pub(super) fn has_turn(&self) -> bool {
        self.left > 0 && !self.packets.is_empty()
    }

    /// A turn of the sender is over. False: there is nothing to have or to skip another one for.
    pub(super) fn end_turn(&mut self) -> bool {
        self.left += TURN;
        self.left <= 0 || !self.packets.is_empty()
    }

    pub(super) fn front(&mut self) -> Option<&mut Stored> {
        self.packets.front_mut()
    }

    /// Something of the first packet was sent, at this cost. What has become free, if that was all of it.
    pub(super) fn sent(&mut self, cost: usize) -> Option<usize> {
        self.left -= i64::try_from(cost).unwrap_or(i64::MAX);
        if !self.packets.front()?.is_sent() {
            return None;
        }
        let sent = self.packets.pop_front()?;
        let flow = flow(&sent.header);
        if self.tails.get(&flow).is_some_and(|tail| tail.last == self.first) {
            self.tails.remove(&flow);
        }
        self.first += 1;
        self.bytes -= sent.cost();
        Some(sent.cost())
    }

    /// Lets a packet that waits say what this one says, if there is such a packet.
    pub(super) fn merge(&mut self, header: &Header) -> bool {
        let Some(tail) = self.tails.get(&flow(header)).copied() else { return false };
        let twin = tail.twin(header.op).and_then(|number| self.packet(number));
        // A REQUEST may be of another type, if the relay has ended the attempt that waits.
        let Some(twin) = twin.filter(|twin| twin.header.kind == header.kind) else { return false };
        match header.op {
            Op::CreditRequest => twin.header.op = Op::CreditRequest,
            Op::Shutdown => twin.header.flags |= header.flags,
            Op::CreditUpdate | Op::Request => {}
            Op::Response | Op::Rst | Op::Rw | Op::Invalid | Op::Unknown => return false,
        }
        if let Some(last) = self.packet(tail.last) {
            last.header.buf_alloc = header.buf_alloc;
            last.header.fwd_cnt = header.fwd_cnt;
        }
        true
    }

    /// The packet with this number, if it still waits.
    fn packet(&mut self, number: u64) -> Option<&mut Stored> {
        let index = number.checked_sub(self.first)?;
        self.packets.get_mut(usize::try_from(index).ok()?)
    }

    /// Keeps a packet.
    pub(super) fn push(&mut self, stored: Stored) {
        let (header, number) = (&stored.header, self.first + self.packets.len() as u64);
        if header.op == Op::Rst {
            self.tails.remove(&flow(header));
        } else {
            let tail = self.tails.entry(flow(header)).or_default();
            *tail = tail.with(number, header.op);
        }
        self.bytes += stored.cost();
        self.packets.push_back(stored);
    }
}
