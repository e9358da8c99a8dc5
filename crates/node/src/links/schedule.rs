//! Which links have work, and which of the others are looked at because they do not notify us.
//!
//! A link that was served has its notifications off, and they stay off as long as packets come: its queues are looked at in
//! every round. Only when it has been quiet for long enough, notifications are asked for, and its queues looked at once
//! more, as something may have come in between.
//!
//! Links that share the worker get the same time in each round. A turn ends only between two steps, so it may take longer
//! than that; what a link has taken too much, it waits in later rounds.

use std::collections::VecDeque;
use std::time::Duration;

use vsock_core::{Instant, SecondaryMap, Slots};

use super::quantum::{TIME_PER_ROUND, TIME_SHARED};
use super::{Entry, LinkId};

/// The most time that a link can owe: a processor that was away for long is not its fault.
const MOST_SPENT: Duration = Duration::from_micros(320);

/// The most time that one round makes up for: what a link has in it, and the step in which that ends.
const MOST_PER_ROUND: Duration = TIME_PER_ROUND.saturating_add(TIME_SHARED);

/// What is known of a link's work.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    /// Among those with work.
    is_active: bool,
    /// Among those whose notifications are to be turned on again.
    is_unarmed: bool,
    /// When the last packet came or went, and how many had by then.
    worked_at: Instant,
    packets: u64,
    /// Time taken and not yet made up for by rounds.
    spent: Duration,
    /// When a round came to it last.
    visited_at: Instant,
}

/// Which links have work.
#[derive(Default)]
pub(super) struct Schedule {
    active: VecDeque<LinkId>,
    /// Served since the last sleep, notifications off.
    unarmed: Vec<LinkId>,
    work: SecondaryMap<Entry, Work>,
}

impl Schedule {
    /// A link is there, and may have work.
    pub(super) fn add(&mut self, id: LinkId) {
        self.work.insert(id, Work::default());
    }

    /// A link is gone.
    pub(super) fn remove(&mut self, id: LinkId) {
        self.work.remove(id);
        self.active.retain(|&active| active != id);
        self.unarmed.retain(|&unarmed| unarmed != id);
    }

    /// Puts a link among those to serve in this or the next round.
    #[inline]
    pub(super) fn activate(&mut self, id: LinkId) {
        if let Some(work) = self.work.get_mut(id)
            && !work.is_active
        {
            work.is_active = true;
            self.active.push_back(id);
        }
    }

    /// How many links have work.
    pub(super) fn active(&self) -> usize {
        self.active.len()
    }

    /// The next link with work, whose notifications are off from now on.
    pub(super) fn next(&mut self) -> Option<LinkId> {
        let id = self.active.pop_front()?;
        if let Some(work) = self.work.get_mut(id) {
            work.is_active = false;
            if !std::mem::replace(&mut work.is_unarmed, true) {
                self.unarmed.push(id);
            }
        }
        Some(id)
    }

    /// A round has come to a link that has work. False: it has taken so much time in earlier ones that it must wait. A round
    /// makes up for no more time than it took itself: one in which nobody else had anything to do makes up for nothing.
    pub(super) fn has_time(&mut self, id: LinkId, now: Instant) -> bool {
        self.work.get_mut(id).is_none_or(|work| {
            let round = now.since(work.visited_at).min(MOST_PER_ROUND);
            work.visited_at = now;
            work.spent = work.spent.saturating_sub(round);
            work.spent < TIME_PER_ROUND
        })
    }

    /// A link has taken this time; none, if there is nobody with whom it has to share.
    pub(super) fn spend(&mut self, id: LinkId, time: Option<Duration>) {
        if let Some(work) = self.work.get_mut(id) {
            work.spent = time.map_or(Duration::ZERO, |time| (work.spent + time).min(MOST_SPENT));
        }
    }

    /// After a turn, when so many packets had come and gone: whether there was anything to do in it.
    pub(super) fn note_work(&mut self, id: LinkId, packets: u64, now: Instant) -> bool {
        let Some(work) = self.work.get_mut(id) else { return false };
        let had_work = packets != work.packets;
        if had_work {
            work.packets = packets;
            work.worked_at = now;
        }
        had_work
    }

    /// Whether there are links that do not notify us.
    pub(super) fn has_unarmed(&self) -> bool {
        !self.unarmed.is_empty()
    }

    /// Looks at the links that do not notify us, and lets those do so that have been quiet for `window`. Also while
    /// other links have work: nobody else tells us of these.
    pub(super) fn poll(&mut self, entries: &mut Slots<Entry>, now: Instant, window: Duration) {
        let Self { active, unarmed, work } = self;
        unarmed.retain(|&id| {
            let interface = entries.get_mut(id).and_then(Entry::interface_mut);
            let (Some(work), Some(interface)) = (work.get_mut(id), interface) else {
                return false;
            };
            if work.is_active {
                return true;
            }
            let is_quiet = now.since(work.worked_at) >= window;
            work.is_unarmed = !is_quiet;
            let has_work = if is_quiet { interface.arm() } else { interface.has_news() };
            if has_work {
                work.is_active = true;
                active.push_back(id);
            }
            work.is_unarmed
        });
    }
}

#[cfg(test)]
mod tests {
    use vsock_core::{Cid, Limits};
    use vsock_guest_memory::slice::Slices;

    use super::super::{Interface, Link, LoopbackLink, Role};
    use super::*;
    use crate::options::GuestOptions;

    const WINDOW: Duration = Duration::from_micros(50);

    /// A schedule of one link, which has nothing to do.
    fn one_link() -> (Schedule, Slots<Entry>, LinkId) {
        let link = Link::Loopback(LoopbackLink::new().unwrap());
        let interface = Interface::new(link, Role::Loopback, Cid::HOST, Limits::default(), 1);
        let mut entries = Slots::new();
        let id = entries.insert(Entry::new(GuestOptions::default(), interface));
        let mut schedule = Schedule::default();
        schedule.add(id);
        (schedule, entries, id)
    }

    #[test]
    fn link_with_work_is_named_once_until_it_has_work_again() {
        let (mut schedule, _, id) = one_link();
        schedule.activate(id);
        schedule.activate(id);
        assert_eq!((schedule.active(), schedule.next(), schedule.next()), (1, Some(id), None));
        schedule.activate(id);
        schedule.remove(id);
        assert_eq!((schedule.next(), schedule.has_unarmed()), (None, false));
    }

    #[test]
    fn link_that_has_taken_too_much_time_waits_until_rounds_have_made_up_for_it() {
        let (mut schedule, _, id) = one_link();
        let mut now = Instant(1_000_000_000);
        let mut round = |schedule: &mut Schedule, took: Duration| {
            now = now + took;
            schedule.has_time(id, now)
        };
        assert!(round(&mut schedule, TIME_PER_ROUND));
        schedule.spend(id, Some(3 * TIME_PER_ROUND));
        let waits = [(); 4].map(|()| !round(&mut schedule, TIME_PER_ROUND));
        assert_eq!(waits, [true, true, false, false]);
        // As much as one has in a round costs no round.
        schedule.spend(id, Some(TIME_PER_ROUND));
        assert!(round(&mut schedule, TIME_PER_ROUND));
        // Rounds that take no time make up for none, and long ones for no more than a share.
        schedule.spend(id, Some(3 * TIME_PER_ROUND));
        assert!((0..100).all(|_| !round(&mut schedule, Duration::ZERO)));
        assert!(!round(&mut schedule, Duration::from_secs(1)));
        schedule.spend(id, Some(Duration::from_secs(1)));
        let rounds = (0..).take_while(|_| !round(&mut schedule, TIME_PER_ROUND)).count();
        assert!(TIME_PER_ROUND * u32::try_from(rounds).unwrap() <= MOST_SPENT, "{rounds} rounds");
        schedule.spend(id, Some(3 * TIME_PER_ROUND));
        schedule.spend(id, None);
        assert!(round(&mut schedule, Duration::ZERO));
    }

    #[test]
    fn served_link_is_looked_at_until_it_has_been_quiet_for_the_window() {
        let (mut schedule, mut entries, id) = one_link();
        let start = Instant(1_000_000);
        schedule.activate(id);
        schedule.next();
        assert!(schedule.note_work(id, 3, start) && !schedule.note_work(id, 3, start + WINDOW));
        schedule.poll(&mut entries, start + WINDOW / 2, WINDOW);
        assert!(schedule.has_unarmed());
        schedule.poll(&mut entries, start + WINDOW, WINDOW);
        assert_eq!((schedule.has_unarmed(), schedule.active()), (false, 0));
    }

    #[test]
    fn link_in_which_something_has_come_meanwhile_has_work() {
        let (mut schedule, mut entries, id) = one_link();
        schedule.activate(id);
        schedule.next();
        let interface = entries.get_mut(id).and_then(Entry::interface_mut).unwrap();
        let mut slices = Slices::new();
        let buffer = interface.link_mut().next_buffer(&mut slices).unwrap().unwrap();
        interface.link_mut().send(&buffer, &slices, &[0; 44], 0);
        schedule.poll(&mut entries, Instant(1), WINDOW);
        assert_eq!((schedule.next(), schedule.has_unarmed()), (Some(id), true));
    }
}
