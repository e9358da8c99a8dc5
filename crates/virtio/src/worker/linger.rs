//! Programs that closed with something unsent: their flows go on until the other side has taken it all.
//!
//! What can wait is bounded in bytes: what the program's socket holds, and one message. It may wait for long, as a guest
//! that is paused or a reader that is late takes it minutes later; only a flow of which nothing has been taken for the
//! whole of the timeout ends with RST, which is counted and logged. The clock stands while the guest's ring is stopped.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use vsock_core::Instant;

use super::Worker;
use super::source::{Flow, LinkId, Source};
use crate::link::{Link, RX_QUEUE};
use crate::reactor::Token;

/// How long nothing may be taken, unless the node was told otherwise.
const LINGER_TIMEOUT: Duration = Duration::from_secs(600);

/// Flows whose programs have closed.
#[derive(Debug)]
pub(crate) struct Linger {
    timeout: Duration,
    /// Those whose programs left in this round; nearly all end in it.
    left: Vec<Token>,
    /// The others, by when they are looked at: the bytes that had been sent before, since when.
    waiting: BTreeMap<(Instant, Token), (u64, Instant)>,
    timeouts: u64,
}

impl Default for Linger {
    fn default() -> Self {
        Self { timeout: LINGER_TIMEOUT, left: Vec::new(), waiting: BTreeMap::new(), timeouts: 0 }
    }
}

impl Linger {
    /// When the next flow is looked at.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(&(at, _), _)| at)
    }

    /// Flows that ended with data undelivered.
    pub(crate) fn timeouts(&self) -> u64 {
        self.timeouts
    }

    /// A flow has ended.
    #[inline]
    pub(crate) fn forget(&mut self, token: Token, flow: &Flow) {
        if let Some(at) = flow.lingers_until {
            self.waiting.remove(&(at, token));
        }
    }

    fn watch(&mut self, token: Token, flow: &mut Flow, bytes_out: u64, since: Instant) {
        let at = since + self.timeout;
        flow.lingers_until = Some(at);
        self.waiting.insert((at, token), (bytes_out, since));
    }
}

impl Worker {
    /// How long nothing may be taken of what a program sent before it closed.
    pub(crate) fn set_linger_timeout(&mut self, timeout: Duration) {
        self.linger.timeout = timeout;
    }

    /// A program has closed; its flow may have more to send.
    pub(crate) fn program_left(&mut self, token: Token) {
        self.linger.left.push(token);
    }

    /// Begins to watch those that programs left in this round, and looks at those whose time has come.
    pub(super) fn expire_lingers(&mut self) {
        let mut left = std::mem::take(&mut self.linger.left);
        for token in left.drain(..) {
            let (bytes_out, now) = (self.bytes_out(token), self.now);
            if let Some(Source::Flow(flow)) = self.sources.get_mut(token)
                && flow.lingers_until.is_none()
            {
                self.linger.watch(token, flow, bytes_out, now);
            }
        }
        self.linger.left = left;
        while let Some(due) = self.linger.waiting.first_entry().filter(|it| it.key().0 <= self.now)
        {
            let ((_, token), (bytes_out, since)) = due.remove_entry();
            self.look_at_linger(token, bytes_out, since);
        }
    }

    /// A flow whose time has come: it is given more if some was taken, or could not be.
    fn look_at_linger(&mut self, token: Token, before: u64, since: Instant) {
        let (bytes_out, now) = (self.bytes_out(token), self.now);
        let Some(link) = self.flow(token).map(|flow| flow.link) else { return };
        let receives_since = self.receives_since(link);
        let since = if bytes_out > before { now } else { since.max(receives_since) };
        let Some(Source::Flow(flow)) = self.sources.get_mut(token) else { return };
        if since + self.linger.timeout > now {
            self.linger.watch(token, flow, bytes_out, since);
            return;
        }
        flow.lingers_until = None;
        self.linger.timeouts += 1;
        let error = io::Error::other("its program left, and what it sent last is not taken");
        self.fail_flow(token, &error);
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
