//! Values in numbered slots with generations: an id that outlived its value finds nothing.

use alloc::vec::Vec;

/// One slot.
#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values under ids; both adding and removing take constant time.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

/// The slot of an id.
#[allow(clippy::cast_possible_truncation)] // the lower half is what is wanted
pub(crate) const fn index_of(id: u64) -> u32 {
    id as u32
}

impl<T> Slots<T> {
    pub(crate) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a value. `None`: all numbers are taken.
    pub(crate) fn insert(&mut self, value: T) -> Option<u64> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot { generation: 0, value: None });
                index
            }
        };
        let slot = self.slots.get_mut(usize::try_from(index).ok()?)?;
        slot.value = Some(value);
        Some(u64::from(slot.generation) << 32 | u64::from(index))
    }

    fn slot(&self, id: u64) -> Option<&Slot<T>> {
        let slot = self.slots.get(usize::try_from(index_of(id)).ok()?)?;
        (u64::from(slot.generation) == id >> 32).then_some(slot)
    }

    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        self.slot(id)?.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let slot = self.slots.get_mut(usize::try_from(index_of(id)).ok()?)?;
        if u64::from(slot.generation) == id >> 32 { slot.value.as_mut() } else { None }
    }

    /// Takes a value out; its id is dead from now on.
    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let slot = self.slots.get_mut(usize::try_from(index_of(id)).ok()?)?;
        if u64::from(slot.generation) != id >> 32 {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index_of(id));
        Some(value)
    }

    /// All values with their ids, in no meaningful order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        (0u64..).zip(&self.slots).filter_map(|(index, slot)| {
            let id = u64::from(slot.generation) << 32 | index;
            slot.value.as_ref().map(|value| (id, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_used_again_does_not_answer_to_the_old_id() {
        let mut slots = Slots::new();
        let old = slots.insert('a').unwrap();
        assert_eq!(slots.remove(old), Some('a'));
        assert_eq!(slots.remove(old), None);
        let new = slots.insert('b').unwrap();
        assert_eq!(index_of(new), index_of(old));
        assert_eq!(slots.get(old), None);
        assert_eq!(slots.get_mut(old), None);
        assert_eq!(slots.get(new), Some(&'b'));
        assert_eq!(slots.len(), 1);
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(new, &'b')]);
    }

    #[test]
    fn id_that_never_was_finds_nothing() {
        let mut slots: Slots<u8> = Slots::new();
        assert_eq!(slots.get(0), None);
        assert_eq!(slots.remove(u64::MAX), None);
    }
}
