//! Which keys descriptors have, as plain data, so that they keep them.
//!
//! Descriptors themselves are saved by their owners, which register them again under the keys that they had. epoll then
//! tells all that is true of them, so nothing that it has told before needs to be known.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use rustix::event::epoll::{self, EventFlags};
use vsock_core::Slots;
use vsock_core::saved::{SavedSlots, Unfit, check};

use super::{Owner, SourceId, Sources, everything};

/// [`Sources`] as plain data: to whom each key belongs.
pub type SavedSources = SavedSlots<Owner>;

impl Sources {
    /// As plain data.
    pub(crate) fn save(&self) -> SavedSources {
        self.owners.save(|owner| *owner)
    }
}

/// Sources that are being restored: each key is claimed by its owner, once.
pub(crate) struct Claims {
    sources: Sources,
    claimed: BTreeSet<SourceId>,
}

impl Claims {
    /// Nothing is claimed yet. `sources` are new.
    pub(crate) fn new(sources: Sources, saved: SavedSources) -> Result<Self, Unfit> {
        let owners = Slots::restore(saved, |_, owner| Ok(owner))?;
        Ok(Self { sources: Sources { owners, ..sources }, claimed: BTreeSet::new() })
    }

    /// Listens to a descriptor under the key that it had. If that fails for the descriptor's sake
    /// ([`Unfit::Descriptor`]), nothing has the key any more.
    pub(crate) fn claim(&mut self, fd: impl AsFd, id: SourceId, owner: Owner) -> Result<(), Unfit> {
        check(self.sources.owner(id) == Some(owner), Unfit::State)?;
        check(self.claimed.insert(id), Unfit::State)?;
        let events = match owner {
            Owner::Queue | Owner::Acceptor => EventFlags::IN | EventFlags::ET,
            Owner::Client | Owner::HybridClient | Owner::Listener | Owner::Flow => everything(),
            // The link to a device is not saved.
            Owner::Device => return Err(Unfit::State),
        };
        let data = epoll::EventData::new_u64(id.to_bits());
        epoll::add(&self.sources.epoll, fd, data, events).map_err(|_| {
            self.claimed.remove(&id);
            self.sources.remove(id);
            Unfit::Descriptor
        })
    }

    /// Forgets a key whose descriptor is not listened to any more.
    pub(crate) fn give_up(&mut self, id: SourceId, owner: Owner) -> Result<(), Unfit> {
        let is_free = self.sources.owner(id) == Some(owner) && !self.claimed.contains(&id);
        check(is_free, Unfit::State)?;
        self.sources.remove(id);
        Ok(())
    }

    /// All owners are there. A key that none has claimed names nothing from now on.
    pub(crate) fn finish(self) -> Sources {
        let Self { mut sources, claimed } = self;
        let unclaimed: Vec<SourceId> =
            sources.owners.keys().filter(|id| !claimed.contains(id)).collect();
        for id in unclaimed {
            sources.remove(id);
        }
        sources
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::reactor::Events;

    #[test]
    fn descriptor_keeps_its_key_and_is_told_of_again() {
        let mut before = Sources::new().unwrap();
        let (gone, _) = UnixStream::pair().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let stale = before.add(&gone, Owner::Client).unwrap();
        before.remove(stale);
        let id = before.add(&ours, Owner::Flow).unwrap();
        theirs.write_all(b"x").unwrap();
        before.wait(Some(Duration::ZERO), &mut Events::new(), &mut Vec::new()).unwrap();
        let saved = before.save();
        drop(before);

        let mut claims = Claims::new(Sources::new().unwrap(), saved.clone()).unwrap();
        assert_eq!(claims.claim(&ours, stale, Owner::Client), Err(Unfit::State));
        assert_eq!(claims.claim(&ours, id, Owner::Client), Err(Unfit::State));
        claims.claim(&ours, id, Owner::Flow).unwrap();
        assert_eq!(claims.claim(&ours, id, Owner::Flow), Err(Unfit::State));
        let sources = claims.finish();
        let mut out = Vec::new();
        sources.wait(Some(Duration::ZERO), &mut Events::new(), &mut out).unwrap();
        assert!(out.len() == 1 && out[0].source == id && out[0].readable);

        let claims = Claims::new(Sources::new().unwrap(), saved).unwrap();
        assert_eq!(claims.finish().owner(id), None, "nobody owns the descriptor");
    }
}
