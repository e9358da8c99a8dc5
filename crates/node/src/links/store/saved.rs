//! What waits for room in a ring as plain data. Which packets may be merged follows from their order.

use vsock_core::saved::{Unfit, check};
use vsock_core::{MAX_PAYLOAD, RawHeader};

use super::queue::{Queue, Stored};
use super::{LIMIT, PACKET_COST, Store, TURN};

/// What a turn can have cost too much: the longest packet.
const MOST_SPENT: i64 = MAX_PAYLOAD as i64 + PACKET_COST as i64;

/// What of one sender waits for room in a ring, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedSender {
    /// Its packets, the oldest first; at least one.
    pub packets: Vec<SavedPacket>,
    /// What is left of its turn; below zero, what it must skip.
    pub left: i64,
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

impl Stored {
    fn save(&self) -> SavedPacket {
        let Self { header, payload, sent } = self;
        SavedPacket { header: header.raw(), payload: payload.clone(), sent: *sent }
    }

    fn restore(saved: SavedPacket) -> Result<Self, Unfit> {
        let SavedPacket { header, payload, sent } = saved;
        let header = header.check().map_err(|_| Unfit::Queue)?;
        // A packet that is sent whole is not here any more.
        let is_waiting = sent < payload.len() || (payload.is_empty() && sent == 0);
        check(is_waiting && header.len as usize == payload.len(), Unfit::Queue)?;
        Ok(Self { header, payload, sent })
    }
}

impl Store {
    /// As plain data, in the order of turns. A sender that has no packets need not skip turns afterwards.
    pub(in super::super) fn save(&self) -> Vec<SavedSender> {
        let queues = self.turns.iter().filter_map(|sender| self.queues.get(sender));
        let one = |queue: &Queue| SavedSender {
            packets: queue.iter().map(Stored::save).collect(),
            left: queue.left(),
        };
        queues.map(one).filter(|saved| !saved.packets.is_empty()).collect()
    }

    /// From plain data.
    pub(in super::super) fn restore(saved: Vec<SavedSender>) -> Result<Self, Unfit> {
        let mut store = Self::default();
        for SavedSender { packets, left } in saved {
            let mut senders = packets.iter().map(|packet| packet.header.src_cid);
            let first = senders.next().ok_or(Unfit::Queue)?;
            check(senders.all(|sender| sender == first), Unfit::Queue)?;
            let before = store.turns.len();
            for packet in packets {
                store.add(Stored::restore(packet)?);
            }
            check(store.turns.len() == before + 1, Unfit::Queue)?;
            let queue = store.turns.back().and_then(|sender| store.queues.get_mut(sender));
            let queue = queue.ok_or(Unfit::Queue)?;
            // How many turns it skips bounds a loop: no more than what one packet can have cost.
            check((-MOST_SPENT..=TURN).contains(&left), Unfit::Queue)?;
            queue.set_left(left);
        }
        check(store.bytes <= LIMIT, Unfit::TooMany)?;
        Ok(store)
    }
}
