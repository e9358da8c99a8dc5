//! How much credit flows between two guests announce: shares of a budget that the pair has.
//!
//! The share is at most an eighth of what is left of the budget. It never becomes smaller while the
//! flow lives: a credit that shrinks under way could leave a sender waiting for an update that the
//! receiver, who knows nothing of it, sees no reason to send. It becomes larger, out of the same
//! budget, when a guest announces a larger buffer: its program may wait for all that it made room
//! for before it reads any of it.

use super::RelayLimits;
use super::flow::Flow;
use crate::address::{Address, Cid};
use crate::packet::{Header, Op};
use alloc::collections::BTreeMap;

/// What is granted between two guests, lower CID first.
#[derive(Debug, Default)]
pub(super) struct Grants {
    pub(super) granted: BTreeMap<(Cid, Cid), u32>,
}

impl Grants {
    /// The credit that a new flow should have: a share of what is left for its pair of guests.
    pub(super) fn first(&self, request: &Header, limits: &RelayLimits) -> u32 {
        let wanted = wanted(request, limits);
        self.share(request, limits).min(wanted).max(limits.min_flow_credit)
    }

    /// A guest announces its buffer: the flow's credit follows, as far as the budget goes.
    #[inline]
    pub(super) fn raise(&mut self, flow: &mut Flow, header: &Header, limits: &RelayLimits) {
        if header.buf_alloc > flow.grant() && matches!(header.op, Op::Response | Op::CreditUpdate) {
            let more = wanted(header, limits).saturating_sub(flow.grant());
            let more = more.min(self.share(header, limits));
            flow.raise_grant(more);
            self.take(header.src, header.dst, more);
        }
    }

    /// A flow between the two has got so much credit.
    pub(super) fn take(&mut self, one: Address, other: Address, credit: u32) {
        *self.granted.entry(pair(one, other)).or_default() += credit;
    }

    /// A flow between the two that was saved has so much credit. `false`: that is more than can be.
    pub(super) fn restore(&mut self, one: Address, other: Address, credit: u32) -> bool {
        let granted = self.granted.entry(pair(one, other)).or_default();
        let sum = granted.checked_add(credit);
        *granted = sum.unwrap_or(*granted);
        sum.is_some()
    }

    /// A flow between the two is over that had so much in all.
    pub(super) fn give_back(&mut self, one: Address, other: Address, credit: u32) {
        let pair = pair(one, other);
        if let Some(granted) = self.granted.get_mut(&pair) {
            *granted = granted.saturating_sub(credit);
            if *granted == 0 {
                self.granted.remove(&pair);
            }
        }
    }

    /// What the pair of guests has left for one flow.
    fn share(&self, header: &Header, limits: &RelayLimits) -> u32 {
        let granted = self.granted.get(&pair(header.src, header.dst)).copied().unwrap_or(0);
        limits.pair_budget.saturating_sub(granted) / 8
    }
}

/// The credit that a flow with such an announcement should have, were there enough.
fn wanted(header: &Header, limits: &RelayLimits) -> u32 {
    header.buf_alloc.max(limits.usual_flow_credit).min(limits.max_flow_credit)
}

/// The guests of a flow, lower CID first.
fn pair(one: Address, other: Address) -> (Cid, Cid) {
    (one.cid.min(other.cid), one.cid.max(other.cid))
}
