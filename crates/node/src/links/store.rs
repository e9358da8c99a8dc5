//! Packets of other guests that found no room in a ring, in order, until it has some.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use vsock_core::{Cid, Header};

/// Packets of one sender that may wait for room here, in bytes, headers counted: flows that keep to their credit never
/// reach it. Each sender has its own, so that none can use up what another needs.
const LIMIT_PER_SENDER: usize = 64 << 20;

/// What a stored packet costs besides its payload.
const STORED_COST: usize = 128;

/// A packet that waits.
#[derive(Debug)]
pub(super) struct Stored {
    header: Header,
    payload: Vec<u8>,
    sent: usize,
}

impl Stored {
    pub(super) fn new(header: Header, payload: Vec<u8>) -> Self {
        Self { header, payload, sent: 0 }
    }

    /// The header of the part that fits `room`.
    pub(super) fn next_piece(&self, room: u32) -> Header {
        // `sent` is at most the payload's length, which came from a u32.
        self.header.piece(u32::try_from(self.sent).unwrap_or(u32::MAX), room)
    }

    /// The next `len` bytes, which are sent then.
    pub(super) fn take(&mut self, len: usize) -> &[u8] {
        let start = self.sent;
        self.sent += len;
        &self.payload[start..self.sent]
    }

    /// Nothing of it is left. A header without payload goes out once.
    pub(super) fn is_sent(&self) -> bool {
        self.sent >= self.payload.len()
    }
}

/// Packets that wait for room.
#[derive(Debug, Default)]
pub(super) struct Store {
    packets: VecDeque<Stored>,
    bytes: usize,
    /// Of these, by sender.
    by_sender: BTreeMap<Cid, usize>,
}

impl Store {
    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn front(&mut self) -> Option<&mut Stored> {
        self.packets.front_mut()
    }

    pub(super) fn pop(&mut self) {
        if let Some(stored) = self.packets.pop_front() {
            let cost = stored.payload.len() + STORED_COST;
            self.bytes -= cost;
            if let Entry::Occupied(mut sender) = self.by_sender.entry(stored.header.src.cid) {
                *sender.get_mut() -= cost;
                if *sender.get() == 0 {
                    sender.remove();
                }
            }
        }
    }

    /// Keeps a packet; `false`: there is no room for it.
    pub(super) fn push(&mut self, stored: Stored) -> bool {
        let cost = stored.payload.len() + STORED_COST;
        let sender = self.by_sender.entry(stored.header.src.cid).or_default();
        if *sender + cost > LIMIT_PER_SENDER {
            return false;
        }
        *sender += cost;
        self.bytes += cost;
        self.packets.push_back(stored);
        true
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
