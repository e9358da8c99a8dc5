//! What every part of a node works with: the time of this round, the event sources, the journal, and who may begin what.

use vsock_core::{Admission, Cid, Instant};

use crate::events::{Event, Failure};
use crate::host::socket::Sockets;
use crate::journal::Journal;
use crate::reactor::Sources;
use vsock_virtio::starter::Starter;

/// What every part of a node works with.
pub(crate) struct Context {
    /// The time of this round.
    pub(crate) now: Instant,
    /// What the node listens to.
    pub(crate) sources: Sources,
    /// How sockets of programs become ours.
    pub(crate) sockets: Sockets,
    pub(crate) journal: Journal,
    /// Starts helper threads.
    pub(crate) starter: Starter,
    /// Asked wherever something begins.
    pub(crate) admission: Admission,
    started: std::time::Instant,
    /// What time it was then.
    started_at: Instant,
}

impl Context {
    /// Of a node that starts now.
    pub(crate) fn new(at: (Sources, Journal, Starter), sockets: Sockets) -> Self {
        Self::going_on(at, sockets, Admission::default(), Instant::default())
    }

    /// Of a node that goes on where another was at this time.
    pub(crate) fn going_on(
        (sources, journal, starter): (Sources, Journal, Starter),
        sockets: Sockets,
        admission: Admission,
        now: Instant,
    ) -> Self {
        let started = std::time::Instant::now();
        Self { now, sources, sockets, journal, starter, admission, started, started_at: now }
    }

    /// The time at this very moment.
    pub(crate) fn clock(&self) -> Instant {
        self.started_at + self.started.elapsed()
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
