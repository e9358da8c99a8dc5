//! What every part of a node works with: the time of this round, the event sources, the journal, and who may begin what.

use vsock_core::{Admission, Cid, Instant};

use crate::events::{Event, Failure};
use crate::journal::Journal;
use crate::mailbox::Mailbox;
use crate::orders::Order;
use crate::reactor::Sources;

/// What every part of a node works with.
pub(crate) struct Context {
    /// The time of this round.
    pub(crate) now: Instant,
    /// What the node listens to.
    pub(crate) sources: Sources,
    pub(crate) journal: Journal,
    /// Where helpers answer.
    pub(crate) orders: Mailbox<Order>,
    /// Asked wherever something begins.
    pub(crate) admission: Admission,
    started: std::time::Instant,
}

impl Context {
    /// Of a node that starts now.
    pub(crate) fn new(sources: Sources, journal: Journal, orders: Mailbox<Order>) -> Self {
        let started = std::time::Instant::now();
        let admission = Admission::default();
        Self { now: Instant::default(), sources, journal, orders, admission, started }
    }

    /// The time at this very moment.
    pub(crate) fn clock(&self) -> Instant {
        Instant(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Writes down something that failed here, for no guest in particular.
    pub(crate) fn failed(&self, failure: Failure) {
        self.journal.write(None, Event::Failed(failure));
    }

    /// Writes down something about a guest, or about this node.
    pub(crate) fn note(&self, about: impl Into<Option<Cid>>, event: Event) {
        self.journal.write(about.into(), event);
    }
}
