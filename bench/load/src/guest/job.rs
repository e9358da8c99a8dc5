//! Orders to a machine that take time.

use vsock_core::ConnectionId;

use super::flow::Flow;
use crate::Result;
use crate::clock::{self, Durations};
use crate::orders::Order;

/// An order that takes time.
pub(super) enum Job {
    /// Until `count` flows of the group are open.
    Dial { group: u32, count: usize },
    /// Until `end`: send.
    Source { group: u32, size: usize, start: u64, end: u64, bytes: u64 },
    /// Until `end`: send, wait for as much to come back.
    Ping {
        id: ConnectionId,
        size: usize,
        start: u64,
        end: u64,
        sent_at: u64,
        back: usize,
        times: Durations,
    },
}

impl Job {
    /// Reads a `source` order.
    pub(super) fn source(order: &Order) -> Result<Self> {
        let start = clock::now();
        let end = start + clock::nanoseconds(order.number(3)?);
        Ok(Self::Source { group: order.number(1)?, size: order.number(2)?, start, end, bytes: 0 })
    }

    /// Whether the order needs a flow: it cannot be carried out when that ends.
    pub(super) fn needs(&self, flow: &Flow) -> bool {
        match self {
            Self::Dial { group, .. } | Self::Source { group, .. } => flow.group == *group,
            Self::Ping { id, .. } => flow.id == *id,
        }
    }

    /// When its time is over.
    pub(super) fn end(&self) -> Option<u64> {
        match self {
            Self::Dial { .. } => None,
            Self::Source { end, .. } | Self::Ping { end, .. } => Some(*end),
        }
    }

    /// Whether it is carried out; `open_in` counts the open flows of a group.
    pub(super) fn is_over(&self, now: u64, open_in: impl Fn(u32) -> usize) -> bool {
        match self {
            Self::Dial { group, count } => open_in(*group) >= *count,
            Self::Source { end, .. } => now >= *end,
            // The last echo is waited for, so that the flow is quiet afterwards.
            Self::Ping { end, size, back, .. } => now >= *end && *back >= *size,
        }
    }

    /// What to say about it.
    pub(super) fn answer(self, now: u64) -> String {
        match self {
            Self::Dial { count, .. } => format!("\"open\": {count}"),
            Self::Source { start, bytes, .. } => {
                format!("\"bytes\": {bytes}, \"seconds\": {:.6}", clock::seconds(now - start))
            }
            Self::Ping { start, times, .. } => times.json(now - start),
        }
    }
}
