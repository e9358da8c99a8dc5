//! What an endpoint tells its shell: at once, about a packet or a command, and later, as events.

use super::ConnectionId;
use crate::address::{FlowKey, SocketType};
use crate::packet::Shutdown;
use crate::state::CloseReason;

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
    /// The peer shut directions down. Data received before is still to be read.
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

impl Event {
    /// The connection that it is about.
    #[must_use]
    pub const fn id(&self) -> ConnectionId {
        match *self {
            Self::Offered { id, .. }
            | Self::Connected { id }
            | Self::Writable { id }
            | Self::TheirsShutDown { id, .. }
            | Self::Closed { id, .. } => id,
        }
    }
}
