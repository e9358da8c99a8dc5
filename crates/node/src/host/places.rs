//! How many connections each may have here: a user, a guest, all of them.
//!
//! A connection costs a descriptor, and when a process has none left nobody gets one. So all connections together leave some
//! for the control plane and for front ends, those of one user leave some for others, and a guest that opens
//! connections has a part. What is taken is given back when the descriptor is closed, and not before: one whose close hangs
//! counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, getrlimit};

use crate::links::LinkId;

/// Descriptors that are left for others than programs and their connections, and connections that one user leaves
/// for others; where few descriptors are allowed, a quarter.
const RESERVE: usize = 1024;

/// Connections that one user asks a guest for at the same time. (A guest answers 1024 at most, of all users.)
const ATTEMPTS: usize = 512;

/// Who has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// Programs of a user, by its number: their connections to the node, those that became of them, and those that other
    /// programs here have opened to them.
    User(u32),
    /// A guest: connections that it opened to programs.
    Guest(LinkId),
    /// A user's attempts to connect over a link, as long as they have no answer.
    Attempts(LinkId, u32),
}

/// What everybody may have.
#[derive(Clone, Copy, Debug)]
struct Most {
    all: usize,
    user: usize,
    guest: usize,
}

impl Most {
    /// Of a process that may have so many descriptors.
    fn of(descriptors: usize) -> Self {
        let all = descriptors - RESERVE.min(descriptors / 4);
        Self { all, user: all - RESERVE.min(all / 4), guest: all / 4 }
    }

    fn by(self, holder: Holder) -> usize {
        match holder {
            Holder::User(_) => self.user,
            Holder::Guest(_) => self.guest,
            Holder::Attempts(..) => ATTEMPTS,
        }
    }
}

#[derive(Debug, Default)]
struct Taken {
    by: HashMap<Holder, usize>,
    descriptors: usize,
}

/// What everybody has.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    most: Most,
    taken: Arc<Mutex<Taken>>,
}

impl Places {
    /// Nobody has anything yet. `most`: so many descriptors, or as many as the process may have.
    pub(crate) fn within(most: usize) -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self::of(usize::try_from(limit).unwrap_or(usize::MAX).min(most))
    }

    /// In a process that may have so many descriptors.
    fn of(descriptors: usize) -> Self {
        Self { most: Most::of(descriptors), taken: Arc::default() }
    }

    /// No more connections: those that wait may wait on.
    pub(crate) fn is_full(&self) -> bool {
        lock(&self.taken).descriptors >= self.most.all
    }

    /// One more for somebody, if they may have it.
    pub(crate) fn take(&self, holder: Holder) -> Option<Place> {
        self.take_below(holder, self.most.by(holder), self.most.all)
    }

    /// One that somebody has already.
    pub(crate) fn keep(&self, holder: Holder) -> Option<Place> {
        self.take_below(holder, usize::MAX, usize::MAX)
    }

    fn take_below(&self, holder: Holder, most: usize, all: usize) -> Option<Place> {
        let mut taken = lock(&self.taken);
        let has = taken.by.get(&holder).copied().unwrap_or(0);
        if has >= most || (holder.has_descriptor() && taken.descriptors >= all) {
            return None;
        }
        taken.by.insert(holder, has + 1);
        taken.descriptors += usize::from(holder.has_descriptor());
        Some(Place { taken: Arc::clone(&self.taken), holder })
    }
}

impl Holder {
    fn has_descriptor(self) -> bool {
        match self {
            Self::User(_) | Self::Guest(_) => true,
            Self::Attempts(..) => false,
        }
    }
}

/// One of those that somebody has, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    taken: Arc<Mutex<Taken>>,
    holder: Holder,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.descriptors -= usize::from(self.holder.has_descriptor());
        if let Some(has) = taken.by.get_mut(&self.holder) {
            *has -= 1;
            if *has == 0 {
                taken.by.remove(&self.holder);
            }
        }
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(places: &Places, holder: Holder) -> Vec<Place> {
        std::iter::from_fn(|| places.take(holder)).collect()
    }

    fn guest(number: u64) -> Holder {
        Holder::Guest(LinkId::from_bits(1 << 32 | number).unwrap())
    }

    #[test]
    fn each_leaves_some_for_others_and_all_leave_some_for_the_process() {
        for (descriptors, user, by_guest, most) in
            [(20_000, 17_952, 4744, 18_976), (1024, 576, 192, 768), (16, 9, 3, 12)]
        {
            let places = Places::of(descriptors);
            let of_guest = all(&places, guest(1));
            assert_eq!(of_guest.len(), by_guest);
            let one = all(&places, Holder::User(1000));
            assert_eq!(one.len(), user.min(most - by_guest));
            drop(of_guest);
            let rest = all(&places, Holder::User(1000));
            assert_eq!(one.len() + rest.len(), user);
            let other = all(&places, Holder::User(0));
            assert_eq!(other.len(), most - user);
            assert!(places.is_full() && places.take(guest(2)).is_none());
            drop((one, rest, other));
            assert_eq!(lock(&places.taken).descriptors, 0);
        }
    }

    #[test]
    fn attempts_are_counted_by_user_and_link_and_cost_no_descriptor() {
        let places = Places::of(20_000);
        let link = LinkId::from_bits(1 << 32 | 1).unwrap();
        let attempts = all(&places, Holder::Attempts(link, 1000));
        assert_eq!(attempts.len(), ATTEMPTS);
        assert!(places.take(Holder::Attempts(link, 0)).is_some());
        assert_eq!(lock(&places.taken).descriptors, 0);
        drop(attempts);
        assert!(lock(&places.taken).by.is_empty());
    }

    #[test]
    fn what_somebody_has_already_counts_beyond_what_they_may_have() {
        let places = Places::of(16);
        let kept: Vec<_> = (0..20).filter_map(|_| places.keep(Holder::User(1))).collect();
        assert_eq!(kept.len(), 20);
        assert!(places.take(Holder::User(2)).is_none());
        drop(kept);
        assert!(places.take(Holder::User(2)).is_some());
    }
}
