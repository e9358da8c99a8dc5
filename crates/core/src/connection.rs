//! One connection: its state, its credit, what it has to say and when it has to be looked at.
//!
//! Headers are made here at the moment they leave, so that they carry the newest credit; what is
//! kept until then is which packets are due, one bit each.

use crate::address::{FlowKey, SocketType};
use crate::credit::{Acknowledged, Inbound, Outbound, SavedInbound, SavedOutbound, Window};
use crate::endpoint::ConnectionId;
use crate::packet::{EOM, Header, Op, Shutdown};
use crate::saved::{Unfit, ago, check, check_counts, due, left};
use crate::state::{Input, State};
use crate::time::{Duration, Instant};

/// How long a stalled sender waits for news before it asks for them. Linux sends them by itself
/// when they matter; asking at once would fetch one buffer's worth of credit at a time.
const PATIENCE: Duration = Duration::from_millis(10);
/// The longest pause between two questions.
const MAX_PATIENCE: Duration = Duration::from_secs(8);

/// A frozen snapshot of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Its id.
    pub id: ConnectionId,
    /// Both addresses.
    pub key: FlowKey,
    /// Socket type.
    pub kind: SocketType,
    /// Name of its state.
    pub state: &'static str,
    /// Payload bytes received.
    pub bytes_in: u64,
    /// Payload bytes sent.
    pub bytes_out: u64,
    /// RW packets received.
    pub packets_in: u64,
    /// RW packets sent.
    pub packets_out: u64,
    /// When it was asked for.
    pub opened_at: Instant,
    /// Our receive buffer.
    pub buf_alloc: u32,
    /// Their receive buffer.
    pub peer_buf_alloc: u32,
    /// Bytes we may send now.
    pub credit: u32,
    /// Bytes received that our user has not consumed.
    pub unread: u32,
    /// Whether our user waits for credit.
    pub is_stalled: bool,
}

impl ConnectionInfo {
    /// Whether the peer has asked for it, and our user has not answered.
    #[must_use]
    pub fn is_offered(&self) -> bool {
        self.state == State::Offered { theirs: Shutdown::NONE }.name()
    }
}

/// Packets that a connection has to send, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Due(u8);

impl Due {
    pub(crate) const REQUEST: Self = Self(1);
    pub(crate) const RESPONSE: Self = Self(2);
    pub(crate) const CREDIT_UPDATE: Self = Self(4);
    pub(crate) const CREDIT_REQUEST: Self = Self(8);
    pub(crate) const SHUTDOWN: Self = Self(16);

    pub(crate) const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// All that there are.
    const ALL: Self = Self(31);

    const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// What an inbound packet did to our credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CreditNews {
    /// Our user was waiting and may send more now.
    pub(crate) is_writable: bool,
    /// The peer says it consumed what was never sent.
    pub(crate) is_impossible: bool,
}

/// One connection, inside; [`ConnectionInfo`] is what is to be seen of it.
#[derive(Debug)]
pub struct Connection {
    pub(crate) key: FlowKey,
    pub(crate) kind: SocketType,
    pub(crate) state: State,
    pub(crate) inbound: Inbound,
    outbound: Outbound,
    due: Due,
    /// Flags of the SHUTDOWN that is due.
    shutdown: Shutdown,
    /// Whether it stands in the endpoint's queue of speakers.
    pub(crate) is_queued: bool,
    /// Whether the peer has proved that it takes the connection as open.
    is_heard: bool,
    /// Our user waits for credit.
    is_stalled: bool,
    patience: Duration,
    /// When it has to be looked at: the state's timer or, while open, the next credit request.
    pub(crate) deadline: Option<Instant>,
    /// Its entry among the endpoint's timers that counts.
    pub(crate) armed: Option<Instant>,
    /// How long the first answer may take.
    pub(crate) timeout: Duration,
    pub(crate) opened_at: Instant,
    bytes_in: u64,
    bytes_out: u64,
    packets_in: u64,
    packets_out: u64,
}

impl Connection {
    pub(crate) fn new(
        key: FlowKey,
        kind: SocketType,
        buf_alloc: u32,
        timeout: Duration,
        now: Instant,
    ) -> Self {
        Self {
            key,
            kind,
            state: State::Closed,
            inbound: Inbound::new(kind, buf_alloc),
            outbound: Outbound::new(kind, buf_alloc),
            due: Due::default(),
            shutdown: Shutdown::NONE,
            is_queued: false,
            is_heard: false,
            is_stalled: false,
            patience: PATIENCE,
            deadline: None,
            armed: None,
            timeout,
            opened_at: now,
            bytes_in: 0,
            bytes_out: 0,
            packets_in: 0,
            packets_out: 0,
        }
    }

    /// Takes the credit fields of an inbound packet.
    pub(crate) fn take_credit(&mut self, header: &Header) -> CreditNews {
        let before = self.outbound.window();
        let acknowledged = self.outbound.update(header.buf_alloc, header.fwd_cnt);
        let after = self.outbound.window();
        let is_more = after.bytes > before.bytes || after.packets > before.packets;
        let is_writable = self.is_stalled && is_more && !self.due.has(Due::RESPONSE);
        if is_writable {
            self.end_stall();
        }
        CreditNews { is_writable, is_impossible: acknowledged == Acknowledged::Impossible }
    }

    /// What an inbound packet means. `None`: nothing, an empty piece of a stream.
    pub(crate) fn input(&mut self, header: &Header) -> Option<Input> {
        let was_heard = self.is_heard;
        self.is_heard |= header.op == Op::Rw || header.fwd_cnt != 0;
        Some(match header.op {
            Op::Request if was_heard => Input::Request,
            Op::Request => Input::RequestRepeated,
            Op::Response => Input::Response,
            Op::Rst => Input::Rst,
            Op::Shutdown => Input::Shutdown {
                flags: Shutdown::from_flags(header.flags),
                unread: self.inbound.unread() > 0,
            },
            Op::Rw => return self.payload_input(header),
            Op::CreditUpdate => Input::CreditUpdate,
            Op::CreditRequest => {
                self.inbound.ask();
                Input::CreditRequest
            }
            Op::Invalid => Input::Invalid,
            Op::Unknown => Input::Unknown,
        })
    }

    fn payload_input(&mut self, header: &Header) -> Option<Input> {
        let ends_message = self.kind == SocketType::SeqPacket && header.flags & EOM != 0;
        let is_open = match self.state {
            State::Open { .. } | State::Closing { .. } => true,
            State::Closed | State::Offered { .. } | State::Connecting { .. } => false,
        };
        if is_open && header.len == 0 && !ends_message {
            return None;
        }
        if self.due.has(Due::RESPONSE) {
            // It cannot be an answer to what has not left yet.
            return Some(Input::Garbled);
        }
        Some(match self.inbound.receive(header.len) {
            Ok(()) => Input::Rw,
            Err(_) => Input::RwOverCredit,
        })
    }

    pub(crate) fn count_inbound(&mut self, len: u32) {
        self.bytes_in += u64::from(len);
        self.packets_in += 1;
    }

    /// Something has to be sent. Returns whether nothing else was due before.
    pub(crate) fn make_due(&mut self, what: Due) -> bool {
        let is_first = self.due.is_none();
        self.due = self.due.with(what);
        is_first
    }

    pub(crate) fn make_shutdown_due(&mut self, flags: Shutdown) -> bool {
        self.shutdown = self.shutdown.with(flags);
        self.make_due(Due::SHUTDOWN)
    }

    pub(crate) const fn due(&self) -> Due {
        self.due
    }

    /// Whether the peer cannot know of it yet.
    pub(crate) const fn is_unspoken(&self) -> bool {
        self.due.has(Due::REQUEST)
    }

    /// Whether we have asked for it and got no answer.
    pub(crate) const fn is_attempt(&self) -> bool {
        matches!(self.state, State::Connecting { .. })
    }

    /// Our user has closed it, and the peer cannot know of that yet.
    pub(crate) const fn is_close_unsaid(&self) -> bool {
        matches!(self.state, State::Closing { .. }) && self.due.has(Due::SHUTDOWN)
    }

    /// The link has forgotten what was to be sent.
    pub(crate) fn forget_due(&mut self) {
        self.due = Due::default();
        self.is_queued = false;
    }

    pub(crate) fn is_update_due(&self) -> bool {
        self.state.can_talk() && self.inbound.is_update_due(self.outbound.peer_buf_alloc())
    }

    /// The next packet that is due, with the newest credit.
    pub(crate) fn next_packet(&mut self) -> Option<Header> {
        // The handshake comes first whatever else is due.
        let order = [
            (Due::REQUEST, Op::Request),
            (Due::RESPONSE, Op::Response),
            (Due::CREDIT_UPDATE, Op::CreditUpdate),
            (Due::CREDIT_REQUEST, Op::CreditRequest),
            (Due::SHUTDOWN, Op::Shutdown),
        ];
        let (what, op) = order.into_iter().find(|(what, _)| self.due.has(*what))?;
        // Whatever goes out tells the news.
        self.due = self.due.without(what).without(Due::CREDIT_UPDATE);
        let mut header = self.header(op);
        if op == Op::Shutdown {
            header.flags = core::mem::take(&mut self.shutdown).flags();
        }
        Some(header)
    }

    /// Whether RESPONSE leaving just now made room for a user who waits.
    pub(crate) fn has_become_writable(&mut self, sent: Op) -> bool {
        let window = self.window();
        let is_writable =
            sent == Op::Response && self.is_stalled && window.bytes > 0 && window.packets > 0;
        if is_writable {
            self.end_stall();
        }
        is_writable
    }

    /// The header of one RW packet, if the window allows it.
    pub(crate) fn data_header(&mut self, len: u32, flags: u32) -> Option<Header> {
        if !self.can_send() || !self.outbound.send(len) {
            return None;
        }
        self.bytes_out += u64::from(len);
        self.packets_out += 1;
        self.due = self.due.without(Due::CREDIT_UPDATE);
        Some(Header { len, flags, ..self.header(Op::Rw) })
    }

    fn header(&mut self, op: Op) -> Header {
        let (buf_alloc, fwd_cnt) = self.inbound.tell();
        Header { buf_alloc, fwd_cnt, ..Header::outbound(self.key, self.kind, op) }
    }

    fn can_send(&self) -> bool {
        self.state.can_send() && !self.due.has(Due::RESPONSE)
    }

    pub(crate) fn window(&self) -> Window {
        if self.can_send() { self.outbound.window() } else { Window::default() }
    }

    pub(crate) fn max_message(&self) -> u32 {
        self.outbound.capacity()
    }

    /// What we may send at once, if the peer's buffer allows it.
    pub(crate) fn set_ours(&mut self, bytes: u32) {
        self.outbound.set_ours(bytes);
    }

    /// Our user waits for credit from now on. Returns whether it did not before.
    pub(crate) fn begin_stall(&mut self, now: Instant) -> bool {
        if self.is_stalled || !self.state.can_send() {
            return false;
        }
        self.is_stalled = true;
        self.patience = PATIENCE;
        self.deadline = Some(now.after(self.patience));
        true
    }

    /// The stall has lasted too long: when to look again.
    pub(crate) fn lose_patience(&mut self, now: Instant) {
        self.patience = (self.patience * 2).min(MAX_PATIENCE);
        self.deadline = Some(now.after(self.patience));
    }

    fn end_stall(&mut self) {
        self.is_stalled = false;
        self.deadline = None;
    }

    /// The state has changed: a user who can send no more waits for nothing, and a peer that has
    /// shut both directions is told nothing but RST.
    pub(crate) fn settle(&mut self) {
        if self.is_stalled && !self.state.can_send() {
            self.is_stalled = false;
            if matches!(self.state, State::Open { .. }) {
                self.deadline = None;
            }
        }
        if !self.state.can_talk() && matches!(self.state, State::Open { .. }) {
            self.due = Due::default();
        }
    }

    pub(crate) fn info(&self, id: ConnectionId) -> ConnectionInfo {
        ConnectionInfo {
            id,
            key: self.key,
            kind: self.kind,
            state: self.state.name(),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            packets_in: self.packets_in,
            packets_out: self.packets_out,
            opened_at: self.opened_at,
            buf_alloc: self.inbound.buf_alloc(),
            peer_buf_alloc: self.outbound.peer_buf_alloc(),
            credit: self.window().bytes,
            unread: self.inbound.unread(),
            is_stalled: self.is_stalled,
        }
    }
}

/// A [`Connection`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedConnection {
    /// Both addresses.
    pub key: FlowKey,
    /// Socket type.
    pub kind: SocketType,
    /// Its state.
    pub state: State,
    /// The window in which the peer sends.
    pub inbound: SavedInbound,
    /// The window in which we send.
    pub outbound: SavedOutbound,
    /// Packets that it has to send, one bit each: REQUEST, RESPONSE, CREDIT_UPDATE,
    /// CREDIT_REQUEST, SHUTDOWN.
    pub due: u8,
    /// Flags of the SHUTDOWN that is due.
    pub shutdown: Shutdown,
    /// The peer has proved that it takes the connection as open.
    pub is_heard: bool,
    /// Our user waits for credit.
    pub is_stalled: bool,
    /// The pause before the next question for credit.
    pub patience: Duration,
    /// The time until it has to be looked at.
    pub deadline: Option<Duration>,
    /// How long the first answer may take.
    pub timeout: Duration,
    /// How long ago it was asked for.
    pub age: Duration,
    /// Payload bytes received and sent.
    pub bytes: [u64; 2],
    /// RW packets received and sent.
    pub packets: [u64; 2],
}

impl Connection {
    pub(crate) fn save(&self, now: Instant) -> SavedConnection {
        SavedConnection {
            key: self.key,
            kind: self.kind,
            state: self.state,
            inbound: self.inbound.save(),
            outbound: self.outbound.save(),
            due: self.due.0,
            // Flags that will not be told any more are of no use to anybody.
            shutdown: if self.due.has(Due::SHUTDOWN) { self.shutdown } else { Shutdown::NONE },
            is_heard: self.is_heard,
            is_stalled: self.is_stalled,
            patience: self.patience,
            deadline: left(self.deadline, now),
            timeout: self.timeout,
            age: now.since(self.opened_at),
            bytes: [self.bytes_in, self.bytes_out],
            packets: [self.packets_in, self.packets_out],
        }
    }

    /// Its place in the queue of speakers and among the timers is the endpoint's to make.
    pub(crate) fn restore(saved: &SavedConnection, now: Instant) -> Result<Self, Unfit> {
        let SavedConnection { key, kind, state, shutdown, .. } = *saved;
        check(kind != SocketType::Datagram, Unfit::State)?;
        check_counts(saved.bytes.into_iter().chain(saved.packets))?;
        let is_waiting = match state {
            State::Closed => return Err(Unfit::State),
            State::Offered { theirs } | State::Closing { theirs } => {
                check(!theirs.is_both(), Unfit::State)?;
                true
            }
            State::Connecting { .. } => true,
            State::Open { .. } => saved.is_stalled,
        };
        // Without a deadline it would wait for ever.
        check(!is_waiting || saved.deadline.is_some(), Unfit::State)?;
        let what = Due(saved.due);
        check(what.without(Due::ALL).is_none(), Unfit::Queue)?;
        check(what.has(Due::SHUTDOWN) != shutdown.is_none(), Unfit::Queue)?;
        Ok(Self {
            key,
            kind,
            state,
            inbound: Inbound::restore(kind, &saved.inbound)?,
            outbound: Outbound::restore(kind, &saved.outbound)?,
            due: what,
            shutdown,
            is_queued: false,
            is_heard: saved.is_heard,
            is_stalled: saved.is_stalled,
            patience: saved.patience.clamp(PATIENCE, MAX_PATIENCE),
            deadline: due(saved.deadline, now),
            armed: None,
            timeout: saved.timeout,
            opened_at: ago(saved.age, now),
            bytes_in: saved.bytes[0],
            bytes_out: saved.bytes[1],
            packets_in: saved.packets[0],
            packets_out: saved.packets[1],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_connection_takes_little_memory() {
        let size = size_of::<Connection>();
        assert!(size <= 512, "{size} bytes");
    }
}
