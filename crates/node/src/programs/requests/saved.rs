//! Programs that may ask for something, as plain data.
//!
//! A request that has not come whole is still in its program's socket. One that waits for a helper has been taken out of it,
//! so it is saved.

use vsock_core::saved::{Unfit, check};
use vsock_core::{Ports, SocketType};

use super::{Again, Attempted, Requests};
use crate::host::client::Client;
use crate::host::places::Holder;
use crate::host::program::Bound;
use crate::host::wire::{Request, from_wire};
use crate::programs::Parts;
use crate::programs::saved::Holders;
use crate::reactor::{Owner, SourceId};
use crate::saved::Restoring;
use vsock_virtio::saved::{SavedFd, SavedFds};
use vsock_virtio::sys::PeerCredentials;

/// [`Requests`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRequests {
    /// Programs that may ask.
    pub clients: Vec<(SourceId, SavedClient)>,
    /// What programs have asked and have no answer to, as a helper had not answered.
    pub waiting: Vec<SavedRequest>,
    /// Requests that broke the rules of the protocol.
    pub bad: u64,
}

/// A program between requests, as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedClient {
    /// Its socket.
    pub fd: SavedFd,
    /// The type of socket that it is for.
    pub kind: SocketType,
    /// Who it is.
    pub peer: PeerCredentials,
    /// The port that it holds.
    pub bound: Option<Bound>,
}

/// A request that waits, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRequest {
    /// Who asks.
    pub client: SourceId,
    /// What for.
    pub request: Request,
    /// The bytes behind it.
    pub extra: Vec<u8>,
}

impl SavedClient {
    /// Of a program that is here.
    pub(in crate::programs) fn of<'a>(client: &'a Client, fds: &mut SavedFds<'a>) -> Self {
        let Client { fd, kind, peer, bound } = client;
        Self { fd: fds.add(fd), kind: *kind, peer: *peer, bound: *bound }
    }

    /// The program, whose descriptor has this name and owner.
    pub(in crate::programs) fn restore(
        self,
        id: SourceId,
        owner: Owner,
        restoring: &mut Restoring,
    ) -> Result<Client, Unfit> {
        let Self { fd, kind, peer, bound } = self;
        let place = restoring.sockets.places.keep(Holder::User(peer.uid));
        let fd = restoring.claim_socket(fd, id, owner)?.counted(place);
        Ok(Client::new(fd, kind, peer, bound))
    }
}

impl Requests {
    /// As plain data.
    pub(in crate::programs) fn save<'a>(&'a self, fds: &mut SavedFds<'a>) -> SavedRequests {
        let mut client = |(id, it): (SourceId, &'a Client)| -> (SourceId, SavedClient) {
            (id, SavedClient::of(it, fds))
        };
        let waiting = |Again { client, request, extra }: &Again| SavedRequest {
            client: *client,
            request: *request,
            extra: extra.clone(),
        };
        SavedRequests {
            clients: self.clients.iter().map(&mut client).collect(),
            waiting: self.waiting.values().map(waiting).collect(),
            bad: self.bad,
        }
    }

    /// From plain data. [`ask_again`](Self::ask_again) has to follow.
    pub(in crate::programs) fn restore(
        saved: SavedRequests,
        (ports, holders): (&Ports, &mut Holders),
        restoring: &mut Restoring,
    ) -> Result<Self, Unfit> {
        let mut requests = Self { bad: saved.bad, ..Self::new() };
        for (id, client) in saved.clients {
            let client = client.restore(id, Owner::Client, restoring)?;
            // Ports for datagrams are of another table.
            if let Some(bound) = client.bound.filter(|_| client.kind != SocketType::Datagram) {
                holders.hold(ports, bound)?;
            }
            requests.clients.insert(id, client);
        }
        for SavedRequest { client: id, request, extra } in saved.waiting {
            let client = requests.clients.get(id).ok_or(Unfit::State)?;
            let waits = matches!(request, Request::Bind(_)) && client.may_ask(&request);
            check(waits && extra.is_empty(), Unfit::State)?;
            let waiting = Again { client: id, request, extra };
            check(requests.waiting.insert(id, waiting).is_none(), Unfit::State)?;
        }
        Ok(requests)
    }

    /// Asks again what the helper of a predecessor was asked.
    pub(in crate::programs) fn ask_again(&mut self, parts: &mut Parts<'_>) {
        let ids: Vec<SourceId> = self.waiting.iter().map(|(id, _)| id).collect();
        for id in ids {
            let Some(Again { request: Request::Bind(address), .. }) = self.waiting.get(id) else {
                continue;
            };
            let address = from_wire(*address);
            if !self.asks_privilege(parts.cx, id, address)
                && let Some(waited) = self.waiting.remove(id)
            {
                self.finish(parts, &waited, Attempted::Again);
            }
        }
    }
}
