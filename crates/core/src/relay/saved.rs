//! A relay as plain data.

use super::flow::{Flow, SavedFlow};
use super::guests::SavedGuest;
use super::{Relay, RelayLimits, RelayStats, pair_key};
use crate::address::Cid;
use crate::ids::Slots;
use crate::saved::{SavedSlots, Unfit, check, check_counts};
use crate::time::Instant;
use alloc::vec::Vec;

/// A [`Relay`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRelay {
    /// Its flows, by slot.
    pub flows: SavedSlots<SavedFlow>,
    /// What waits for guests.
    pub guests: Vec<SavedGuest>,
    /// Guests with packets that `next_ready` has not named yet.
    pub ready: Vec<Cid>,
    /// Counters.
    pub stats: RelayStats,
}

impl Relay {
    /// All that this relay holds at `now`, as plain data.
    #[must_use]
    pub fn save(&self, now: Instant) -> SavedRelay {
        let (guests, ready) = self.guests.save();
        SavedRelay {
            flows: self.flows.save(|flow| flow.save(now)),
            guests,
            ready,
            stats: self.stats,
        }
    }

    /// A relay that goes on where another was. `hash_seed` must be unknown to guests, as for a new
    /// one.
    ///
    /// # Errors
    /// The saved state cannot be, or is beyond these limits.
    pub fn restore(
        saved: SavedRelay,
        limits: RelayLimits,
        hash_seed: u64,
        now: Instant,
    ) -> Result<Self, Unfit> {
        let mut relay = Self::new(limits, hash_seed);
        relay.flows = Slots::restore(saved.flows, |_, flow| Flow::restore(&flow, &limits, now))?;
        for (id, flow) in relay.flows.iter() {
            let key = pair_key(flow.source, flow.destination);
            check(relay.table.get(key).is_none(), Unfit::Address)?;
            relay.table.insert(key, id);
            relay.guests.flow_opened(flow.source.cid);
            if !flow.state.is_asked() {
                relay.guests.flow_answered(flow.source.cid);
            }
            let is_counted = relay.grants.restore(flow.source, flow.destination, flow.grant());
            check(is_counted, Unfit::TooMany)?;
            if let Some(deadline) = flow.deadline {
                relay.timers.add(deadline, id);
            }
        }
        relay.guests.restore(saved.guests, saved.ready, &limits)?;
        check_counts(saved.stats.named().map(|(_, count)| count))?;
        relay.stats = saved.stats;
        Ok(relay)
    }
}
