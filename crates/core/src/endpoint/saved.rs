//! An endpoint as plain data.

use super::{Connection, ConnectionId, Endpoint, EndpointStats, Event, Limits};
use crate::connection::SavedConnection;
use crate::ids::Slots;
use crate::packet::RawHeader;
use crate::saved::{SavedSlots, Unfit, check, check_counts};
use crate::state::State;
use crate::time::Instant;
use alloc::vec::Vec;

/// An [`Endpoint`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedEndpoint {
    /// Its connections, by slot.
    pub connections: SavedSlots<SavedConnection>,
    /// Those that have something to say, in the order of their turns.
    pub speakers: Vec<ConnectionId>,
    /// RSTs that end connections of ours.
    pub last_words: Vec<RawHeader>,
    /// RSTs that answer packets of no connection.
    pub replies: Vec<RawHeader>,
    /// What our users have not been told.
    pub events: Vec<Event>,
    /// Counters.
    pub stats: EndpointStats,
}

impl Endpoint {
    /// All that this endpoint holds at `now`, as plain data.
    #[must_use]
    pub fn save(&self, now: Instant) -> SavedEndpoint {
        let is_speaker =
            |id: &ConnectionId| self.connections.get(*id).is_some_and(|it| it.is_queued);
        SavedEndpoint {
            connections: self.connections.save(|connection| connection.save(now)),
            speakers: self.outbox.speakers().filter(is_speaker).collect(),
            last_words: self.outbox.last_words().collect(),
            replies: self.outbox.replies().collect(),
            events: self.events.iter().copied().collect(),
            stats: self.stats,
        }
    }

    /// An endpoint that goes on where another was. `hash_seed` must be unknown to the peer, as for
    /// a new one.
    ///
    /// # Errors
    /// The saved state cannot be, or is beyond these limits.
    pub fn restore(
        saved: SavedEndpoint,
        limits: Limits,
        hash_seed: u64,
        now: Instant,
    ) -> Result<Self, Unfit> {
        let mut endpoint = Self::new(limits, hash_seed);
        endpoint.now = now;
        let restore = |_, saved: SavedConnection| Connection::restore(&saved, now);
        endpoint.connections = Slots::restore(saved.connections, restore)?;
        check(endpoint.connections.len() <= limits.max_connections, Unfit::TooMany)?;
        let found: Vec<_> =
            endpoint.connections.iter().map(|(id, it)| (id, it.key, it.state)).collect();
        for (id, key, state) in found {
            if state.has_address() {
                check(endpoint.table.get(key).is_none(), Unfit::Address)?;
                endpoint.table.insert(key, id);
            }
            endpoint.offered += usize::from(matches!(state, State::Offered { .. }));
            endpoint.connecting += usize::from(matches!(state, State::Connecting { .. }));
            endpoint.arm(id);
        }
        check(endpoint.offered <= limits.max_half_open, Unfit::TooMany)?;
        check(endpoint.connecting <= limits.max_half_open, Unfit::TooMany)?;
        endpoint.restore_outbox(&saved.speakers, saved.last_words, saved.replies)?;
        // What they name may be gone, but it was here.
        let was_here = |event: &Event| endpoint.connections.has_slot(event.id());
        check(saved.events.iter().all(was_here), Unfit::Queue)?;
        endpoint.events = saved.events.into();
        check_counts(saved.stats.named().map(|(_, count)| count))?;
        endpoint.stats = saved.stats;
        Ok(endpoint)
    }

    fn restore_outbox(
        &mut self,
        speakers: &[ConnectionId],
        last_words: Vec<RawHeader>,
        replies: Vec<RawHeader>,
    ) -> Result<(), Unfit> {
        for &id in speakers {
            let connection = self.connections.get_mut(id).ok_or(Unfit::Queue)?;
            check(!connection.is_queued, Unfit::Queue)?;
            connection.is_queued = true;
            self.outbox.enqueue(id);
        }
        for connection in self.connections.values().filter(|it| !it.due().is_none()) {
            // It would never say what it has to.
            check(connection.is_queued, Unfit::Queue)?;
            self.outbox.ready += 1;
        }
        for reset in last_words {
            check(self.outbox.last_word(reset, &self.limits), Unfit::TooMany)?;
        }
        for reply in replies {
            check(self.outbox.reply(reply, &self.limits), Unfit::TooMany)?;
        }
        Ok(())
    }
}
