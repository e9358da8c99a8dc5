//! Flows between two guests: their packets pass through, credit runs end to end.
//!
//! The two guests speak to each other; the relay ends nothing but what must not go on. It watches
//! the handshake so that it can forget a flow, and it bounds what a guest that does not read can
//! make us keep: every announcement of receive buffer is clamped on its way to a share of the
//! budgets of the pair and of both guests ([`RelayLimits::pair_budget`],
//! [`RelayLimits::guest_budget`]), so a sender that keeps to it never has more in flight, in the
//! receiver's ring or waiting here, than its flow was granted. A sender that does not keep to it is
//! reset, with the other side.
//!
//! A `fwd_cnt` that cannot be true is replaced by the last one that was. RST is never answered;
//! packets of no flow are answered with RST. REQUEST between addresses of a live flow means that
//! the sender has forgotten it (see `state.rs`): the old flow ends, the new request is looked at.
//!
//! The caller sends what [`Relay::next_packet`] has for a guest before what is forwarded to that
//! guest later; otherwise packets of a flow keep the order in which they were forwarded. One guest
//! can cause resets for another as often as it likes, so a caller that keeps packets of one guest
//! for another by turns puts these resets among them ([`Relay::take_resets`]).
//!
//! | file | what it does |
//! | --- | --- |
//! | `relay.rs` | what a relay holds, what the shell calls, and what follows from a state change |
//! | `state.rs` | the states of a flow: state × input → state, effects |
//! | `flow.rs` | one flow: its state, and what each side may send |
//! | `grants.rs` | the credit that flows get out of the budgets of pairs and guests |
//! | `guests.rs` | what is kept per guest |
//! | `events.rs` | what became of requests |
//! | `stats.rs` | counters |
//! | `saved.rs` | all of it as plain data |

mod events;
mod flow;
mod grants;
mod guests;
mod saved;
pub mod state;
mod stats;

use crate::address::{Address, Cid, FlowKey};
use crate::admission::Refusal;
use crate::ids::{Key, Slots};
use crate::packet::{Header, Op, RawHeader};
use crate::table::Table;
use crate::time::{Duration, Instant};
use crate::timers::Timers;
use alloc::vec::Vec;
use events::Events;
pub use events::{Asked, RelayEvent};
use flow::Flow;
pub use flow::{FlowInfo, SavedFlow, SavedWay};
use grants::Grants;
use guests::Guests;
pub use guests::SavedGuest;
pub use saved::SavedRelay;
use state::{Effects, End, Input, Passing, Reset, Side, State, Timer, step};
pub use stats::RelayStats;

/// What a relay may hold, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// The credit that one direction of a flow announces, if no guest has announced more.
    pub usual_flow_credit: u32,
    /// The most credit one direction of a flow announces.
    pub max_flow_credit: u32,
    /// The credit that all flows between two guests announce together, per direction.
    pub pair_budget: u32,
    /// The credit that all flows of one guest with others announce together, per direction.
    pub guest_budget: u32,
    /// The least credit of a direction, budget or not.
    pub min_flow_credit: u32,
    /// Flows that one guest may have opened.
    pub max_flows_per_guest: usize,
    /// Of these, not yet answered.
    pub max_half_open_per_guest: usize,
    /// RSTs that wait for room on one guest's link.
    pub max_replies: usize,
    /// How long a REQUEST may stay unanswered.
    pub half_open_timeout: Duration,
    /// How long a flow may stay that one side has shut completely.
    pub close_timeout: Duration,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            usual_flow_credit: 262_144,
            max_flow_credit: 4 << 20,
            pair_budget: 32 << 20,
            guest_budget: 128 << 20,
            min_flow_credit: 4096,
            max_flows_per_guest: 4096,
            max_half_open_per_guest: 1024,
            max_replies: 256,
            half_open_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(30),
        }
    }
}

/// What the shell has to do with a packet between guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Pass it on with this header, and `header.len` bytes of payload, to `header.dst.cid`.
    Forward(Header),
    /// Nothing is passed on; packets for either guest may have been queued.
    Drop,
    /// It was a REQUEST and is refused: a RST has been queued for the guest that sent it. The
    /// caller counts the reason.
    Refuse(Refusal),
}

/// Names one flow between guests for ever; a stale id is harmless.
pub type FlowId = Key<Flow>;

/// All flows between guests of one node.
#[derive(Debug)]
pub struct Relay {
    limits: RelayLimits,
    table: Table<Flow>,
    flows: Slots<Flow>,
    guests: Guests,
    grants: Grants,
    timers: Timers<FlowId>,
    events: Events,
    stats: RelayStats,
}

/// The key of a flow, the same for both directions.
fn key(header: &Header) -> FlowKey {
    pair_key(header.src, header.dst)
}

fn pair_key(one: Address, other: Address) -> FlowKey {
    if one <= other {
        FlowKey { ours: one, theirs: other }
    } else {
        FlowKey { ours: other, theirs: one }
    }
}

impl Relay {
    /// A relay without flows; `hash_seed` must be unknown to guests.
    #[must_use]
    pub fn new(limits: RelayLimits, hash_seed: u64) -> Self {
        Self {
            limits,
            table: Table::new(hash_seed),
            flows: Slots::new(),
            guests: Guests::default(),
            grants: Grants::default(),
            timers: Timers::default(),
            events: Events::default(),
            stats: RelayStats::default(),
        }
    }

    /// Takes a packet of one guest for another. The caller has checked that `header.src.cid` is
    /// the guest that sent it and that `header.dst.cid` is a guest of this node; `admit` is asked
    /// for a REQUEST only.
    pub fn receive(
        &mut self,
        now: Instant,
        header: &Header,
        admit: impl FnOnce() -> Result<(), Refusal>,
    ) -> Verdict {
        if header.src.cid == header.dst.cid {
            return self.stray(header);
        }
        match self.table.get(key(header)) {
            Some(id) => self.receive_of_flow(now, id, header, admit),
            None => self.receive_stray(now, header, admit),
        }
    }

    /// Takes a packet between addresses that have a flow.
    fn receive_of_flow(
        &mut self,
        now: Instant,
        id: FlowId,
        header: &Header,
        admit: impl FnOnce() -> Result<(), Refusal>,
    ) -> Verdict {
        let Some(flow) = self.flows.get_mut(id) else { return Verdict::Drop };
        if flow.kind != header.kind {
            self.stats.type_mismatches += 1;
            return self.answer(header);
        }
        let from = flow.side_of(header.src);
        let (after, effects) = step(flow.state, flow.input(from, header));
        if effects.end.is_some() {
            self.follow(now, id, after, &effects);
            return match effects.packet {
                Passing::Drop if effects.again => self.open(now, header, admit),
                Passing::Drop | Passing::Answer => Verdict::Drop,
                // A RST, whose credit means nothing.
                Passing::Forward => Verdict::Forward(*header),
            };
        }
        flow.state = after;
        let mut forwarded = *header;
        if effects.packet == Passing::Forward {
            let Self { guests, grants, limits, stats, .. } = self;
            if header.op == Op::Rw {
                stats.packets += 1;
                stats.bytes += u64::from(header.len);
                if let Some(question) = flow.question(from) {
                    let to = flow.address(from.other()).cid;
                    let is_kept = guests.notify(to, question, limits);
                    stats.replies_dropped += u64::from(!is_kept);
                }
            }
            grants.raise(flow, header, limits);
            let is_possible = flow.clamp(from, &mut forwarded);
            stats.impossible_credit += u64::from(!is_possible);
        }
        if !effects.are_quiet() {
            self.follow(now, id, after, &effects);
        }
        if effects.packet == Passing::Forward { Verdict::Forward(forwarded) } else { Verdict::Drop }
    }

    /// Takes a packet between addresses that have no flow.
    fn receive_stray(
        &mut self,
        now: Instant,
        header: &Header,
        admit: impl FnOnce() -> Result<(), Refusal>,
    ) -> Verdict {
        match header.op {
            Op::Request => self.open(now, header, admit),
            Op::Rst => Verdict::Drop,
            Op::Response
            | Op::Shutdown
            | Op::Rw
            | Op::CreditUpdate
            | Op::CreditRequest
            | Op::Invalid
            | Op::Unknown => self.stray(header),
        }
    }

    /// A guest asks for a flow.
    fn open(
        &mut self,
        now: Instant,
        header: &Header,
        admit: impl FnOnce() -> Result<(), Refusal>,
    ) -> Verdict {
        let source = header.src.cid;
        if self.guests.flows(source) >= self.limits.max_flows_per_guest {
            self.stats.requests_over_limit += 1;
            return self.refuse(header, Refusal::OverLimits);
        }
        if self.guests.half_open(source) >= self.limits.max_half_open_per_guest {
            self.stats.requests_over_half_open_limit += 1;
            return self.refuse(header, Refusal::OverLimits);
        }
        if let Err(reason) = admit() {
            self.stats.refused += 1;
            return self.refuse(header, reason);
        }
        let grant = self.grants.first(header, &self.limits);
        let mut flow = Flow::new(header, grant, now);
        let (after, effects) = step(State::Closed, flow.input(Side::Source, header));
        let mut forwarded = *header;
        let _ = flow.clamp(Side::Source, &mut forwarded);
        let id = self.flows.insert(flow);
        self.grants.take(header.src, header.dst, grant);
        self.table.insert(key(header), id);
        self.guests.flow_opened(source);
        self.stats.opened += 1;
        self.follow(now, id, after, &effects);
        Verdict::Forward(forwarded)
    }

    fn refuse(&mut self, request: &Header, reason: Refusal) -> Verdict {
        let _ = self.answer(request);
        Verdict::Refuse(reason)
    }

    /// A packet of no flow.
    fn stray(&mut self, header: &Header) -> Verdict {
        self.stats.unknown_flows += u64::from(header.op != Op::Rst);
        self.answer(header)
    }

    /// Answers with RST, unless it is a RST.
    fn answer(&mut self, header: &Header) -> Verdict {
        if let Some(reset) = header.raw().reset_reply()
            && !self.guests.reply(header.src.cid, reset, &self.limits)
        {
            self.stats.replies_dropped += 1;
        }
        Verdict::Drop
    }

    /// Changes the state of a flow and does what follows from it, but for the packet.
    fn follow(&mut self, now: Instant, id: FlowId, after: State, effects: &Effects) {
        if let Some(flow) = self.flows.get(id) {
            self.events.note(flow, effects);
        }
        match effects.reset {
            Reset::Nobody => {}
            Reset::One(side) => self.reset_one(id, side),
            Reset::Both => {
                self.reset_one(id, Side::Source);
                self.reset_one(id, Side::Destination);
            }
        }
        if let Some(end) = effects.end {
            self.count(end);
        }
        if after == State::Closed {
            return self.remove(id);
        }
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.state = after;
        if effects.is_answered {
            self.guests.flow_answered(flow.source.cid);
        }
        let wait = match effects.timer {
            Timer::Keep => return,
            Timer::Off => {
                flow.deadline = None;
                return;
            }
            Timer::Answer => self.limits.half_open_timeout,
            Timer::Close => self.limits.close_timeout,
        };
        let at = now.after(wait);
        flow.deadline = Some(at);
        self.timers.add(at, id);
        let flows = &self.flows;
        self.timers.clean(flows.len(), |at, id| {
            flows.get(id).is_some_and(|flow| flow.deadline == Some(at))
        });
    }

    fn count(&mut self, end: End) {
        let stats = &mut self.stats;
        match end {
            End::Forgotten => stats.forgotten += 1,
            End::ProtocolError => stats.protocol_errors += 1,
            End::OverCredit => stats.over_credit += 1,
            End::OverPackets => stats.over_packets += 1,
            End::TimedOut => stats.timeouts += 1,
            End::GivenUp => stats.given_up += 1,
            End::Refused | End::Reset | End::Gone => {}
        }
    }

    /// Tells one side that the flow is over.
    fn reset_one(&mut self, id: FlowId, side: Side) {
        let Some(flow) = self.flows.get(id) else { return };
        let is_kept = self.guests.notify(flow.address(side).cid, flow.reset_to(side), &self.limits);
        self.stats.replies_dropped += u64::from(!is_kept);
    }

    /// The flow is over, and its addresses are free.
    fn remove(&mut self, id: FlowId) {
        let Some(flow) = self.flows.remove(id) else { return };
        self.table.remove(pair_key(flow.source, flow.destination), id);
        self.guests.flow_ended(flow.source.cid, flow.state.is_asked());
        self.grants.give_back(flow.source, flow.destination, flow.grant());
    }

    /// Something happened to a flow that is no packet.
    fn apply(&mut self, now: Instant, id: FlowId, input: Input) {
        let Some(flow) = self.flows.get(id) else { return };
        let (after, effects) = step(flow.state, input);
        self.follow(now, id, after, &effects);
    }

    /// Whether there is room for the answer to one more packet of this guest that belongs to no
    /// flow. While there is none, its packets may be left in the ring; taken in, their answers
    /// are dropped and counted.
    #[must_use]
    pub fn accepts_packets(&self, from: Cid) -> bool {
        self.guests.accepts_packets(from, &self.limits)
    }

    /// Whether there is a control packet for this guest.
    #[must_use]
    pub fn has_packet(&self, to: Cid) -> bool {
        self.guests.has_packet(to)
    }

    /// The next control packet for this guest; goes out before anything forwarded later.
    pub fn next_packet(&mut self, to: Cid) -> Option<RawHeader> {
        let packet = self.guests.next_packet(to)?;
        self.stats.packets_sent += 1;
        Some(packet)
    }

    /// A guest for which control packets were queued since it was last named here.
    pub fn next_ready(&mut self) -> Option<Cid> {
        self.guests.next_ready()
    }

    /// What has become of a request, the oldest first. Each call that ends flows, or passes on a
    /// packet that opens one, leaves one here for each of these.
    pub fn next_event(&mut self) -> Option<RelayEvent> {
        self.events.next()
    }

    /// Offers the resets for a guest to `take`, the oldest first; what it does not take stays here.
    pub fn take_resets(&mut self, to: Cid, mut take: impl FnMut(RawHeader) -> bool) {
        let Self { guests, stats, .. } = self;
        guests.take_notices(to, |notice| {
            let is_taken = notice.op == Op::Rst.to_wire() && take(notice);
            stats.packets_sent += u64::from(is_taken);
            is_taken
        });
    }

    /// The caller could not pass a packet of this flow on: it ends for both sides. False: there is no such flow.
    ///
    /// A RST has ended its flow already, and its other side has to be told all the same. Of a REQUEST the
    /// other side knows nothing.
    pub fn reset_flow(&mut self, header: &Header) -> bool {
        if header.op == Op::Rst {
            let is_kept = self.guests.notify(header.dst.cid, header.raw(), &self.limits);
            self.stats.replies_dropped += u64::from(!is_kept);
            return is_kept;
        }
        let Some(id) = self.table.get(key(header)) else { return false };
        let Some(flow) = self.flows.get(id) else { return false };
        let (after, mut effects) = step(flow.state, Input::GivenUp);
        if header.op == Op::Request {
            effects.reset = Reset::One(flow.side_of(header.src));
        }
        // It ends, so no timer is set and the time does not matter.
        self.follow(Instant::default(), id, after, &effects);
        true
    }

    /// A guest was removed or its link reset: its flows end, the other sides get a RST. `take` is
    /// offered each of these first, and returns whether it has taken it: who keeps data for that
    /// side puts it behind the data.
    pub fn remove_guest(&mut self, guest: Cid, mut take: impl FnMut(Cid, RawHeader) -> bool) {
        let concerned: Vec<(FlowId, Side)> = self
            .flows
            .iter()
            .filter_map(|(id, flow)| flow.side_at(guest).map(|gone| (id, gone)))
            .collect();
        for (id, gone) in concerned {
            let Some(flow) = self.flows.get(id) else { continue };
            let (after, mut effects) = step(flow.state, Input::Gone(gone));
            let other = gone.other();
            if take(flow.address(other).cid, flow.reset_to(other)) {
                effects.reset = Reset::Nobody;
            }
            // It ends, so no timer is set and the time does not matter.
            self.follow(Instant::default(), id, after, &effects);
        }
        self.guests.remove(guest);
    }

    /// When [`Relay::expire`] is due; may be earlier than anything happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Does what is due at `now`.
    pub fn expire(&mut self, now: Instant) {
        while let Some((at, id)) = self.timers.pop_due(now) {
            let is_due = self.flows.get(id).is_some_and(|flow| flow.deadline == Some(at));
            if is_due {
                self.apply(now, id, Input::Expired);
            }
        }
    }

    /// Snapshots of all flows.
    pub fn flows(&self) -> impl Iterator<Item = FlowInfo> + '_ {
        self.flows.iter().map(|(id, flow)| flow.info(id))
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> RelayStats {
        let flows = u64::try_from(self.flows.len()).unwrap_or(u64::MAX);
        RelayStats { flows, ..self.stats }
    }
}

#[cfg(test)]
mod tests;
