//! Which of many ids is due next. The owner keeps the deadline that counts; entries here may be
//! outdated, which is found when they come up, and are thrown out when they are the majority.

use crate::time::Instant;
use alloc::collections::BinaryHeap;
use core::cmp::Reverse;

/// Entries below this number are not worth a clean-up.
const FEW: usize = 64;

/// A heap of deadlines.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64)>>,
}

impl Timers {
    pub(crate) fn add(&mut self, at: Instant, id: u64) {
        self.heap.push(Reverse((at, id)));
    }

    /// The time of the next entry.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out one entry that is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(Instant, u64)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// Throws out what does not count any more, when it is worth it; `live` bounds what does.
    pub(crate) fn clean(&mut self, live: usize, counts: impl Fn(Instant, u64) -> bool) {
        if self.heap.len() > FEW + 2 * live {
            self.heap.retain(|Reverse((at, id))| counts(*at, *id));
        }
    }

    pub(crate) fn clear(&mut self) {
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
