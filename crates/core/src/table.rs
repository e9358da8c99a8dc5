//! A hash table from [`FlowKey`] to the key of its connection or flow. Hostile guests choose the keys, so the hash is
//! SipHash-1-3 under a seed they do not know, and so long probe sequences are not theirs to make.
//!
//! Open addressing, linear probing, at most half full. Growth is bounded by the caller's limit
//! on connections. Packets of one flow come in rows, so the latest answer is kept: hashing is a
//! good part of what a small packet costs.

use crate::address::FlowKey;
use crate::ids::Key;
use alloc::vec::Vec;
use core::cell::Cell;

/// The smallest number of places; a power of two, as all are.
const MIN_PLACES: usize = 16;

/// Ids under keys.
#[derive(Debug)]
pub(crate) struct Table<T> {
    seed: [u64; 2],
    places: Vec<Option<(FlowKey, Key<T>)>>,
    used: usize,
    /// What was found last and still is there.
    latest: Cell<Option<(FlowKey, Key<T>)>>,
}

impl<T> Table<T> {
    pub(crate) fn new(seed: u64) -> Self {
        // Two halves from one number: SplitMix64.
        let mix = |n: u64| {
            let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            n ^ (n >> 31)
        };
        let golden = 0x9e37_79b9_7f4a_7c15;
        let first = seed.wrapping_add(golden);
        Self {
            seed: [mix(first), mix(first.wrapping_add(golden))],
            places: Vec::new(),
            used: 0,
            latest: Cell::new(None),
        }
    }

    pub(crate) fn get(&self, key: FlowKey) -> Option<Key<T>> {
        if let Some((latest, id)) = self.latest.get()
            && latest == key
        {
            return Some(id);
        }
        if self.places.is_empty() {
            return None;
        }
        let mut at = self.home(key);
        while let Some((other, id)) = self.places[at] {
            if other == key {
                self.latest.set(Some((key, id)));
                return Some(id);
            }
            at = self.next(at);
        }
        None
    }

    /// Puts an id under a key; what was there before is replaced.
    pub(crate) fn insert(&mut self, key: FlowKey, id: Key<T>) {
        self.latest.set(None);
        if (self.used + 1) * 2 > self.places.len() {
            self.grow();
        }
        let mut at = self.home(key);
        while let Some((other, _)) = self.places[at] {
            if other == key {
                break;
            }
            at = self.next(at);
        }
        if self.places[at].is_none() {
            self.used += 1;
        }
        self.places[at] = Some((key, id));
    }

    /// Removes a key if it stands for this id.
    pub(crate) fn remove(&mut self, key: FlowKey, id: Key<T>) {
        self.latest.set(None);
        if self.places.is_empty() {
            return;
        }
        let mut hole = self.home(key);
        loop {
            match self.places[hole] {
                None => return,
                Some(entry) if entry == (key, id) => break,
                Some(_) => hole = self.next(hole),
            }
        }
        self.used -= 1;
        // Close the gap: an entry moves back unless its home lies behind the hole.
        let mut at = hole;
        loop {
            at = self.next(at);
            let Some((other, _)) = self.places[at] else { break };
            let mask = self.places.len() - 1;
            let way_home = at.wrapping_sub(self.home(other)) & mask;
            if way_home >= at.wrapping_sub(hole) & mask {
                self.places[hole] = self.places[at];
                hole = at;
            }
        }
        self.places[hole] = None;
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.places.len() - 1)
    }

    fn grow(&mut self) {
        let places = (self.places.len() * 2).max(MIN_PLACES);
        let old = core::mem::replace(&mut self.places, alloc::vec![None; places]);
        self.used = 0;
        for (key, id) in old.into_iter().flatten() {
            self.insert(key, id);
        }
    }

    #[allow(clippy::cast_possible_truncation)] // any bits of a hash do
    fn home(&self, key: FlowKey) -> usize {
        let word = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        let words =
            [word(key.ours.cid.0, key.ours.port.0), word(key.theirs.cid.0, key.theirs.port.0)];
        sip_hash(self.seed, words) as usize & (self.places.len() - 1)
    }
}

/// SipHash-1-3 of two words, by their bytes in little-endian order.
fn sip_hash(seed: [u64; 2], words: [u64; 2]) -> u64 {
    let mut v = [
        seed[0] ^ 0x736f_6d65_7073_6575,
        seed[1] ^ 0x646f_7261_6e64_6f6d,
        seed[0] ^ 0x6c79_6765_6e65_7261,
        seed[1] ^ 0x7465_6462_7974_6573,
    ];
    // The last block holds the length in bytes and no data.
    for word in [words[0], words[1], 16 << 56] {
        v[3] ^= word;
        sip_round(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for _ in 0..3 {
        sip_round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn sip_round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::address::Address;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn id(n: u64) -> Key<()> {
        Key::from_bits(n).unwrap()
    }

    fn key(n: u32) -> FlowKey {
        FlowKey { ours: Address::new(2, n), theirs: Address::new(3, n / 7) }
    }

    #[test]
    #[allow(deprecated)] // the reference implementation of SipHash-1-3 is what is wanted
    fn hash_is_sip_hash_1_3() {
        use std::hash::Hasher;
        // std's SipHasher13 is private; DefaultHasher is it, with the key (0, 0).
        let words = [0x0706_0504_0302_0100u64, 0x0f0e_0d0c_0b0a_0908];
        let mut reference = std::collections::hash_map::DefaultHasher::new();
        reference.write(&words[0].to_le_bytes());
        reference.write(&words[1].to_le_bytes());
        assert_eq!(sip_hash([0, 0], words), reference.finish());
    }

    #[test]
    fn hash_depends_on_the_seed() {
        let (a, b) = (Table::<()>::new(1).seed, Table::<()>::new(2).seed);
        assert!(a != b && sip_hash(a, [1, 2]) != sip_hash(b, [1, 2]));
    }

    #[test]
    fn removing_a_key_for_another_id_keeps_it() {
        let mut table = Table::new(0);
        table.remove(key(1), id(1));
        table.insert(key(1), id(1));
        table.insert(key(1), id(2));
        table.remove(key(1), id(1));
        assert_eq!(table.get(key(1)), Some(id(2)));
    }

    proptest! {
        #[test]
        fn table_does_what_a_map_does(
            seed: u64,
            steps in prop::collection::vec((0..60u32, any::<bool>()), 0..400),
        ) {
            let mut table = Table::new(seed);
            let mut map = HashMap::new();
            for (id, (n, is_insert)) in (0u64..).map(id).zip(steps) {
                // The latest answer must not outlive what it says.
                prop_assert_eq!(table.get(key(n)), map.get(&n).copied());
                if is_insert {
                    table.insert(key(n), id);
                    map.insert(n, id);
                } else if let Some(id) = map.remove(&n) {
                    table.remove(key(n), id);
                }
                for n in core::iter::once(n).chain(0..60) {
                    prop_assert_eq!(table.get(key(n)), map.get(&n).copied());
                }
                prop_assert_eq!(table.used, map.len());
            }
        }
    }
}
