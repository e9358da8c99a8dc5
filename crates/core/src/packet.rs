//! The 44 byte header (virtio spec 5.10.6): a raw view for looking, a checked value for using.
//!
//! [`RawHeader::parse`] is total: any 44 bytes have fields. [`RawHeader::check`] turns them into a
//! [`Header`], past which nothing validates again; what fails is answered by the caller with
//! [`RawHeader::reset_reply`]. Whether the payload is really there (`len` against the bytes of the
//! chain) and whether the source is who it claims to be are questions for the shell, which knows
//! the buffers and the link.

use crate::address::{Address, Cid, FlowKey, Port, SocketType};

/// Bytes of a header on the wire.
pub const HEADER_LEN: usize = 44;
/// The most payload one packet may carry.
pub const MAX_PAYLOAD: u32 = 65536;
/// RW flag on SEQPACKET: this packet ends a message.
pub const EOM: u32 = 1;
/// RW flag on SEQPACKET: the sender set `MSG_EOR` on this message.
pub const EOR: u32 = 2;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Op {
    /// The number zero: never valid, yet ignored by Linux where other unknown numbers are not.
    Invalid = 0,
    /// Open a connection.
    Request = 1,
    /// The connection is open.
    Response = 2,
    /// There is no such connection (any more).
    Rst = 3,
    /// The sender will not receive, not send, or neither.
    Shutdown = 4,
    /// Payload.
    Rw = 5,
    /// News of the sender's receive buffer.
    CreditUpdate = 6,
    /// Please send a credit update.
    CreditRequest = 7,
    /// Any number that the specification does not name. Never sent.
    Unknown = 0xffff,
}

impl Op {
    /// The operation behind a number.
    #[must_use]
    pub const fn from_wire(field: u16) -> Self {
        match field {
            0 => Self::Invalid,
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Rst,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => Self::Unknown,
        }
    }

    /// The number in the header.
    #[must_use]
    pub const fn to_wire(self) -> u16 {
        self as u16
    }
}

/// Which directions are shut, as the flags of a SHUTDOWN packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shutdown(u8);

impl Shutdown {
    /// Neither direction.
    pub const NONE: Self = Self(0);
    /// The sender of the flag receives no more.
    pub const RCV: Self = Self(1);
    /// The sender of the flag sends no more.
    pub const SEND: Self = Self(2);
    /// Neither receives nor sends.
    pub const BOTH: Self = Self(3);

    /// The known bits of a flags field; unknown ones mean nothing.
    #[must_use]
    pub const fn from_flags(flags: u32) -> Self {
        #[allow(clippy::cast_possible_truncation)] // two bits are left
        Self((flags & Self::BOTH.flags()) as u8)
    }

    /// The flags field.
    #[must_use]
    pub const fn flags(self) -> u32 {
        self.0 as u32
    }

    /// Both sets of directions together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every direction of `other` is in here.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether both directions are shut.
    #[must_use]
    pub const fn is_both(self) -> bool {
        self.0 == Self::BOTH.0
    }

    /// Whether no direction is shut.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Malformed {
    /// The source CID is wider than 32 bits, or the wildcard.
    SourceCid,
    /// The destination CID is wider than 32 bits, or the wildcard.
    DestinationCid,
    /// The socket type is not one that connections have.
    Type,
    /// More payload than a packet may carry.
    Length,
    /// The operation is not one that datagrams have.
    Operation,
}

/// The fields of a header as they came, unchecked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RawHeader {
    /// Source CID.
    pub src_cid: u64,
    /// Destination CID.
    pub dst_cid: u64,
    /// Source port.
    pub src_port: u32,
    /// Destination port.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Socket type (`type`).
    pub kind: u16,
    /// Operation.
    pub op: u16,
    /// Meaning depends on `op`.
    pub flags: u32,
    /// Receive buffer of the sender.
    pub buf_alloc: u32,
    /// Bytes that the sender's user has consumed, free-running.
    pub fwd_cnt: u32,
}

impl RawHeader {
    /// The fields in 44 bytes.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    /// The 44 bytes; every one is written.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The RST that answers this packet when no connection does: addresses swapped, type copied
    /// even if it is nonsense, all else zero. `None` for a RST, which is never answered.
    #[must_use]
    pub fn reset_reply(&self) -> Option<Self> {
        if self.op == Op::Rst.to_wire() {
            return None;
        }
        Some(Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Rst.to_wire(),
            ..Self::default()
        })
    }

    /// The checked value of these fields.
    ///
    /// `len` of anything but RW is taken as zero: such payload means nothing and is skipped.
    ///
    /// # Errors
    /// The first field that cannot be used.
    pub fn check(&self) -> Result<Header, Malformed> {
        let op = Op::from_wire(self.op);
        let src = Cid::from_wire(self.src_cid).ok_or(Malformed::SourceCid)?;
        let dst = Cid::from_wire(self.dst_cid).ok_or(Malformed::DestinationCid)?;
        let kind = SocketType::from_wire(self.kind).ok_or(Malformed::Type)?;
        let len = if op == Op::Rw { self.len } else { 0 };
        if len > MAX_PAYLOAD {
            return Err(Malformed::Length);
        }
        Ok(Header {
            src: Address { cid: src, port: Port(self.src_port) },
            dst: Address { cid: dst, port: Port(self.dst_port) },
            len,
            kind,
            op,
            flags: self.flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        })
    }
}

/// The `N` bytes at a place that is inside the header for every caller.
fn field<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// A header that has been checked, or that we made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Header {
    /// Source.
    pub src: Address,
    /// Destination.
    pub dst: Address,
    /// Bytes of payload; zero unless `op` is RW.
    pub len: u32,
    /// Socket type.
    pub kind: SocketType,
    /// Operation.
    pub op: Op,
    /// Meaning depends on `op`.
    pub flags: u32,
    /// Receive buffer of the sender.
    pub buf_alloc: u32,
    /// Bytes that the sender's user has consumed, free-running.
    pub fwd_cnt: u32,
}

impl Header {
    /// A packet from us to them without payload, flags and credit.
    #[must_use]
    pub const fn outbound(key: FlowKey, kind: SocketType, op: Op) -> Self {
        Self {
            src: key.ours,
            dst: key.theirs,
            len: 0,
            kind,
            op,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// The key of the connection that an inbound packet belongs to.
    #[must_use]
    pub const fn inbound_key(&self) -> FlowKey {
        FlowKey { ours: self.dst, theirs: self.src }
    }

    /// One piece of a RW packet that does not fit the receiver's buffers: the bytes from
    /// `offset`, at most `room`. The marks of a message's end stay with its last piece.
    #[must_use]
    pub fn piece(&self, offset: u32, room: u32) -> Self {
        let left = self.len.saturating_sub(offset);
        let len = left.min(room);
        let flags = if len < left { self.flags & !(EOM | EOR) } else { self.flags };
        Self { len, flags, ..*self }
    }

    /// The same packet as unchecked fields.
    #[must_use]
    pub fn raw(&self) -> RawHeader {
        RawHeader {
            src_cid: u64::from(self.src.cid.0),
            dst_cid: u64::from(self.dst.cid.0),
            src_port: self.src.port.0,
            dst_port: self.dst.port.0,
            len: self.len,
            kind: self.kind.to_wire(),
            op: self.op.to_wire(),
            flags: self.flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    /// The 44 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        self.raw().encode()
    }
}

#[cfg(test)]
mod tests;
