//! Packets of other guests that found no room in a ring, in order, until it has some.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use vsock_core::saved::{Unfit, check};
use vsock_core::{Cid, Header, RawHeader};

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

/// A packet that waits for room in a ring, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedPacket {
    /// Its header.
    pub header: RawHeader,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Bytes of it that have gone out.
    pub sent: usize,
}

impl Store {
    /// As plain data, the oldest packet first.
    pub(super) fn save(&self) -> Vec<SavedPacket> {
        let one = |it: &Stored| SavedPacket {
            header: it.header.raw(),
            payload: it.payload.clone(),
            sent: it.sent,
        };
        self.packets.iter().map(one).collect()
    }

    /// From plain data.
    pub(super) fn restore(saved: Vec<SavedPacket>) -> Result<Self, Unfit> {
        let mut store = Self::default();
        for SavedPacket { header, payload, sent } in saved {
            let header = header.check().map_err(|_| Unfit::Queue)?;
            // A packet that is sent whole is not here any more.
            let is_waiting = sent < payload.len() || (payload.is_empty() && sent == 0);
            check(is_waiting && header.len as usize == payload.len(), Unfit::Queue)?;
            check(store.push(Stored { header, payload, sent }), Unfit::TooMany)?;
        }
        Ok(store)
    }
}

#[cfg(test)]
mod tests {
    use vsock_core::{Address, FlowKey, Op, SocketType};

    use super::*;

    fn header(op: Op, len: u32) -> Header {
        let key = FlowKey { ours: Address::new(3, 1024), theirs: Address::new(4, 22) };
        let header = Header::outbound(key, SocketType::Stream, op).raw();
        RawHeader { len, ..header }.check().unwrap()
    }

    fn store() -> Store {
        let mut store = Store::default();
        assert!(store.push(Stored::new(header(Op::Rw, 5), b"bytes".to_vec())));
        assert_eq!(store.front().unwrap().take(2), b"by");
        assert!(store.push(Stored::new(header(Op::Rst, 0), Vec::new())));
        store
    }

    #[test]
    fn packets_wait_on_in_a_restored_store() {
        let before = store();
        let mut after = Store::restore(before.save()).unwrap();
        assert_eq!(after.bytes(), before.bytes());
        assert_eq!(after.front().unwrap().next_piece(9).len, 3);
        assert_eq!(after.front().unwrap().take(3), b"tes");
        after.pop();
        assert!(after.front().unwrap().is_sent());
        after.pop();
        assert_eq!((after.bytes(), after.by_sender.len()), (0, 0));
    }

    #[test]
    fn packets_that_cannot_be_are_not_restored() {
        let spoiled = |spoil: &dyn Fn(&mut SavedPacket)| {
            let mut saved = store().save();
            spoil(&mut saved[0]);
            Store::restore(saved).err()
        };
        assert_eq!(spoiled(&|_| {}), None);
        assert_eq!(spoiled(&|it| it.sent = 5), Some(Unfit::Queue));
        assert_eq!(spoiled(&|it| it.payload.push(0)), Some(Unfit::Queue));
        assert_eq!(spoiled(&|it| it.header.kind = 9), Some(Unfit::Queue));
        let mut saved = store().save();
        saved.resize(LIMIT_PER_SENDER / STORED_COST + 1, saved[1].clone());
        assert_eq!(Store::restore(saved).err(), Some(Unfit::TooMany));
    }
}
