//! The endpoint protocol, version 1: what host programs and a node say to each other (pure).
//!
//! `docs/reference/endpoint-protocol.md` is the specification. Requests and replies are 32 bytes, little endian, so
//! that neither side ever has to guess where one ends. Fields that a request does not use must be zero: what is
//! ignored today cannot be given a meaning tomorrow.

use vsock_core::{Address, Cid, Port};

/// Length of every request and reply in bytes.
pub(crate) const MESSAGE_LEN: usize = 32;

/// The version this node speaks.
pub(crate) const VERSION: u8 = 1;

/// Flag of a CONNECT request: it stays unread, with all that is behind it, until its outcome is known.
const FLAG_HELD: u16 = 1;

/// Flag of a held CONNECT request: say at once that the attempt has begun.
const FLAG_PROMPT: u16 = 2;

/// Bytes behind a CONNECT that are its socket's SO_COOKIE.
pub(crate) const COOKIE_LEN: usize = 8;

/// Value of a FLOW request: the connection's program receives no more.
const FLOW_REFUSES: u32 = 1;

/// Most bytes behind a request.
pub(crate) const MAX_EXTRA: usize = 4096;

/// Longest datagram: 17 pages less a header, as in VMCI.
pub(crate) const MAX_DATAGRAM: usize = 17 * 4096 - 24;

/// Length of what accepted sockets inherit: four numbers that mean something to programs only.
pub(crate) const INHERITED_LEN: usize = 32;

/// Longest name of a guest in bytes.
pub(crate) const MAX_NAME: usize = 255;

/// What a host program may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Reserve an address for this connection.
    Bind(Address),
    /// Connect; the same descriptor becomes the stream.
    Connect {
        /// Where to.
        to: Address,
        /// How long to wait for an answer, milliseconds; 0: default.
        timeout_ms: u32,
        /// Receive buffer to announce, bytes; 0: default.
        buffer: u64,
        /// How its program is told what became of it.
        how: Telling,
        /// Bytes behind the request: none, or a cookie and padding.
        extra: usize,
    },
    /// Take connections to the bound address.
    Listen {
        /// How many may wait unaccepted (one more is let in, as the kernel does).
        backlog: u32,
        /// Receive buffer of the connections, bytes; 0: default.
        buffer: u64,
        /// Bytes behind the request that are given back with each connection, 0 or all.
        extra: usize,
    },
    /// One connection handed over has been taken by the program.
    Accepted,
    /// Which CID is ours?
    LocalCid,
    /// How is, or how ended, the connection of that socket; and give it another receive buffer.
    Flow {
        /// SO_COOKIE of its program's socket.
        cookie: u64,
        /// Receive buffer, bytes; 0: as it is.
        buffer: u64,
        /// Its program receives no more.
        refuses: bool,
    },
    /// Send a datagram.
    Send {
        /// Where to.
        to: Address,
        /// From which socket: the number that its BIND gave.
        number: u64,
        /// Its length.
        len: usize,
    },
    /// Which CID has the guest whose name is in the bytes behind the request?
    Resolve {
        /// Length of the name.
        len: usize,
    },
}

/// How a program is told what became of its CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Telling {
    /// By a reply, whatever it is.
    Reply,
    /// The request is taken out of the socket, which makes that writable; before it a reply, if there is no connection.
    Held {
        /// A reply that the attempt has begun comes first.
        prompt: bool,
    },
}

/// Why 32 bytes are not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    /// First byte.
    #[error("version {0} is not spoken here")]
    Version(u8),
    /// Second byte.
    #[error("operation {0} is unknown")]
    Operation(u8),
    /// A field that must be zero, a flag nobody defined, or a length out of range.
    #[error("a field has a value that it must not have")]
    NotZero,
    /// Not 32 bytes and what they announce: a message, or something that must come in one piece.
    #[error("a request of the wrong length")]
    Length,
    /// A request that makes no sense here.
    #[error("a request out of order")]
    Order,
    /// Requests without end, and nobody takes the replies.
    #[error("its replies are not read")]
    Unread,
}

/// Numbers of the operations, in requests and replies.
pub(crate) mod op {
    pub(crate) const BIND: u8 = 1;
    pub(crate) const CONNECT: u8 = 2;
    pub(crate) const LISTEN: u8 = 3;
    pub(crate) const ACCEPT: u8 = 4;
    pub(crate) const ACCEPTED: u8 = 5;
    pub(crate) const LOCAL_CID: u8 = 6;
    pub(crate) const RESOLVE: u8 = 7;
    pub(crate) const FLOW: u8 = 8;
    pub(crate) const SEND: u8 = 9;
    pub(crate) const RECEIVED: u8 = 10;
}

fn u32_at(bytes: &[u8; MESSAGE_LEN], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; MESSAGE_LEN], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | (u64::from(u32_at(bytes, at + 4)) << 32)
}

impl Request {
    /// Reads a request.
    pub(crate) fn parse(bytes: &[u8; MESSAGE_LEN]) -> Result<Self, BadRequest> {
        if bytes[0] != VERSION {
            return Err(BadRequest::Version(bytes[0]));
        }
        let flags = u16::from_le_bytes([bytes[2], bytes[3]]);
        let address = Address { cid: Cid(u32_at(bytes, 4)), port: Port(u32_at(bytes, 8)) };
        let (value, buffer) = (u32_at(bytes, 12), u64_at(bytes, 16));
        let (extra, last) = (u32_at(bytes, 24) as usize, u32_at(bytes, 28));
        let no_address = u64_at(bytes, 4) == 0;
        let no_numbers = value == 0 && buffer == 0;
        let is_clean = flags == 0 && extra == 0 && last == 0;
        let is_bare = is_clean && no_address && no_numbers;
        let (request, is_valid) = match bytes[1] {
            op::BIND => (Self::Bind(address), is_clean && no_numbers),
            op::CONNECT => {
                let how = match flags & FLAG_HELD {
                    0 => Telling::Reply,
                    _ => Telling::Held { prompt: flags & FLAG_PROMPT != 0 },
                };
                let may_flags = [0, FLAG_HELD, FLAG_HELD | FLAG_PROMPT].contains(&flags);
                let is_whole = (COOKIE_LEN..=MAX_EXTRA).contains(&extra);
                let is_valid = may_flags && (is_whole || extra == 0 && flags == 0) && last == 0;
                (Self::Connect { to: address, timeout_ms: value, buffer, how, extra }, is_valid)
            }
            op::LISTEN => {
                let is_valid = flags == 0 && last == 0 && no_address;
                let request = Self::Listen { backlog: value, buffer, extra };
                (request, is_valid && (extra == 0 || extra == INHERITED_LEN))
            }
            op::FLOW => {
                let refuses = value == FLOW_REFUSES;
                let request = Self::Flow { cookie: u64_at(bytes, 4), buffer, refuses };
                (request, is_clean && (refuses || value == 0))
            }
            op::ACCEPTED => (Self::Accepted, is_bare),
            op::LOCAL_CID => (Self::LocalCid, is_bare),
            op::SEND => {
                let is_valid = flags == 0 && value == 0 && extra <= MAX_DATAGRAM && last == 0;
                (Self::Send { to: address, number: buffer, len: extra }, is_valid)
            }
            op::RESOLVE => {
                let valid = (1..=MAX_NAME).contains(&extra) && flags == 0 && no_address;
                (Self::Resolve { len: extra }, valid && no_numbers && last == 0)
            }
            other => return Err(BadRequest::Operation(other)),
        };
        if is_valid { Ok(request) } else { Err(BadRequest::NotZero) }
    }

    /// The number of its operation.
    pub(crate) fn op(&self) -> u8 {
        match self {
            Self::Bind(_) => op::BIND,
            Self::Connect { .. } => op::CONNECT,
            Self::Listen { .. } => op::LISTEN,
            Self::Accepted => op::ACCEPTED,
            Self::LocalCid => op::LOCAL_CID,
            Self::Flow { .. } => op::FLOW,
            Self::Send { .. } => op::SEND,
            Self::Resolve { .. } => op::RESOLVE,
        }
    }

    /// Bytes that belong to the request behind its 32.
    pub(crate) fn extra(&self) -> usize {
        match self {
            Self::Connect { extra, .. } | Self::Listen { extra, .. } => *extra,
            Self::Resolve { len } | Self::Send { len, .. } => *len,
            Self::Bind(_) | Self::Accepted | Self::LocalCid | Self::Flow { .. } => 0,
        }
    }
}

/// What a node answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Which operation this answers.
    pub(crate) op: u8,
    /// 0, or what AF_VSOCK would give.
    pub(crate) errno: i32,
    /// Our end.
    pub(crate) ours: Address,
    /// Their end.
    pub(crate) theirs: Address,
    /// The peer's receive buffer in bytes: the longest message it can take.
    pub(crate) peer_buffer: u32,
    /// The flow's number in listings; the socket's cookie where a CONNECT came to nothing.
    pub(crate) flow: u64,
}

/// "No address": what a reply holds where none applies.
pub(crate) const NOWHERE: Address = Address { cid: Cid::ANY, port: Port::ANY };

impl Reply {
    /// A refusal of operation `op`.
    pub(crate) fn error(op: u8, errno: rustix::io::Errno) -> Self {
        Self { errno: errno.raw_os_error(), ..Self::ok(op, NOWHERE) }
    }

    /// A CONNECT of the socket with this cookie that is no connection (yet, or at all); the socket is bound to `ours`.
    pub(crate) fn not_connected(errno: rustix::io::Errno, ours: Address, cookie: u64) -> Self {
        Self { ours, flow: cookie, ..Self::error(op::CONNECT, errno) }
    }

    /// The answer to a request that is none.
    pub(crate) fn bad_request(op: u8) -> Self {
        Self::error(op, rustix::io::Errno::PROTO)
    }

    /// Success of operation `op` at our address.
    pub(crate) fn ok(op: u8, ours: Address) -> Self {
        Self { op, errno: 0, ours, theirs: NOWHERE, peer_buffer: 0, flow: 0 }
    }

    /// The bytes on the socket.
    pub(crate) fn encode(&self) -> [u8; MESSAGE_LEN] {
        let mut bytes = [0; MESSAGE_LEN];
        bytes[0] = VERSION;
        bytes[1] = self.op;
        let errno = u16::try_from(self.errno).unwrap_or(u16::MAX);
        bytes[2..4].copy_from_slice(&errno.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.ours.cid.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.ours.port.0.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.theirs.cid.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.theirs.port.0.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.peer_buffer.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.flow.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect_bytes() -> [u8; MESSAGE_LEN] {
        let mut bytes = [0; MESSAGE_LEN];
        bytes[0] = 1;
        bytes[1] = op::CONNECT;
        bytes[4] = 3;
        bytes[8..12].copy_from_slice(&5000u32.to_le_bytes());
        bytes
    }

    #[test]
    fn connect_request_is_read_field_by_field() {
        let mut bytes = connect_bytes();
        bytes[12..16].copy_from_slice(&1500u32.to_le_bytes());
        bytes[16..24].copy_from_slice(&65536u64.to_le_bytes());
        let expected = Request::Connect {
            to: Address { cid: Cid(3), port: Port(5000) },
            timeout_ms: 1500,
            buffer: 65536,
            how: Telling::Reply,
            extra: 0,
        };
        assert_eq!(Request::parse(&bytes), Ok(expected));
    }

    #[test]
    fn wrong_version_operation_and_flags_are_told_apart() {
        let mut bytes = connect_bytes();
        bytes[0] = 9;
        assert_eq!(Request::parse(&bytes), Err(BadRequest::Version(9)));
        bytes = connect_bytes();
        bytes[1] = 77;
        assert_eq!(Request::parse(&bytes), Err(BadRequest::Operation(77)));
        bytes = connect_bytes();
        bytes[2] = 4;
        assert_eq!(Request::parse(&bytes), Err(BadRequest::NotZero));
        bytes = connect_bytes();
        bytes[24] = 1;
        assert_eq!(Request::parse(&bytes), Err(BadRequest::NotZero));
    }

    #[test]
    fn connect_request_is_held_only_with_a_cookie_behind_it() {
        let held = |prompt| Some(Telling::Held { prompt });
        let table = [
            (0, 0, Some(Telling::Reply)),
            (0, 8, Some(Telling::Reply)),
            (1, 2016, held(false)),
            (3, 2016, held(true)),
            (1, 4096, held(false)),
            (1, 4097, None),
            (1, 0, None),
            (0, 7, None),
            (2, 8, None),
            (4, 8, None),
        ];
        for (flags, extra, expected) in table {
            let mut bytes = connect_bytes();
            bytes[2] = flags;
            bytes[24..28].copy_from_slice(&u32::to_le_bytes(extra));
            let how = match Request::parse(&bytes) {
                Ok(Request::Connect { how, .. }) => Some(how),
                _ => None,
            };
            assert_eq!(how, expected, "{flags} {extra}");
        }
    }

    #[test]
    fn listen_request_has_all_that_is_inherited_behind_it_or_nothing() {
        let mut bytes = [0; MESSAGE_LEN];
        bytes[..2].copy_from_slice(&[VERSION, op::LISTEN]);
        for (extra, is_valid) in [(0, true), (32, true), (31, false), (64, false)] {
            bytes[24] = extra;
            let request = Request::parse(&bytes);
            assert_eq!(request.is_ok(), is_valid, "{extra}");
            assert!(request.is_err() || request.unwrap().extra() == usize::from(extra));
        }
    }

    #[test]
    fn flow_request_may_say_that_its_program_receives_no_more() {
        let mut bytes = [0; MESSAGE_LEN];
        bytes[..2].copy_from_slice(&[VERSION, op::FLOW]);
        bytes[4] = 7;
        let request = |refuses| Ok(Request::Flow { cookie: 7, buffer: 0, refuses });
        assert_eq!(Request::parse(&bytes), request(false));
        bytes[12] = 1;
        assert_eq!(Request::parse(&bytes), request(true));
        bytes[12] = 2;
        assert_eq!(Request::parse(&bytes), Err(BadRequest::NotZero));
    }

    #[test]
    fn byte_that_an_operation_does_not_use_must_be_zero() {
        // From the table of the specification: what each operation uses, in words of four bytes.
        let used: [(u8, &[usize]); 6] = [
            (op::BIND, &[1, 2]),
            (op::LISTEN, &[3, 4, 5]),
            (op::ACCEPTED, &[]),
            (op::LOCAL_CID, &[]),
            (op::RESOLVE, &[6]),
            (op::FLOW, &[1, 2, 3, 4, 5]),
        ];
        for (op, used) in used {
            let mut bytes = [0; MESSAGE_LEN];
            (bytes[0], bytes[1]) = (VERSION, op);
            if op == op::RESOLVE {
                bytes[24] = 5;
            }
            assert!(Request::parse(&bytes).is_ok(), "{op}");
            for at in (2..MESSAGE_LEN).filter(|at| !used.contains(&(at / 4))) {
                bytes[at] = 1;
                assert_eq!(Request::parse(&bytes), Err(BadRequest::NotZero), "{op}: {at}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn reply_has_each_field_where_the_specification_says() {
        let reply = Reply {
            op: op::ACCEPT,
            errno: 0,
            ours: Address { cid: Cid(2), port: Port(80) },
            theirs: Address { cid: Cid(3), port: Port(1024) },
            peer_buffer: 0x0004_0000,
            flow: 7,
        };
        let bytes = reply.encode();
        assert_eq!(&bytes[..4], &[1, 4, 0, 0]);
        assert_eq!(u32_at(&bytes, 4), 2);
        assert_eq!(u32_at(&bytes, 16), 1024);
        assert_eq!(u32_at(&bytes, 20), 262_144);
        assert_eq!(u64_at(&bytes, 24), 7);
    }
}
