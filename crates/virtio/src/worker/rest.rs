//! Between two rounds: how long the worker may wait, and what it does instead of sleeping at once.
//!
//! A link that was served has its notifications off. It stays so for as long as [`Polling`] says: its rings are looked at
//! in every round, and its other side need not signal. Only then notifications are asked for, and the rings looked at once
//! more, as something may have come in between. With no link left to look at, the worker sleeps until the next deadline.

use std::io;
use std::time::Duration;

use vsock_core::Instant;

use super::{LinkId, Worker};
use crate::polling::Polling;
use crate::reactor::{Events, Readiness, Token};

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// The connections of a link.
    Link(LinkId),
    /// A flow whose program has closed with something unsent.
    Linger(Token),
    /// Flows between guests.
    Relay,
    /// Doors at which nobody could be let in.
    Doors,
}

impl Worker {
    /// How long to look before sleeping, from now on.
    pub(crate) fn set_polling(&mut self, polling: Polling) {
        self.polling = polling;
    }

    /// Waits for something to do, if there is nothing; appends what happened to `happened`.
    pub(super) fn rest(
        &mut self,
        events: &mut Events,
        happened: &mut Vec<Readiness>,
    ) -> io::Result<()> {
        let is_ahead = std::mem::take(&mut self.is_ahead);
        let before = self.clock();
        self.look_at_links(before);
        let is_polling = !self.unarmed.is_empty();
        if !self.active.is_empty() || is_polling {
            // A program that has not kept up may be waiting for this very processor.
            if is_ahead || self.active.is_empty() {
                self.polling.give_way();
            }
            self.reactor.wait(Some(Duration::ZERO), events, happened)?;
            // Not later than the look at the rings: what came in time has been seen before its deadline is over.
            self.now = before;
            return Ok(());
        }
        self.reactor.wait(self.timeout(before), events, happened)?;
        self.now = self.clock();
        self.polling.slept(self.now.since(before));
        Ok(())
    }

    /// How long a sleep may last.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        Some(self.timers.next()?.since(now))
    }

    /// Looks at the links that do not notify us, and lets those do so that have been quiet for long enough. Also while
    /// other links have work: nobody else tells us of these.
    fn look_at_links(&mut self, now: Instant) {
        if self.unarmed.is_empty() {
            return;
        }
        debug_assert!(self.unarmed.len() <= self.links.len(), "each link once");
        let window = self.polling.window();
        let mut unarmed = std::mem::take(&mut self.unarmed);
        unarmed.retain(|&id| {
            let Some(slot) = self.links.get_mut(id) else { return false };
            if slot.is_active {
                return slot.is_unarmed;
            }
            let is_quiet = now.since(slot.worked_at) >= window;
            let has_work = if is_quiet { slot.arm() } else { slot.has_news() };
            let is_unarmed = slot.is_unarmed;
            if has_work {
                self.activate(id);
            }
            is_unarmed
        });
        self.unarmed = unarmed;
    }

    /// Does what is due by now.
    pub(super) fn expire(&mut self) {
        self.watch_lingering();
        for due in self.timers.take_due(self.now) {
            match due {
                Due::Link(id) => {
                    if let Some(slot) = self.links.get_mut(id) {
                        slot.endpoint.expire(self.now);
                        self.activate(id);
                    }
                }
                Due::Linger(token) => self.look_at_linger(token),
                Due::Relay => {
                    self.relay.expire(self.now);
                    self.activate_relayed();
                }
                Due::Doors => {
                    for token in std::mem::take(&mut self.shut_doors) {
                        self.accept_programs(token);
                        self.accept_hybrid(token);
                    }
                }
            }
        }
        self.timers.set(Due::Relay, self.relay.deadline());
    }

    /// Keeps the timer of a link in step with what its endpoint waits for.
    pub(super) fn note_deadline(&mut self, id: LinkId) {
        let Some(slot) = self.links.get(id) else { return };
        self.timers.set(Due::Link(id), slot.endpoint.deadline());
    }
}
