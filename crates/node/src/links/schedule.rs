//! Which links have work, and which of the others are looked at because they do not notify us.
//!
//! A link that was served has its notifications off, and they stay off as long as packets come: its queues are looked at in
//! every round. Only when it has been quiet for long enough, notifications are asked for, and its queues looked at once
//! more, as something may have come in between.

use std::collections::VecDeque;
use std::time::Duration;

use vsock_core::{Instant, SecondaryMap, Slots};

use super::{Entry, LinkId};

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
