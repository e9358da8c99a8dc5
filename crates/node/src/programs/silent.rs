//! Programs that have connected and not asked for anything yet.
//!
//! A program speaks as soon as it has connected. One that does not, or has sent half a request, is let go after
//! [`PATIENCE`]; where a user has many, the oldest makes room for the next.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use vsock_core::{Instant, SecondaryMap};

use crate::reactor::{Owner, SourceId};
use crate::timers::Timers;

/// How long a program may say nothing. People type requests to hybrid sockets.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// How many of one user's may say nothing.
pub(super) const MOST: usize = 512;

/// Programs that have said nothing yet.
#[derive(Debug, Default)]
pub(super) struct Silent {
    timers: Timers<SourceId>,
    users: SecondaryMap<Owner, u32>,
    /// Of each user, the oldest first.
    of_user: HashMap<u32, VecDeque<SourceId>>,
}

impl Silent {
    /// A program of a user has connected. Returns the one that makes room for it; not one that `waits` to be heard.
    pub(super) fn add(
        &mut self,
        id: SourceId,
        user: u32,
        now: Instant,
        waits: impl Fn(SourceId) -> bool,
    ) -> Option<SourceId> {
        self.timers.set(id, Some(now + PATIENCE));
        self.users.insert(id, user);
        let ids = self.of_user.entry(user).or_default();
        ids.push_back(id);
        let most = ids.len() > MOST;
        most.then(|| ids.iter().copied().find(|&id| !waits(id))).flatten()
    }

    /// It has said something, or left.
    pub(super) fn remove(&mut self, id: SourceId) {
        let Some(user) = self.users.remove(id) else { return };
        self.timers.set(id, None);
        if let Some(ids) = self.of_user.get_mut(&user) {
            ids.retain(|&it| it != id);
            if ids.is_empty() {
                self.of_user.remove(&user);
            }
        }
    }

    /// Those that have said nothing, as plain data. They may do so for as long again.
    pub(super) fn save(&self) -> Vec<SourceId> {
        self.users.iter().map(|(id, _)| id).collect()
    }

    /// When the next one is let go.
    pub(super) fn next(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Those that are to be let go; who `waits` to be heard has more time.
    pub(super) fn take_due(
        &mut self,
        now: Instant,
        waits: impl Fn(SourceId) -> bool,
    ) -> Vec<SourceId> {
        let (waiting, due): (Vec<_>, Vec<_>) =
            self.timers.take_due(now).into_iter().partition(|&id| waits(id));
        waiting.into_iter().for_each(|id| self.timers.set(id, Some(now + PATIENCE)));
        due.iter().for_each(|&id| self.remove(id));
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u64) -> SourceId {
        SourceId::from_bits(1 << 32 | number).unwrap()
    }

    fn nobody(_: SourceId) -> bool {
        false
    }

    fn at(seconds: u64) -> Instant {
        Instant::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn program_that_says_nothing_is_let_go_and_one_that_has_spoken_is_not() {
        let mut silent = Silent::default();
        for (number, since) in [(1, 0), (2, 1), (3, 2)] {
            assert_eq!(silent.add(source(number), 1000, at(since), nobody), None);
        }
        silent.remove(source(1));
        silent.remove(source(1));
        assert_eq!(silent.next(), Some(at(1) + PATIENCE));
        assert_eq!(silent.take_due(at(1) + PATIENCE, nobody), [source(2)]);
        assert_eq!(silent.save(), [source(3)]);
        assert_eq!(silent.take_due(at(2) + PATIENCE, nobody), [source(3)]);
        assert!(silent.next().is_none() && silent.of_user.is_empty());
    }

    #[test]
    fn oldest_of_a_user_that_has_many_makes_room_and_others_keep_theirs() {
        let mut silent = Silent::default();
        assert_eq!(silent.add(source(0), 0, at(0), nobody), None);
        for number in 1..=MOST as u64 {
            assert_eq!(silent.add(source(number), 1000, at(1), nobody), None);
        }
        assert_eq!(silent.add(source(5000), 1000, at(1), nobody), Some(source(1)));
        silent.remove(source(1));
        assert_eq!(silent.add(source(5001), 1000, at(1), nobody), Some(source(2)));
        assert_eq!(silent.add(source(5002), 0, at(1), nobody), None);
    }

    #[test]
    fn program_that_waits_to_be_heard_is_not_let_go() {
        let mut silent = Silent::default();
        let waits = |id: SourceId| id != source(3);
        for number in 0..MOST as u64 {
            assert_eq!(silent.add(source(number), 1000, at(0), waits), None);
        }
        assert_eq!(silent.add(source(5000), 1000, at(1), waits), Some(source(3)));
        silent.remove(source(3));
        assert_eq!(silent.add(source(5001), 1000, at(1), waits), None);
        assert_eq!(silent.take_due(at(0) + PATIENCE, waits), []);
        assert_eq!(silent.next(), Some(at(1) + PATIENCE));
        assert_eq!(silent.take_due(at(0) + 2 * PATIENCE, nobody).len(), MOST + 1);
    }
}
