//! CIDs, ports, addresses, socket types, and the key of a connection.
//!
//! Plain numbers with names (vsock(7), virtio spec 5.10.4). Names of guests and the parsing of
//! user input belong to the control plane, not here.

use core::fmt;

/// A context id: the number of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cid(pub u32);

impl Cid {
    /// The wildcard; no machine.
    pub const ANY: Self = Self(u32::MAX);
    /// Services of the hypervisor.
    pub const HYPERVISOR: Self = Self(0);
    /// Loopback.
    pub const LOCAL: Self = Self(1);
    /// The host.
    pub const HOST: Self = Self(2);

    /// Whether a guest may carry this number.
    #[must_use]
    pub const fn is_guest(self) -> bool {
        self.0 > Self::HOST.0 && self.0 != Self::ANY.0
    }

    /// The CID in a 64-bit field of the wire: the upper half must be zero, and the wildcard is
    /// nobody's address.
    #[must_use]
    pub fn from_wire(field: u64) -> Option<Self> {
        match u32::try_from(field) {
            Ok(cid) if cid != Self::ANY.0 => Some(Self(cid)),
            Ok(_) | Err(_) => None,
        }
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ANY { f.write_str("any") } else { write!(f, "{}", self.0) }
    }
}

/// A port number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u32);

impl Port {
    /// The wildcard; never a bound port.
    pub const ANY: Self = Self(u32::MAX);
    /// The first port that needs no privilege.
    pub const FIRST_UNPRIVILEGED: Self = Self(1024);

    /// Whether binding it needs a privilege.
    #[must_use]
    pub const fn is_privileged(self) -> bool {
        self.0 < Self::FIRST_UNPRIVILEGED.0
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ANY { f.write_str("any") } else { write!(f, "{}", self.0) }
    }
}

/// CID and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The machine.
    pub cid: Cid,
    /// The port on it.
    pub port: Port,
}

impl Address {
    /// An address from its two numbers.
    #[must_use]
    pub const fn new(cid: u32, port: u32) -> Self {
        Self { cid: Cid(cid), port: Port(port) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.cid, self.port)
    }
}

/// What identifies a connection: both addresses, as this side sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// Our address: the destination of inbound packets.
    pub ours: Address,
    /// Their address: the source of inbound packets.
    pub theirs: Address,
}

impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - {}", self.ours, self.theirs)
    }
}

/// The kind of a socket; the numbers are those of the header field `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum SocketType {
    /// A stream of bytes.
    Stream = 1,
    /// Messages with boundaries, in order, over a connection.
    SeqPacket = 2,
    /// Single messages. No connection has this type: to connections a packet of it is malformed.
    Datagram = 3,
}

impl SocketType {
    /// The type that a packet may carry.
    #[must_use]
    pub const fn from_wire(field: u16) -> Option<Self> {
        match field {
            1 => Some(Self::Stream),
            2 => Some(Self::SeqPacket),
            _ => None,
        }
    }

    /// The number in the header.
    #[must_use]
    pub const fn to_wire(self) -> u16 {
        self as u16
    }
}

impl fmt::Display for SocketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stream => "stream",
            Self::SeqPacket => "seqpacket",
            Self::Datagram => "dgram",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn cid_reserved_numbers_are_no_guests() {
        for cid in [Cid::HYPERVISOR, Cid::LOCAL, Cid::HOST, Cid::ANY] {
            assert!(!cid.is_guest(), "{cid}");
        }
        assert!(Cid(3).is_guest());
        assert!(Cid(u32::MAX - 1).is_guest());
    }

    #[test]
    fn cid_field_with_upper_half_is_nobody() {
        assert_eq!(Cid::from_wire(3), Some(Cid(3)));
        for field in [u64::from(u32::MAX), 1 << 32, (1 << 32) | 3, u64::MAX] {
            assert_eq!(Cid::from_wire(field), None);
        }
    }

    #[test]
    fn address_prints_cid_and_port() {
        assert_eq!(Address::new(3, 5000).to_string(), "3:5000");
        assert_eq!(Address { cid: Cid::ANY, port: Port::ANY }.to_string(), "any:any");
    }
}
