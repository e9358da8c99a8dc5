//! Messages of the client protocol, version 1: what programs and a node say to each other.
//!
//! `docs/reference/client-protocol.md` is the specification. Requests and replies are 32 bytes, so neither side has to
//! guess where one ends: four little-endian numbers of 64 bits, of which the first begins with version, operation and
//! flags (or errno). A field that a request does not use must be zero: a field that is ignored today cannot be given a meaning tomorrow.

use core::fmt;

use crate::options::INHERITED;
use crate::{Address, Errno};

/// Bytes in a request and in a reply.
pub const MESSAGE_LEN: usize = 32;

/// The version of the protocol.
pub const VERSION: u8 = 1;

/// Bytes behind a CONNECT that are its socket's SO_COOKIE.
pub const COOKIE_LEN: usize = 8;

/// Bytes that a client sends behind a held CONNECT, the cookie first: enough to keep a socket with the smallest send
/// buffer from being writable.
pub const HELD_EXTRA: usize = 2016;

/// Most bytes behind a request.
pub const MAX_EXTRA: usize = 4096;

/// Bytes that accepted sockets inherit: left with a LISTEN, given back with each ACCEPT.
pub const INHERITED_LEN: usize = size_of::<[u64; INHERITED]>();

/// Longest datagram: 17 pages less a header, as in VMCI.
pub const MAX_DATAGRAM: usize = 17 * 4096 - 24;

/// Longest name of a guest in bytes.
pub const MAX_NAME: usize = 255;

/// Where the length of a name stands in a held message.
const NAME_AT: usize = MESSAGE_LEN + COOKIE_LEN;

const FLAG_HELD: u16 = 1;
const FLAG_PROMPT: u16 = 2;
const FLAG_NAMED: u16 = 4;
const RECEIVE_SHUT: u32 = 1;

/// Numbers of the operations, in requests and replies.
#[allow(missing_docs, reason = "they are the specification's names")]
pub mod op {
    pub const BIND: u8 = 1;
    pub const CONNECT: u8 = 2;
    pub const LISTEN: u8 = 3;
    pub const ACCEPT: u8 = 4;
    pub const ACCEPTED: u8 = 5;
    pub const LOCAL_CID: u8 = 6;
    pub const RESOLVE: u8 = 7;
    pub const FLOW: u8 = 8;
    pub const SEND: u8 = 9;
    pub const RECEIVED: u8 = 10;
}

/// What a program asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reserve an address for this connection.
    Bind(Address),
    /// Connect; the same descriptor becomes the stream.
    Connect {
        /// The destination; only its port if `is_named`.
        to: Address,
        /// The destination is the guest whose name stands behind the request, behind the cookie: see [`name_behind`].
        is_named: bool,
        /// How long the other side may take to answer, in milliseconds; 0: the default.
        timeout_ms: u32,
        /// Receive buffer to announce, in bytes; 0: the default.
        buffer: u64,
        /// How the node reports the outcome.
        report: Report,
        /// Bytes behind the request: none, or a cookie, the name if there is one, and padding.
        extra: u32,
    },
    /// Take connections to the bound address.
    Listen {
        /// How many may wait to be accepted; one more is let in, as in the kernel.
        backlog: u32,
        /// Receive buffer of the connections, in bytes; 0: the default.
        buffer: u64,
        /// Bytes behind the request that come back with each connection: none, or [`INHERITED_LEN`].
        extra: u32,
    },
    /// The program has taken one ACCEPT.
    Accepted,
    /// The node's CID.
    LocalCid,
    /// The CID of the guest whose name is in the bytes behind the request.
    Resolve {
        /// Length of the name.
        len: u32,
    },
    /// How another socket's connection is, or how it ended; and changes to it.
    Flow {
        /// SO_COOKIE of its program's socket.
        cookie: u64,
        /// New receive buffer, in bytes; 0: leave it as it is.
        buffer: u64,
        /// Its program has called `shutdown(SHUT_RD)`.
        receive_shut: bool,
    },
    /// Send the bytes behind the request as a datagram.
    Send {
        /// The destination.
        to: Address,
        /// The sending socket: the number that the reply to its BIND gave.
        number: u64,
        /// Length of the datagram.
        len: u32,
    },
}

/// How the node reports the outcome of a CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// By a reply, whatever the outcome is.
    Reply,
    /// By taking the request out of the socket, which makes the socket writable; and by a reply before that if there
    /// is no connection.
    Held {
        /// A reply that the attempt has begun comes first.
        prompt: bool,
    },
}

impl Report {
    fn flags(self) -> u16 {
        match self {
            Self::Reply => 0,
            Self::Held { prompt: false } => FLAG_HELD,
            Self::Held { prompt: true } => FLAG_HELD | FLAG_PROMPT,
        }
    }

    fn from_flags(flags: u16) -> Option<Self> {
        [Self::Reply, Self::Held { prompt: false }, Self::Held { prompt: true }]
            .into_iter()
            .find(|report| report.flags() == flags)
    }
}

/// Why the node does not carry out a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// An unknown version.
    Version(u8),
    /// An unknown operation.
    Operation(u8),
    /// A field that must be zero is not, an unknown flag, or a length out of range.
    NotZero,
    /// Not 32 bytes and those that they announce: a message, or a request that must come in one piece.
    Length,
    /// An operation that the connection's state does not allow.
    Order,
    /// The program goes on asking and reads no replies.
    Unread,
}

impl fmt::Display for BadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "version {version} is not spoken here"),
            Self::Operation(op) => write!(f, "operation {op} is unknown"),
            Self::NotZero => f.write_str("a field has a value that it must not have"),
            Self::Length => f.write_str("a request of the wrong length"),
            Self::Order => f.write_str("a request out of order"),
            Self::Unread => f.write_str("its replies are not read"),
        }
    }
}

impl core::error::Error for BadRequest {}

impl Request {
    /// The number of its operation.
    #[must_use]
    pub fn op(&self) -> u8 {
        match self {
            Self::Bind(_) => op::BIND,
            Self::Connect { .. } => op::CONNECT,
            Self::Listen { .. } => op::LISTEN,
            Self::Accepted => op::ACCEPTED,
            Self::LocalCid => op::LOCAL_CID,
            Self::Resolve { .. } => op::RESOLVE,
            Self::Flow { .. } => op::FLOW,
            Self::Send { .. } => op::SEND,
        }
    }

    /// Bytes that belong to the request behind its 32.
    #[must_use]
    pub fn extra(&self) -> usize {
        self.extra_word() as usize
    }

    fn extra_word(&self) -> u32 {
        match *self {
            Self::Connect { extra, .. } | Self::Listen { extra, .. } => extra,
            Self::Resolve { len } | Self::Send { len, .. } => len,
            Self::Bind(_) | Self::Accepted | Self::LocalCid | Self::Flow { .. } => 0,
        }
    }

    /// The 32 bytes to send.
    #[must_use]
    pub fn encode(&self) -> [u8; MESSAGE_LEN] {
        let (flags, [first, second], value, buffer) = match *self {
            Self::Bind(Address { cid, port }) => (0, [cid, port], 0, 0),
            Self::Connect {
                to: Address { cid, port },
                is_named,
                timeout_ms,
                buffer,
                report,
                ..
            } => {
                let named = if is_named { FLAG_NAMED } else { 0 };
                (report.flags() | named, [cid, port], timeout_ms, buffer)
            }
            Self::Listen { backlog, buffer, .. } => (0, [0; 2], backlog, buffer),
            Self::Accepted | Self::LocalCid | Self::Resolve { .. } => (0, [0; 2], 0, 0),
            Self::Flow { cookie, buffer, receive_shut } => {
                (0, halves(cookie), if receive_shut { RECEIVE_SHUT } else { 0 }, buffer)
            }
            Self::Send { to: Address { cid, port }, number, .. } => (0, [cid, port], 0, number),
        };
        let head = head(self.op(), flags);
        from_numbers([join(head, first), join(second, value), buffer, self.extra_word().into()])
    }

    /// Reads a request.
    ///
    /// # Errors
    /// [`BadRequest::Version`], [`BadRequest::Operation`] or [`BadRequest::NotZero`].
    pub fn decode(bytes: &[u8; MESSAGE_LEN]) -> Result<Self, BadRequest> {
        let [version, op, flags @ ..] = first_bytes(bytes);
        if version != VERSION {
            return Err(BadRequest::Version(version));
        }
        let flags = u16::from_le_bytes(flags);
        let [a, b, buffer, c] = to_numbers(bytes);
        let ([_, first], [second, value], [extra, last]) = (halves(a), halves(b), halves(c));
        let address = Address { cid: first, port: second };
        let len = extra as usize;
        let no_address = first == 0 && second == 0;
        let no_numbers = value == 0 && buffer == 0;
        let is_clean = flags == 0 && extra == 0;
        let is_bare = is_clean && no_address && no_numbers;
        let (request, is_valid) = match op {
            op::BIND => (Self::Bind(address), is_clean && no_numbers),
            op::CONNECT => {
                let is_named = flags & FLAG_NAMED != 0;
                let report = Report::from_flags(flags & !FLAG_NAMED).ok_or(BadRequest::NotZero)?;
                let has_cookie = (COOKIE_LEN..=MAX_EXTRA).contains(&len);
                let is_valid = if is_named {
                    has_cookie && len > COOKIE_LEN && first == 0
                } else {
                    has_cookie || (len == 0 && report == Report::Reply)
                };
                let (to, timeout_ms) = (address, value);
                (Self::Connect { to, is_named, timeout_ms, buffer, report, extra }, is_valid)
            }
            op::LISTEN => {
                let is_valid = flags == 0 && no_address && (len == 0 || len == INHERITED_LEN);
                (Self::Listen { backlog: value, buffer, extra }, is_valid)
            }
            op::ACCEPTED => (Self::Accepted, is_bare),
            op::LOCAL_CID => (Self::LocalCid, is_bare),
            op::RESOLVE => {
                let is_valid = flags == 0 && no_address && no_numbers;
                (Self::Resolve { len: extra }, is_valid && (1..=MAX_NAME).contains(&len))
            }
            op::FLOW => {
                let (cookie, receive_shut) = (join(first, second), value == RECEIVE_SHUT);
                let request = Self::Flow { cookie, buffer, receive_shut };
                (request, is_clean && (receive_shut || value == 0))
            }
            op::SEND => {
                let request = Self::Send { to: address, number: buffer, len: extra };
                (request, flags == 0 && value == 0 && len <= MAX_DATAGRAM)
            }
            other => return Err(BadRequest::Operation(other)),
        };
        if is_valid && last == 0 { Ok(request) } else { Err(BadRequest::NotZero) }
    }
}

/// A held CONNECT as it is sent, in one piece: the request, the socket's cookie, the name if there is one, and padding. What
/// does not fit of a name, which has at most [`MAX_NAME`] bytes, is cut.
#[must_use]
pub fn held_message(
    request: &Request,
    cookie: u64,
    name: Option<&[u8]>,
) -> [u8; MESSAGE_LEN + HELD_EXTRA] {
    let mut message = [0; MESSAGE_LEN + HELD_EXTRA];
    message[..MESSAGE_LEN].copy_from_slice(&request.encode());
    message[MESSAGE_LEN..NAME_AT].copy_from_slice(&cookie.to_le_bytes());
    if let Some(name) = name {
        let len = name.len().min(MAX_NAME);
        message[NAME_AT] = u8::try_from(len).unwrap_or(u8::MAX);
        for (to, from) in message[NAME_AT + 1..].iter_mut().zip(&name[..len]) {
            *to = *from;
        }
    }
    message
}

/// The name behind a CONNECT that has one: a byte with its length, and so many bytes; `None` if it is cut.
#[must_use]
pub fn name_behind(extra: &[u8]) -> Option<&[u8]> {
    let (&len, rest) = extra.get(COOKIE_LEN..)?.split_first()?;
    rest.get(..len.into())
}

/// What a node says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The operation that it answers.
    pub op: u8,
    /// 0, or the errno that AF_VSOCK would give.
    pub errno: u16,
    /// The program's end.
    pub ours: Address,
    /// The other end.
    pub theirs: Address,
    /// The longest message: the other side's receive buffer, or ours if that is smaller; in bytes.
    pub peer_buffer: u32,
    /// The flow's number in listings, or that of a datagram socket; of a CONNECT with an errno the socket's cookie.
    pub flow: u64,
}

impl Reply {
    /// The success of operation `op`, at our address.
    #[must_use]
    pub fn ok(op: u8, ours: Address) -> Self {
        Self { op, errno: 0, ours, theirs: Address::ANY, peer_buffer: 0, flow: 0 }
    }

    /// The failure of operation `op`.
    #[must_use]
    pub fn error(op: u8, Errno(errno): Errno) -> Self {
        let errno = u16::try_from(errno).unwrap_or(u16::MAX);
        Self { errno, ..Self::ok(op, Address::ANY) }
    }

    /// A CONNECT of the socket with this cookie that has led to no connection (yet); the socket is bound to `ours`.
    #[must_use]
    pub fn not_connected(errno: Errno, ours: Address, cookie: u64) -> Self {
        Self { ours, flow: cookie, ..Self::error(op::CONNECT, errno) }
    }

    /// The reply, if it says that the request was carried out; else the error that it gives.
    ///
    /// # Errors
    /// The node's errno.
    pub fn result(self) -> Result<Self, Errno> {
        match self.errno {
            0 => Ok(self),
            errno => Err(Errno(errno.into())),
        }
    }

    /// Whether this says that the CONNECT of the socket with this cookie has led to no connection.
    #[must_use]
    pub fn ends_connect_of(&self, cookie: u64) -> bool {
        self.op == op::CONNECT && self.errno != 0 && self.flow == cookie
    }

    /// The 32 bytes to send.
    #[must_use]
    pub fn encode(&self) -> [u8; MESSAGE_LEN] {
        let (ours, theirs) = (self.ours, self.theirs);
        from_numbers([
            join(head(self.op, self.errno), ours.cid),
            join(ours.port, theirs.cid),
            join(theirs.port, self.peer_buffer),
            self.flow,
        ])
    }

    /// Reads the reply to operation `op`.
    ///
    /// # Errors
    /// EPROTO: a message of another version, or a reply to something else.
    pub fn decode(bytes: &[u8; MESSAGE_LEN], op: u8) -> Result<Self, Errno> {
        let [version, answered, errno @ ..] = first_bytes(bytes);
        if version != VERSION || answered != op {
            return Err(Errno::PROTO);
        }
        let [a, b, c, flow] = to_numbers(bytes);
        let ([_, our_cid], [our_port, their_cid]) = (halves(a), halves(b));
        let [their_port, peer_buffer] = halves(c);
        Ok(Self {
            op,
            errno: u16::from_le_bytes(errno),
            ours: Address { cid: our_cid, port: our_port },
            theirs: Address { cid: their_cid, port: their_port },
            peer_buffer,
            flow,
        })
    }
}

fn first_bytes(bytes: &[u8; MESSAGE_LEN]) -> [u8; 4] {
    let [first, second, third, fourth, ..] = *bytes;
    [first, second, third, fourth]
}

fn head(op: u8, flags: u16) -> u32 {
    let [lower, upper] = flags.to_le_bytes();
    u32::from_le_bytes([VERSION, op, lower, upper])
}

fn from_numbers(numbers: [u64; MESSAGE_LEN / 8]) -> [u8; MESSAGE_LEN] {
    let mut bytes = [0; MESSAGE_LEN];
    for (place, number) in bytes.as_chunks_mut().0.iter_mut().zip(numbers) {
        *place = number.to_le_bytes();
    }
    bytes
}

fn to_numbers(bytes: &[u8; MESSAGE_LEN]) -> [u64; MESSAGE_LEN / 8] {
    let mut numbers = [0; MESSAGE_LEN / 8];
    for (number, place) in numbers.iter_mut().zip(bytes.as_chunks().0) {
        *number = u64::from_le_bytes(*place);
    }
    numbers
}

/// Lower and upper half.
fn halves(number: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

fn join(lower: u32, upper: u32) -> u64 {
    u64::from(lower) | u64::from(upper) << 32
}

#[cfg(test)]
mod tests;
