//! All links of a node as plain data.
//!
//! Which of them have work is not saved: a successor serves each once. A node with a link to a device is not saved, see
//! docs/decisions/0015-saved-state.md.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use vsock_core::saved::{SavedSlots, Unfit, check, check_counts};
use vsock_core::{Admission, Cid, Instant, Slots};

use super::entry::SavedEntry;
use super::routes::Routes;
use super::{Entry, LinkId, Links, Role};
use crate::saved::{RestoredGuest, Restoring};
use vsock_virtio::saved::SavedFds;
use vsock_virtio::vhost_user::Detach;

/// [`Links`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedLinks {
    /// The CID whose sockets are here.
    pub local: Cid,
    /// The link of the node to itself.
    pub loopback: LinkId,
    /// All links, by slot.
    pub entries: SavedSlots<SavedEntry>,
    /// How many attachments ended, by the name of the reason.
    pub detach_reasons: Vec<(String, u64)>,
}

impl SavedLinks {
    /// The CID that the guest on a link was given.
    pub(crate) fn cid(&self, link: LinkId) -> Option<u32> {
        let (slot, generation) = (link.to_bits() & u64::from(u32::MAX), (link.to_bits() >> 32) + 1);
        let (saved, entry) = self.entries.get(usize::try_from(slot).ok()?)?;
        let entry = entry.as_ref().filter(|_| u64::from(*saved) == generation)?;
        Some(entry.options.cid)
    }
}

impl Links {
    /// As plain data.
    pub(crate) fn save<'a>(&'a self, now: Instant, fds: &mut SavedFds<'a>) -> SavedLinks {
        let named = |(reason, count): (&str, u64)| (reason.to_owned(), count);
        SavedLinks {
            local: self.routes.local(),
            loopback: self.routes.loopback(),
            entries: self.entries.save(|entry| entry.save(now, fds)),
            detach_reasons: self.detach_reasons().map(named).collect(),
        }
    }

    /// Links that go on where others were, with the control threads of their guests.
    pub(crate) fn restore(
        saved: SavedLinks,
        guests: &HashMap<LinkId, RestoredGuest>,
        admission: &mut Admission,
        restoring: &mut Restoring,
    ) -> Result<Self, Unfit> {
        let SavedLinks { local, loopback, entries, detach_reasons } = saved;
        let seeds = RandomState::new();
        let mut routes = Routes::new(local, loopback);
        let entries = Slots::restore(entries, |id, saved: SavedEntry| {
            let guest = guests.get(&id);
            let role = match guest {
                Some(_) => Role::Guest(Cid(saved.options.cid)),
                None => Role::Loopback,
            };
            check(guest.is_none() == (id == loopback), Unfit::State)?;
            if let Role::Guest(cid) = role {
                let is_free = cid.is_guest() && cid != local && routes.guest(cid).is_none();
                check(is_free, Unfit::Address)?;
                routes.add_guest(cid, id);
            }
            let seed = seeds.hash_one(id.to_bits());
            Entry::restore(saved, (role, local), guest, admission, (restoring, seed))
        })?;
        check(entries.contains(loopback) && entries.len() == guests.len() + 1, Unfit::State)?;
        let mut links = Self { entries, ..Self::around(routes) };
        for (reason, count) in detach_reasons {
            let reason = Detach::counter_named(&reason).ok_or(Unfit::State)?;
            check_counts([count])?;
            check(links.detach_reasons.insert(reason, count).is_none(), Unfit::State)?;
        }
        let ids: Vec<LinkId> = links.entries.keys().collect();
        for id in ids {
            for source in links.entries.get(id).iter().flat_map(|entry| entry.sources()) {
                links.sources.insert(source, id);
            }
            links.schedule.add(id);
            links.activate(id);
        }
        Ok(links)
    }
}
