//! What waits for room on the link: replies that belong to no connection, and the queue of
//! connections that have something to say.
//!
//! Replies go first. So a RST for the end of a connection leaves before a REQUEST that uses its
//! addresses again. Each connection stands in the queue once and says one packet per turn.

use super::{Limits, SlotId};
use crate::packet::RawHeader;
use alloc::collections::VecDeque;

/// Entries of dead connections below this number are not worth a clean-up.
const FEW: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    replies: VecDeque<RawHeader>,
    speakers: VecDeque<SlotId>,
    /// Connections that have something to say; `speakers` may hold others as well.
    pub(super) ready: usize,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty() && self.ready == 0
    }

    /// Queues the answer to a packet that no connection answers. `false`: no room.
    pub(super) fn reply(&mut self, reply: RawHeader, limits: &Limits) -> bool {
        self.push(reply, limits.max_replies)
    }

    /// Queues the RST that ends a connection. There is more room for these, as each takes a
    /// connection to make.
    pub(super) fn last_word(&mut self, reset: RawHeader, limits: &Limits) -> bool {
        self.push(reset, limits.max_replies.saturating_add(limits.max_connections))
    }

    fn push(&mut self, packet: RawHeader, most: usize) -> bool {
        let has_room = self.replies.len() < most;
        if has_room {
            self.replies.push_back(packet);
        }
        has_room
    }

    pub(super) fn next_reply(&mut self) -> Option<RawHeader> {
        self.replies.pop_front()
    }

    pub(super) fn enqueue(&mut self, id: SlotId) {
        self.speakers.push_back(id);
    }

    pub(super) fn next_speaker(&mut self) -> Option<SlotId> {
        self.speakers.pop_front()
    }

    /// Forgets connections that are gone, when they are the majority.
    pub(super) fn clean(&mut self, live: usize, is_alive: impl Fn(SlotId) -> bool) {
        if self.speakers.len() > FEW + 2 * live {
            self.speakers.retain(|id| is_alive(*id));
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
