//! When what is due next: the one timer queue of a node.
//!
//! A timer is named by what it is for, so there is at most one for each, and setting it again moves it. Whoever sets a
//! timer need not remember when it goes off. Instants are numbers; nobody here asks a clock.

use std::collections::{BTreeMap, BTreeSet};

use vsock_core::Instant;

/// Timers by what they are for.
#[derive(Debug)]
pub(crate) struct Timers<D> {
    /// The earliest first.
    queue: BTreeSet<(Instant, D)>,
    /// The same the other way round.
    set: BTreeMap<D, Instant>,
}

impl<D> Default for Timers<D> {
    fn default() -> Self {
        Self { queue: BTreeSet::new(), set: BTreeMap::new() }
    }
}

impl<D: Copy + Ord> Timers<D> {
    /// Sets the timer of `what` to go off at `at`, or no more.
    pub(crate) fn set(&mut self, what: D, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.set.insert(what, at),
            None => self.set.remove(&what),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.queue.remove(&(before, what));
        }
        if let Some(at) = at {
            self.queue.insert((at, what));
        }
    }

    /// When the next one goes off.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|&(at, _)| at)
    }

    /// Takes out those that are due at `now`, the earliest first. What is set meanwhile is due another time.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<D> {
        let mut due = Vec::new();
        while let Some(&(at, what)) = self.queue.first().filter(|&&(at, _)| at <= now) {
            self.queue.remove(&(at, what));
            self.set.remove(&what);
            due.push(what);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_go_off_in_order_when_due_and_once() {
        let mut timers = Timers::default();
        for (what, at) in [('b', 5), ('a', 1), ('c', 3)] {
            timers.set(what, Some(Instant(at)));
        }
        assert_eq!((timers.next(), timers.take_due(Instant(0))), (Some(Instant(1)), vec![]));
        assert_eq!(timers.take_due(Instant(4)), ['a', 'c']);
        assert_eq!((timers.take_due(Instant(5)), timers.next()), (vec!['b'], None));
    }

    #[test]
    fn timer_set_again_moves_and_one_unset_is_gone() {
        let mut timers = Timers::default();
        timers.set('a', Some(Instant(1)));
        timers.set('a', Some(Instant(7)));
        timers.set('b', Some(Instant(8)));
        timers.set('b', None);
        timers.set('b', None);
        assert_eq!((timers.next(), timers.take_due(Instant(6))), (Some(Instant(7)), vec![]));
        assert_eq!((timers.take_due(Instant(9)), timers.next()), (vec!['a'], None));
    }
}
