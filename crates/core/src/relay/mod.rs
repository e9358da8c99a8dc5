//! Flows between two guests: their packets pass through, credit runs end to end.
//!
//! The two guests speak to each other; the relay ends nothing but what must not go on. It watches
//! the handshake so that it can forget a flow, and it bounds what a guest that does not read can
//! make us keep: every announcement of receive buffer is clamped on its way to a share of the
//! pair's budget ([`RelayLimits::pair_budget`]), so a sender that keeps to it never has more in
//! flight, in the receiver's ring or waiting here, than its flow was granted. A sender that does
//! not keep to it is reset, with the other side.
//!
//! The share is at most an eighth of what is left of the budget. It never becomes smaller while the
//! flow lives: a credit that shrinks under way could leave a sender waiting for an update that the
//! receiver, who knows nothing of it, sees no reason to send. It becomes larger, out of the same
//! budget, when a guest announces a larger buffer: its program may wait for all that it made room
//! for before it reads any of it.
//!
//! A `fwd_cnt` that cannot be true is replaced by the last one that was. RST is never answered;
//! packets of no flow are answered with RST. REQUEST between addresses of a live flow means that
//! the sender has forgotten it (see `state.rs`): the old flow ends, the new request is looked at.
//!
//! The caller sends what [`Relay::next_packet`] has for a guest before what is forwarded to that
//! guest later; otherwise packets of a flow keep the order in which they were forwarded.

mod flow;
mod guests;

use crate::address::{Address, Cid, FlowKey, SocketType};
use crate::endpoint::stats::counters;
use crate::packet::{EOM, Header, Op, RawHeader, Shutdown};
use crate::slots::Slots;
use crate::table::Table;
use crate::time::{Duration, Instant};
use crate::timers::Timers;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use flow::{Excess, Flow, Side};
use guests::Guests;

/// What a relay may hold, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// The credit that one direction of a flow announces, if no guest has announced more.
    pub usual_flow_credit: u32,
    /// The most credit one direction of a flow announces.
    pub max_flow_credit: u32,
    /// The credit that all flows between two guests announce together, per direction.
    pub pair_budget: u32,
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
            min_flow_credit: 4096,
            max_flows_per_guest: 4096,
            max_half_open_per_guest: 256,
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
}

/// A frozen snapshot of one flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// Names the flow for ever.
    pub id: u64,
    /// Socket type.
    pub kind: SocketType,
    /// Who asked for it.
    pub source: Address,
    /// Who was asked.
    pub destination: Address,
    /// Name of its state.
    pub state: &'static str,
    /// Payload bytes from source to destination.
    pub bytes_out: u64,
    /// Payload bytes from destination to source.
    pub bytes_in: u64,
    /// RW packets from source to destination.
    pub packets_out: u64,
    /// RW packets from destination to source.
    pub packets_in: u64,
    /// When it was asked for.
    pub opened_at: Instant,
    /// The most credit that is passed on, either way.
    pub grant: u32,
}

counters! {
    /// Counters of a relay since it was made.
    RelayStats {
        /// Flows at this moment, in any state.
        flows,
        /// REQUESTs passed on.
        opened,
        /// REQUESTs refused because the caller did not allow them.
        refused,
        /// REQUESTs refused because of the limit on flows.
        requests_over_limit,
        /// REQUESTs refused because of the limit on unanswered ones.
        requests_over_half_open_limit,
        /// RW packets passed on.
        packets,
        /// Payload bytes passed on.
        bytes,
        /// RSTs and other packets of ours that were sent.
        packets_sent,
        /// Packets of ours not sent, because too many were waiting.
        replies_dropped,
        /// Packets that belonged to no flow, RST aside.
        unknown_flows,
        /// Packets of another socket type than their flow.
        type_mismatches,
        /// Flows ended because their sender had forgotten them: it asked again.
        forgotten,
        /// Flows ended because a guest sent more bytes than announced.
        over_credit,
        /// Flows ended because a guest sent too many small packets.
        over_packets,
        /// Flows ended because a guest broke the protocol.
        protocol_errors,
        /// `fwd_cnt` fields that claimed more than was sent.
        impossible_credit,
        /// Flows ended because an answer did not come in time.
        timeouts,
        /// Flows ended by [`Relay::reset_flow`].
        given_up,
    }
}

/// All flows between guests of one node.
#[derive(Debug)]
pub struct Relay {
    limits: RelayLimits,
    table: Table,
    flows: Slots<Flow>,
    guests: Guests,
    /// Credit granted between two guests, lower CID first.
    granted: BTreeMap<(Cid, Cid), u32>,
    timers: Timers,
    stats: RelayStats,
}

/// The key of a flow, the same for both directions.
fn key(header: &Header) -> FlowKey {
    pair_key(header.src, header.dst)
}

fn pair_key(one: Address, other: Address) -> FlowKey {
    FlowKey { ours: one.min(other), theirs: one.max(other) }
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
            granted: BTreeMap::new(),
            timers: Timers::default(),
            stats: RelayStats::default(),
        }
    }

    /// Takes a packet of one guest for another. The caller has checked that `header.src.cid` is
    /// the guest that sent it and that `header.dst.cid` is a guest of this node; `allow` is asked
    /// for a REQUEST only.
    pub fn receive(
        &mut self,
        now: Instant,
        header: &Header,
        allow: impl FnOnce() -> bool,
    ) -> Verdict {
        if header.src.cid == header.dst.cid {
            return self.stray(header);
        }
        let Some(id) = self.table.get(key(header)) else {
            return match header.op {
                Op::Request => self.open(now, header, allow),
                Op::Rst => Verdict::Drop,
                Op::Response
                | Op::Shutdown
                | Op::Rw
                | Op::CreditUpdate
                | Op::CreditRequest
                | Op::Invalid
                | Op::Unknown => self.stray(header),
            };
        };
        let Some(flow) = self.flows.get_mut(id) else { return Verdict::Drop };
        if flow.kind != header.kind {
            self.stats.type_mismatches += 1;
            return self.answer(header);
        }
        let side = flow.side_of(header.src);
        // The source may have given its attempt up in silence and repeat it (see `state.rs`).
        let is_repeated =
            side == Side::Source && !flow.is_source_heard && !flow.shut(side).is_both();
        let is_proof = header.op == Op::Rw || header.fwd_cnt != 0;
        flow.is_source_heard |= side == Side::Source && is_proof;
        match header.op {
            Op::Request if is_repeated => self.pass(id, side, header),
            Op::Request => {
                self.forget(id, side);
                self.open(now, header, allow)
            }
            Op::Rst => {
                self.remove(id);
                Verdict::Forward(*header)
            }
            Op::Response => self.pass_response(id, side, header),
            Op::Shutdown => self.pass_shutdown(now, id, side, header),
            Op::Rw => self.pass_payload(id, side, header),
            Op::CreditUpdate | Op::CreditRequest => self.pass(id, side, header),
            Op::Invalid | Op::Unknown => Verdict::Drop,
        }
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

    /// The caller could not pass a packet of this flow on: it ends for both sides. False: there is no such flow.
    pub fn reset_flow(&mut self, header: &Header) -> bool {
        let Some(id) = self.table.get(key(header)) else { return false };
        self.stats.given_up += 1;
        self.reset_both(id);
        true
    }

    /// A guest was removed or its link reset: its flows end, the other sides get a RST.
    pub fn remove_guest(&mut self, guest: Cid) {
        let concerned: Vec<(u64, Side)> = self
            .flows
            .iter()
            .filter_map(|(id, flow)| {
                let other = if flow.source.cid == guest { Side::Destination } else { Side::Source };
                (flow.address(other.other()).cid == guest).then_some((id, other))
            })
            .collect();
        for (id, other) in concerned {
            self.reset_one(id, other);
            self.remove(id);
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
                self.stats.timeouts += 1;
                self.reset_both(id);
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

/// What becomes of packets.
impl Relay {
    fn open(&mut self, now: Instant, header: &Header, allow: impl FnOnce() -> bool) -> Verdict {
        let source = header.src.cid;
        if self.guests.flows(source) >= self.limits.max_flows_per_guest {
            self.stats.requests_over_limit += 1;
            return self.answer(header);
        }
        if self.guests.half_open(source) >= self.limits.max_half_open_per_guest {
            self.stats.requests_over_half_open_limit += 1;
            return self.answer(header);
        }
        if !allow() {
            self.stats.refused += 1;
            return self.answer(header);
        }
        let grant = self.grant(header);
        let mut flow = Flow::new(header, grant, now);
        let (forwarded, _) = flow.clamp(Side::Source, header);
        let Some(id) = self.flows.insert(flow) else {
            self.stats.requests_over_limit += 1;
            return self.answer(header);
        };
        *self.granted.entry(pair(header.src, header.dst)).or_default() += grant;
        self.table.insert(key(header), id);
        self.guests.flow_opened(source);
        self.arm(id, now.after(self.limits.half_open_timeout));
        self.stats.opened += 1;
        Verdict::Forward(forwarded)
    }

    /// The credit of a new flow: a share of what is left for its pair of guests.
    fn grant(&self, header: &Header) -> u32 {
        self.share(header).min(self.wanted(header)).max(self.limits.min_flow_credit)
    }

    /// The credit that a flow with such an announcement should have.
    fn wanted(&self, header: &Header) -> u32 {
        header.buf_alloc.max(self.limits.usual_flow_credit).min(self.limits.max_flow_credit)
    }

    /// What the pair of guests has left for one flow.
    fn share(&self, header: &Header) -> u32 {
        let granted = self.granted.get(&pair(header.src, header.dst)).copied().unwrap_or(0);
        self.limits.pair_budget.saturating_sub(granted) / 8
    }

    /// A guest announces its buffer: the flow's credit follows, as far as the budget goes.
    fn raise_grant(&mut self, id: u64, header: &Header) {
        let (wanted, share) = (self.wanted(header), self.share(header));
        let Some(flow) = self.flows.get_mut(id) else { return };
        let more = wanted.saturating_sub(flow.grant).min(share);
        flow.grant += more;
        *self.granted.entry(pair(header.src, header.dst)).or_default() += more;
    }

    fn pass_response(&mut self, id: u64, side: Side, header: &Header) -> Verdict {
        let Some(flow) = self.flows.get_mut(id) else { return Verdict::Drop };
        if flow.is_answered || side == Side::Source {
            // The destination has made a second connection; the two must not mix.
            return self.broken(id);
        }
        flow.is_answered = true;
        if !flow.shut(Side::Source).is_both() {
            flow.deadline = None;
        }
        self.guests.flow_answered(flow.source.cid);
        self.pass(id, side, header)
    }

    fn pass_shutdown(&mut self, now: Instant, id: u64, side: Side, header: &Header) -> Verdict {
        let flags = Shutdown::from_flags(header.flags);
        let Some(flow) = self.flows.get_mut(id) else { return Verdict::Drop };
        let had_all = flow.shut(side).is_both();
        if flow.shut_down(side, flags).is_both() && !had_all && flow.is_answered {
            self.arm(id, now.after(self.limits.close_timeout));
        }
        self.pass(id, side, &Header { flags: flags.flags(), ..*header })
    }

    fn pass_payload(&mut self, id: u64, side: Side, header: &Header) -> Verdict {
        let Some(flow) = self.flows.get_mut(id) else { return Verdict::Drop };
        let ends_message = flow.kind == SocketType::SeqPacket && header.flags & EOM != 0;
        if !flow.is_answered || flow.shut(side).contains(Shutdown::SEND) {
            return self.broken(id);
        }
        if header.len == 0 && !ends_message {
            return Verdict::Drop;
        }
        match flow.send(side, header.len) {
            Ok(()) => {}
            Err(excess) => {
                match excess {
                    Excess::Bytes => self.stats.over_credit += 1,
                    Excess::Packets => self.stats.over_packets += 1,
                }
                self.reset_both(id);
                return Verdict::Drop;
            }
        }
        let to = flow.address(side.other()).cid;
        if let Some(question) = flow.question(side) {
            self.notify(to, question);
        }
        self.stats.packets += 1;
        self.stats.bytes += u64::from(header.len);
        self.pass(id, side, header)
    }

    /// Passes a packet on with clamped credit.
    fn pass(&mut self, id: u64, side: Side, header: &Header) -> Verdict {
        let Some(flow) = self.flows.get_mut(id) else { return Verdict::Drop };
        if !flow.is_answered && side == Side::Destination {
            // Anything before RESPONSE would end the attempt with EPROTO.
            return self.broken(id);
        }
        if header.buf_alloc > flow.grant && matches!(header.op, Op::Response | Op::CreditUpdate) {
            self.raise_grant(id, header);
        }
        let Some(flow) = self.flows.get_mut(id) else { return Verdict::Drop };
        let (forwarded, is_possible) = flow.clamp(side, header);
        self.stats.impossible_credit += u64::from(!is_possible);
        Verdict::Forward(forwarded)
    }

    fn broken(&mut self, id: u64) -> Verdict {
        self.stats.protocol_errors += 1;
        self.reset_both(id);
        Verdict::Drop
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

    /// One side asked again: it has forgotten the flow.
    fn forget(&mut self, id: u64, by: Side) {
        self.stats.forgotten += 1;
        let Some(flow) = self.flows.get(id) else { return };
        // Who has been told of both directions has freed the addresses by itself.
        if !flow.shut(by).is_both() {
            self.reset_one(id, by.other());
        }
        self.remove(id);
    }

    fn reset_both(&mut self, id: u64) {
        self.reset_one(id, Side::Source);
        self.reset_one(id, Side::Destination);
        self.remove(id);
    }

    fn reset_one(&mut self, id: u64, side: Side) {
        let Some(flow) = self.flows.get(id) else { return };
        let (to, packet) = (flow.address(side).cid, flow.reset_to(side));
        self.notify(to, packet);
    }

    fn notify(&mut self, to: Cid, packet: RawHeader) {
        if !self.guests.notify(to, packet, &self.limits) {
            self.stats.replies_dropped += 1;
        }
    }

    fn remove(&mut self, id: u64) {
        let Some(flow) = self.flows.remove(id) else { return };
        self.table.remove(pair_key(flow.source, flow.destination), id);
        self.guests.flow_ended(flow.source.cid, !flow.is_answered);
        let pair = pair(flow.source, flow.destination);
        if let Some(granted) = self.granted.get_mut(&pair) {
            *granted = granted.saturating_sub(flow.grant);
            if *granted == 0 {
                self.granted.remove(&pair);
            }
        }
    }

    fn arm(&mut self, id: u64, at: Instant) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.deadline = Some(at);
        self.timers.add(at, id);
        let flows = &self.flows;
        self.timers.clean(flows.len(), |at, id| {
            flows.get(id).is_some_and(|flow| flow.deadline == Some(at))
        });
    }
}

/// The guests of a flow, lower CID first.
fn pair(one: Address, other: Address) -> (Cid, Cid) {
    (one.cid.min(other.cid), one.cid.max(other.cid))
}

#[cfg(test)]
mod tests;
