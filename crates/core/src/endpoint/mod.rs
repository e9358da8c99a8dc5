//! placeholder
use crate::address::{FlowKey, SocketType};
use crate::connection::ConnectionInfo;
use crate::credit::Window;
use crate::packet::{Header, RawHeader, Shutdown};
use crate::state::CloseReason;
use crate::time::{Duration, Instant};

/// What one endpoint may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Receive buffer of a connection.
    pub buf_alloc: u32,
    /// Connections, in any state.
    pub max_connections: usize,
    /// Connections asked for and not answered, per direction.
    pub max_half_open: usize,
    /// Replies that wait for room on the link.
    pub max_replies: usize,
    /// How long REQUEST waits for an answer, unless `connect` says otherwise; also how long an
    /// offer waits for our user.
    pub connect_timeout: Duration,
    /// How long a closed connection waits for RST.
    pub close_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            buf_alloc: 262_144,
            max_connections: 4096,
            max_half_open: 256,
            max_replies: 256,
            connect_timeout: Duration::from_secs(2),
            close_timeout: Duration::from_secs(8),
        }
    }
}

/// Names one connection for ever: a slot and its generation. A stale id is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What the shell has to do with an inbound packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Received {
    /// Take `header.len` bytes of payload for this connection.
    Data(ConnectionId),
    /// Nothing; payload, if any, is skipped.
    Handled,
}

/// Why `connect` made no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// There is a connection between these addresses.
    InUse,
    /// A limit is reached.
    TooMany,
}

/// What our user is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer asks for a connection: answer with `accept` or `refuse`.
    Offered {
        /// The connection.
        id: ConnectionId,
        /// Both addresses.
        key: FlowKey,
        /// Socket type.
        kind: SocketType,
    },
    /// The peer accepted our connection.
    Connected {
        /// The connection.
        id: ConnectionId,
    },
    /// More may be sent than when `wants_to_send` was called.
    Writable {
        /// The connection.
        id: ConnectionId,
    },
    /// The peer shut directions down.
    TheirsShutDown {
        /// The connection.
        id: ConnectionId,
        /// All directions shut so far, as the peer sees them.
        flags: Shutdown,
    },
    /// The connection is over and its id dead.
    Closed {
        /// The connection.
        id: ConnectionId,
        /// Why.
        reason: CloseReason,
    },
}

/// Counters of an endpoint since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointStats {
    /// Connections at the moment.
    pub connections: u64,
}

impl EndpointStats {
    /// Every counter with its name.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 1] {
        [("connections", self.connections)]
    }
}

/// All connections between us and the other side of one link.
#[derive(Debug)]
pub struct Endpoint {
    limits: Limits,
}

#[allow(unused_variables, clippy::unused_self, missing_docs)]
impl Endpoint {
    /// An endpoint without connections; `hash_seed` must be unknown to the peer.
    #[must_use]
    pub fn new(limits: Limits, hash_seed: u64) -> Self {
        Self { limits }
    }
    /// Takes a packet that came over the link.
    pub fn receive(&mut self, now: Instant, header: &Header) -> Received {
        Received::Handled
    }
    /// Answers a packet that failed [`RawHeader::check`]; ends the connection whose stream of
    /// bytes it broke (`Malformed::Length`, or payload shorter than `len`).
    pub fn reject(&mut self, raw: &RawHeader) {}
    /// Whether there is room for the replies that the next inbound packet may cause; while not,
    /// leave packets in the ring.
    #[must_use]
    pub fn accepts_packets(&self) -> bool {
        true
    }
    /// Asks for a connection.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect(
        &mut self,
        now: Instant,
        key: FlowKey,
        kind: SocketType,
        timeout: Option<Duration>,
    ) -> Result<ConnectionId, ConnectError> {
        Err(ConnectError::TooMany)
    }
    /// Accepts an offered connection.
    pub fn accept(&mut self, id: ConnectionId) {}
    /// Refuses an offered connection; no event follows.
    pub fn refuse(&mut self, id: ConnectionId) {}
    /// Shuts directions down.
    pub fn shut_down(&mut self, now: Instant, id: ConnectionId, how: Shutdown) {}
    /// Our user is gone: closes in good order; `Closed` follows.
    pub fn close(&mut self, now: Instant, id: ConnectionId) {}
    /// Ends a connection at once with RST; no event follows.
    pub fn reset(&mut self, id: ConnectionId) {}
    /// Our user took data.
    pub fn consumed(&mut self, id: ConnectionId, bytes: u32, packets: u32) {}
    /// Changes our receive buffer of one connection.
    pub fn set_buf_alloc(&mut self, id: ConnectionId, bytes: u32) {}
    /// What may be sent now.
    #[must_use]
    pub fn window(&self, id: ConnectionId) -> Window {
        Window::default()
    }
    /// The longest message that can ever be sent (EMSGSIZE beyond).
    #[must_use]
    pub fn max_message(&self, id: ConnectionId) -> u32 {
        0
    }
    /// Accounts for one RW packet and makes its header; within `window`, else `None`.
    pub fn data_header(&mut self, id: ConnectionId, len: u32, flags: u32) -> Option<Header> {
        None
    }
    /// Our user has something to send that the window does not allow.
    pub fn wants_to_send(&mut self, now: Instant, id: ConnectionId) {}
    /// Whether there is a control packet to send.
    #[must_use]
    pub fn has_packet(&self) -> bool {
        false
    }
    /// The next control packet; call when the link has room.
    pub fn next_packet(&mut self) -> Option<RawHeader> {
        None
    }
    /// The next event.
    pub fn next_event(&mut self) -> Option<Event> {
        None
    }
    /// When `expire` is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        None
    }
    /// Does what is due at `now`.
    pub fn expire(&mut self, now: Instant) {}
    /// A snapshot of one connection.
    #[must_use]
    pub fn info(&self, id: ConnectionId) -> Option<ConnectionInfo> {
        None
    }
    /// Snapshots of all connections.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionInfo> + '_ {
        core::iter::empty()
    }
    /// Counters.
    #[must_use]
    pub fn stats(&self) -> EndpointStats {
        EndpointStats::default()
    }
    /// The link is gone: every connection ends with `Closed { LinkGone }`, nothing is sent.
    pub fn reset_all(&mut self) {}
}
