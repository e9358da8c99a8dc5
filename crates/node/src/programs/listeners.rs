//! Ports of programs, and the programs that take connections on them.

mod saved;

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType as UnixType};
use vsock_core::admission::FlowLimits;
use vsock_core::{
    Address, BindError, Cid, ConnectionId, FlowKey, ListenError, Port, Ports, Refusal,
    SecondaryMap, SocketType,
};

pub use self::saved::{SavedListener, SavedListeners};
use super::accept_queue::AcceptQueue;
use super::requests::{REQUESTS_PER_TURN, clamp_buffer, refuse};
use crate::context::Context;
use crate::events::Event;
use crate::flows::buffers::Share;
use crate::flows::{Flows, room};
use crate::host::client::{Client, Heard, has_hung_up};
use crate::host::places::Place;
use crate::host::program::{Bound, Socket};
use crate::host::socket::{ProgramSocket, Sockets};
use crate::host::wire::{self, BadRequest, Reply, Request, op};
use crate::links::Interface;
use crate::reactor::{Owner, SourceId};
use crate::snapshot::ListenerInfo;
use vsock_virtio::sys::PeerCredentials;

/// The longest backlog: what the kernel's net.core.somaxconn is by default.
const SOMAXCONN: u32 = 4096;

/// A program that listens; how long its queue is, is counted by the core.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) client: Client,
    pub(super) bound: Bound,
    /// Receive buffer of the connections it takes; 0: the default.
    pub(super) buffer: u32,
    /// What the program wants back with each of them: the options that they inherit as of now.
    pub(super) inherited: Vec<u8>,
    /// Those it has not taken.
    pub(super) queue: AcceptQueue,
}

/// A stream for a connection that a listening program gets.
pub(super) struct Given {
    /// Our end.
    pub(super) fd: ProgramSocket,
    pub(super) source: SourceId,
    pub(super) peer: PeerCredentials,
    pub(super) share: Share,
    pub(super) socket: Socket,
}

/// Ports for connections, and who listens on them.
#[derive(Debug)]
pub(super) struct Listeners {
    ports: Ports,
    table: SecondaryMap<Owner, Listener>,
    /// Who listens on a binding.
    by_binding: SecondaryMap<vsock_core::ports::Bound, SourceId>,
    /// Requests of listening programs that broke the rules of the protocol.
    pub(super) bad: u64,
}

impl Listeners {
    pub(super) fn new(local: Cid, seed: u64) -> Self {
        let ports = Ports::new(local, seed);
        Self { ports, table: SecondaryMap::new(), by_binding: SecondaryMap::new(), bad: 0 }
    }

    pub(super) fn set_local(&mut self, cid: Cid) {
        self.ports.set_local(cid);
    }

    /// Whether programs can be bound to this CID.
    pub(super) fn is_local(&self, cid: Cid) -> bool {
        self.ports.is_local(cid)
    }

    /// Takes a port.
    pub(super) fn bind(&mut self, address: Address) -> Result<Bound, BindError> {
        let id = self.ports.bind(address)?;
        Ok(Bound { id, address: self.ports.address(id).unwrap_or(address) })
    }

    /// Takes any port.
    pub(super) fn bind_ephemeral(&mut self) -> Result<Bound, BindError> {
        self.bind(Address { cid: Cid::ANY, port: Port::ANY })
    }

    /// Gives a port back.
    pub(super) fn release(&mut self, bound: Option<Bound>) {
        if let Some(bound) = bound {
            self.ports.release(bound.id);
        }
    }

    /// Listens on a port that a program has taken, or changes how long its queue may be.
    pub(super) fn listen(
        &mut self,
        bound: Bound,
        kind: SocketType,
        backlog: u32,
    ) -> Result<(), ListenError> {
        self.ports.listen(bound.id, kind, backlog.min(SOMAXCONN))
    }

    /// A program listens from now on.
    pub(super) fn add(&mut self, cx: &mut Context, id: SourceId, listener: Listener) {
        cx.sources.hand_over(&listener.client.fd, id, Owner::Listener);
        self.by_binding.insert(listener.bound.id, id);
        self.table.insert(id, listener);
    }

    /// A program listens no more.
    pub(super) fn drop(&mut self, cx: &mut Context, id: SourceId) {
        if let Some(listener) = self.table.remove(id) {
            self.by_binding.remove(listener.bound.id);
            self.ports.release(listener.bound.id);
            cx.sources.remove(id);
        }
    }

    /// What a listening program says: that it has taken a connection, or a new backlog.
    pub(super) fn read(&mut self, cx: &mut Context, id: SourceId, ended: bool) {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(listener) = self.table.get_mut(id) else { return };
            let bound = listener.bound.id;
            match listener.client.hear() {
                Ok(Heard::Nothing) if ended => {
                    return self.refuse(cx, id, 0, BadRequest::Length);
                }
                Ok(Heard::Nothing) => return,
                Ok(Heard::Request(Request::Accepted, _)) => {
                    self.ports.accepted(bound);
                    listener.queue.taken(&listener.client);
                }
                Ok(Heard::Request(Request::Listen { backlog, buffer, .. }, extra)) => {
                    listener.buffer = clamp_buffer(buffer);
                    listener.inherited = extra;
                    // It listens, so this can only change these.
                    let _ = self.ports.listen(bound, listener.client.kind, backlog.min(SOMAXCONN));
                }
                Ok(Heard::Request(request, _)) => {
                    return self.refuse(cx, id, request.op(), BadRequest::Order);
                }
                Ok(Heard::Bad(op, bad)) => return self.refuse(cx, id, op, bad),
                Ok(Heard::Gone) | Err(_) => return self.drop(cx, id),
            }
        }
        if let Some(listener) = self.table.get(id) {
            cx.sources.renew(&listener.client.fd, id);
        }
    }

    /// A program breaks the rules of the protocol: it listens no more.
    fn refuse(&mut self, cx: &mut Context, id: SourceId, op: u8, bad: BadRequest) {
        if let Some(listener) = self.table.get(id) {
            self.bad += 1;
            refuse(cx, &listener.client, op, bad);
        }
        self.drop(cx, id);
    }

    /// Those at a port, of which the program has closed its socket.
    pub(super) fn closed_at(&self, port: Port) -> impl Iterator<Item = SourceId> {
        let at_port = self.table.iter().filter(move |(_, it)| it.bound.address.port == port);
        at_port.filter(|(_, it)| has_hung_up(&it.client.fd)).map(|(id, _)| id)
    }

    /// Who listens at an address.
    pub(super) fn lookup(&self, at: Address) -> Option<vsock_core::Listener> {
        self.ports.lookup(at)
    }

    /// Whose program listens.
    pub(super) fn user(&self, listener: &vsock_core::Listener) -> Option<u32> {
        let id = self.by_binding.get(listener.binding)?;
        Some(self.table.get(*id)?.client.peer.uid)
    }

    /// The program that listens.
    pub(super) fn peer(&self, id: SourceId) -> Option<PeerCredentials> {
        self.table.get(id).map(|it| it.client.peer)
    }

    /// Hands a new stream to the program that listens.
    ///
    /// # Errors
    /// Its queue is full, it is gone, or there is no descriptor for it.
    pub(super) fn offer(
        &mut self,
        cx: &mut Context,
        flows: &mut Flows,
        interface: &mut Interface,
        (connection, key, limits): (ConnectionId, FlowKey, FlowLimits),
        (listener, place): (&vsock_core::Listener, Place),
    ) -> Result<Given, Refusal> {
        let (binding, kind) = (listener.binding, listener.kind);
        let (backlog, left) =
            (listener.backlog, (listener.backlog + 1).saturating_sub(listener.waiting));
        let id = self.by_binding.get(binding).ok_or(Refusal::ListenerGone)?;
        let listener = self.table.get_mut(*id).ok_or(Refusal::ListenerGone)?;
        if !listener.queue.has_place(key.theirs.cid, backlog, left) || !self.ports.admit(binding) {
            return Err(Refusal::QueueFull);
        }
        let share = flows.share(interface, connection, listener.buffer.min(limits.buffer));
        let peer = listener.client.peer;
        let handed = stream_pair(&cx.sockets, kind).and_then(|(ours, theirs)| {
            let ours = ours.counted(place);
            let source = cx.sources.add(&ours, Owner::Flow)?;
            let reply = Reply {
                theirs: wire::to_wire(key.theirs),
                peer_buffer: interface.endpoint().max_message(connection),
                flow: source.to_bits(),
                ..wire::ok(op::ACCEPT, key.ours)
            };
            let socket = Socket::of(&theirs, peer.uid);
            let Listener { client, queue, inherited, .. } = listener;
            match queue.push(client, &reply, inherited, theirs) {
                Ok(()) => Ok(Given { fd: ours, source, peer, share, socket }),
                Err(error) => {
                    cx.sources.remove(source);
                    Err(error)
                }
            }
        });
        handed.map_err(|error| {
            self.ports.accepted(binding);
            let refusal = match Errno::from_io_error(&error) {
                Some(Errno::MFILE | Errno::NFILE) => Refusal::OutOfDescriptors,
                Some(_) | None => Refusal::ListenerGone,
            };
            cx.note(key.theirs.cid, Event::NotHandedOver { at: key.ours, error });
            refusal
        })
    }

    /// All listeners, for listings.
    pub(super) fn infos(&self) -> Vec<ListenerInfo> {
        let info = |listener: vsock_core::Listener| {
            let program = self.by_binding.get(listener.binding).and_then(|&id| self.table.get(id));
            let peer = program.map(|it| it.client.peer);
            ListenerInfo {
                address: listener.address,
                kind: listener.kind,
                backlog: listener.backlog,
                waiting: listener.waiting,
                pid: peer.map_or(0, |peer| peer.pid),
                uid: peer.map_or(0, |peer| peer.uid),
            }
        };
        self.ports.listeners().map(info).collect()
    }
}

/// A connected pair of Unix sockets of the kind: our end, and the program's.
fn stream_pair(sockets: &Sockets, kind: SocketType) -> io::Result<(ProgramSocket, OwnedFd)> {
    let unix = match kind {
        SocketType::Stream => UnixType::STREAM,
        SocketType::SeqPacket | SocketType::Datagram => UnixType::SEQPACKET,
    };
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, unix, SocketFlags::CLOEXEC, None)?;
    room::for_messages(&theirs, kind);
    Ok((sockets.prepare(ours, kind)?, theirs))
}
