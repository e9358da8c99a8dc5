//! A guest gets another CID while it runs: live migration as vsock(7) describes it.
//!
//! All connections of the guest end, and what listens goes on at the new CID; programs here keep their listeners. How the
//! guest hears of it depends on its front end:
//!
//! - **With the event queue** (User-Mode Linux, a userspace guest) it gets TRANSPORT_RESET: its driver reads the new CID
//!   and ends its connections with ECONNRESET. Until it has, nothing else is sent to it (`device.rs`), and what it
//!   still sends from the old CID belongs to connections that are over: it is dropped without an answer.
//! - **Without it** (QEMU) each connection is ended by RST. Linux reads the new CID only when its driver begins anew
//!   (reboot, rebind), and until then goes on under the old one, which stands for the new one here.

use vsock_core::{CloseReason, FlowKey, Header, Op};

use super::attach::AddError;
use super::link_slot::{LinkSlot, Role, Stored};
use super::source::LinkId;
use super::{Cid, Worker};
use crate::link::Link;

/// What packets from a guest's earlier CID are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Former {
    /// Late: their connections are over.
    Dropped(Cid),
    /// The guest's, which does not know its new CID yet.
    Meant(Cid),
}

impl Worker {
    /// Whether a guest can have this CID.
    pub(crate) fn check_cid(&self, cid: Cid) -> Result<(), AddError> {
        if !cid.is_guest() || cid == self.local {
            return Err(AddError::BadCid(cid.0));
        }
        match self.links.iter().find(|(_, slot)| slot.guest() == Some(cid)) {
            Some((_, slot)) => Err(AddError::CidInUse(cid.0, slot.options.name.clone())),
            None => Ok(()),
        }
    }

    /// Gives a guest another CID; its configuration space has it already.
    pub(crate) fn renumber_guest(&mut self, id: LinkId, cid: Cid) -> Result<(), AddError> {
        self.check_cid(cid)?;
        let Some(slot) = self.links.get_mut(id) else { return Ok(()) };
        let Some(old) = slot.guest() else { return Ok(()) };
        let Link::Device(device) = &mut slot.link else { return Ok(()) };
        let runs = device.is_running(crate::link::TX_QUEUE);
        if runs && !device.announce_reset() {
            self.reset_connections(id, old);
            self.set_former(id, Some(Former::Meant(old)));
        } else {
            self.forget_connections(id);
            self.set_former(id, runs.then_some(Former::Dropped(old)));
        }
        if let Some(slot) = self.links.get_mut(id) {
            slot.role = Role::Guest(cid);
            slot.options.cid = cid.0;
        }
        self.routes.remove(&old);
        self.routes.insert(cid, id);
        self.activate(id);
        Ok(())
    }

    fn set_former(&mut self, id: LinkId, former: Option<Former>) {
        if let Some(slot) = self.links.get_mut(id) {
            // Twice renumbered before it heard of the first: the oldest is what it still sends.
            slot.former = match (slot.former, former) {
                (Some(Former::Meant(oldest)), Some(Former::Meant(_))) => {
                    Some(Former::Meant(oldest))
                }
                (_, former) => former,
            };
        }
    }

    /// Ends all connections of a guest that cannot be told otherwise: RST for each, to all who have a part in it.
    pub(super) fn reset_connections(&mut self, id: LinkId, guest: Cid) {
        let Some(slot) = self.links.get_mut(id) else { return };
        let ids: Vec<_> = slot.endpoint.connections().map(|connection| connection.id).collect();
        for connection in ids {
            if let Some(slot) = self.links.get_mut(id) {
                slot.endpoint.reset(connection);
            }
            self.closed(id, connection, CloseReason::LinkGone);
        }
        let Some(slot) = self.links.get_mut(id) else { return };
        slot.store.clear();
        // What the relay has for the guest is filed under its old CID, which nobody asks for any more.
        while let Some(packet) = self.relay.next_packet(guest) {
            slot.store_last_word(packet.check().ok());
        }
        for flow in self.relay.flows() {
            let (ours, theirs) = match (flow.source, flow.destination) {
                (theirs, ours) | (ours, theirs) if theirs.cid == guest => (ours, theirs),
                _ => continue,
            };
            let reset = Header::outbound(FlowKey { ours, theirs }, flow.kind, Op::Rst);
            slot.store_last_word(Some(reset));
        }
        self.forget_relayed(guest);
    }
}

impl LinkSlot {
    /// Keeps a packet that ends a flow, behind all that waits; false: there is no room for it.
    pub(super) fn store_last_word(&mut self, header: Option<Header>) -> bool {
        header
            .is_some_and(|header| self.store.push(Stored { header, payload: Vec::new(), sent: 0 }))
    }
}
