//! How much one link may do before the next has its turn, in bytes each way and in time.
//!
//! A link that has the worker for itself gets as much as one call into the kernel moves well. Once another link, or
//! programs, had work too, and for a while after, turns are short: that one's packets wait for no more than a short turn, and
//! its share does not depend on how much the first has queued. Links share time, not packets or bytes: what a packet costs is
//! for the other side of its link to choose.

use std::time::Duration;

use vsock_core::Instant;

use super::Who;

/// For a link alone: more would not move faster, and the other side starts on this while we go on.
const ALONE: usize = 128 * 1024;

/// For one of several.
const SHARED: usize = 32 * 1024;

/// Time of one turn for a link alone.
const TIME_ALONE: Duration = Duration::from_micros(100);

/// For one of several, and for programs: about what [`SHARED`] bytes take one way.
pub(super) const TIME_SHARED: Duration = Duration::from_micros(20);

/// How long a link that had work counts as one that has some: longer than the round trip of somebody who asks and waits.
const MEMORY: Duration = Duration::from_millis(1);

/// Who had work lately.
#[derive(Debug, Default)]
pub(crate) struct Quantum {
    last: Option<Who>,
    shared_until: Instant,
}

impl Quantum {
    /// Somebody had work.
    pub(crate) fn note(&mut self, who: Who, now: Instant) {
        if self.last.replace(who).is_some_and(|last| last != who) {
            self.shared_until = now.after(MEMORY);
        }
    }

    /// Whether several share the worker.
    fn is_shared(&self, now: Instant) -> bool {
        now < self.shared_until
    }

    /// Bytes each way in one turn.
    pub(crate) fn bytes(&self, now: Instant) -> usize {
        if self.is_shared(now) { SHARED } else { ALONE }
    }

    /// How long a turn may take.
    pub(crate) fn time(&self, now: Instant) -> Duration {
        if self.is_shared(now) { TIME_SHARED } else { TIME_ALONE }
    }
}

#[cfg(test)]
mod tests {
    use super::super::LinkId;
    use super::*;

    const START: Instant = Instant(1_000_000_000);

    fn after(links: &[u64], time: Duration) -> usize {
        let mut quantum = Quantum::default();
        for &number in links {
            quantum.note(Who::Link(LinkId::from_bits(number).unwrap()), START);
        }
        quantum.bytes(START.after(time))
    }

    #[test]
    fn one_link_has_long_turns() {
        assert_eq!(after(&[], Duration::ZERO), ALONE);
        assert_eq!(after(&[3, 3, 3], Duration::ZERO), ALONE);
    }

    #[test]
    fn link_beside_programs_has_short_turns() {
        let mut quantum = Quantum::default();
        quantum.note(Who::Link(LinkId::from_bits(3).unwrap()), START);
        quantum.note(Who::Programs, START);
        assert_eq!(quantum.time(START), TIME_SHARED);
    }

    #[test]
    fn two_links_have_short_turns_until_one_was_quiet_for_long_enough() {
        assert_eq!(after(&[3, 4, 3, 3], MEMORY / 2), SHARED);
        assert_eq!(after(&[3, 4, 3, 3], MEMORY), ALONE);
    }
}
