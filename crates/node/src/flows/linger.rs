//! Programs that closed with something unsent: their flows go on until the other side has taken it all.
//!
//! What can wait is bounded in bytes: what the program's socket holds, and one message. It may wait for long, as a guest
//! that is paused or a reader that is late takes it minutes later; only a flow of which nothing has been taken for the
//! whole of the timeout ends with RST, which is counted and logged. The clock stands while the guest's ring is stopped.

use std::time::Duration;

use vsock_core::Instant;
use vsock_core::saved::ago;

/// How long nothing may be taken, unless the node was told otherwise.
pub(super) const LINGER_TIMEOUT: Duration = Duration::from_secs(600);

/// The watch over one flow whose program has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Linger {
    /// What had been sent when it was looked at last.
    bytes_out: u64,
    /// Since when no more has.
    since: Instant,
}

impl Linger {
    /// Begins at `now`, with `bytes_out` sent.
    pub(super) fn new(now: Instant, bytes_out: u64) -> Self {
        Self { bytes_out, since: now }
    }

    /// When it is to be looked at.
    pub(super) fn due(&self, timeout: Duration) -> Instant {
        self.since + timeout
    }

    /// Looks at what has been sent by now, to somebody who could take it since `receives_since`. Returns when to look
    /// again; `None`: nothing was taken for the whole of `timeout`.
    pub(super) fn look(
        &mut self,
        now: Instant,
        bytes_out: u64,
        receives_since: Instant,
        timeout: Duration,
    ) -> Option<Instant> {
        let has_moved = bytes_out > self.bytes_out;
        self.since = if has_moved { now } else { self.since.max(receives_since) };
        self.bytes_out = bytes_out;
        let next = self.since + timeout;
        (next > now).then_some(next)
    }
}

/// The watch over a flow as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedLinger {
    /// What had been sent when it was looked at last.
    pub bytes_out: u64,
    /// How long no more has been sent.
    pub age: Duration,
}

impl Linger {
    /// As plain data.
    pub(super) fn save(&self, now: Instant) -> SavedLinger {
        SavedLinger { bytes_out: self.bytes_out, age: now.since(self.since) }
    }

    /// From plain data.
    pub(super) fn restore(saved: SavedLinger, now: Instant) -> Self {
        Self { bytes_out: saved.bytes_out, since: ago(saved.age, now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(600);

    fn at(seconds: u64) -> Instant {
        Instant::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn flow_of_which_nothing_is_taken_for_the_whole_timeout_is_given_up() {
        let mut linger = Linger::new(at(100), 50);
        assert_eq!(linger.look(at(699), 50, at(0), TIMEOUT), Some(at(700)));
        assert_eq!(linger.look(at(700), 50, at(0), TIMEOUT), None);
    }

    #[test]
    fn flow_of_which_a_byte_was_taken_has_the_timeout_anew() {
        let mut linger = Linger::new(at(100), 50);
        assert_eq!(linger.look(at(700), 51, at(0), TIMEOUT), Some(at(1300)));
        assert_eq!(linger.look(at(1300), 51, at(0), TIMEOUT), None);
    }

    #[test]
    fn watch_goes_on_from_its_saved_form() {
        let saved = Linger::new(at(100), 50).save(at(300));
        let mut after = Linger::restore(saved, at(1000));
        assert_eq!(after.due(TIMEOUT), at(1400));
        assert_eq!(after.look(at(1399), 50, at(0), TIMEOUT), Some(at(1400)));
        assert_eq!(after.look(at(1400), 50, at(0), TIMEOUT), None);
    }

    #[test]
    fn clock_stands_while_the_guest_takes_nothing_at_all() {
        let mut linger = Linger::new(at(100), 50);
        assert_eq!(linger.look(at(700), 50, at(700), TIMEOUT), Some(at(1300)));
        assert_eq!(linger.look(at(1300), 50, at(900), TIMEOUT), Some(at(1500)));
        assert_eq!(linger.look(at(1500), 50, at(900), TIMEOUT), None);
    }
}
