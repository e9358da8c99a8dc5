//! All parts of a node, and what has to be done in several of them at once.
//!
//! The parts are owners of their state and do not know each other more than their arguments say. Where one thing
//! concerns several (the connections over a link end, and so do flows of programs and flows to other guests) it is put
//! together here.

mod saved;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use vsock_core::{Cid, Instant};

pub use self::saved::SavedFabric;
use crate::context::Context;
use crate::events::{Event, Failure};
use crate::flow_log::FlowLog;
use crate::flows::{FlowId, Flows, Outcome};
use crate::links::{
    Budget, CidRead, Drained, Ending, Entry, Forwarder, Interface, LinkFault, LinkId, Links,
    NewUplink, Quantum, Scratch, Sends, Sent, Update, Who,
};
use crate::options::{AddError, GuestOptions};
use crate::orders::HybridSocket;
use crate::programs::{Connected, Programs};
use crate::reactor::{Owner, Readiness, SourceId};
use crate::timers::Timers;
use crate::turn::Turn;
use vsock_virtio::link::loopback::LoopbackLink;
use vsock_virtio::spec::TX_QUEUE;
use vsock_virtio::vhost_user::{Change, Detach};

/// Time for taking what is left in a ring that is stopped, or for filling it: far more than is there, unless its other side
/// wants to keep us busy.
const LAST_TIME: Duration = Duration::from_millis(1);

/// From a close to the end of a connection to ourselves: SHUTDOWN goes out, comes in, and so does RST.
const OWN_ANSWERS: usize = 3;

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// The connections of a link.
    Link(LinkId),
    /// A flow whose program has closed with something unsent.
    Linger(FlowId),
    /// Flows in which a record waits for its reader.
    Readers,
    /// Flows between guests.
    Relay,
    /// Programs that could not be let in, and those that say nothing.
    Programs,
}

/// The time of last turns, as this thread's processor counts it: one that is busy elsewhere must not cost what is left.
struct LastTime(Duration);

impl LastTime {
    fn begin() -> Self {
        Self(Self::now())
    }

    fn is_over(&self) -> bool {
        Self::now().saturating_sub(self.0) >= LAST_TIME
    }

    fn now() -> Duration {
        // Never negative.
        Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
    }
}

/// All parts of a node.
pub(crate) struct Fabric {
    pub(crate) cx: Context,
    pub(crate) links: Links,
    pub(crate) forwarder: Forwarder,
    pub(crate) flows: Flows,
    pub(crate) programs: Programs,
    timers: Timers<Due>,
    quantum: Quantum,
    scratch: Scratch,
    /// The link whose turns end in a panic.
    #[cfg(test)]
    panics_at: Option<LinkId>,
}

impl Fabric {
    /// A node with no guests and no programs yet.
    pub(crate) fn new(cx: Context, local: Cid, loopback: LoopbackLink, seed: u64) -> Self {
        Self {
            cx,
            links: Links::new(local, loopback, seed),
            forwarder: Forwarder::new(seed),
            flows: Flows::new(),
            programs: Programs::new(local, seed),
            timers: Timers::default(),
            quantum: Quantum::default(),
            scratch: Scratch::default(),
            #[cfg(test)]
            panics_at: None,
        }
    }

    /// When [`expire`](Self::expire) is due.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Carries out what happened at one descriptor, or lets a program stand in line until it can be carried out.
    pub(crate) fn dispatch(&mut self, ready: Readiness) {
        match self.cx.sources.owner(ready.source) {
            Some(owner @ (Owner::Queue | Owner::Device)) => {
                self.guard(ready.source, |fabric| fabric.on_ready(owner, ready));
            }
            Some(owner @ Owner::Flow) => {
                let (link, began) = (self.flows.link(ready.source), self.cx.clock());
                self.guard(ready.source, |fabric| fabric.on_ready(owner, ready));
                if let Some(link) = link {
                    self.links.spend(Who::Link(link), self.cx.clock().since(began));
                }
            }
            Some(
                owner @ (Owner::Acceptor | Owner::Client | Owner::HybridClient | Owner::Listener),
            ) => self.programs.wait(owner, ready),
            None => {}
        }
    }

    /// Whether there is something to do before anything else happens.
    pub(crate) fn has_work(&self) -> bool {
        self.links.is_active() || !self.programs.pending.is_empty()
    }

    /// A panic on behalf of one program drops that program and its flow, and must not end the others.
    fn guard(&mut self, source: SourceId, act: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| act(self))).is_err() {
            let Self { cx, links, flows, programs, .. } = self;
            cx.failed(Failure::ServingProgram);
            flows.tell(cx, links, source, Update::sends(Sends::Failed));
            flows.end(cx, source);
            programs.drop_program(cx, links, flows, source);
        }
        self.follow_up();
    }

    fn on_ready(&mut self, owner: Owner, ready: Readiness) {
        let Self { cx, links, flows, programs, .. } = self;
        match owner {
            Owner::Queue => {
                if let Some(id) = links.of_source(ready.source) {
                    links.activate(id);
                }
            }
            Owner::Device => {
                if let Some(id) = links.of_source(ready.source).filter(|_| ready.read_closed) {
                    self.device_left(id);
                }
            }
            Owner::Flow => flows.on_ready(cx, links, ready),
            Owner::Acceptor | Owner::Client | Owner::HybridClient | Owner::Listener => {
                programs.on_ready(cx, links, flows, (owner, ready));
            }
        }
    }

    /// Carries out what helpers have found out.
    pub(crate) fn take_answers(&mut self) {
        while let Some(read) = self.links.next_cid_read() {
            self.cid_read(read);
        }
        while let Some((client, is_privileged)) = self.programs.next_privilege() {
            self.privilege_known(client, is_privileged);
        }
        while let Some(connected) = self.programs.next_connected() {
            self.hybrid_connected(connected);
        }
        if self.cx.sockets.take_has_room() {
            self.flows.on_room(&self.cx);
        }
    }

    /// It is known whether a program that waits for that may bind ports below 1024.
    fn privilege_known(&mut self, client: SourceId, is_privileged: bool) {
        self.guard(client, |fabric| {
            let Self { cx, links, flows, programs, .. } = fabric;
            programs.privilege_known(cx, links, flows, (client, is_privileged));
        });
    }

    /// A program is there, or is not, for the connection that a guest asked for.
    fn hybrid_connected(&mut self, connected: Connected) {
        let link = connected.asked.link;
        self.with(link, |turn, interface, _| {
            let Turn { cx, links, flows, programs, .. } = turn;
            programs.hybrid_connected(cx, links, flows, interface, connected);
        });
        self.links.activate(link);
        self.follow_up();
    }

    /// A userspace guest knows its CID again. Connections that began meanwhile have the one before: they end.
    fn cid_read(&mut self, read: CidRead) {
        let id = read.link;
        let Some(cid) = self.links.cid_read(&self.cx, read) else { return };
        self.with(id, |turn, interface, _| {
            turn.reset_silently(interface);
            turn.programs.set_local(cid);
        });
        self.follow_up();
    }

    /// What owners have left to be done when none of them is in the middle of something.
    pub(crate) fn follow_up(&mut self) {
        self.follow_outcomes();
        while let Some(event) = self.forwarder.next_event() {
            FlowLog { cx: &self.cx, links: &self.links }.relayed(event);
        }
        while let Some(again) = self.programs.next_again() {
            let loopback = self.links.routes.loopback();
            // Each comes in and goes out, which may be two turns.
            for _ in 0..2 * OWN_ANSWERS {
                if self.serve(loopback) {
                    self.links.activate(loopback);
                }
            }
            self.programs.try_again(&mut self.cx, &mut self.links, &mut self.flows, &again);
        }
        while let Some((id, fault)) = self.links.next_fault() {
            let reason = fault.as_detach();
            if !self.links.broken(&mut self.cx, id, fault) {
                match self.links.get(id).and_then(Entry::guest) {
                    Some(_) => self.detached(id, reason),
                    None => self.device_left(id),
                }
            }
        }
    }

    fn follow_outcomes(&mut self) {
        while let Some(outcome) = self.flows.next_outcome() {
            if let Outcome::Ended(id, ..) = &outcome {
                self.timers.set(Due::Linger(*id), None);
            }
            self.programs.flow_over(&mut self.cx, &self.links, outcome);
        }
    }

    /// Serves links that have work, and programs that ask for something, each in its turn, until it is time to look whether
    /// others have come. What was done `outside` of turns, for events and orders, takes half of the time at most.
    pub(crate) fn serve_round(&mut self, outside: Duration) {
        let until = self.cx.clock() + self.links.round().max(outside);
        loop {
            if !self.programs.pending.is_empty() {
                self.links.activate_programs();
            }
            match self.links.next_turn() {
                Some(Who::Link(id)) => {
                    if self.serve(id) {
                        self.links.activate(id);
                    }
                    let served = self.cx.clock();
                    self.follow_up();
                    self.links.spend(Who::Link(id), self.cx.clock().since(served));
                }
                Some(Who::Programs) => self.serve_programs(),
                None => return,
            }
            if self.cx.clock() >= until {
                return;
            }
        }
    }

    /// Serves programs that stand in line, for no longer than a turn takes.
    fn serve_programs(&mut self) {
        self.quantum.note(Who::Programs, self.cx.now);
        let began = self.cx.clock();
        while let Some(ready) = self.programs.pending.pop() {
            if let Some(owner) = self.cx.sources.owner(ready.source) {
                self.guard(ready.source, |fabric| fabric.on_ready(owner, ready));
            }
            if self.cx.clock().since(began) >= self.quantum.time(self.cx.now) {
                break;
            }
        }
        self.links.spend(Who::Programs, self.cx.clock().since(began));
    }

    /// One turn of one link. True: there is more to do.
    fn serve(&mut self, id: LinkId) -> bool {
        let quantum = self.quantum.bytes(self.cx.now);
        #[cfg(test)]
        let panics = self.panics_at == Some(id);
        let served = self.with(id, |turn, interface, scratch| {
            interface.disarm();
            let served = turn.serve(interface, quantum, scratch);
            #[cfg(test)]
            assert!(!panics, "a test asks for this panic");
            served
        });
        match served {
            Some(Ok(has_more)) => {
                if self.links.note_work(id, self.cx.now) {
                    self.quantum.note(Who::Link(id), self.cx.now);
                }
                has_more
            }
            Some(Err(fault)) => {
                self.links.report_fault(id, fault);
                false
            }
            None => false,
        }
    }

    /// Does something with a link and all that it may have to do with; its timer follows, and what its flows have become.
    /// A panic there ends this link, with nothing kept of what it may have left half done, and must not take the others with
    /// it.
    fn with<R>(
        &mut self,
        id: LinkId,
        act: impl FnOnce(&mut Turn<'_>, &mut Interface, &mut Scratch) -> R,
    ) -> Option<R> {
        let mut interface = self.links.take(id)?;
        let Self { cx, links, forwarder, flows, programs, scratch, .. } = self;
        let guest = interface.role().guest();
        let began = cx.clock();
        let until = began + self.quantum.time(cx.now);
        let mut turn = Turn { cx, links, forwarder, flows, programs, id, guest, until };
        let acted = catch_unwind(AssertUnwindSafe(|| act(&mut turn, &mut interface, scratch)));
        let done = acted.ok();
        if done.is_some() {
            self.timers.set(Due::Link(id), interface.deadline(self.cx.now));
            self.links.put_back(id, interface);
        } else {
            let interrupted =
                self.forwarder.take_target().and_then(|to| Some((to, self.links.take(to)?)));
            self.scratch = Scratch::default();
            for (id, torn) in interrupted.into_iter().chain([(id, interface)]) {
                self.renew(id, torn);
            }
        }
        self.follow_outcomes();
        // With what the turn has caused.
        self.links.spend(Who::Link(id), self.cx.clock().since(began));
        done
    }

    /// Drops a link that may be half in the middle of something, with its flows and those to other guests; a guest may attach
    /// to it anew.
    fn renew(&mut self, id: LinkId, torn: Box<Interface>) {
        let Self { cx, links, forwarder, flows, timers, .. } = self;
        let guest = torn.role().guest();
        links.renew(cx, id, torn);
        timers.set(Due::Link(id), None);
        flows.lose_link(cx, id);
        if let Some(guest) = guest {
            forwarder.forget(links, guest);
        }
        links.report_fault(id, LinkFault::Panic);
    }

    /// Does what is due by now.
    pub(crate) fn expire(&mut self) {
        let Self { cx, links, flows, timers, .. } = self;
        flows.watch_left(cx.now, links, |id, at| timers.set(Due::Linger(id), Some(at)));
        for due in self.timers.take_due(self.cx.now) {
            let Self { cx, links, flows, programs, timers, .. } = self;
            match due {
                Due::Link(id) => {
                    self.serve_before_deadline(id);
                    let Self { cx, links, .. } = self;
                    if let Some(interface) = links.interface(id) {
                        interface.expire(cx.now);
                        links.activate(id);
                    }
                }
                Due::Linger(id) => timers.set(due, flows.look_at_linger(cx, links, id)),
                Due::Readers => flows.look_at_readers(cx, links),
                Due::Relay => {
                    for id in links.waiting() {
                        self.serve_before_deadline(id);
                    }
                    let Self { cx, links, forwarder, .. } = self;
                    forwarder.expire(cx.now, links);
                }
                Due::Programs => programs.resume(cx, links, flows),
            }
            self.follow_up();
        }
        self.timers.set(Due::Readers, self.flows.look_at_readers_at());
        self.timers.set(Due::Relay, self.forwarder.relay().deadline());
        self.timers.set(Due::Programs, self.programs.resume_at());
    }

    /// An answer that is late for both comes before its deadline: a link that waits for its turn has it now.
    fn serve_before_deadline(&mut self, id: LinkId) {
        if self.links.is_waiting(id) {
            self.serve(id);
            self.follow_up();
        }
    }

    /// Connections over a link have ended: their flows, and those to other guests, follow.
    fn connections_ended(&mut self, id: LinkId) {
        self.with(id, |turn, interface, _| turn.connections_ended(interface));
    }

    /// The driver of a guest has gone, and its connections with it.
    fn detached(&mut self, id: LinkId, reason: Detach) {
        self.links.clear(&mut self.cx, id);
        self.connections_ended(id);
        self.links.detached(&self.cx, id, reason);
    }

    /// The device of a userspace guest has gone.
    fn device_left(&mut self, id: LinkId) {
        self.links.device_left(&mut self.cx, id);
        self.connections_ended(id);
    }

    /// The link of a userspace guest: everything that is not here is behind it.
    pub(crate) fn add_uplink(&mut self, uplink: NewUplink) -> std::io::Result<()> {
        self.programs.set_local(uplink.cid);
        self.links.add_uplink(&mut self.cx, uplink)
    }

    /// A guest whose front end may attach from now on, perhaps with a hybrid socket.
    pub(crate) fn add_guest(
        &mut self,
        options: GuestOptions,
        hybrid: Option<HybridSocket>,
        seed: u64,
    ) -> Result<LinkId, AddError> {
        let id = self.links.add_guest(&mut self.cx.admission, options, seed)?;
        if let Err(error) = self.programs.set_hybrid(&mut self.cx, id, hybrid) {
            self.links.remove(id);
            return Err(error.into());
        }
        Ok(id)
    }

    /// Forgets a guest; its control thread has ended, so its rings are stopped.
    pub(crate) fn remove_guest(&mut self, id: LinkId) {
        // First of all, so that no program starts anew over it.
        self.links.routes.remove_guest(id);
        self.links.clear(&mut self.cx, id);
        self.with(id, |turn, interface, _| turn.reset_silently(interface));
        self.programs.forget_link(&mut self.cx, id);
        self.flows.forget_link(id);
        self.links.remove(id);
        self.timers.set(Due::Link(id), None);
    }

    /// Ends all connections of a guest, each with RST, and lets none begin any more. What was sent before, either way,
    /// goes first as far as it can at once: there is no way to say anything afterwards.
    pub(crate) fn say_farewell(&mut self, id: LinkId) {
        self.receive_rest(id, TX_QUEUE);
        self.transmit_rest(id);
        self.links.set_leaving(id);
        self.with(id, |turn, interface, _| turn.reset_all(interface));
        self.links.activate(id);
    }

    /// A ring is about to be stopped, perhaps because its guest leaves: what the guest has put there is taken first.
    fn receive_rest(&mut self, id: LinkId, queue: usize) {
        let budget = Budget::of_rest(self.quantum.bytes(self.cx.now));
        let time = LastTime::begin();
        while queue == TX_QUEUE && !time.is_over() {
            let drained =
                self.with(id, |turn, interface, scratch| turn.receive(interface, budget, scratch));
            // A ring that is broken has said all that can be understood.
            if !matches!(drained, Some(Ok(Drained::Budget))) {
                break;
            }
        }
        self.links.activate(id);
    }

    /// What programs have sent a guest goes into its ring, as far as there is room.
    fn transmit_rest(&mut self, id: LinkId) {
        let budget = Budget::of_rest(self.quantum.bytes(self.cx.now));
        let time = LastTime::begin();
        while !time.is_over() {
            let sent =
                self.with(id, |turn, interface, scratch| turn.transmit(interface, budget, scratch));
            if !matches!(sent, Some(Ok(Sent::Budget))) {
                break;
            }
        }
    }

    /// What the front end of a guest has said or done.
    pub(crate) fn apply(&mut self, id: LinkId, change: Change) {
        let Self { cx, links, .. } = self;
        match change {
            Change::Attached(peer) => links.attached(cx, id, peer),
            Change::Refused(peer) => links.note(cx, id, Event::FrontEndRefused(peer)),
            Change::WithoutMemory => links.note(cx, id, Event::NoMemory),
            Change::Features(features) => links.set_features(id, features),
            Change::StartQueue(start) => match links.start_queue(cx, id, start) {
                Ok(true) => self.connections_ended(id),
                Ok(false) => {}
                Err(fault) => links.report_fault(id, fault),
            },
            Change::SetCall { index, call } => links.set_call(id, index, call),
            Change::Detached(reason) => {
                self.receive_rest(id, TX_QUEUE);
                self.detached(id, reason);
            }
        }
        self.follow_up();
    }

    /// A front end stops a ring; where a successor goes on.
    pub(crate) fn stop_queue(&mut self, id: LinkId, queue: usize) -> u16 {
        self.receive_rest(id, queue);
        self.links.stop_queue(&mut self.cx, id, queue)
    }

    /// Gives a guest another CID; its configuration space has it already.
    pub(crate) fn change_cid(&mut self, id: LinkId, cid: Cid) -> Result<(), AddError> {
        self.links.check_cid(cid)?;
        let ending = self.with(id, |turn, interface, _| {
            let ending = Ending::announce(interface);
            match ending {
                Ending::Reset => turn.reset_all(interface),
                Ending::Silent => turn.reset_silently(interface),
            }
            ending
        });
        if let Some(ending) = ending {
            self.links.change_cid(id, cid, ending);
        }
        Ok(())
    }

    /// A userspace guest is about to leave: its programs can send no more, and what they have sent goes out.
    pub(crate) fn end_sending(&mut self) {
        self.flows.end_sending(&mut self.cx, &mut self.links);
        self.follow_up();
    }
}
