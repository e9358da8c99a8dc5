//! SOCK_DGRAM: single messages, best effort, without connections (kernel-semantics, 8: what VMCI does).
//!
//! A program binds on its connection to the socket `dgram` and receives there; what it sends comes as requests, each with
//! a verdict. Ports are a space of their own. On a link, datagrams go only where both sides have negotiated them, which
//! no Linux guest does. Nothing is ever kept for later: what finds no room is dropped and counted. From one guest to
//! another they go under the same policy as connections, one whole datagram at a time, so that those of several senders
//! are not mixed.

use std::io::IoSlice;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use vsock_core::admission::{Act, Answerer, Attempt, Program};
use vsock_core::ports::SavedPorts;
use vsock_core::saved::{Unfit, check, check_counts};
use vsock_core::{
    Address, Admission, BindError, Binding, Cid, FlowKey, Port, Ports, Refusal, SecondaryMap,
    SocketType,
};

use super::saved::Holders;
use crate::admission::program;
use crate::host::client::{Client, has_hung_up};
use crate::host::program::Bound;
use crate::host::wire::{self, Reply, op};
use crate::links::{LinkId, Links, Role, Scratch};
use crate::reactor::{Owner, SourceId};
use crate::snapshot::DatagramInfo;

/// A program that is bound to a datagram port, and what became of its datagrams.
#[derive(Clone, Copy, Debug)]
struct DatagramSocket {
    /// The program.
    client: SourceId,
    /// By it, and not lost before they left this node.
    sent: u64,
    /// For it, and not lost.
    received: u64,
    /// For it, and lost because it did not receive.
    dropped: u64,
}

/// Programs that ask, by their descriptors.
pub(super) type Clients = SecondaryMap<Owner, Client>;

/// Ports for datagrams, and who receives on them.
pub(super) struct Datagrams {
    ports: Ports,
    sockets: SecondaryMap<vsock_core::ports::Bound, DatagramSocket>,
    sent: u64,
    received: u64,
    /// For want of room, or of somebody to receive them.
    dropped: u64,
    scratch: Scratch,
}

impl Datagrams {
    pub(super) fn new(local: Cid, seed: u64) -> Self {
        Self {
            ports: Ports::new(local, seed),
            sockets: SecondaryMap::new(),
            sent: 0,
            received: 0,
            dropped: 0,
            scratch: Scratch::default(),
        }
    }

    pub(super) fn set_local(&mut self, cid: Cid) {
        self.ports.set_local(cid);
    }

    /// Takes a port for a program that receives datagrams.
    pub(super) fn bind(&mut self, client: SourceId, address: Address) -> Result<Bound, BindError> {
        let id = self.ports.bind(address)?;
        let socket = DatagramSocket { client, sent: 0, received: 0, dropped: 0 };
        self.sockets.insert(id, socket);
        Ok(Bound { id, address: self.ports.address(id).unwrap_or(address) })
    }

    /// Gives it back.
    pub(super) fn release(&mut self, bound: Option<Bound>) {
        if let Some(bound) = bound {
            self.sockets.remove(bound.id);
            self.ports.release(bound.id);
        }
    }

    /// Sends a datagram for the program `asker`, from the socket with this number.
    pub(super) fn send(
        &mut self,
        admission: &mut Admission,
        links: &mut Links,
        clients: &Clients,
        (asker, number): (SourceId, u64),
        to: Address,
        payload: &[u8],
    ) -> Result<(), Errno> {
        let binding = Binding::from_bits(number).ok_or(Errno::BADF)?;
        let port = self.own_port(clients, asker, binding)?;
        let local = links.routes.local();
        let to = if to.cid == Cid::ANY { Address { cid: local, ..to } } else { to };
        // Services of a hypervisor: only its resolver has a port there, and we have no hypervisor.
        if to.port == Port::ANY || (to.cid == Cid::HYPERVISOR && to.port != Port(14)) {
            return Err(Errno::INVAL);
        }
        let from = Address { cid: local, port };
        let asker = clients.get(asker).map(|it| program(it.peer)).unwrap_or_default();
        let sent = self.dispatch(admission, links, clients, asker, (from, to), payload);
        // There are no connections, so whatever the reason is, it is the way that is missing.
        let is_sent = sent.map_err(|reason| {
            let _ = admission.refuse(reason);
            Errno::HOSTUNREACH
        })?;
        if is_sent {
            self.count_sent(binding);
        }
        Ok(())
    }

    /// Sends a program's datagram where it belongs. False: there is no room for it.
    fn dispatch(
        &mut self,
        admission: &Admission,
        links: &mut Links,
        clients: &Clients,
        asker: Program,
        (from, to): (Address, Address),
        payload: &[u8],
    ) -> Result<bool, Refusal> {
        let kind = SocketType::Datagram;
        let attempt = links.attempt_of_program(asker, Act::Send, to, kind);
        let link = links.routes.to(to.cid).ok_or(Refusal::NoRoute);
        if link == Ok(links.routes.loopback()) {
            let answerer = self.answerer(to);
            admission.decide(&Attempt { answerer, ..attempt }).limits()?;
            return if self.deliver(clients, from, to, payload) {
                Ok(true)
            } else {
                Err(Refusal::ListenerGone)
            };
        }
        admission.decide(&attempt).limits()?;
        let sent = links.send_datagram(link?, (from, to), payload, &mut self.scratch);
        let is_sent = sent.ok_or(Refusal::TypeNotKnown)?;
        self.sent += u64::from(is_sent);
        self.dropped += u64::from(!is_sent);
        Ok(is_sent)
    }

    /// Who would receive a datagram to an address of ours.
    fn answerer(&self, to: Address) -> Answerer {
        match self.ports.holder(to) {
            Some(_) => Answerer::Receiver,
            None => Answerer::Nobody,
        }
    }

    fn count_sent(&mut self, binding: Binding) {
        if let Some(socket) = self.sockets.get_mut(binding) {
            socket.sent += 1;
        }
    }

    /// The port of a datagram socket, if it belongs to the user who asks.
    fn own_port(
        &self,
        clients: &Clients,
        asker: SourceId,
        binding: Binding,
    ) -> Result<Port, Errno> {
        let user = clients.get(asker).ok_or(Errno::INVAL)?.peer.uid;
        let owner = self.sockets.get(binding).and_then(|it| clients.get(it.client));
        match owner.and_then(|client| Some((client.peer.uid, client.bound?.address.port))) {
            Some((owner, port)) if user == 0 || user == owner => Ok(port),
            Some(_) => Err(Errno::PERM),
            None => Err(Errno::BADF),
        }
    }

    /// Hands a datagram to the program that is bound to its destination. False: none is.
    fn deliver(&mut self, clients: &Clients, from: Address, to: Address, payload: &[u8]) -> bool {
        let binding = self.ports.holder(to);
        let Some(socket) = binding.and_then(|it| self.sockets.get_mut(it)) else { return false };
        let Some(client) = clients.get(socket.client) else { return false };
        let head = Reply { theirs: wire::to_wire(from), ..wire::ok(op::RECEIVED, to) }.encode();
        let parts = [IoSlice::new(&head), IoSlice::new(payload)];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // A program that does not receive loses them: that is what best effort means.
        match sendmsg(&client.fd, &parts, &mut SendAncillaryBuffer::default(), flags) {
            Ok(_) => {
                self.received += 1;
                socket.received += 1;
            }
            // It has closed, and we have not heard of it yet.
            Err(_) if has_hung_up(&client.fd) => return false,
            Err(_) => {
                self.dropped += 1;
                socket.dropped += 1;
            }
        }
        true
    }

    /// A whole datagram that came over a link, for a program here if `is_ours`, or for another guest.
    pub(super) fn received(
        &mut self,
        admission: &mut Admission,
        links: &mut Links,
        clients: &Clients,
        (link, role): (LinkId, Role),
        (from, to): (Address, Address),
        (bytes, is_ours): (&[u8], bool),
    ) {
        let passed = if is_ours {
            let key = FlowKey { ours: to, theirs: from };
            let attempt = links.attempt_over((link, role), Act::Send, key, SocketType::Datagram);
            let attempt = Attempt { answerer: self.answerer(to), ..attempt };
            let admitted = admission.decide(&attempt).limits();
            admitted.map(|_| self.deliver(clients, from, to, bytes))
        } else {
            self.pass(admission, links, link, (from, to), bytes)
        };
        let is_passed = passed.unwrap_or_else(|reason| {
            let _ = admission.refuse(reason);
            false
        });
        self.dropped += u64::from(!is_passed);
    }

    /// Passes a datagram of a guest to another. False: there is no room for it.
    fn pass(
        &mut self,
        admission: &Admission,
        links: &mut Links,
        link: LinkId,
        (from, to): (Address, Address),
        bytes: &[u8],
    ) -> Result<bool, Refusal> {
        let attempt = links.attempt_between(Act::Send, link, (from, to), SocketType::Datagram);
        admission.decide(&attempt).limits()?;
        let target = links.routes.guest(to.cid).ok_or(Refusal::NoRoute)?;
        let sent = links.send_datagram(target, (from, to), bytes, &mut self.scratch);
        sent.ok_or(Refusal::TypeNotKnown)
    }

    /// A datagram that came over a link was lost there.
    pub(super) fn lost(&mut self) {
        self.dropped += 1;
    }

    /// All sockets, for listings.
    pub(super) fn infos(&self, clients: &Clients) -> Vec<DatagramInfo> {
        let info = |socket: &DatagramSocket| {
            let client = clients.get(socket.client)?;
            Some(DatagramInfo {
                address: client.bound?.address,
                sent: socket.sent,
                received: socket.received,
                dropped: socket.dropped,
                pid: client.peer.pid,
                uid: client.peer.uid,
            })
        };
        self.sockets.iter().filter_map(|(_, socket)| info(socket)).collect()
    }

    /// Counters, by name.
    pub(super) fn counters(&self) -> [(&'static str, u64); 3] {
        [
            ("datagrams_sent", self.sent),
            ("datagrams_received", self.received),
            ("datagrams_dropped", self.dropped),
        ]
    }
}

/// [`Datagrams`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedDatagrams {
    /// Who is bound to which port.
    pub ports: SavedPorts,
    /// Programs that are bound.
    pub sockets: Vec<SavedDatagramSocket>,
    /// Datagrams of programs that have left this node.
    pub sent: u64,
    /// Datagrams for programs.
    pub received: u64,
    /// Lost for want of room, or of somebody to receive them.
    pub dropped: u64,
}

/// A program that is bound to a datagram port, as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedDatagramSocket {
    /// The program.
    pub client: SourceId,
    /// Datagrams by it.
    pub sent: u64,
    /// Datagrams for it.
    pub received: u64,
    /// Datagrams for it that were lost because it did not receive.
    pub dropped: u64,
}

impl Datagrams {
    /// As plain data.
    pub(super) fn save(&self) -> SavedDatagrams {
        let one = |it: &DatagramSocket| SavedDatagramSocket {
            client: it.client,
            sent: it.sent,
            received: it.received,
            dropped: it.dropped,
        };
        SavedDatagrams {
            ports: self.ports.save(),
            sockets: self.sockets.values().map(one).collect(),
            sent: self.sent,
            received: self.received,
            dropped: self.dropped,
        }
    }

    /// From plain data, with the programs that there are.
    pub(super) fn restore(
        saved: SavedDatagrams,
        clients: &Clients,
        holders: &mut Holders,
    ) -> Result<Self, Unfit> {
        let SavedDatagrams { ports, sockets, sent, received, dropped } = saved;
        check_counts([sent, received, dropped])?;
        let ports = Ports::restore(ports)?;
        let mut datagrams = Self { sent, received, dropped, ..Self::new(Cid::ANY, 0) };
        for SavedDatagramSocket { client, sent, received, dropped } in sockets {
            let program = clients.get(client).filter(|it| it.kind == SocketType::Datagram);
            let bound = program.and_then(|it| it.bound).ok_or(Unfit::State)?;
            holders.hold(&ports, bound)?;
            check_counts([sent, received, dropped])?;
            let socket = DatagramSocket { client, sent, received, dropped };
            datagrams.sockets.insert(bound.id, socket);
        }
        // A program that is bound receives.
        let are_bound = |it: &&Client| it.kind == SocketType::Datagram && it.bound.is_some();
        let bound = clients.values().filter(are_bound).count();
        check(bound == datagrams.sockets.len(), Unfit::State)?;
        Ok(Self { ports, ..datagrams })
    }

    /// The ports, to change them.
    pub(super) fn ports_mut(&mut self) -> &mut Ports {
        &mut self.ports
    }
}
