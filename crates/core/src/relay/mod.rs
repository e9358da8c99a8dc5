//! Flows between two guests: their packets pass through, credit runs end to end.
//!
//! The two guests speak to each other; the relay ends nothing but what must not go on. It watches
//! the handshake so that it can forget a flow, and it bounds what a guest that does not read can
//! make us keep: every announcement of receive buffer is clamped on its way to a share of the
//! pair's budget ([`RelayLimits::pair_budget`]), so a sender that keeps to it never has more in
//! flight, in the receiver's ring or waiting here, than its flow was granted. A sender that does
//! not keep to it is reset, with the other side.
//!
//! A `fwd_cnt` that cannot be true is replaced by the last one that was. RST is never answered;
//! packets of no flow are answered with RST. REQUEST between addresses of a live flow means that
//! the sender has forgotten it (see `state.rs`): the old flow ends, the new request is looked at.
//!
//! The caller sends what [`Relay::next_packet`] has for a guest before what is forwarded to that
//! guest later; otherwise packets of a flow keep the order in which they were forwarded.
//!
//! | file | what it does |
//! | --- | --- |
//! | `mod.rs` | the types, and what the shell calls |
//! | `opening.rs` | REQUESTs, and packets of no flow |
//! | `passing.rs` | packets of a flow |
//! | `ending.rs` | how flows end, and who is told |
//! | `flow.rs` | one flow: what each side may send, and has shut |
//! | `grants.rs` | the credit that flows get out of the pair's budget |
//! | `guests.rs` | what is kept per guest |
//! | `stats.rs` | counters |

mod ending;
mod flow;
mod grants;
mod guests;
mod opening;
mod passing;
mod stats;

use crate::address::{Address, Cid, FlowKey};
use crate::ids::{Key, Slots};
use crate::packet::{Header, RawHeader};
use crate::table::Table;
use crate::time::{Duration, Instant};
use crate::timers::Timers;
use alloc::vec::Vec;
pub use flow::FlowInfo;
use flow::{Flow, Side};
use grants::Grants;
use guests::Guests;
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
            grants: Grants::default(),
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
        match self.table.get(key(header)) {
            Some(id) => self.receive_of_flow(now, id, header, allow),
            None => self.receive_stray(now, header, allow),
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

    /// Whether this packet is of the destination of a flow that has not answered yet.
    #[must_use]
    pub fn is_asked(&self, header: &Header) -> bool {
        let flow = self.table.get(key(header)).and_then(|id| self.flows.get(id));
        flow.is_some_and(|flow| !flow.is_answered && flow.destination == header.src)
    }

    /// The caller could not pass a packet of this flow on: it ends for both sides. False: there is no such flow.
    pub fn reset_flow(&mut self, header: &Header) -> bool {
        let Some(id) = self.table.get(key(header)) else { return false };
        self.stats.given_up += 1;
        self.reset_both(id);
        true
    }

    /// A guest was removed or its link reset: its flows end, the other sides get a RST. `take` is
    /// offered each of these first, and returns whether it has taken it: who keeps data for that
    /// side puts it behind the data.
    pub fn remove_guest(&mut self, guest: Cid, mut take: impl FnMut(Cid, RawHeader) -> bool) {
        let concerned: Vec<(FlowId, Side)> = self
            .flows
            .iter()
            .filter_map(|(id, flow)| {
                let other = if flow.source.cid == guest { Side::Destination } else { Side::Source };
                (flow.address(other.other()).cid == guest).then_some((id, other))
            })
            .collect();
        for (id, other) in concerned {
            if let Some(flow) = self.flows.get(id)
                && !take(flow.address(other).cid, flow.reset_to(other))
            {
                self.reset_one(id, other);
            }
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

#[cfg(test)]
mod tests;
