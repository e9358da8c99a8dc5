//! Packets of other guests that found no room in a ring: a queue per sender, served round robin.
//!
//! A sender's turn is [`TURN`] bytes, each packet counted as [`PACKET_COST`] more. A piece of a packet may be longer than
//! what is left of a turn; its sender then skips as many turns as that was worth (deficit round robin). So a packet of one
//! sender waits for at most one turn of each other sender, whatever these have queued.
//!
//! While packets wait, no packet goes straight into the ring, also none of a sender that has nothing here: its turn comes
//! soon, and it must not take the room that a turn of another sender needs.
//!
//! What one sender may store depends on what all have stored: half of what is left of [`LIMIT`]. One alone gets a third of
//! the whole, and several share it, and a part is always left for the next, and for every RST: a connection that has ended
//! must not look open. The relay grants credit by a like rule (`core/relay/grants.rs`), so the limit is for packets that
//! need no credit.

mod queue;
mod saved;

use std::collections::{BTreeMap, VecDeque};

use vsock_core::{Cid, Op};

use self::queue::Queue;
pub(super) use self::queue::Stored;
pub use self::saved::{SavedPacket, SavedSender};

/// Bytes of all senders that may wait for room in one ring.
const LIMIT: usize = 192 << 20;

/// What a packet costs its sender besides its bytes, as the receiver may have tiny buffers.
pub(super) const PACKET_COST: usize = 256;

/// Bytes of one sender's turn, with [`PACKET_COST`] for each packet: a buffer as Linux has them, or 17 packets without
/// payload.
const TURN: i64 = 4096 + 256;

/// Packets that wait for room.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// By sender: those with packets here, and those that have yet to skip turns.
    queues: BTreeMap<Cid, Queue>,
    /// The same senders, in the order of their turns.
    turns: VecDeque<Cid>,
    packets: usize,
    bytes: usize,
}

impl Store {
    pub(super) fn is_empty(&self) -> bool {
        self.packets == 0
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The packet that goes next.
    pub(super) fn front(&mut self) -> Option<&mut Stored> {
        if self.is_empty() {
            return None;
        }
        // Somebody has packets, and going round gives turns to all: this ends.
        let sender = loop {
            let sender = *self.turns.front()?;
            if self.queues.get(&sender).is_some_and(Queue::has_turn) {
                break sender;
            }
            self.end_turn();
        };
        self.queues.get_mut(&sender)?.front()
    }

    /// So many bytes of the packet that goes next have gone in one packet.
    pub(super) fn sent(&mut self, bytes: usize) {
        let sender = self.turns.front();
        let Some(queue) = sender.and_then(|sender| self.queues.get_mut(sender)) else { return };
        if let Some(freed) = queue.sent(bytes + PACKET_COST) {
            self.bytes -= freed;
            self.packets -= 1;
        }
        if self.is_empty() {
            // Nobody waits, so nobody has to skip turns.
            self.clear();
        }
    }

    /// The next sender has its turn.
    fn end_turn(&mut self) {
        let Some(sender) = self.turns.pop_front() else { return };
        let Some(queue) = self.queues.get_mut(&sender) else { return };
        if queue.end_turn() {
            self.turns.push_back(sender);
        } else {
            self.queues.remove(&sender);
        }
    }

    /// Keeps a packet; `false`: there is no room for it.
    pub(super) fn push(&mut self, stored: Stored) -> bool {
        let sender = stored.sender();
        let queue = self.queues.get_mut(&sender);
        if queue.is_some_and(|queue| queue.merge(stored.header())) {
            return true;
        }
        let left = LIMIT.checked_sub(self.bytes + stored.cost());
        let own = self.queues.get(&sender).map_or(0, Queue::bytes) + stored.cost();
        let is_reset = stored.header().op == Op::Rst;
        let has_room = left.is_some_and(|left| is_reset || own <= left / 2);
        if has_room {
            self.add(stored);
        }
        has_room
    }

    /// Puts a packet behind the others of its sender.
    fn add(&mut self, stored: Stored) {
        let sender = stored.sender();
        self.bytes += stored.cost();
        self.packets += 1;
        let queue = self.queues.entry(sender).or_insert_with(|| {
            self.turns.push_back(sender);
            Queue::default()
        });
        queue.push(stored);
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests;
