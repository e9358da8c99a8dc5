//! Flow control: the two windows of a connection (virtio spec 5.10.6.3).
//!
//! Each side announces in every header how large its receive buffer is (`buf_alloc`) and how many
//! bytes its user has taken out of it since the connection opened (`fwd_cnt`, a counter that
//! wraps). What the other side may have in flight follows from these two numbers:
//!
//! ```text
//! free = min(their buf_alloc, our buf_alloc) - (sent - their fwd_cnt)      never below zero
//! ```
//!
//! Counters wrap on purpose; space is computed wide and clamped, so a peer that shrinks its buffer
//! gives zero and not four gigabytes. The minimum keeps a peer that announces the moon from
//! deciding over our memory. A `fwd_cnt` ahead of what was sent cannot be and is ignored; one
//! that goes back is merely late, as Linux does not order concurrent senders.
//!
//! **Packets are bounded too.** Linux charges 576 bytes of `buf_alloc` for every unread packet and
//! resets the connection when that is more than the buffer, however few bytes are in it. So
//! [`Flight`] counts packets that `fwd_cnt` does not cover yet, in a fixed number of marks: a mark
//! stands for a run of packets and is freed as a whole. The count is thus never too low.
//!
//! **When news is told.** Every outbound packet carries it; an extra CREDIT_UPDATE is due
//! ([`Inbound::is_update_due`]) when fewer than 64 KiB of the announced window are left, and on
//! SEQPACKET after every message, as Linux does it. When a STREAM reader has drained the buffer,
//! Linux tells even of a single byte; here the news must be a quarter of what the peer can have
//! in flight, in bytes or in packets, or the peer must have asked. A peer that is blocked has all
//! of it in flight, so it is never left waiting, and ping-pong traffic is spared half its packets.

use crate::address::SocketType;
use crate::saved::{Unfit, check};
use alloc::vec::Vec;
use core::ops::{Add, Sub};

/// What may be sent now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Bytes of payload.
    pub bytes: u32,
    /// Packets.
    pub packets: u32,
}

/// What Linux charges a receive buffer for one unread packet.
const PACKET_COST: u32 = 576;
/// The largest buffer we announce: half the range of the counters, so that order is decidable.
const MAX_BUFFER: u32 = i32::MAX.unsigned_abs();
/// Announce news when less than this is left of the announced window.
const LOW_WINDOW: u32 = 65536;
/// Unread SEQPACKET packets we admit for this many bytes of buffer. Linux senders know of no
/// such bound, so it is generous; it only keeps empty or tiny messages from costing memory.
const BYTES_PER_UNREAD_PACKET: u32 = 128;
/// The least number of unread SEQPACKET packets we admit.
const MIN_UNREAD_PACKETS: u32 = 16;

/// A position in one direction of a connection: how many bytes came before it, in a counter that
/// wraps. Of two positions that are less than half the range apart, one is after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position(pub u32);

impl Position {
    /// Whether it is behind another.
    #[must_use]
    pub const fn is_after(self, other: Self) -> bool {
        self.0 != other.0 && self.is_at_or_after(other)
    }

    /// Whether it is behind another, or the same.
    #[must_use]
    pub const fn is_at_or_after(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) < 1 << 31
    }
}

impl Add<u32> for Position {
    type Output = Self;

    fn add(self, bytes: u32) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl Sub for Position {
    type Output = u32;

    /// The bytes from `earlier` to here.
    fn sub(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }
}

/// How many marks stand for the packets in flight.
const MARKS: u8 = 16;

/// A run of packets and the position of the byte behind its last.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    end: Position,
    packets: u32,
}

/// What `fwd_cnt` said, compared with what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Acknowledged {
    /// More has been consumed.
    Progress,
    /// Nothing new.
    Nothing,
    /// More than was ever sent: the peer is wrong, the number is ignored.
    Impossible,
}

/// Bytes and packets sent in one direction and not consumed yet.
#[derive(Clone, Debug, Default)]
pub struct Flight {
    sent: Position,
    acked: Position,
    marks: [Mark; MARKS as usize],
    first: u8,
    used: u8,
    packets: u32,
    empty: Mark,
}

impl Flight {
    /// Bytes in flight.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        self.sent - self.acked
    }

    /// Packets in flight; rather too many than too few.
    #[must_use]
    pub const fn packets(&self) -> u32 {
        self.packets.saturating_add(self.empty.packets)
    }

    /// Behind the last byte sent.
    #[must_use]
    pub const fn sent(&self) -> Position {
        self.sent
    }

    /// The last `fwd_cnt` that could be true.
    #[must_use]
    pub const fn acked(&self) -> Position {
        self.acked
    }

    /// One more packet, when at most `budget` are meant to be in flight.
    pub fn record(&mut self, len: u32, budget: u32) {
        if len == 0 {
            // No byte of it will ever be consumed: it is covered when a later one is.
            self.empty = Mark { end: self.sent, packets: self.empty.packets.saturating_add(1) };
            return;
        }
        self.sent = self.sent + len;
        self.packets = self.packets.saturating_add(1);
        let run = budget.div_ceil(u32::from(MARKS)).max(1);
        let last = usize::from((self.first + self.used + MARKS - 1) % MARKS);
        if self.used > 0 && (self.used == MARKS || self.marks[last].packets < run) {
            self.marks[last].end = self.sent;
            self.marks[last].packets += 1;
        } else {
            let next = usize::from((self.first + self.used) % MARKS);
            self.marks[next] = Mark { end: self.sent, packets: 1 };
            self.used += 1;
        }
    }

    /// Takes the receiver's `fwd_cnt`.
    pub fn acknowledge(&mut self, fwd_cnt: u32) -> Acknowledged {
        let consumed = Position(fwd_cnt);
        if consumed.is_after(self.sent) {
            return Acknowledged::Impossible;
        }
        if !consumed.is_after(self.acked) {
            return Acknowledged::Nothing;
        }
        self.acked = consumed;
        while self.used > 0 {
            let mark = self.marks[usize::from(self.first)];
            if mark.end.is_after(self.acked) {
                break;
            }
            self.packets = self.packets.saturating_sub(mark.packets);
            self.first = (self.first + 1) % MARKS;
            self.used -= 1;
        }
        if self.acked.is_after(self.empty.end) {
            self.empty.packets = 0;
        }
        Acknowledged::Progress
    }
}

/// A [`Flight`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedFlight {
    /// The counter of bytes sent.
    pub sent: u32,
    /// The last `fwd_cnt` that could be true.
    pub acked: u32,
    /// Runs of packets in flight: the position behind each, and how many packets.
    pub marks: Vec<(u32, u32)>,
    /// Packets without bytes: the position of the last of them, and how many.
    pub empty: (u32, u32),
}

impl Flight {
    /// As plain data.
    #[must_use]
    pub fn save(&self) -> SavedFlight {
        let mark = |at| self.marks[usize::from((self.first + at) % MARKS)];
        SavedFlight {
            sent: self.sent.0,
            acked: self.acked.0,
            marks: (0..self.used).map(mark).map(|mark| (mark.end.0, mark.packets)).collect(),
            empty: (self.empty.end.0, self.empty.packets),
        }
    }

    /// From plain data.
    ///
    /// # Errors
    /// The numbers cannot be together.
    pub fn restore(saved: &SavedFlight) -> Result<Self, Unfit> {
        let (sent, acked) = (Position(saved.sent), Position(saved.acked));
        let mut flight = Self { sent, acked, ..Self::default() };
        check(sent.is_at_or_after(acked), Unfit::Credit)?;
        check(saved.marks.len() <= usize::from(MARKS), Unfit::Credit)?;
        let mut before = acked;
        for (place, &(end, packets)) in flight.marks.iter_mut().zip(&saved.marks) {
            let end = Position(end);
            check(packets > 0 && end.is_after(before) && !end.is_after(sent), Unfit::Credit)?;
            *place = Mark { end, packets };
            flight.used += 1;
            flight.packets = flight.packets.checked_add(packets).ok_or(Unfit::Credit)?;
            before = end;
        }
        // The last run reaches to the last byte, if any is in flight.
        check(before == sent, Unfit::Credit)?;
        flight.empty = Mark { end: Position(saved.empty.0), packets: saved.empty.1 };
        check(flight.empty.packets == 0 || !flight.empty.end.is_after(sent), Unfit::Credit)?;
        Ok(flight)
    }
}

/// The window in which we send.
#[derive(Clone, Debug)]
pub struct Outbound {
    flight: Flight,
    kind: SocketType,
    theirs: u32,
    ours: u32,
}

impl Outbound {
    /// Nothing sent, nothing announced; `ours` is our own receive buffer.
    #[must_use]
    pub fn new(kind: SocketType, ours: u32) -> Self {
        Self { flight: Flight::default(), kind, theirs: 0, ours: ours.min(MAX_BUFFER) }
    }

    /// Takes the credit fields of a header of the peer.
    pub fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Acknowledged {
        self.theirs = buf_alloc;
        self.flight.acknowledge(fwd_cnt)
    }

    /// Our own receive buffer has changed.
    pub fn set_ours(&mut self, ours: u32) {
        self.ours = ours.min(MAX_BUFFER);
    }

    /// The most that can ever be in flight: the bound of one message.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.theirs.min(self.ours)
    }

    /// Their announced receive buffer.
    #[must_use]
    pub const fn peer_buf_alloc(&self) -> u32 {
        self.theirs
    }

    /// What may be sent now.
    #[must_use]
    pub fn window(&self) -> Window {
        let free = i64::from(self.capacity()) - i64::from(self.flight.bytes());
        Window {
            bytes: u32::try_from(free.max(0)).unwrap_or(0),
            packets: self.packet_budget().saturating_sub(self.flight.packets()),
        }
    }

    /// Accounts for one packet if the window allows it.
    #[must_use]
    pub fn send(&mut self, len: u32) -> bool {
        let window = self.window();
        let allowed = len > 0 && len <= window.bytes && window.packets > 0;
        if allowed {
            self.flight.record(len, self.packet_budget());
        }
        allowed
    }

    /// Packets that the peer's buffer bears. One always goes: a peer that cannot take a single
    /// packet cannot be helped by waiting. On STREAM a quarter is left for packets that a relay
    /// splits on their way; SEQPACKET keeps strictly below what Linux admits.
    fn packet_budget(&self) -> u32 {
        let bears = self.theirs / PACKET_COST;
        match self.kind {
            SocketType::Stream => (bears - bears / 4).max(1),
            SocketType::SeqPacket | SocketType::Datagram => bears.saturating_sub(1).max(1),
        }
    }
}

/// An [`Outbound`] as plain data, but for the socket type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedOutbound {
    /// What is in flight.
    pub flight: SavedFlight,
    /// Their announced receive buffer.
    pub theirs: u32,
    /// Our own receive buffer.
    pub ours: u32,
}

impl Outbound {
    /// As plain data.
    #[must_use]
    pub fn save(&self) -> SavedOutbound {
        SavedOutbound { flight: self.flight.save(), theirs: self.theirs, ours: self.ours }
    }

    /// From plain data.
    ///
    /// # Errors
    /// The numbers cannot be together.
    pub fn restore(kind: SocketType, saved: &SavedOutbound) -> Result<Self, Unfit> {
        check(saved.ours <= MAX_BUFFER, Unfit::Credit)?;
        let flight = Flight::restore(&saved.flight)?;
        Ok(Self { flight, kind, theirs: saved.theirs, ours: saved.ours })
    }
}

/// The peer sent more than we announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverCredit;

/// The window in which the peer sends.
#[derive(Clone, Debug)]
pub struct Inbound {
    kind: SocketType,
    asked: bool,
    buf_alloc: u32,
    received: Position,
    consumed: Position,
    /// `consumed` as last announced.
    told: Position,
    /// The highest position that any announcement allowed.
    edge: Position,
    /// SEQPACKET packets that our user has not taken.
    unread_packets: u32,
    /// Packets received since the peer last heard of an empty buffer.
    packets_untold: u32,
}

impl Inbound {
    /// An empty buffer of `buf_alloc` bytes, not announced yet.
    #[must_use]
    pub fn new(kind: SocketType, buf_alloc: u32) -> Self {
        Self {
            kind,
            asked: false,
            buf_alloc: buf_alloc.min(MAX_BUFFER),
            received: Position(0),
            consumed: Position(0),
            told: Position(0),
            edge: Position(0),
            unread_packets: 0,
            packets_untold: 0,
        }
    }

    /// Our announced receive buffer.
    #[must_use]
    pub const fn buf_alloc(&self) -> u32 {
        self.buf_alloc
    }

    /// Changes the buffer. Credit that was announced before stays good.
    pub fn set_buf_alloc(&mut self, bytes: u32) {
        self.buf_alloc = bytes.min(MAX_BUFFER);
    }

    /// Bytes received and not consumed.
    #[must_use]
    pub fn unread(&self) -> u32 {
        self.received - self.consumed
    }

    /// Takes in one packet.
    ///
    /// # Errors
    /// It is beyond what we announced, in bytes or in unread packets.
    pub fn receive(&mut self, len: u32) -> Result<(), OverCredit> {
        let room = self.edge - self.received;
        let is_counted = self.kind != SocketType::Stream;
        let most = (self.buf_alloc / BYTES_PER_UNREAD_PACKET).max(MIN_UNREAD_PACKETS);
        if len > room || (is_counted && self.unread_packets >= most) {
            return Err(OverCredit);
        }
        self.received = self.received + len;
        self.packets_untold = self.packets_untold.saturating_add(1);
        if is_counted {
            self.unread_packets += 1;
        }
        Ok(())
    }

    /// Our user took data; never more than there is.
    pub fn consume(&mut self, bytes: u32, packets: u32) {
        self.consumed = self.consumed + bytes.min(self.unread());
        self.unread_packets = self.unread_packets.saturating_sub(packets);
    }

    /// The peer asked: the next news goes out at once.
    pub fn ask(&mut self) {
        self.asked = true;
    }

    /// Whether a CREDIT_UPDATE should go out; `peer_buf_alloc` bounds what the peer has in flight.
    #[must_use]
    pub fn is_update_due(&self, peer_buf_alloc: u32) -> bool {
        let news = self.consumed - self.told;
        if news == 0 {
            return false;
        }
        let is_low = self.buf_alloc.saturating_sub(news) < LOW_WINDOW;
        let is_much = news >= self.buf_alloc.min(peer_buf_alloc) / 4
            || self.packets_untold >= self.buf_alloc / PACKET_COST / 4;
        is_low || self.asked || self.kind != SocketType::Stream || (self.unread() == 0 && is_much)
    }

    /// The credit fields of a packet that goes out now: `buf_alloc` and `fwd_cnt`.
    pub fn tell(&mut self) -> (u32, u32) {
        if self.told != self.consumed {
            self.asked = false;
        }
        if self.unread() == 0 {
            self.packets_untold = 0;
        }
        self.told = self.consumed;
        let edge = self.consumed + self.buf_alloc;
        if edge.is_after(self.edge) {
            self.edge = edge;
        }
        (self.buf_alloc, self.told.0)
    }
}

/// An [`Inbound`] as plain data, but for the socket type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedInbound {
    /// The peer has asked for news.
    pub asked: bool,
    /// Our announced receive buffer.
    pub buf_alloc: u32,
    /// The counter of bytes received.
    pub received: u32,
    /// The counter of bytes that our user has taken.
    pub consumed: u32,
    /// That counter as last announced.
    pub told: u32,
    /// The highest position that any announcement allowed.
    pub edge: u32,
    /// Packets of messages that our user has not taken.
    pub unread_packets: u32,
    /// Packets received since the peer last heard of an empty buffer.
    pub packets_untold: u32,
}

impl Inbound {
    /// As plain data.
    #[must_use]
    pub const fn save(&self) -> SavedInbound {
        let Self { kind: _, asked, buf_alloc, received, consumed, told, edge, .. } = *self;
        let Self { unread_packets, packets_untold, .. } = *self;
        SavedInbound {
            asked,
            buf_alloc,
            received: received.0,
            consumed: consumed.0,
            told: told.0,
            edge: edge.0,
            unread_packets,
            packets_untold,
        }
    }

    /// From plain data.
    ///
    /// # Errors
    /// The numbers cannot be together.
    pub fn restore(kind: SocketType, saved: &SavedInbound) -> Result<Self, Unfit> {
        let SavedInbound { asked, buf_alloc, .. } = *saved;
        let (received, consumed) = (Position(saved.received), Position(saved.consumed));
        let (told, edge) = (Position(saved.told), Position(saved.edge));
        let SavedInbound { unread_packets, packets_untold, .. } = *saved;
        // Told, then consumed, then received, then allowed.
        let is_in_order = consumed.is_at_or_after(told)
            && received.is_at_or_after(consumed)
            && edge.is_at_or_after(received);
        check(is_in_order && buf_alloc <= MAX_BUFFER, Unfit::Credit)?;
        Ok(Self {
            kind,
            asked,
            buf_alloc,
            received,
            consumed,
            told,
            edge,
            unread_packets,
            packets_untold,
        })
    }
}

#[cfg(test)]
mod tests;
