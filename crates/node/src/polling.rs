//! How long to look at rings before asking for a signal and going to sleep.
//!
//! To be woken costs far more than to look: the other side makes a system call, and where the processor sleeps as well and
//! this machine is itself a VM, its hypervisor has to come in twice. So for a short time after a link's last packet its
//! rings are looked at again and again, and the other side need not signal at all.
//!
//! Whether that pays is learned as KVM's `halt_poll_ns` learns it: a sleep that was short could have been spared, so the
//! time grows; after a long one it shrinks, to nothing at last. Who is idle sleeps, and a wake-up now and then does not
//! keep it up.
//!
//! Between two looks the processor is offered to others ([`Polling::give_way`]): on one that is shared, looking must not
//! delay what is looked for. Those we work with give it back within microseconds. Somebody with work of his own keeps it
//! for a whole time slice, and the kernel counts what was offered as used; a thread that is woken, on the other hand, has
//! its turn at once. So after such an offer there is no looking and no offering for a while.

use std::time::{Duration, Instant};

/// Where growing begins and shrinking ends.
const LEAST: Duration = Duration::from_micros(10);

/// A sleep is short up to so many times the longest look: to wake up takes long itself, and longest where looking would
/// have spared most.
const SHORT: u32 = 4;

/// Nobody we work with keeps the processor for so long.
const SLICE: Duration = Duration::from_millis(1);

/// For how long it counts as crowded then, at first and at most.
const CROWDED: Duration = Duration::from_millis(10);
const MOST_CROWDED: Duration = Duration::from_millis(640);

/// What was learned so far: nothing at first.
#[derive(Debug, Clone, Copy)]
pub struct Polling {
    most: Duration,
    window: Duration,
    crowded_until: Option<Instant>,
    /// How long the processor counted as crowded the last time.
    crowded: Duration,
}

impl Default for Polling {
    /// Up to 50 µs: two wake-ups of a sleeping processor within a VM.
    fn default() -> Self {
        Self::up_to(Duration::from_micros(50))
    }
}

impl Polling {
    /// How long it looks at most.
    #[must_use]
    pub const fn most(&self) -> Duration {
        self.most
    }

    /// Never looks for longer than `most`.
    #[must_use]
    pub const fn up_to(most: Duration) -> Self {
        Self { most, window: Duration::ZERO, crowded_until: None, crowded: Duration::ZERO }
    }

    /// How long after the last packet to look without sleeping.
    #[must_use]
    pub fn window(&self) -> Duration {
        if self.is_crowded() { Duration::ZERO } else { self.window }
    }

    fn is_crowded(&self) -> bool {
        self.crowded_until.is_some_and(|until| Instant::now() < until)
    }

    /// Lets others have the processor if somebody waits for it.
    pub fn give_way(&mut self) {
        if self.is_crowded() {
            return;
        }
        let before = Instant::now();
        std::thread::yield_now();
        self.was_away(before, before.elapsed());
    }

    /// The processor came back after `time`.
    fn was_away(&mut self, since: Instant, time: Duration) {
        if time < SLICE {
            return;
        }
        let is_again = self.crowded_until.is_some_and(|until| since < until + 2 * self.crowded);
        self.crowded = if is_again { (2 * self.crowded).min(MOST_CROWDED) } else { CROWDED };
        self.crowded_until = Some(since + time + self.crowded);
    }

    /// A sleep is over that took so long.
    pub fn slept(&mut self, time: Duration) {
        self.window = if time < self.most * SHORT {
            (self.window * 2).max(LEAST).min(self.most)
        } else if self.window > LEAST {
            self.window / 2
        } else {
            Duration::ZERO
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);

    fn after(sleeps: &[u64]) -> Duration {
        let mut polling = Polling::up_to(MOST);
        for &micros in sleeps {
            polling.slept(Duration::from_micros(micros));
        }
        polling.window()
    }

    #[test]
    fn short_sleeps_grow_the_window_to_its_bound() {
        assert_eq!(after(&[20]), LEAST);
        assert_eq!(after(&[20, 199]), 2 * LEAST);
        assert_eq!(after(&[1; 10]), MOST);
    }

    #[test]
    fn long_sleeps_shrink_it_to_nothing() {
        assert_eq!(after(&[1, 1, 1, 1000]), 2 * LEAST);
        assert_eq!(after(&[1, 1, 1, 1, 1000, 1000, 1000, 1000]), Duration::ZERO);
    }

    #[test]
    fn bound_of_nothing_is_kept() {
        let mut polling = Polling::up_to(Duration::ZERO);
        polling.slept(Duration::ZERO);
        assert_eq!(polling.window(), Duration::ZERO);
    }

    #[test]
    fn one_whose_offer_was_kept_for_a_slice_does_not_look_for_a_while() {
        let mut polling = Polling::up_to(MOST);
        polling.slept(Duration::from_micros(1));
        let start = Instant::now();
        polling.was_away(start, SLICE / 2);
        assert_eq!(polling.window(), LEAST);
        polling.was_away(start, Duration::from_secs(60));
        assert_eq!(polling.window(), Duration::ZERO);
    }

    #[test]
    fn while_it_stays_crowded_the_times_without_looking_grow_to_a_bound() {
        let mut polling = Polling::up_to(MOST);
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..9 {
            polling.was_away(now, SLICE);
            waits.push(polling.crowded);
            now = polling.crowded_until.unwrap();
        }
        assert_eq!(waits[..3], [CROWDED, 2 * CROWDED, 4 * CROWDED]);
        assert_eq!(waits[8], MOST_CROWDED);
        polling.was_away(now + 2 * MOST_CROWDED, SLICE);
        assert_eq!(polling.crowded, CROWDED);
    }

    #[test]
    fn new_one_does_not_wait() {
        assert_eq!(after(&[]), Duration::ZERO);
        assert_eq!(after(&[200]), Duration::ZERO);
    }
}
