//! What an [`Interface`](super::Interface) and the users of its connections say to each other.
//!
//! A user takes payload ([`Sink`]) and has payload to send ([`Source`]); what it has done beside is an [`Update`]. All of
//! it are values, and none says what a user is: a program's socket, a load generator, a test.

use std::ops::Range;

use vsock_core::{Address, ConnectionId, EOM, EOR, Endpoint, Header, RawHeader, SocketType};

use crate::fault::MemoryDead;
use vsock_guest_memory::slice::{Slice, Slices};
use vsock_virtio::link::Link;

/// What ends with a packet, or with a run of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// Nothing: more of the same follows.
    #[default]
    None,
    /// A message (EOM).
    Message,
    /// A message, and with it a record (EOM and EOR).
    Record,
}

impl End {
    pub(super) fn of(header: &Header) -> Self {
        match header.kind {
            SocketType::SeqPacket if header.flags & EOM == 0 => Self::None,
            SocketType::SeqPacket if header.flags & EOR == 0 => Self::Message,
            SocketType::SeqPacket => Self::Record,
            SocketType::Stream | SocketType::Datagram => Self::None,
        }
    }
}

/// Payload of one connection, of packets in a row.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// Where it lies.
    pub pieces: &'a [Slice],
    /// How many packets it came in.
    pub packets: u32,
    /// What ends with it.
    pub end: End,
}

/// A packet for somebody else than the connections of a link.
#[derive(Clone)]
pub struct Foreign<'a> {
    /// Its header.
    pub header: &'a Header,
    /// The list in which its payload is.
    pub slices: &'a Slices,
    /// Where in the list.
    pub payload: Range<usize>,
    /// The link that it came over, in whose memory the payload lies.
    pub link: &'a Link,
}

/// What the user of a connection does with its sending half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sends {
    /// Nothing new.
    #[default]
    Nothing,
    /// It may have something to send.
    More,
    /// It has sent all it will send.
    Ended,
    /// It has sent all, and is gone.
    Closed,
    /// It has failed: the connection ends at once.
    Failed,
}

/// What the user of a connection has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Bytes it has taken, which make room for others.
    pub bytes: u32,
    /// Packets likewise.
    pub packets: u32,
    /// It has begun to take no more; what still comes is discarded.
    pub stops_receiving: bool,
    /// Its sending half.
    pub sends: Sends,
}

impl Update {
    /// Only this of its sending half.
    #[must_use]
    pub fn sends(sends: Sends) -> Self {
        Self { sends, ..Self::default() }
    }
}

/// What a connection's user has to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Nothing for now, and what it has done otherwise.
    Nothing(Update),
    /// Bytes: as many as there are when they are asked for.
    Bytes,
    /// A message, or what is left of it.
    Message {
        /// Bytes of it.
        len: usize,
        /// Flags of its last packet.
        flags: u32,
    },
}

/// What came of filling pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Bytes filled.
    pub bytes: usize,
    /// What the user has done besides. It has its next turn only if it may have more.
    pub update: Update,
}

/// To whom the packets of a link go.
pub trait Sink {
    /// Takes payload of a connection.
    ///
    /// # Errors
    /// The memory in which it lies is gone.
    fn payload(&mut self, id: ConnectionId, payload: Payload<'_>) -> Result<Update, MemoryDead>;

    /// Whether the time of this turn is over; asked every few steps.
    fn is_over(&self) -> bool {
        false
    }

    /// Whether there is room for what one more packet for somebody else may cause.
    fn accepts_packets(&self) -> bool {
        true
    }

    /// Takes a packet for somebody else. False: there is nobody.
    fn foreign(&mut self, packet: &Foreign<'_>) -> bool {
        let _ = packet;
        false
    }

    /// The payload of a packet for somebody else is lost. False: nobody minds.
    fn foreign_lost(&mut self, header: &Header) -> bool {
        let _ = header;
        false
    }

    /// Takes a datagram, for us or for somebody else.
    fn datagram(&mut self, from: Address, to: Address, bytes: &[u8], is_ours: bool) {
        let _ = (from, to, bytes, is_ours);
    }

    /// A datagram was too long.
    fn datagram_lost(&mut self) {}

    /// A packet named a source other than its sender, and was dropped.
    fn spoofed(&mut self, source: u64) {
        let _ = source;
    }
}

/// From whom the packets of a link come.
pub trait Source {
    /// What the user of a connection has to send, whose turn it is.
    fn next(&mut self, id: ConnectionId, endpoint: &Endpoint) -> Offer;

    /// Writes what it has into pieces: of a message always all.
    ///
    /// # Errors
    /// The memory in which they lie is gone.
    fn fill(&mut self, id: ConnectionId, pieces: &[Slice]) -> Result<Filled, MemoryDead>;

    /// There is no room for what it has; what it has done otherwise.
    fn stalled(&mut self, id: ConnectionId) -> Update;

    /// Whether the time of this turn is over; asked every few steps.
    fn is_over(&self) -> bool {
        false
    }

    /// Whether there is a control packet of others for the other side.
    fn has_packet(&self) -> bool {
        false
    }

    /// The next one.
    fn next_packet(&mut self) -> Option<RawHeader> {
        None
    }
}
