//! The connections of a link that have something to send, by turns.

use std::collections::VecDeque;

use vsock_core::connection::Connection;
use vsock_core::{ConnectionId, Endpoint, SecondaryMap};

/// Entries of ended connections below this number are not worth a clean-up.
const FEW: usize = 64;

/// Connections that wait for their turn, each once. Those that have ended meanwhile are passed over.
#[derive(Debug)]
pub(super) struct Ready {
    queue: VecDeque<ConnectionId>,
    queued: SecondaryMap<Connection, ()>,
    /// The length at which it pays to look for those that have ended.
    clean_at: usize,
}

impl Default for Ready {
    fn default() -> Self {
        Self { queue: VecDeque::new(), queued: SecondaryMap::new(), clean_at: FEW }
    }
}

impl Ready {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Those that wait, in the order of their turns.
    pub(super) fn iter(&self) -> impl Iterator<Item = ConnectionId> {
        self.queue.iter().copied()
    }

    /// Whether a connection waits.
    pub(super) fn contains(&self, id: ConnectionId) -> bool {
        self.queued.get(id).is_some()
    }

    /// A connection has something to send, after the others.
    pub(super) fn push(&mut self, id: ConnectionId, endpoint: &Endpoint) {
        if self.queued.insert(id, ()).is_some() {
            return;
        }
        if self.queue.len() >= self.clean_at {
            self.queue.retain(|&id| endpoint.info(id).is_some());
            self.clean_at = FEW + 2 * self.queue.len();
        }
        self.queue.push_back(id);
    }

    /// One whose turn found no room keeps its place.
    pub(super) fn push_first(&mut self, id: ConnectionId) {
        if self.queued.insert(id, ()).is_none() {
            self.queue.push_front(id);
        }
    }

    /// The next one.
    pub(super) fn pop(&mut self) -> Option<ConnectionId> {
        let id = self.queue.pop_front()?;
        self.queued.remove(id);
        Some(id)
    }
}
