//! How much credit flows between two guests announce: shares of a budget that the pair has, and of
//! one that each of the two has with all others.
//!
//! A pair may have at most a quarter of what is left to either guest, so pairs that take all they can
//! leave a part for the next, and one guest's flows with all others together stay within its budget.
//!
//! The share is at most an eighth of what is left to the pair. It never becomes smaller while the
//! flow lives: a credit that shrinks under way could leave a sender waiting for an update that the
//! receiver, who knows nothing of it, sees no reason to send. It becomes larger, out of the same
//! budget, when a guest announces a larger buffer: its program may wait for all that it made room
//! for before it reads any of it.

use super::RelayLimits;
use super::flow::Flow;
use crate::address::{Address, Cid};
use crate::packet::{Header, Op};
use alloc::collections::BTreeMap;

/// What is granted between two guests, lower CID first, and to each.
#[derive(Debug, Default)]
pub(super) struct Grants {
    pub(super) granted: BTreeMap<(Cid, Cid), u32>,
    /// The sum of a guest's pairs. Each flow has its least credit whatever is left, so this may be
    /// more than the budget.
    pub(super) of_guest: BTreeMap<Cid, u64>,
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
        for guest in [one.cid, other.cid] {
            *self.of_guest.entry(guest).or_default() += u64::from(credit);
        }
    }

    /// A flow between the two that was saved has so much credit. `false`: that is more than can be.
    pub(super) fn restore(&mut self, one: Address, other: Address, credit: u32) -> bool {
        let granted = self.granted.get(&pair(one, other)).copied().unwrap_or(0);
        let can_be = granted.checked_add(credit).is_some();
        if can_be {
            self.take(one, other, credit);
        }
        can_be
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
        for guest in [one.cid, other.cid] {
            if let Some(sum) = self.of_guest.get_mut(&guest) {
                *sum = sum.saturating_sub(u64::from(credit));
                if *sum == 0 {
                    self.of_guest.remove(&guest);
                }
            }
        }
    }

    /// What the pair of guests has left for one flow.
    fn share(&self, header: &Header, limits: &RelayLimits) -> u32 {
        let granted = self.granted.get(&pair(header.src, header.dst)).copied().unwrap_or(0);
        let left = self.left(header.src.cid, limits).min(self.left(header.dst.cid, limits));
        limits.pair_budget.min(left / 4).saturating_sub(granted) / 8
    }

    /// What a guest has left for all its flows with other guests.
    fn left(&self, guest: Cid, limits: &RelayLimits) -> u32 {
        let granted = self.of_guest.get(&guest).copied().unwrap_or(0);
        limits.guest_budget.saturating_sub(u32::try_from(granted).unwrap_or(u32::MAX))
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
