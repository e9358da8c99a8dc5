//! Programs that closed with something unsent: their flows go on until the other side has taken it all.
//!
//! What can wait is bounded in bytes: what the program's socket holds, and one message. It may wait for long, as a guest
//! that is paused or a reader that is late takes it minutes later; only a flow of which nothing has been taken for the
//! whole of the timeout ends with RST, which is counted and logged. The clock stands while the guest's ring is stopped.

use std::io;
use std::time::Duration;

use vsock_core::Instant;

use super::Worker;
use super::rest::Due;
use super::source::{LinkId, Source};
use crate::link::{Link, RX_QUEUE};
use crate::reactor::Token;

/// How long nothing may be taken, unless the node was told otherwise.
const LINGER_TIMEOUT: Duration = Duration::from_secs(600);

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
    fn new(now: Instant, bytes_out: u64) -> Self {
        Self { bytes_out, since: now }
    }

    /// Looks at what has been sent by now, to somebody who could take it since `receives_since`. Returns when to look
    /// again; `None`: nothing was taken for the whole of `timeout`.
    fn look(
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

/// Flows whose programs have closed.
#[derive(Debug)]
pub(crate) struct Lingering {
    timeout: Duration,
    /// Those whose programs left in this round; nearly all end in it.
    left: Vec<Token>,
    timeouts: u64,
}

impl Default for Lingering {
    fn default() -> Self {
        Self { timeout: LINGER_TIMEOUT, left: Vec::new(), timeouts: 0 }
    }
}

impl Lingering {
    /// Flows that ended with data undelivered.
    pub(crate) fn timeouts(&self) -> u64 {
        self.timeouts
    }
}

impl Worker {
    /// How long nothing may be taken of what a program sent before it closed.
    pub(crate) fn set_linger_timeout(&mut self, timeout: Duration) {
        self.lingering.timeout = timeout;
    }

    /// A program has closed; its flow may have more to send.
    pub(crate) fn program_left(&mut self, token: Token) {
        self.lingering.left.push(token);
    }

    /// Begins to watch those that programs left in this round.
    pub(super) fn watch_lingering(&mut self) {
        let mut left = std::mem::take(&mut self.lingering.left);
        for token in left.drain(..) {
            let (bytes_out, now) = (self.bytes_out(token), self.now);
            if let Some(Source::Flow(flow)) = self.sources.get_mut(token)
                && flow.linger.is_none()
            {
                flow.linger = Some(Linger::new(now, bytes_out));
                self.timers.set(Due::Linger(token), Some(now + self.lingering.timeout));
            }
        }
        self.lingering.left = left;
    }

    /// A flow whose time has come: it is given more if some was taken, or could not be.
    pub(super) fn look_at_linger(&mut self, token: Token) {
        let (bytes_out, now) = (self.bytes_out(token), self.now);
        let Some(link) = self.flow(token).map(|flow| flow.link) else { return };
        let (receives_since, timeout) = (self.receives_since(link), self.lingering.timeout);
        let Some(linger) = self.flow(token).and_then(|flow| flow.linger.as_mut()) else { return };
        match linger.look(now, bytes_out, receives_since, timeout) {
            Some(next) => self.timers.set(Due::Linger(token), Some(next)),
            None => {
                self.lingering.timeouts += 1;
                let error =
                    io::Error::other("its program left, and what it sent last is not taken");
                self.fail_flow(token, &error);
            }
        }
    }

    /// Since when the other side of a link can take something; now, if it cannot.
    fn receives_since(&self, link: LinkId) -> Instant {
        match self.links.get(link) {
            Some(slot) => match &slot.link {
                Link::Device(device) if !device.is_running(RX_QUEUE) => self.now,
                Link::Device(_) => slot.receives_since,
                Link::Driver(_) | Link::Loopback(_) => Instant::default(),
            },
            None => Instant::default(),
        }
    }

    fn bytes_out(&self, token: Token) -> u64 {
        let Some(Source::Flow(flow)) = self.sources.get(token) else { return 0 };
        let info = self.links.get(flow.link).and_then(|slot| slot.endpoint.info(flow.id));
        info.map_or(0, |info| info.bytes_out)
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
    fn clock_stands_while_the_guest_takes_nothing_at_all() {
        let mut linger = Linger::new(at(100), 50);
        assert_eq!(linger.look(at(700), 50, at(700), TIMEOUT), Some(at(1300)));
        assert_eq!(linger.look(at(1300), 50, at(900), TIMEOUT), Some(at(1500)));
        assert_eq!(linger.look(at(1500), 50, at(900), TIMEOUT), None);
    }
}
