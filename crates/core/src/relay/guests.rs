//! What the relay keeps per guest: control packets that wait for room on its link, and how many
//! flows it has opened.

use super::RelayLimits;
use crate::address::Cid;
use crate::packet::RawHeader;
use crate::saved::{Unfit, check};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

#[derive(Debug, Default)]
struct Guest {
    /// Answers to its own packets that belong to no flow.
    replies: VecDeque<RawHeader>,
    /// Packets about flows; others may have caused these.
    notices: VecDeque<RawHeader>,
    flows: usize,
    half_open: usize,
    is_listed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Guests {
    guests: BTreeMap<Cid, Guest>,
    /// Guests with packets that `next_ready` has not named yet.
    ready: VecDeque<Cid>,
}

impl Guests {
    /// Queues the answer to a packet of this guest. `false`: no room.
    pub(super) fn reply(&mut self, to: Cid, packet: RawHeader, limits: &RelayLimits) -> bool {
        let guest = self.guests.entry(to).or_default();
        let has_room = guest.replies.len() < limits.max_replies;
        if has_room {
            guest.replies.push_back(packet);
            self.list(to);
        }
        has_room
    }

    /// Queues a packet about a flow. `false`: no room. There is as much as a guest has flows,
    /// so only a guest that takes nothing misses any.
    pub(super) fn notify(&mut self, to: Cid, packet: RawHeader, limits: &RelayLimits) -> bool {
        let guest = self.guests.entry(to).or_default();
        let has_room = guest.notices.len() < limits.max_replies.max(limits.max_flows_per_guest);
        if has_room {
            guest.notices.push_back(packet);
            self.list(to);
        }
        has_room
    }

    fn list(&mut self, cid: Cid) {
        if let Some(guest) = self.guests.get_mut(&cid)
            && !core::mem::replace(&mut guest.is_listed, true)
        {
            self.ready.push_back(cid);
        }
    }

    pub(super) fn accepts_packets(&self, from: Cid, limits: &RelayLimits) -> bool {
        self.guests.get(&from).is_none_or(|guest| guest.replies.len() < limits.max_replies)
    }

    pub(super) fn has_packet(&self, to: Cid) -> bool {
        self.guests
            .get(&to)
            .is_some_and(|guest| !guest.notices.is_empty() || !guest.replies.is_empty())
    }

    pub(super) fn next_packet(&mut self, to: Cid) -> Option<RawHeader> {
        let guest = self.guests.get_mut(&to)?;
        guest.notices.pop_front().or_else(|| guest.replies.pop_front())
    }

    /// Offers the packets about flows to `take`, the oldest first; what it does not take stays.
    pub(super) fn take_notices(&mut self, to: Cid, mut take: impl FnMut(RawHeader) -> bool) {
        if let Some(guest) = self.guests.get_mut(&to) {
            guest.notices.retain(|notice| !take(*notice));
        }
    }

    pub(super) fn next_ready(&mut self) -> Option<Cid> {
        let cid = self.ready.pop_front()?;
        if let Some(guest) = self.guests.get_mut(&cid) {
            guest.is_listed = false;
        }
        Some(cid)
    }

    pub(super) fn flows(&self, of: Cid) -> usize {
        self.guests.get(&of).map_or(0, |guest| guest.flows)
    }

    pub(super) fn half_open(&self, of: Cid) -> usize {
        self.guests.get(&of).map_or(0, |guest| guest.half_open)
    }

    pub(super) fn flow_opened(&mut self, source: Cid) {
        let guest = self.guests.entry(source).or_default();
        guest.flows += 1;
        guest.half_open += 1;
    }

    pub(super) fn flow_answered(&mut self, source: Cid) {
        if let Some(guest) = self.guests.get_mut(&source) {
            guest.half_open = guest.half_open.saturating_sub(1);
        }
    }

    pub(super) fn flow_ended(&mut self, source: Cid, was_half_open: bool) {
        if let Some(guest) = self.guests.get_mut(&source) {
            guest.flows = guest.flows.saturating_sub(1);
            guest.half_open = guest.half_open.saturating_sub(usize::from(was_half_open));
        }
    }

    /// Forgets a guest whose flows have ended.
    pub(super) fn remove(&mut self, cid: Cid) {
        self.guests.remove(&cid);
        self.ready.retain(|other| *other != cid);
    }

    pub(super) fn save(&self) -> (Vec<SavedGuest>, Vec<Cid>) {
        let one = |(cid, guest): (&Cid, &Guest)| SavedGuest {
            cid: *cid,
            replies: guest.replies.iter().copied().collect(),
            notices: guest.notices.iter().copied().collect(),
        };
        let has_packet = |guest: &Guest| !guest.replies.is_empty() || !guest.notices.is_empty();
        let guests = self.guests.iter().filter(|(_, guest)| has_packet(guest)).map(one);
        (guests.collect(), self.ready.iter().copied().collect())
    }

    /// What waits for guests, once their flows are counted.
    pub(super) fn restore(
        &mut self,
        guests: Vec<SavedGuest>,
        ready: Vec<Cid>,
        limits: &RelayLimits,
    ) -> Result<(), Unfit> {
        for SavedGuest { cid, replies, notices } in guests {
            for reply in replies {
                check(self.reply(cid, reply, limits), Unfit::TooMany)?;
            }
            for notice in notices {
                check(self.notify(cid, notice, limits), Unfit::TooMany)?;
            }
        }
        let are_within = |guest: &Guest| {
            guest.flows <= limits.max_flows_per_guest
                && guest.half_open <= limits.max_half_open_per_guest
        };
        check(self.guests.values().all(are_within), Unfit::TooMany)?;
        // As it was, and not as the packets above have made it.
        self.ready.clear();
        self.guests.values_mut().for_each(|guest| guest.is_listed = false);
        for cid in ready {
            let guest = self.guests.entry(cid).or_default();
            check(!core::mem::replace(&mut guest.is_listed, true), Unfit::Queue)?;
            self.ready.push_back(cid);
        }
        Ok(())
    }
}

/// What waits for one guest, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedGuest {
    /// Its CID.
    pub cid: Cid,
    /// Answers to its own packets that belong to no flow.
    pub replies: Vec<RawHeader>,
    /// Packets about flows.
    pub notices: Vec<RawHeader>,
}
