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
use crate::reactor::{Events, Readiness};

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
        let next = self.deadlines.first().map(|&(at, _)| at);
        let linger = self.linger.deadline();
        let relay = self.relay.deadline();
        let soonest = [next, linger, relay, self.doors_open_at].into_iter().flatten().min()?;
        Some(soonest.since(now))
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
        while let Some(&(at, id)) = self.deadlines.first() {
            if at > self.now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(slot) = self.links.get_mut(id) {
                slot.deadline = None;
                slot.endpoint.expire(self.now);
                self.activate(id);
            }
        }
        self.expire_lingers();
        if self.relay.deadline().is_some_and(|at| at <= self.now) {
            self.relay.expire(self.now);
            self.activate_relayed();
        }
        if self.doors_open_at.is_some_and(|at| at <= self.now) {
            self.doors_open_at = None;
            for token in std::mem::take(&mut self.shut_doors) {
                self.accept_programs(token);
                self.accept_hybrid(token);
            }
        }
    }

    /// Keeps the order of deadlines in step with what the link's endpoint waits for.
    pub(super) fn note_deadline(&mut self, id: LinkId) {
        let Some(slot) = self.links.get_mut(id) else { return };
        let next = slot.endpoint.deadline();
        if next == slot.deadline {
            return;
        }
        if let Some(old) = slot.deadline {
            self.deadlines.remove(&(old, id));
        }
        slot.deadline = next;
        if let Some(new) = next {
            self.deadlines.insert((new, id));
        }
    }
}
