//! The worker: one thread that owns all state of a node and moves all its packets.
//!
//! ```text
//!   programs ──► Source ──► Flow ─┐                        ┌─ Endpoint (state, credit) ─ Link ──► guest's rings
//!   (Unix sockets)                ├── ready queue ──► LinkSlot
//!                                 └── deliver ◄─────────────┴─ packets to other guests ─► Relay ─► their LinkSlot
//! ```
//!
//! The node's link to itself (CID 1, and its own CID) is one more `LinkSlot`, whose packets come back.
//!
//! A round is: hear what happened (`reactor`), run what other threads asked (`mailbox`), serve each link that has work,
//! with a budget, and signal each link once, then let timers expire. Before it sleeps, it looks at the links served
//! since for a while, then asks for notifications, and looks again, so that nothing is missed (`rest`).
//!
//! No state is shared: other threads come in through the mailbox only. What a guest does wrong ends that guest's
//! attachment, never the round.

mod attach;
mod binding;
mod connecting;
mod datagrams;
mod farewell;
mod flow_log;
mod flows;
mod forward;
mod hearing;
mod hybrid;
mod inbound;
mod linger;
mod link_slot;
mod messages;
mod offers;
mod outbound;
mod programs;
mod renumber;
mod report;
mod rest;
mod source;
mod turns;
mod verdicts;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use slab::Slab;
use vsock_core::{Binding, Cid, Instant, Ports, Relay, RelayLimits};

pub use self::attach::AddError;
pub(crate) use self::attach::GuestPort;
use self::datagrams::{DatagramSocket, DatagramStats};
use self::farewell::Awaited;
use self::inbound::Drained;
use self::linger::Linger;
pub(crate) use self::link_slot::LinkSlot;
use self::link_slot::{LinkFault, Role, sort_signal};
use self::source::Source;
pub(crate) use self::source::{Bound, LinkId};
use self::turns::Turns;
use crate::host::budget::Budget;
use crate::host::sockets::Sockets;
use crate::journal::Journal;
use crate::link::{Link, TRANSPORT_RESET};
use crate::loopback::LoopbackLink;
use crate::mailbox::Mailbox;
use crate::options::GuestOptions;
use crate::polling::Polling;
use crate::reactor::{Events, Reactor, Token};
use crate::slice::Slices;

/// How long a device may take to say what our CID is.
const CONFIG_WAIT: Duration = Duration::from_secs(1);

/// All state of a node; see the module's description.
pub(crate) struct Worker {
    /// The CID whose sockets are here.
    local: Cid,
    journal: Journal,
    reactor: Reactor,
    mailbox: Mailbox<Worker>,
    started: std::time::Instant,
    /// The time of this round.
    now: Instant,
    sources: Slab<Source>,
    /// Which entry listens on a binding.
    listeners: HashMap<Binding, Token>,
    /// Entries to give back at the end of the round: an event of this round may still name them.
    ended: Vec<Token>,
    pub(crate) links: Slab<LinkSlot>,
    /// Which link leads to a CID.
    routes: HashMap<Cid, LinkId>,
    /// The link of the node to itself.
    loopback: LinkId,
    /// Where all other CIDs are (a userspace guest's only way out).
    default_route: Option<LinkId>,
    ports: Ports,
    /// Ports of datagram sockets are a space of their own.
    datagram_ports: Ports,
    /// Who receives at a binding of these.
    datagram_sockets: HashMap<Binding, DatagramSocket>,
    datagrams: DatagramStats,
    relay: Relay,
    active: VecDeque<LinkId>,
    /// Served since the last sleep, notifications off.
    unarmed: Vec<LinkId>,
    polling: Polling,
    /// A program has not kept up with its guest in this round.
    is_ahead: bool,
    awaited: Awaited,
    turns: Turns,
    deadlines: BTreeSet<(Instant, LinkId)>,
    linger: Linger,
    /// Doors at which nobody could be let in, to be tried again.
    shut_doors: Vec<Token>,
    doors_open_at: Option<Instant>,
    next_number: u64,
    /// The flows of programs' sockets, and how the last ones ended.
    sockets: Sockets,
    /// What receive buffers may have above the default.
    buffers: Budget,
    buffers_cut: u64,
    bad_requests: u64,
    detach_reasons: HashMap<&'static str, u64>,
    /// Scratch, empty between uses, so that no packet allocates.
    slices: Slices,
    run: inbound::Run,
    batch: outbound::Batch,
    scratch: Vec<u8>,
    stopping: bool,
}

impl Worker {
    /// A node with no links and no programs yet.
    pub(crate) fn new(
        local: Cid,
        journal: Journal,
        reactor: Reactor,
        mailbox: Mailbox<Worker>,
        loopback: LoopbackLink,
        seed: u64,
    ) -> Self {
        let mut links = Slab::new();
        let link = Link::Loopback(loopback);
        let slot = LinkSlot::new(GuestOptions::default(), Role::Loopback, link, seed);
        let loopback = links.insert(slot);
        Self {
            local,
            journal,
            reactor,
            mailbox,
            started: std::time::Instant::now(),
            now: Instant::default(),
            sources: Slab::new(),
            listeners: HashMap::new(),
            ended: Vec::new(),
            links,
            routes: HashMap::new(),
            loopback,
            default_route: None,
            ports: Ports::new(local, seed),
            datagram_ports: Ports::new(local, seed.rotate_left(32)),
            datagram_sockets: HashMap::new(),
            datagrams: DatagramStats::default(),
            relay: Relay::new(RelayLimits::default(), seed),
            active: VecDeque::new(),
            unarmed: Vec::new(),
            polling: Polling::default(),
            is_ahead: false,
            awaited: Awaited::default(),
            turns: Turns::default(),
            deadlines: BTreeSet::new(),
            linger: Linger::default(),
            shut_doors: Vec::new(),
            doors_open_at: None,
            next_number: 1,
            sockets: Sockets::default(),
            buffers: Budget::default(),
            buffers_cut: 0,
            bad_requests: 0,
            detach_reasons: HashMap::new(),
            slices: Slices::with_capacity(1024),
            run: inbound::Run::default(),
            batch: outbound::Batch::default(),
            scratch: Vec::new(),
            stopping: false,
        }
    }

    /// Runs until [`Worker::stop`] was asked for.
    pub(crate) fn run(mut self) {
        let (mut events, mut happened) = (Events::new(), Vec::new());
        while !self.stopping {
            happened.clear();
            if let Err(error) = self.rest(&mut events, &mut happened) {
                self.journal.write("failed", u32::MAX, format!("waiting for events: {error}"));
                break;
            }
            for ready in &happened {
                self.hear_safely(*ready);
            }
            self.run_requests();
            // Before deadlines: who comes late to both finds an answer that came in time.
            self.serve_active();
            self.expire();
            self.answer_awaiting();
            for token in self.ended.drain(..) {
                self.sources.remove(token);
            }
            debug_assert!(self.sockets.len() <= self.sources.len(), "each flow once");
        }
        self.end_all();
    }

    /// Ends every stream, so that programs read an end and not a reset. Who waits for a verdict gets none: that no
    /// switch is there is not for the switch to say.
    fn end_all(&mut self) {
        let left: Vec<Token> = self.sources.iter().map(|(token, _)| token).collect();
        for token in left {
            self.end_flow(token);
        }
    }

    /// Ends the loop after this round.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }

    fn clock(&self) -> Instant {
        Instant(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn run_requests(&mut self) {
        let mailbox = self.mailbox.clone();
        while let Some(request) = mailbox.take() {
            if catch_unwind(AssertUnwindSafe(|| request(self))).is_err() {
                // Whoever asked is told that nothing was done.
                self.journal.write("failed", u32::MAX, "internal error while serving a request");
            }
        }
    }

    fn serve_active(&mut self) {
        for _ in 0..self.active.len() {
            let Some(id) = self.active.pop_front() else { break };
            let Some(slot) = self.links.get_mut(id) else { continue };
            slot.is_active = false;
            slot.disarm();
            if !std::mem::replace(&mut slot.is_unarmed, true) {
                self.unarmed.push(id);
            }
            // A fault in our own code must not take the other guests with it.
            let served = catch_unwind(AssertUnwindSafe(|| self.serve(id)));
            match served {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => self.break_link(id, &fault),
                Err(_) => self.break_link(id, &LinkFault::Panic),
            }
        }
    }

    /// One turn of one link: what came, what that caused, what can go out, one signal.
    fn serve(&mut self, id: LinkId) -> Result<(), LinkFault> {
        self.take_events(id)?;
        let drained = self.drain_inbound(id)?;
        self.settle(id);
        let is_full = self.fill_outbound(id)?;
        self.settle(id);
        let Some(slot) = self.links.get_mut(id) else { return Ok(()) };
        slot.link.publish().map_err(sort_signal)?;
        if slot.note_work(self.now) {
            self.turns.note(id, self.now);
        }
        let can_answer = slot.endpoint.accepts_packets()
            && slot.guest().is_none_or(|cid| self.relay.accepts_packets(cid));
        let more_inbound = match drained {
            Drained::Empty => slot.link.has_inbound(),
            Drained::Budget => true,
            Drained::Paused => can_answer,
        };
        let more_outbound = is_full || (slot.has_outbound() && !slot.is_blocked);
        // What waits in the ring is no work while its answers find no room: only room is.
        slot.is_paused = drained == Drained::Paused && !can_answer;
        if more_inbound || more_outbound {
            self.activate(id);
        }
        self.note_deadline(id);
        Ok(())
    }

    /// What the device tells a userspace guest (its connections are gone), and what we have to tell a guest.
    fn take_events(&mut self, id: LinkId) -> Result<(), LinkFault> {
        let driver = match self.links.get_mut(id).map(|slot| &mut slot.link) {
            Some(Link::Driver(driver)) => driver,
            Some(Link::Device(device)) => {
                device.is_gated()?;
                return Ok(());
            }
            Some(Link::Loopback(_)) | None => return Ok(()),
        };
        let mut is_reset = false;
        while let Some(event) = driver.next_event()? {
            is_reset |= event == TRANSPORT_RESET;
        }
        if is_reset {
            self.forget_connections(id);
            self.read_cid_again(id);
        }
        Ok(())
    }

    /// The CID of a userspace guest may have changed with the reset. This waits for the device's answer, a moment and
    /// at most a second: the event's buffer goes back only after it, and the device sends nothing before.
    fn read_cid_again(&mut self, id: LinkId) {
        let Some(config) = self.links.get(id).and_then(|slot| slot.config.as_ref()) else { return };
        match config.cid(CONFIG_WAIT) {
            Ok(cid) => {
                self.set_local(Cid(cid));
                self.journal.write("renumbered", cid, "the device says so");
            }
            Err(error) => {
                self.journal.write("failed", self.local.0, format!("reading the CID: {error}"));
            }
        }
    }

    pub(crate) fn set_local(&mut self, cid: Cid) {
        self.local = cid;
        self.ports.set_local(cid);
        self.datagram_ports.set_local(cid);
    }

    /// Puts a link among those to serve in this or the next round.
    pub(crate) fn activate(&mut self, id: LinkId) {
        if let Some(slot) = self.links.get_mut(id)
            && !slot.is_active
        {
            slot.is_active = true;
            self.active.push_back(id);
        }
    }
}

impl Drop for Worker {
    /// However the thread ends, nobody may wait for it for ever.
    fn drop(&mut self) {
        self.mailbox.close();
    }
}
