//! Ports, and programs that take connections, as plain data.

use vsock_core::ports::SavedPorts;
use vsock_core::saved::{Unfit, check};
use vsock_core::{Cid, Ports};

use super::{Listener, Listeners};
use crate::programs::accept_queue::{AcceptQueue, SavedAcceptQueue};
use crate::programs::requests::SavedClient;
use crate::programs::saved::Holders;
use crate::reactor::{Owner, SourceId};
use crate::saved::Restoring;
use vsock_virtio::saved::SavedFds;

/// [`Listeners`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedListeners {
    /// Who is bound to which port.
    pub ports: SavedPorts,
    /// Programs that listen.
    pub listeners: Vec<(SourceId, SavedListener)>,
    /// Requests of listening programs that broke the rules of the protocol.
    pub bad: u64,
}

/// A program that listens, as plain data. The port that it holds is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedListener {
    /// The program.
    pub client: SavedClient,
    /// Receive buffer of the connections it takes; 0: the default.
    pub buffer: u32,
    /// What it wants back with each of them.
    pub inherited: Vec<u8>,
    /// Those it has not taken.
    pub queue: SavedAcceptQueue,
}

impl Listeners {
    /// As plain data.
    pub(in crate::programs) fn save<'a>(&'a self, fds: &mut SavedFds<'a>) -> SavedListeners {
        let mut one = |(id, it): (SourceId, &'a Listener)| {
            let client = SavedClient::of(&it.client, fds);
            let queue = it.queue.save(fds);
            let (buffer, inherited) = (it.buffer, it.inherited.clone());
            (id, SavedListener { client, buffer, inherited, queue })
        };
        let listeners = self.table.iter().map(&mut one).collect();
        SavedListeners { ports: self.ports.save(), listeners, bad: self.bad }
    }

    /// From plain data.
    pub(in crate::programs) fn restore(
        saved: SavedListeners,
        holders: &mut Holders,
        restoring: &mut Restoring,
    ) -> Result<Self, Unfit> {
        let ports = Ports::restore(saved.ports)?;
        let mut listeners = Self { ports, bad: saved.bad, ..Self::new(Cid::ANY, 0) };
        for (id, SavedListener { client, buffer, inherited, queue }) in saved.listeners {
            let client = client.restore(id, Owner::Listener, restoring)?;
            let bound = client.bound.ok_or(Unfit::State)?;
            holders.hold(&listeners.ports, bound)?;
            let is_listening = listeners.ports.is_listening(bound.id, client.kind);
            check(is_listening, Unfit::State)?;
            let queue = AcceptQueue::restore(queue, &mut restoring.fds)?;
            let listener = Listener { client, bound, buffer, inherited, queue };
            listeners.by_binding.insert(bound.id, id);
            listeners.table.insert(id, listener);
        }
        Ok(listeners)
    }

    /// The ports, to change them.
    pub(in crate::programs) fn ports_mut(&mut self) -> &mut Ports {
        &mut self.ports
    }

    /// The ports.
    pub(in crate::programs) fn ports(&self) -> &Ports {
        &self.ports
    }
}
