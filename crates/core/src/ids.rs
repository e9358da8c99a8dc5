//! Ids of things that come and go: [`Slots`] holds the things and hands out a [`Key`] for each,
//! [`SecondaryMap`] keeps something more under the same keys.
//!
//! A key is the number of a slot and the generation of its use. When a value is removed, its slot
//! is used again under the next generation, so a key of a removed value finds nothing, neither in
//! the slots nor in a secondary map. A key belongs to the `Slots` that made it. Its type says what
//! it names, so keys of different things cannot be confused.
//!
//! [`Key::to_bits`] makes a number of a key, for a wire or a listing. [`Key::from_bits`] makes a
//! key of any number, also of one that a program invented: the caller checks whether the program
//! may use what the key names.

use crate::saved::{SavedSlots, Unfit};
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;
use core::num::NonZeroU32;

/// Names one `T` in [`Slots`] for ever; a stale key is harmless.
pub struct Key<T> {
    slot: u32,
    generation: NonZeroU32,
    of: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    const fn new(slot: u32, generation: NonZeroU32) -> Self {
        Self { slot, generation, of: PhantomData }
    }

    /// The key as a number, for wires and listings. The first key of a slot is the slot's number.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        (self.generation.get() as u64 - 1) << 32 | self.slot as u64
    }

    /// The key of a number that [`Key::to_bits`] made. `None`: no key has this number.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // the halves are what is wanted
    pub const fn from_bits(bits: u64) -> Option<Self> {
        match NonZeroU32::MIN.checked_add((bits >> 32) as u32) {
            Some(generation) => Some(Self::new(bits as u32, generation)),
            None => None,
        }
    }

    const fn index(self) -> usize {
        self.slot as usize
    }

    const fn parts(self) -> (u32, NonZeroU32) {
        (self.slot, self.generation)
    }
}

// By hand, as derived ones would ask the same of `T`.
impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Key<T> {}

impl<T> PartialEq for Key<T> {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl<T> Eq for Key<T> {}

impl<T> PartialOrd for Key<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Key<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

impl<T> Hash for Key<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.to_bits());
    }
}

impl<T> fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}.{})", self.slot, self.generation)
    }
}

/// One slot. The generation is that of its value or, while it is empty, of the next one.
#[derive(Clone, Debug)]
struct Slot<T> {
    generation: NonZeroU32,
    value: Option<T>,
}

/// Values under keys; adding, finding and removing one takes constant time.
#[derive(Clone, Debug)]
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    /// Empty slots that may be used again.
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Slots<T> {
    /// No values yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), len: 0 }
    }

    /// How many values there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a value.
    ///
    /// # Panics
    /// There are 2^32 slots already.
    pub fn insert(&mut self, value: T) -> Key<T> {
        self.len += 1;
        if let Some(slot) = self.free.pop() {
            let place = &mut self.slots[slot as usize];
            place.value = Some(value);
            return Key::new(slot, place.generation);
        }
        #[allow(clippy::expect_used, reason = "see Panics; as Vec::push does")]
        let slot = u32::try_from(self.slots.len()).expect("fewer than 2^32 slots");
        self.slots.push(Slot { generation: NonZeroU32::MIN, value: Some(value) });
        Key::new(slot, NonZeroU32::MIN)
    }

    /// Whether a key names a slot that there is, whatever is in it.
    #[must_use]
    pub fn has_slot(&self, key: Key<T>) -> bool {
        key.index() < self.slots.len()
    }

    /// Whether the value of this key is there.
    #[must_use]
    pub fn contains(&self, key: Key<T>) -> bool {
        self.get(key).is_some()
    }

    /// The value of a key.
    #[must_use]
    #[inline]
    pub fn get(&self, key: Key<T>) -> Option<&T> {
        let slot = self.slots.get(key.index())?;
        if slot.generation == key.generation { slot.value.as_ref() } else { None }
    }

    /// The value of a key, to change it.
    #[must_use]
    #[inline]
    pub fn get_mut(&mut self, key: Key<T>) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index())?;
        if slot.generation == key.generation { slot.value.as_mut() } else { None }
    }

    /// The values of two different keys, to change both. `None`: one of them is not there, or the
    /// keys are the same.
    #[must_use]
    pub fn get_two_mut(&mut self, one: Key<T>, other: Key<T>) -> Option<(&mut T, &mut T)> {
        let pair = self.slots.get_disjoint_mut([one.index(), other.index()]).ok()?;
        let [first, second] = pair;
        let are_meant = first.generation == one.generation && second.generation == other.generation;
        if !are_meant {
            return None;
        }
        first.value.as_mut().zip(second.value.as_mut())
    }

    /// Takes a value out; its key finds nothing from now on.
    pub fn remove(&mut self, key: Key<T>) -> Option<T> {
        let slot = self.slots.get_mut(key.index())?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        self.len -= 1;
        // A slot whose generations are used up stays empty: no key ever names two values.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(key.slot);
        }
        Some(value)
    }

    /// All values with their keys, in an order that means nothing.
    pub fn iter(&self) -> impl Iterator<Item = (Key<T>, &T)> {
        (0u32..).zip(&self.slots).filter_map(|(index, slot)| {
            slot.value.as_ref().map(|value| (Key::new(index, slot.generation), value))
        })
    }

    /// All values with their keys, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key<T>, &mut T)> {
        (0u32..).zip(&mut self.slots).filter_map(|(index, slot)| {
            let generation = slot.generation;
            slot.value.as_mut().map(|value| (Key::new(index, generation), value))
        })
    }

    /// All slots as plain data, each value saved by `save`.
    pub fn save<'a, S>(&'a self, mut save: impl FnMut(&'a T) -> S) -> SavedSlots<S> {
        let one = |slot: &'a Slot<T>| (slot.generation.get(), slot.value.as_ref().map(&mut save));
        self.slots.iter().map(one).collect()
    }

    /// Slots from plain data, each value restored by `restore`, which gets its key. Keys are what they were.
    ///
    /// # Errors
    /// What `restore` says, or the slots cannot be.
    pub fn restore<S>(
        saved: SavedSlots<S>,
        mut restore: impl FnMut(Key<T>, S) -> Result<T, Unfit>,
    ) -> Result<Self, Unfit> {
        let mut slots = Self::new();
        for (generation, value) in saved {
            let generation = NonZeroU32::new(generation).ok_or(Unfit::Slots)?;
            let place = u32::try_from(slots.slots.len()).map_err(|_| Unfit::Slots)?;
            let key = Key::new(place, generation);
            let value = value.map(|value| restore(key, value)).transpose()?;
            slots.len += usize::from(value.is_some());
            // One with the last generation may be used up, so it stays empty.
            if value.is_none() && generation != NonZeroU32::MAX {
                slots.free.push(place);
            }
            slots.slots.push(Slot { generation, value });
        }
        Ok(slots)
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = Key<T>> + '_ {
        self.iter().map(|(key, _)| key)
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.value.as_ref())
    }
}

/// Values of another type under the keys of [`Slots`], found without hashing.
///
/// A value stays until its key is removed here, or until the next key of the same slot gets one.
#[derive(Clone, Debug)]
pub struct SecondaryMap<T, V> {
    places: Vec<Option<(NonZeroU32, V)>>,
    len: usize,
    of: PhantomData<fn() -> T>,
}

impl<T, V> Default for SecondaryMap<T, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, V> SecondaryMap<T, V> {
    /// Nothing under any key.
    #[must_use]
    pub const fn new() -> Self {
        Self { places: Vec::new(), len: 0, of: PhantomData }
    }

    /// Puts a value under a key, and returns what this key had before.
    pub fn insert(&mut self, key: Key<T>, value: V) -> Option<V> {
        self.replace(key, value).filter(|(before, _)| *before == key).map(|(_, value)| value)
    }

    /// The same, and returns what any key of this slot had before, with that key.
    pub fn replace(&mut self, key: Key<T>, value: V) -> Option<(Key<T>, V)> {
        if key.index() >= self.places.len() {
            self.places.resize_with(key.index() + 1, || None);
        }
        let before = self.places[key.index()].replace((key.generation, value));
        self.len += usize::from(before.is_none());
        before.map(|(generation, value)| (Key::new(key.slot, generation), value))
    }

    /// What is under a key.
    #[must_use]
    #[inline]
    pub fn get(&self, key: Key<T>) -> Option<&V> {
        let (generation, value) = self.places.get(key.index())?.as_ref()?;
        (*generation == key.generation).then_some(value)
    }

    /// What is under a key, to change it.
    #[must_use]
    #[inline]
    pub fn get_mut(&mut self, key: Key<T>) -> Option<&mut V> {
        let (generation, value) = self.places.get_mut(key.index())?.as_mut()?;
        (*generation == key.generation).then_some(value)
    }

    /// Takes out what is under a key.
    pub fn remove(&mut self, key: Key<T>) -> Option<V> {
        let place = self.places.get_mut(key.index())?;
        let (_, value) = place.take_if(|(generation, _)| *generation == key.generation)?;
        self.len -= 1;
        Some(value)
    }

    /// All values with their keys, in an order that means nothing.
    pub fn iter(&self) -> impl Iterator<Item = (Key<T>, &V)> {
        (0u32..).zip(&self.places).filter_map(|(index, place)| {
            place.as_ref().map(|(generation, value)| (Key::new(index, *generation), value))
        })
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.places.iter().flatten().map(|(_, value)| value)
    }

    /// All values, to change them.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.places.iter_mut().flatten().map(|(_, value)| value)
    }

    /// How many values there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.places.clear();
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn slot_used_again_does_not_answer_to_the_old_key() {
        let mut slots = Slots::new();
        let old = slots.insert('a');
        assert_eq!(slots.remove(old), Some('a'));
        assert_eq!(slots.remove(old), None);
        let new = slots.insert('b');
        assert_eq!(new.index(), old.index());
        assert_eq!(slots.get(old), None);
        assert_eq!(slots.get_mut(old), None);
        assert_eq!(slots.get(new), Some(&'b'));
        assert_eq!((slots.len(), slots.is_empty()), (1, false));
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(new, &'b')]);
    }

    #[test]
    fn key_that_never_was_finds_nothing() {
        let mut slots: Slots<u8> = Slots::new();
        let first = Key::from_bits(0).unwrap();
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.remove(first), None);
        slots.insert(1);
        assert_eq!(slots.get(Key::from_bits(1 << 32).unwrap()), None);
    }

    #[test]
    fn key_goes_to_a_number_and_back() {
        let mut slots = Slots::new();
        for _ in 0..3 {
            let key = slots.insert(());
            assert_eq!(Key::from_bits(key.to_bits()), Some(key));
            slots.remove(key);
        }
        assert_eq!(Key::<()>::from_bits(5).unwrap().to_bits(), 5);
        assert_eq!(Key::<()>::from_bits(u64::MAX), None);
    }

    #[test]
    fn optional_key_is_as_small_as_a_key() {
        assert_eq!(size_of::<Option<Key<u8>>>(), 8);
    }

    #[test]
    fn slot_without_generations_left_is_not_used_again() {
        let mut slots = Slots::new();
        let first = slots.insert('a');
        slots.slots[0].generation = NonZeroU32::MAX;
        let last = Key::new(first.slot, NonZeroU32::MAX);
        assert_eq!(slots.remove(last), Some('a'));
        let next = slots.insert('b');
        assert_eq!((next.index(), slots.get(last), slots.len()), (1, None, 1));
    }

    #[test]
    fn restored_slots_have_the_same_keys_and_do_not_answer_to_stale_ones() {
        let mut slots = Slots::new();
        let keys = [slots.insert('a'), slots.insert('b'), slots.insert('c')];
        slots.remove(keys[1]);
        let saved = slots.save(|value| *value);
        let mut restored = Slots::restore(saved.clone(), |_, it| Ok(it)).unwrap();
        assert_eq!(restored.save(|value| *value), saved);
        assert_eq!(keys.map(|key| restored.get(key).copied()), [Some('a'), None, Some('c')]);
        assert_eq!(restored.len(), 2);
        let next = restored.insert('d');
        assert!(next.index() == 1 && next != keys[1]);
        let impossible = alloc::vec![(0, Some('a'))];
        assert_eq!(Slots::restore(impossible, |_, it| Ok(it)).err(), Some(Unfit::Slots));
    }

    #[test]
    fn two_values_are_changed_at_once_if_they_are_two() {
        let mut slots = Slots::new();
        let (one, other) = (slots.insert(1), slots.insert(2));
        assert_eq!(slots.get_two_mut(one, other), Some((&mut 1, &mut 2)));
        assert_eq!(slots.get_two_mut(other, one), Some((&mut 2, &mut 1)));
        assert_eq!(slots.get_two_mut(one, one), None);
        slots.remove(one);
        assert_eq!(slots.get_two_mut(one, other), None);
    }

    #[test]
    fn secondary_value_of_a_stale_key_is_not_found() {
        let mut slots = Slots::new();
        let mut map = SecondaryMap::new();
        let old = slots.insert('a');
        assert_eq!(map.insert(old, 1), None);
        assert_eq!(map.insert(old, 2), Some(1));
        slots.remove(old);
        let new = slots.insert('b');
        assert_eq!(map.get(new), None);
        assert_eq!(map.remove(new), None);
        assert_eq!(map.get(old), Some(&2));
        assert_eq!(map.insert(new, 3), None);
        assert_eq!(map.get(old), None);
        assert_eq!(map.get_mut(new), Some(&mut 3));
    }

    proptest! {
        /// Slots and a secondary map against two hash maps, keys of dead values included.
        #[test]
        fn slots_do_what_maps_do(steps in prop::collection::vec((any::<u8>(), 0u8..4), 0..300)) {
            let (mut slots, mut extra) = (Slots::new(), SecondaryMap::new());
            let (mut values, mut extras) = (HashMap::new(), HashMap::new());
            let mut known = Vec::new();
            for (n, what) in steps {
                let key = known.get(usize::from(n) % known.len().max(1)).copied();
                match (what, key) {
                    (0, _) | (_, None) => {
                        let key = slots.insert(n);
                        prop_assert!(values.insert(key, n).is_none(), "a key given out twice");
                        known.push(key);
                    }
                    (1, Some(key)) => {
                        prop_assert_eq!(slots.remove(key), values.remove(&key));
                        prop_assert_eq!(extra.remove(key), extras.remove(&key));
                    }
                    (_, Some(key)) if values.contains_key(&key) => {
                        prop_assert_eq!(extra.insert(key, n), extras.insert(key, n));
                    }
                    (_, Some(_)) => {}
                }
                prop_assert_eq!(slots.len(), values.len());
                prop_assert_eq!(extra.len(), extras.len());
                for key in &known {
                    prop_assert_eq!(slots.get(*key), values.get(key));
                    prop_assert_eq!(slots.contains(*key), values.contains_key(key));
                    prop_assert_eq!(extra.get(*key), extras.get(key));
                }
                let all: HashMap<_, _> = slots.iter().map(|(key, value)| (key, *value)).collect();
                prop_assert_eq!(&all, &values);
            }
        }
    }
}
