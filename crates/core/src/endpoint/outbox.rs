//! What waits for room on the link: replies that belong to no connection, and the queue of
//! connections that have something to say.
//!
//! Replies go first. So a RST for the end of a connection leaves before a REQUEST that uses its
//! addresses again. Each connection stands in the queue once and says one packet per turn.

use super::{ConnectionId, Limits};
use crate::packet::RawHeader;
use alloc::collections::VecDeque;

/// Entries of dead connections below this number are not worth a clean-up.
const FEW: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// RSTs that end connections of ours.
    last_words: VecDeque<RawHeader>,
    /// RSTs that answer packets of no connection.
    replies: VecDeque<RawHeader>,
    speakers: VecDeque<ConnectionId>,
    /// Connections that have something to say; `speakers` may hold others as well.
    pub(super) ready: usize,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.last_words.is_empty() && self.replies.is_empty() && self.ready == 0
    }

    /// Whether one more answer to a packet of no connection has room.
    pub(super) fn has_room(&self, limits: &Limits) -> bool {
        self.replies.len() < limits.max_replies
    }

    /// Queues the answer to a packet that no connection answers. `false`: no room.
    pub(super) fn reply(&mut self, reply: RawHeader, limits: &Limits) -> bool {
        let has_room = self.has_room(limits);
        if has_room {
            self.replies.push_back(reply);
        }
        has_room
    }

    /// Queues the RST that ends a connection. These have room of their own, as much as there may
    /// be connections: a peer that provokes replies cannot keep them from leaving.
    pub(super) fn last_word(&mut self, reset: RawHeader, limits: &Limits) -> bool {
        let has_room = self.last_words.len() < limits.max_connections;
        if has_room {
            self.last_words.push_back(reset);
        }
        has_room
    }

    pub(super) fn next_reply(&mut self) -> Option<RawHeader> {
        self.last_words.pop_front().or_else(|| self.replies.pop_front())
    }

    pub(super) fn last_words(&self) -> impl Iterator<Item = RawHeader> + '_ {
        self.last_words.iter().copied()
    }

    pub(super) fn replies(&self) -> impl Iterator<Item = RawHeader> + '_ {
        self.replies.iter().copied()
    }

    /// Who stands in the queue; some may be gone.
    pub(super) fn speakers(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.speakers.iter().copied()
    }

    pub(super) fn enqueue(&mut self, id: ConnectionId) {
        self.speakers.push_back(id);
    }

    pub(super) fn next_speaker(&mut self) -> Option<ConnectionId> {
        self.speakers.pop_front()
    }

    /// Forgets connections that are gone, when they are the majority.
    pub(super) fn clean(&mut self, live: usize, is_alive: impl Fn(ConnectionId) -> bool) {
        if self.speakers.len() > FEW + 2 * live {
            self.speakers.retain(|id| is_alive(*id));
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
