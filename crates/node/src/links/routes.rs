//! Which link leads where.

use std::collections::HashMap;

use vsock_core::Cid;

use super::LinkId;

/// Which link leads to a CID.
#[derive(Debug)]
pub(crate) struct Routes {
    /// The CID whose sockets are here.
    local: Cid,
    /// The link of the node to itself.
    loopback: LinkId,
    guests: HashMap<Cid, LinkId>,
    /// Where all other CIDs are: a userspace guest's only way out.
    uplink: Option<LinkId>,
}

impl Routes {
    pub(super) fn new(local: Cid, loopback: LinkId) -> Self {
        Self { local, loopback, guests: HashMap::new(), uplink: None }
    }

    /// The CID whose sockets are here.
    pub(crate) fn local(&self) -> Cid {
        self.local
    }

    /// The link of the node to itself.
    pub(crate) fn loopback(&self) -> LinkId {
        self.loopback
    }

    /// The link to the device, on a userspace guest.
    pub(crate) fn uplink(&self) -> Option<LinkId> {
        self.uplink
    }

    /// The link of the guest with this CID.
    #[inline]
    pub(crate) fn guest(&self, cid: Cid) -> Option<LinkId> {
        self.guests.get(&cid).copied()
    }

    /// All guests that can be reached.
    pub(super) fn guests(&self) -> impl Iterator<Item = (Cid, LinkId)> + '_ {
        self.guests.iter().map(|(&cid, &id)| (cid, id))
    }

    /// Which link leads to a CID; `None`: guests may have it, and none has.
    pub(crate) fn to(&self, cid: Cid) -> Option<LinkId> {
        if cid == self.local || cid == Cid::LOCAL {
            return Some(self.loopback);
        }
        self.guest(cid).or(self.uplink)
    }

    pub(super) fn set_local(&mut self, cid: Cid) {
        self.local = cid;
    }

    pub(super) fn set_uplink(&mut self, id: Option<LinkId>) {
        self.uplink = id;
    }

    pub(super) fn add_guest(&mut self, cid: Cid, id: LinkId) {
        self.guests.insert(cid, id);
    }

    /// Nothing leads to this guest any more.
    pub(crate) fn remove_guest(&mut self, id: LinkId) {
        self.guests.retain(|_, to| *to != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cids_lead_to_loopback_and_unknown_ones_to_the_device_if_there_is_one() {
        let id = |number| LinkId::from_bits(number).unwrap();
        let mut routes = Routes::new(Cid(7), id(0));
        routes.add_guest(Cid(3), id(1));
        for own in [Cid(7), Cid::LOCAL] {
            assert_eq!(routes.to(own), Some(id(0)));
        }
        assert_eq!((routes.to(Cid(3)), routes.to(Cid(4))), (Some(id(1)), None));
        routes.set_uplink(Some(id(2)));
        assert_eq!((routes.to(Cid(4)), routes.guest(Cid(4))), (Some(id(2)), None));
        routes.remove_guest(id(1));
        assert_eq!((routes.to(Cid(3)), routes.guest(Cid(3))), (Some(id(2)), None));
    }
}
