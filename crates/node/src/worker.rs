//! The worker: one thread that owns all state of a node and says whose turn it is.
//!
//! ```text
//!   programs ──► Programs ──► Flows ─┐                     ┌─ Interface (endpoint, link) ─► guest's rings
//!   (Unix sockets)                   ├── Turn, of one ─────┤
//!                                    └── link at a time    └─ Forwarder ─► another guest's Interface
//! ```
//!
//! A round is: hear what happened (`reactor`), carry out the orders of other threads (`orders`), serve links that have work and
//! programs that ask for something, each in its turn, for a limited time, then let timers expire. Before it sleeps, it looks
//! at the links served since for a while, then asks for notifications, and looks again, so that nothing is missed.
//!
//! No state is shared: other threads come in through the mailbox only. What a guest does wrong ends that guest's
//! attachment, never the round.

use std::io;
use std::time::Duration;

use vsock_core::Cid;

use crate::admission::explain;
use crate::awaited::Awaited;
use crate::context::Context;
use crate::events::Failure;
use crate::fabric::Fabric;
use crate::links::{Entry, LinkId};
use crate::mailbox::Mailbox;
use crate::orders::{Order, SaveError, SavedWorker};
use crate::polling::Polling;
use crate::reactor::{Events, Readiness};
use crate::report::snapshot;
use vsock_virtio::link::loopback::LoopbackLink;
use vsock_virtio::saved::SavedFds;
use vsock_virtio::sys::{check_signals, prepare_signals};

/// The thread's state; see the module's description.
pub(crate) struct Worker {
    /// All that belongs to the node.
    pub(crate) fabric: Fabric,
    /// How long to look at links before sleeping.
    pub(crate) polling: Polling,
    /// Threads that wait for something to have been sent.
    pub(crate) awaited: Awaited,
    mailbox: Mailbox<Order>,
    stopping: bool,
    /// Others have all that is here, and go on with it.
    is_given_away: bool,
}

impl Worker {
    /// A node with no guests and no programs yet.
    pub(crate) fn new(
        cx: Context,
        local: Cid,
        mailbox: Mailbox<Order>,
        loopback: LoopbackLink,
        seed: u64,
    ) -> Self {
        Self::of(Fabric::new(cx, local, loopback, seed), Polling::default(), mailbox)
    }

    /// A worker that has this.
    pub(crate) fn of(fabric: Fabric, polling: Polling, mailbox: Mailbox<Order>) -> Self {
        let awaited = Awaited::default();
        Self { fabric, polling, awaited, mailbox, stopping: false, is_given_away: false }
    }

    /// Runs until it is told to [`Stop`](Order::Stop); false: it has ended by itself, and has said why. Then every stream
    /// ends, so that programs read an end and not a reset. A program that waits for a verdict gets none: that no switch is
    /// there is not for the switch to say. After a [`Save`](Order::Save) nothing ends.
    pub(crate) fn run(mut self) -> bool {
        // Before other processes use up what the kernel has of it.
        if check_signals().is_ok()
            && let Err(error) = prepare_signals()
        {
            self.fabric.cx.failed(Failure::Signals(error));
        }
        let (mut events, mut happened) = (Events::new(), Vec::new());
        while !self.stopping {
            happened.clear();
            if let Err(error) = self.wait(&mut events, &mut happened) {
                self.fabric.cx.failed(Failure::Waiting(error));
                break;
            }
            let woken = self.fabric.cx.clock();
            for ready in &happened {
                self.fabric.dispatch(*ready);
            }
            self.carry_out_orders();
            if self.is_given_away {
                return true;
            }
            self.fabric.take_answers();
            let outside = self.fabric.cx.clock().since(woken);
            self.fabric.serve_round(outside);
            self.fabric.expire();
            self.awaited.answer(
                self.fabric.cx.now,
                &self.fabric.links,
                &self.fabric.forwarder,
                &self.fabric.flows,
            );
        }
        self.fabric.flows.end_all(&mut self.fabric.cx);
        self.stopping
    }

    /// Waits for something to do, if there is nothing; appends what happened to `happened`.
    ///
    /// A link that was served has its notifications off. It stays so for as long as [`Polling`] says: its rings are
    /// looked at in every round, and its other side need not signal. With no such link left, the worker sleeps until the
    /// next timer.
    fn wait(&mut self, events: &mut Events, happened: &mut Vec<Readiness>) -> io::Result<()> {
        let Self { fabric, polling, awaited, .. } = self;
        let is_behind = fabric.flows.take_is_behind();
        let before = fabric.cx.clock();
        if fabric.links.has_unarmed() {
            fabric.links.poll_unarmed(before, polling.window());
        }
        let has_work = fabric.has_work();
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
        let next_timer = fabric.next_timer().map(|at| at.since(before));
        let timeout = [next_timer, awaited.longest_sleep()].into_iter().flatten().min();
        fabric.cx.sources.wait(timeout, events, happened)?;
        fabric.cx.now = fabric.cx.clock();
        polling.slept(fabric.cx.now.since(before));
        Ok(())
    }

    fn carry_out_orders(&mut self) {
        while !self.is_given_away
            && let Some(order) = self.mailbox.take()
        {
            self.carry_out(order);
            self.fabric.follow_up();
        }
    }

    fn carry_out(&mut self, order: Order) {
        let Self { fabric, polling, awaited, .. } = self;
        match order {
            Order::AddAcceptor { socket, kind, reply } => {
                reply.send(fabric.programs.add_acceptor(&mut fabric.cx, socket, kind));
            }
            Order::AddGuest { options, hybrid, seed, reply } => {
                reply.send(fabric.add_guest(*options, hybrid, seed));
            }
            Order::SetControl { link, control } => fabric.links.set_control(link, control),
            Order::SayFarewell { link, told } => {
                fabric.say_farewell(link);
                awaited.when_told(link, told);
            }
            Order::RemoveGuest { link, reply } => {
                fabric.remove_guest(link);
                reply.done();
            }
            Order::CheckCid { cid, reply } => reply.send(fabric.links.check_cid(cid)),
            Order::ChangeCid { link, cid, reply } => reply.send(fabric.change_cid(link, cid)),
            Order::SetHybrid { link, hybrid, reply } => {
                reply.send(fabric.programs.set_hybrid(&mut fabric.cx, link, hybrid));
            }
            Order::SetOptions { link, options, reply } => {
                fabric.links.set_options(&mut fabric.cx.admission, link, *options);
                reply.done();
            }
            Order::AwaitTold { link, told } => awaited.when_told(link, told),
            Order::AddUplink { uplink, reply } => reply.send(fabric.add_uplink(*uplink)),
            Order::EndSending { sent } => {
                fabric.end_sending();
                awaited.when_sent(sent);
            }
            Order::Apply { link, change, reply } => {
                fabric.apply(link, change);
                reply.done();
            }
            Order::StopQueue { link, queue, reply } => reply.send(fabric.stop_queue(link, queue)),
            Order::SetPolling { most, reply } => {
                *polling = Polling::up_to(most);
                reply.done();
            }
            Order::SetLingerTimeout { most, reply } => {
                fabric.flows.set_linger_timeout(most);
                reply.done();
            }
            Order::Explain { from, to, reply } => {
                reply.send(explain(&fabric.cx, &fabric.links, from, to));
            }
            Order::DriverStarts { guest, reply } => {
                reply.send(fabric.links.guest(guest).map(Entry::driver_starts));
            }
            Order::Snapshot { reply } => reply.send(snapshot(fabric)),
            Order::Save { guests, before, reply } => {
                let saved = self.save(&guests, before);
                self.is_given_away = saved.is_ok();
                reply.send(saved);
            }
            Order::Stop => self.stopping = true,
            #[cfg(test)]
            Order::Panic => panic!("a test asks for this panic"),
        }
    }
}

impl Worker {
    /// All as plain data, but for guests that are not among these: they are about to be removed.
    fn save(&mut self, guests: &[LinkId], before: usize) -> Result<SavedWorker, SaveError> {
        let fabric = &mut self.fabric;
        if fabric.links.iter().any(|(_, entry)| entry.is_uplink()) {
            return Err(SaveError::HasJoined);
        }
        // What helpers have found out is not asked again.
        fabric.take_answers();
        let ids =
            fabric.links.iter().filter(|(_, entry)| entry.guest().is_some()).map(|(id, _)| id);
        let leaving: Vec<LinkId> = ids.filter(|id| !guests.contains(id)).collect();
        for id in leaving {
            fabric.remove_guest(id);
            fabric.follow_up();
        }
        let mut fds = SavedFds::following(before);
        let saved = self.fabric.save(&mut fds);
        Ok(SavedWorker { fabric: saved, polling: self.polling.most(), fds: fds.duplicate()? })
    }
}

impl Drop for Worker {
    /// However the thread ends, nobody may wait for it for ever.
    fn drop(&mut self) {
        self.mailbox.close();
    }
}
