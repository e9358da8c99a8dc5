//! How flows end: forgotten, broken, or reset; and who is told.

use super::flow::Side;
use super::{FlowId, Relay, Verdict, pair_key};
use crate::address::Cid;
use crate::packet::RawHeader;
use crate::time::Instant;

impl Relay {
    /// A guest broke the protocol.
    pub(super) fn broken(&mut self, id: FlowId) -> Verdict {
        self.stats.protocol_errors += 1;
        self.reset_both(id);
        Verdict::Drop
    }

    /// One side asked again: it has forgotten the flow.
    pub(super) fn forget(&mut self, id: FlowId, by: Side) {
        self.stats.forgotten += 1;
        let Some(flow) = self.flows.get(id) else { return };
        // Who has been told of both directions has freed the addresses by itself.
        if !flow.shut(by).is_both() {
            self.reset_one(id, by.other());
        }
        self.remove(id);
    }

    /// Ends the flow for both sides.
    pub(super) fn reset_both(&mut self, id: FlowId) {
        self.reset_one(id, Side::Source);
        self.reset_one(id, Side::Destination);
        self.remove(id);
    }

    /// Tells one side that the flow is over.
    pub(super) fn reset_one(&mut self, id: FlowId, side: Side) {
        let Some(flow) = self.flows.get(id) else { return };
        let (to, packet) = (flow.address(side).cid, flow.reset_to(side));
        self.notify(to, packet);
    }

    /// Queues a packet about a flow for a guest.
    pub(super) fn notify(&mut self, to: Cid, packet: RawHeader) {
        if !self.guests.notify(to, packet, &self.limits) {
            self.stats.replies_dropped += 1;
        }
    }

    /// The flow is over, and its addresses are free.
    pub(super) fn remove(&mut self, id: FlowId) {
        let Some(flow) = self.flows.remove(id) else { return };
        self.table.remove(pair_key(flow.source, flow.destination), id);
        self.guests.flow_ended(flow.source.cid, !flow.is_answered);
        self.grants.give_back(flow.source, flow.destination, flow.grant);
    }

    /// The flow ends at this time, unless another deadline takes its place.
    pub(super) fn arm(&mut self, id: FlowId, at: Instant) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.deadline = Some(at);
        self.timers.add(at, id);
        let flows = &self.flows;
        self.timers.clean(flows.len(), |at, id| {
            flows.get(id).is_some_and(|flow| flow.deadline == Some(at))
        });
    }
}
