//! An interface as plain data. Saved between two turns: no buffer of the ring is in use then.
//!
//! Its addresses and options follow from its link's, and its flows know what they have of its buffers. What it knows of its
//! ring (whether there was room, whether packets are left in it) is found out anew in its first turn, and its rate begins
//! with a full bucket.

use vsock_core::endpoint::SavedEndpoint;
use vsock_core::saved::{Unfit, check_counts};
use vsock_core::{Cid, ConnectionId, Endpoint, Instant};

use super::Interface;
use crate::links::buffers::Buffers;
use crate::links::connections::Connections;
use crate::links::datagram::{Incoming, SavedIncoming};
use crate::links::filter::{Filter, FormerCid, Role};
use crate::links::limits_of;
use crate::links::rate::Rate;
use crate::links::receiver::{Drops, Receiver};
use crate::links::sender::Sender;
use crate::links::store::{SavedSender, Store};
use crate::links::transceiver::{Traffic, Transceiver};
use vsock_virtio::link::Link;
use vsock_virtio::link::device::SavedDevice;
use vsock_virtio::link::loopback::SavedLoopback;
use vsock_virtio::saved::SavedFds;

/// An [`Interface`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedInterface {
    /// Its queues.
    pub link: SavedLink,
    /// What went over the link.
    pub traffic: Traffic,
    /// Its connections.
    pub endpoint: SavedEndpoint,
    /// Connections with something to send, in the order of their turns.
    pub ready: Vec<ConnectionId>,
    /// What packets from the guest's earlier CID are.
    pub former: Option<FormerCid>,
    /// The datagram of which not all packets have come.
    pub datagram: SavedIncoming,
    /// What was not taken of what came.
    pub drops: Drops,
    /// Packets of other guests that wait for room in the ring, by sender.
    pub store: Vec<SavedSender>,
}

/// The queues of a link as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SavedLink {
    /// To a guest.
    Device(SavedDevice),
    /// Of the node to itself.
    Loopback(SavedLoopback),
}

impl Interface {
    /// As plain data; `None`: its link leads to a device.
    pub(in super::super) fn save<'a>(
        &'a self,
        now: Instant,
        fds: &mut SavedFds<'a>,
    ) -> Option<SavedInterface> {
        let Self { link, connections: Connections { endpoint, ready }, receiver, sender, .. } =
            self;
        Some(SavedInterface {
            link: match link.link() {
                Link::Device(device) => SavedLink::Device(device.save(fds)),
                Link::Loopback(loopback) => SavedLink::Loopback(loopback.save()),
                Link::Driver(_) => return None,
            },
            traffic: link.traffic(),
            endpoint: endpoint.save(now),
            // Those that have ended have no more turns.
            ready: ready.iter().filter(|&id| endpoint.info(id).is_some()).collect(),
            former: receiver.filter.former(),
            datagram: receiver.datagram.save(),
            drops: self.drops(),
            store: sender.store.save(),
        })
    }

    /// An interface that goes on where another was, over a link that does. `seed` must be unknown to the other side, as
    /// for a new one.
    pub(in super::super) fn restore(
        (saved, link): (SavedInterface, Link),
        (role, local): (Role, Cid),
        seed: u64,
        now: Instant,
    ) -> Result<Self, Unfit> {
        let SavedInterface { link: _, traffic, endpoint, ready, former, datagram, drops, store } =
            saved;
        let Traffic { packets_in, packets_out, bytes_in, bytes_out } = traffic;
        check_counts([packets_in, packets_out, bytes_in, bytes_out])?;
        let Drops { malformed, spoofed, late, unroutable, overflows } = drops;
        check_counts([malformed, spoofed, late, unroutable, overflows])?;
        let endpoint = Endpoint::restore(endpoint, limits_of(role), seed, now)?;
        let mut filter = Filter::new(role, local);
        filter.set_former(former);
        Ok(Self {
            link: Transceiver::counting_on(link, traffic),
            connections: Connections::restore(endpoint, ready)?,
            receiver: Receiver { filter, datagram: Incoming::restore(datagram)?, drops },
            sender: Sender { store: Store::restore(store)?, overflows, ..Sender::default() },
            rate: Rate::default(),
            buffers: Buffers::default(),
            is_paused: false,
            awaits_cid: false,
            owes_sending: false,
        })
    }
}
