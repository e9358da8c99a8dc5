//! The worker: one thread that owns all state of a node and says whose turn it is.
//!
//! ```text
//!   programs ──► Programs ──► Flows ─┐                     ┌─ Interface (endpoint, link) ─► guest's rings
//!   (Unix sockets)                   ├── Turn, of one ─────┤
//!                                    └── link at a time    └─ Forwarder ─► another guest's Interface
//! ```
//!
//! A round is: carry out what happened (`reactor`), run what other threads asked (`mailbox`), serve each link that has
//! work, with a budget, and signal each link once, then let timers expire. Before it sleeps, it looks at the links served
//! since for a while, then asks for notifications, and looks again, so that nothing is missed.
//!
//! No state is shared: other threads come in through the mailbox only. What a guest does wrong ends that guest's
//! attachment, never the round.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use vsock_core::Cid;

use crate::awaited::Awaited;
use crate::context::Context;
use crate::fabric::Fabric;
use crate::journal::Journal;
use crate::mailbox::Mailbox;
use crate::polling::Polling;
use crate::reactor::{Events, Readiness, Sources};
use vsock_virtio::link::loopback::LoopbackLink;

/// The thread's state; see the module's description.
pub(crate) struct Worker {
    /// All that belongs to the node.
    pub(crate) fabric: Fabric,
    /// How long to look at links before sleeping.
    pub(crate) polling: Polling,
    /// Threads that wait for something to have been sent.
    pub(crate) awaited: Awaited,
    mailbox: Mailbox<Worker>,
    stopping: bool,
}

impl Worker {
    /// A node with no guests and no programs yet.
    pub(crate) fn new(
        local: Cid,
        journal: Journal,
        sources: Sources,
        mailbox: Mailbox<Worker>,
        loopback: LoopbackLink,
        seed: u64,
    ) -> Self {
        let cx = Context::new(sources, journal);
        Self {
            fabric: Fabric::new(cx, local, loopback, seed),
            polling: Polling::default(),
            awaited: Awaited::default(),
            mailbox,
            stopping: false,
        }
    }

    /// Runs until [`Worker::stop`] was asked for. Then every stream ends, so that programs read an end and not a reset. A
    /// program that waits for a verdict gets none: that no switch is there is not for the switch to say.
    pub(crate) fn run(mut self) {
        let (mut events, mut happened) = (Events::new(), Vec::new());
        while !self.stopping {
            happened.clear();
            if let Err(error) = self.rest(&mut events, &mut happened) {
                self.fabric.cx.failed(format_args!("waiting for events: {error}"));
                break;
            }
            for ready in &happened {
                self.fabric.dispatch(*ready);
            }
            self.run_requests();
            // Before timers: an answer that is late for both comes before its deadline.
            self.fabric.serve_active();
            self.fabric.expire();
            self.awaited.answer(&self.fabric.links, &self.fabric.forwarder, &self.fabric.flows);
        }
        self.fabric.flows.end_all(&mut self.fabric.cx);
    }

    /// Ends the loop after this round.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }

    /// Waits for something to do, if there is nothing; appends what happened to `happened`.
    ///
    /// A link that was served has its notifications off. It stays so for as long as [`Polling`] says: its rings are
    /// looked at in every round, and its other side need not signal. With no such link left, the worker sleeps until the
    /// next timer.
    fn rest(&mut self, events: &mut Events, happened: &mut Vec<Readiness>) -> io::Result<()> {
        let Self { fabric, polling, .. } = self;
        let is_behind = fabric.flows.take_is_behind();
        let before = fabric.cx.clock();
        if fabric.links.has_unarmed() {
            fabric.links.poll_unarmed(before, polling.window());
        }
        let has_work = fabric.links.active() > 0;
        if has_work || fabric.links.has_unarmed() {
            // A program that has not kept up may be waiting for this very processor.
            if is_behind || !has_work {
                polling.give_way();
            }
            fabric.cx.sources.wait(Some(Duration::ZERO), events, happened)?;
            // Not later than the look at the rings: what came in time has been seen before its deadline is over.
            fabric.cx.now = before;
            return Ok(());
        }
        let timeout = fabric.next_timer().map(|at| at.since(before));
        fabric.cx.sources.wait(timeout, events, happened)?;
        fabric.cx.now = fabric.cx.clock();
        polling.slept(fabric.cx.now.since(before));
        Ok(())
    }

    fn run_requests(&mut self) {
        let mailbox = self.mailbox.clone();
        while let Some(request) = mailbox.take() {
            if catch_unwind(AssertUnwindSafe(|| request(self))).is_err() {
                // Whoever asked is told that nothing was done.
                self.fabric.cx.failed("internal error while serving a request");
            }
            self.fabric.follow_up();
        }
    }
}

impl Drop for Worker {
    /// However the thread ends, nobody may wait for it for ever.
    fn drop(&mut self) {
        self.mailbox.close();
    }
}
