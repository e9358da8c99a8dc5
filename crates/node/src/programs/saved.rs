//! All programs of a node as plain data, but for their connections.
//!
//! What helpers were doing for them is begun anew: whether a program may bind a port below 1024 is asked again, and so is a
//! hybrid socket for each connection of a guest that has no answer.

use std::collections::BTreeSet;

use vsock_core::saved::{Unfit, check, check_counts};
use vsock_core::{Binding, Ports};

use super::acceptors::{Acceptors, SavedAcceptor};
use super::datagrams::{Datagrams, SavedDatagrams};
use super::hybrid::{Hybrids, SavedHybrids};
use super::listeners::{Listeners, SavedListeners};
use super::pending::Pending;
use super::register::{Register, SavedEnds};
use super::requests::{Requests, SavedRequests};
use super::silent::Silent;
use super::{Programs, Services};
use crate::flows::Flows;
use crate::host::program::Bound;
use crate::links::Links;
use crate::reactor::SourceId;
use crate::saved::Restoring;
use vsock_virtio::saved::SavedFds;

/// [`Programs`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedPrograms {
    /// Sockets on which programs connect.
    pub acceptors: Vec<SavedAcceptor>,
    /// Programs that may ask for something.
    pub requests: SavedRequests,
    /// Hybrid sockets, and programs on them.
    pub hybrids: SavedHybrids,
    /// Ports for connections, and programs that listen.
    pub listeners: SavedListeners,
    /// Ports for datagrams, and programs that receive on them.
    pub datagrams: SavedDatagrams,
    /// How the last connections ended.
    pub ends: SavedEnds,
    /// Programs that have said nothing yet.
    pub silent: Vec<SourceId>,
}

impl Programs {
    /// As plain data.
    pub(crate) fn save<'a>(&'a self, fds: &mut SavedFds<'a>) -> SavedPrograms {
        let Services { listeners, datagrams, register, silent } = &self.services;
        SavedPrograms {
            acceptors: self.acceptors.save(fds),
            requests: self.requests.save(fds),
            hybrids: self.hybrids.save(fds),
            listeners: listeners.save(fds),
            datagrams: datagrams.save(),
            ends: register.save(),
            silent: silent.save(),
        }
    }

    /// Programs that go on where others were, with these links and connections.
    pub(crate) fn restore(
        saved: SavedPrograms,
        links: &Links,
        flows: &Flows,
        restoring: &mut Restoring,
    ) -> Result<Self, Unfit> {
        let SavedPrograms { acceptors, requests, hybrids, listeners, datagrams, ends, silent } =
            saved;
        check_counts([requests.bad, hybrids.bad, listeners.bad])?;
        let acceptors = Acceptors::restore(acceptors, restoring)?;
        let hybrids = Hybrids::restore(hybrids, &acceptors, links, restoring)?;
        let local = links.routes.local();
        let are_local = listeners.ports.local == local && datagrams.ports.local == local;
        check(are_local, Unfit::Address)?;
        // Each binding has one holder, who gives it back.
        let (mut connections, mut messages) = (Holders::default(), Holders::default());
        let mut listeners = Listeners::restore(listeners, &mut connections, restoring)?;
        let (ports, table) = (listeners.ports(), flows.iter());
        for bound in table.filter_map(|(_, flow)| flow.holdings.binding) {
            connections.hold(ports, bound)?;
        }
        let requests = Requests::restore(requests, (ports, &mut connections), restoring)?;
        let mut datagrams = Datagrams::restore(datagrams, &requests.clients, &mut messages)?;
        connections.release_others(listeners.ports_mut());
        messages.release_others(datagrams.ports_mut());
        let register = Register::restore(ends, flows)?;
        let mut services = Services { listeners, datagrams, register, silent: Silent::default() };
        for id in silent {
            let peer = requests.clients.get(id).map(|it| it.peer).or_else(|| hybrids.peer(id));
            let user = peer.map(|it| it.uid);
            // They may have asked by now.
            services.silent.add(id, user.ok_or(Unfit::State)?, restoring.now, |_| true);
        }
        // epoll tells all that has happened once more.
        let pending = Pending::default();
        Ok(Self { pending, acceptors, requests, hybrids, services })
    }
}

/// Who holds the bindings of a table of ports.
#[derive(Default)]
pub(super) struct Holders(BTreeSet<Binding>);

impl Holders {
    /// A binding has a holder.
    pub(super) fn hold(&mut self, ports: &Ports, bound: Bound) -> Result<(), Unfit> {
        check(ports.address(bound.id) == Some(bound.address), Unfit::Address)?;
        check(self.0.insert(bound.id), Unfit::Address)
    }

    /// Frees bindings that nobody would ever give back.
    fn release_others(self, ports: &mut Ports) {
        let others: Vec<Binding> = ports.bindings().filter(|id| !self.0.contains(id)).collect();
        for id in others {
            ports.release(id);
        }
    }
}
