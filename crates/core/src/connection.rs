//! placeholder
use crate::address::{FlowKey, SocketType};
use crate::endpoint::ConnectionId;
use crate::time::Instant;
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
}
