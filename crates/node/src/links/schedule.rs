//! Who has work, whose turn it is, and which of the other links are looked at because they do not notify us.
//!
//! A link that was served has its notifications off, and they stay off as long as packets come: its queues are looked at in
//! every round. Only when it has been quiet for long enough, notifications are asked for, and its queues looked at once
//! more, as something may have come in between.
//!
//! Links, and the programs that ask for something, share the worker's time as start-time fair queueing has it (Goyal, Vin and
//! Cheng, 1996), and Linux's fair scheduler: each has a clock that runs while it is served, and the one whose clock is behind the
//! others' is next. So who wants little has his turn as soon as the one that goes on ends, however many want much, and a
//! turn that took too long is made up for by itself. Who had nothing to do meanwhile comes back with a clock that is
//! [`HEAD_START`] behind, not with all the time that he has not used. Programs are served before links, unless they have had
//! that much more.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use vsock_core::{Instant, SecondaryMap, Slots};

use super::quantum::TIME_SHARED;
use super::{Entry, LinkId};

/// How far behind the others' a clock may be that stood still: who is served now and then is not worse off for it. Where more
/// than [`FEW`] have work it is less, as those who are served all the time wait for each that comes back.
const HEAD_START: Duration = Duration::from_micros(HEAD_START_US);
const HEAD_START_US: u64 = 300;
const FEW: u32 = 4;

/// The most that a turn counts: a processor that was away for long is not the fault of him whose turn it was.
const LONGEST_TURN: Duration = Duration::from_micros(320);

/// Time for which turns are served before we look whether others have come, and what looking at one more link adds to
/// it: some tenth of the time is spent on that at most.
const ROUND: Duration = TIME_SHARED;
const ROUND_PER_LINK: Duration = Duration::from_nanos(100);

/// Who has turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// A link.
    Link(LinkId),
    /// All programs that ask for something, together.
    Programs,
}

impl Who {
    fn link(self) -> Option<LinkId> {
        match self {
            Self::Link(id) => Some(id),
            Self::Programs => None,
        }
    }
}

/// What is known of a link's work.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    /// Among those whose notifications are to be turned on again.
    is_unarmed: bool,
    /// When the last packet came or went, and how many had by then.
    worked_at: Instant,
    packets: u64,
    clock: Clock,
}

/// The clock of one that has turns.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    is_active: bool,
    /// Time that it was served, and that it has let go by.
    time: Duration,
}

/// Those that have work, the one whose clock is behind first; of equals, the one that has waited longer.
#[derive(Default)]
struct Turns {
    queue: BinaryHeap<Reverse<(Duration, u64, Who)>>,
    /// So many have been put in it.
    count: u64,
    /// The clock of the one that was served last, when its turn began.
    time: Duration,
}

impl Turns {
    fn activate(&mut self, who: Who, clock: &mut Clock) {
        if !std::mem::replace(&mut clock.is_active, true) {
            let others = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
            let head_start = HEAD_START / (others / FEW).max(1);
            clock.time = clock.time.max(self.time.saturating_sub(head_start));
            self.count += 1;
            // What a program has asked for before a guest sent something is done before it, as a system call would be, unless
            // programs have had much more than links.
            self.queue.push(Reverse(match who {
                Who::Link(_) => (clock.time, self.count, who),
                Who::Programs => (clock.time.saturating_sub(HEAD_START), 0, who),
            }));
        }
    }

    fn next(&mut self) -> Option<Who> {
        let Reverse((time, _, who)) = self.queue.pop()?;
        self.time = self.time.max(time);
        Some(who)
    }
}

/// Who has work.
#[derive(Default)]
pub(super) struct Schedule {
    turns: Turns,
    /// Served since the last sleep, notifications off.
    unarmed: Vec<LinkId>,
    work: SecondaryMap<Entry, Work>,
    programs: Clock,
}

impl Schedule {
    /// A link is there, and may have work.
    pub(super) fn add(&mut self, id: LinkId) {
        self.work.insert(id, Work::default());
    }

    /// A link is gone.
    pub(super) fn remove(&mut self, id: LinkId) {
        self.work.remove(id);
        self.turns.queue.retain(|Reverse((_, _, who))| *who != Who::Link(id));
        self.unarmed.retain(|&unarmed| unarmed != id);
    }

    /// A link has work.
    #[inline]
    pub(super) fn activate(&mut self, id: LinkId) {
        if let Some(work) = self.work.get_mut(id) {
            self.turns.activate(Who::Link(id), &mut work.clock);
        }
    }

    /// Programs ask for something.
    pub(super) fn activate_programs(&mut self) {
        self.turns.activate(Who::Programs, &mut self.programs);
    }

    /// Whether anybody has work.
    pub(super) fn is_active(&self) -> bool {
        !self.turns.queue.is_empty()
    }

    /// Whether a link waits for its turn.
    pub(super) fn is_waiting(&self, id: LinkId) -> bool {
        self.work.get(id).is_some_and(|work| work.clock.is_active)
    }

    /// Links that wait for their turn.
    pub(super) fn waiting(&self) -> Vec<LinkId> {
        let waiting = self.turns.queue.iter();
        waiting.filter_map(|Reverse((_, _, who))| who.link()).collect()
    }

    /// How long to serve turns before we look whether others have come.
    pub(super) fn round(&self) -> Duration {
        ROUND + ROUND_PER_LINK * u32::try_from(self.unarmed.len()).unwrap_or(u32::MAX)
    }

    /// Whose turn it is. The notifications of a link are off from now on.
    pub(super) fn next(&mut self) -> Option<Who> {
        let who = self.turns.next()?;
        if let Some(clock) = self.clock(who) {
            clock.is_active = false;
        }
        if let Who::Link(id) = who
            && let Some(work) = self.work.get_mut(id)
            && !std::mem::replace(&mut work.is_unarmed, true)
        {
            self.unarmed.push(id);
        }
        Some(who)
    }

    /// Somebody was served for this time.
    pub(super) fn spend(&mut self, who: Who, time: Duration) {
        if let Some(clock) = self.clock(who) {
            clock.time += time.min(LONGEST_TURN);
        }
    }

    fn clock(&mut self, who: Who) -> Option<&mut Clock> {
        match who {
            Who::Link(id) => self.work.get_mut(id).map(|work| &mut work.clock),
            Who::Programs => Some(&mut self.programs),
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
        let Self { turns, unarmed, work, .. } = self;
        unarmed.retain(|&id| {
            let interface = entries.get_mut(id).and_then(Entry::interface_mut);
            let (Some(work), Some(interface)) = (work.get_mut(id), interface) else {
                return false;
            };
            if work.clock.is_active {
                return true;
            }
            let is_quiet = now.since(work.worked_at) >= window;
            work.is_unarmed = !is_quiet;
            let has_work = if is_quiet { interface.arm() } else { interface.has_news() };
            if has_work {
                turns.activate(Who::Link(id), &mut work.clock);
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
        assert_eq!((schedule.next(), schedule.next()), (Some(Who::Link(id)), None));
        schedule.activate(id);
        schedule.remove(id);
        assert_eq!((schedule.next(), schedule.has_unarmed()), (None, false));
    }

    /// Links and what they do with a turn.
    struct Worker {
        schedule: Schedule,
        links: Vec<LinkId>,
    }

    impl Worker {
        fn of(links: u64) -> Self {
            let links: Vec<_> =
                (0..links).map(|n| LinkId::from_bits(1 << 32 | n).unwrap()).collect();
            let mut schedule = Schedule::default();
            links.iter().for_each(|&id| schedule.add(id));
            Self { schedule, links }
        }

        /// Whose turn it is, by its number; it takes so many microseconds.
        fn turn(&mut self, microseconds: impl Fn(usize) -> u64) -> usize {
            let who = self.schedule.next().unwrap();
            let served = self.links.iter().position(|&id| Who::Link(id) == who);
            let served = served.unwrap_or(self.links.len());
            self.schedule.spend(who, Duration::from_micros(microseconds(served)));
            served
        }

        fn activate(&mut self, number: usize) {
            match self.links.get(number) {
                Some(&id) => self.schedule.activate(id),
                None => self.schedule.activate_programs(),
            }
        }

        /// Microseconds that each was served in so many turns, if all always have work.
        fn shares(&mut self, turns: usize, microseconds: impl Fn(usize) -> u64 + Copy) -> Vec<u64> {
            let mut shares = vec![0; self.links.len() + 1];
            (0..shares.len()).for_each(|number| self.activate(number));
            for _ in 0..turns {
                let served = self.turn(microseconds);
                shares[served] += microseconds(served);
                self.activate(served);
            }
            shares
        }
    }

    #[test]
    fn links_and_programs_have_the_same_time_whatever_a_turn_takes() {
        let mut worker = Worker::of(3);
        let takes = |served: usize| [20, 70, 3, 25][served];
        for shares in [worker.shares(10_000, takes), worker.shares(10_000, takes)] {
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 2 * 70 + 2 * HEAD_START_US, "{shares:?}");
        }
    }

    #[test]
    fn link_that_wants_little_is_next_however_many_want_much() {
        let mut worker = Worker::of(100);
        let takes = |served: usize| if served == 0 { 1 } else { 20 };
        (1..100).for_each(|number| worker.activate(number));
        for _ in 1..100 {
            let served = worker.turn(takes);
            worker.activate(served);
        }
        for turn in 0..1_000 {
            if turn % 10 == 0 {
                worker.activate(0);
            }
            let served = worker.turn(takes);
            assert_eq!(served == 0, turn % 10 == 0, "turn {turn}");
            if served != 0 {
                worker.activate(served);
            }
        }
    }

    #[test]
    fn link_that_had_nothing_to_do_comes_back_with_a_head_start_and_no_more() {
        let mut worker = Worker::of(2);
        worker.activate(1);
        for _ in 0..1_000 {
            assert_eq!(worker.turn(|_| 20), 1);
            worker.activate(1);
        }
        worker.activate(0);
        let mut ahead = 0;
        while worker.turn(|_| 20) == 0 {
            ahead += 20;
            worker.activate(0);
        }
        assert!((HEAD_START_US..=HEAD_START_US + 40).contains(&ahead), "{ahead} µs");
    }

    #[test]
    fn programs_are_served_before_links_unless_they_have_had_much_more() {
        let mut worker = Worker::of(1);
        let programs = 1;
        let mut first = 0;
        loop {
            worker.activate(0);
            worker.activate(programs);
            if worker.turn(|_| 20) != programs {
                break;
            }
            first += 20;
        }
        assert!((HEAD_START_US..=HEAD_START_US + 20).contains(&first), "{first} µs");
        // And with others they share from then on.
        let shares = worker.shares(1_000, |_| 20);
        assert!(shares[0].abs_diff(shares[1]) <= HEAD_START_US, "{shares:?}");
    }

    #[test]
    fn many_links_that_come_back_together_have_less_of_a_head_start() {
        let mut worker = Worker::of(101);
        worker.activate(0);
        for _ in 0..1_000 {
            assert_eq!(worker.turn(|_| 20), 0);
            worker.activate(0);
        }
        (1..=100).for_each(|number| worker.activate(number));
        let mut waited = 0;
        while let served @ 1.. = worker.turn(|_| 20) {
            waited += 20;
            worker.activate(served);
        }
        assert!((1_000..8_000).contains(&waited), "{waited} µs");
    }

    #[test]
    fn turn_in_which_the_processor_was_away_counts_as_a_long_one() {
        let mut worker = Worker::of(2);
        worker.activate(0);
        worker.activate(1);
        assert_eq!(worker.turn(|_| 1_000_000), 0);
        worker.activate(0);
        let most = LONGEST_TURN.as_micros() / 20;
        let turns = (0..).take_while(|_| {
            let served = worker.turn(|_| 20);
            worker.activate(served);
            served == 1
        });
        assert!((most..=most + 1).contains(&(turns.count() as u128)));
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
        assert_eq!((schedule.has_unarmed(), schedule.is_active()), (false, false));
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
        assert_eq!((schedule.next(), schedule.has_unarmed()), (Some(Who::Link(id)), true));
    }
}
