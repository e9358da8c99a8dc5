//! How long to look at rings before asking for a signal and going to sleep.
//!
//! To be woken costs far more than to look: the other side makes a system call, and where the processor sleeps as well and
//! this machine is itself a VM, its hypervisor has to come in twice. So for a short time after a link's last packet its
//! rings are looked at again and again, and the other side need not signal at all.
//!
//! Whether that pays is learned as KVM's `halt_poll_ns` learns it: a sleep that was short could have been spared, so the
//! time grows; after a long one it shrinks, to nothing at last. Who is idle sleeps, and a wake-up now and then does not
//! keep it up. Between two looks the processor is offered to others ([`Polling::give_way`]): on one that is shared, looking
//! must not delay what is looked for.

use std::time::Duration;

/// Where growing begins and shrinking ends.
const LEAST: Duration = Duration::from_micros(10);

/// A sleep is short up to so many times the longest look: to wake up takes long itself, and longest where looking would
/// have spared most.
const SHORT: u32 = 4;

/// The time learned so far: none at first.
#[derive(Debug, Clone, Copy)]
pub struct Polling {
    most: Duration,
    window: Duration,
}

impl Default for Polling {
    /// Up to 50 µs: two wake-ups of a sleeping processor within a VM.
    fn default() -> Self {
        Self::up_to(Duration::from_micros(50))
    }
}

impl Polling {
    /// Never looks for longer than `most`.
    #[must_use]
    pub const fn up_to(most: Duration) -> Self {
        Self { most, window: Duration::ZERO }
    }

    /// How long after the last packet to look without sleeping.
    #[must_use]
    pub const fn window(&self) -> Duration {
        self.window
    }

    /// Lets others have the processor if somebody waits for it.
    pub fn give_way(&self) {
        std::thread::yield_now();
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
    fn new_one_does_not_wait() {
        assert_eq!(after(&[]), Duration::ZERO);
        assert_eq!(after(&[200]), Duration::ZERO);
    }
}
