//! Which of many things is due next. The owner keeps the deadline that counts. Entries here may
//! be outdated: the owner finds that out when they come up, and [`Timers::clean`] removes them when
//! they are the majority.
//!
//! So a deadline that moves costs one entry and no search. An entry from [`Timers::pop_due`] counts
//! only if it equals the deadline that the owner has for the key.

use crate::time::Instant;
use alloc::collections::BinaryHeap;
use core::cmp::Reverse;

/// Entries below this number are not worth a clean-up.
const FEW: usize = 64;

/// Deadlines, soonest first, each with the key of what is due then.
#[derive(Clone, Debug)]
pub struct Timers<K> {
    heap: BinaryHeap<Reverse<(Instant, K)>>,
}

impl<K: Ord> Default for Timers<K> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new() }
    }
}

impl<K: Ord + Copy> Timers<K> {
    /// Adds a deadline.
    pub fn add(&mut self, at: Instant, key: K) {
        self.heap.push(Reverse((at, key)));
    }

    /// The time of the next entry.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out one entry that is due.
    pub fn pop_due(&mut self, now: Instant) -> Option<(Instant, K)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// Removes entries that do not count, if they may be the majority: `live` bounds those that do.
    pub fn clean(&mut self, live: usize, counts: impl Fn(Instant, K) -> bool) {
        if self.heap.len() > FEW + 2 * live {
            self.heap.retain(|Reverse((at, key))| counts(*at, *key));
        }
    }

    /// Forgets all deadlines.
    pub fn clear(&mut self) {
        self.heap.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_out_in_order_when_due() {
        let mut timers = Timers::default();
        for at in [5, 1, 3] {
            timers.add(Instant(at), at);
        }
        assert_eq!(timers.next(), Some(Instant(1)));
        assert_eq!(timers.pop_due(Instant(0)), None);
        assert_eq!(timers.pop_due(Instant(4)), Some((Instant(1), 1)));
        assert_eq!(timers.pop_due(Instant(4)), Some((Instant(3), 3)));
        assert_eq!(timers.pop_due(Instant(4)), None);
    }

    #[test]
    fn outdated_entries_are_thrown_out_once_they_are_many() {
        let mut timers = Timers::default();
        for at in 0..1000 {
            timers.add(Instant(at), at);
            timers.clean(1, |_, id| id == 0);
        }
        assert!(timers.heap.len() <= FEW + 3, "{}", timers.heap.len());
        assert_eq!(timers.next(), Some(Instant(0)));
    }
}
