//! The other side asks for a connection: a listener's queue, a hybrid socket, or a refusal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType as UnixType};
use vsock_core::{Binding, ConnectionId, FlowKey, SocketType};

use super::Worker;
use super::source::{Flow, LinkId, Listener, Phase, Source};
use crate::host::budget::Share;
use crate::host::room;
use crate::host::sockets::Socket;
use crate::host::wire::{self, Reply, op};
use crate::vhost_user::PeerCredentials;

/// The program behind a hybrid socket that cannot be seen.
const NOBODY: PeerCredentials = PeerCredentials { pid: 0, uid: u32::MAX, gid: u32::MAX };

impl Worker {
    /// The other side asks for a connection: a listener's queue, a hybrid socket, or a refusal.
    pub(super) fn offered(
        &mut self,
        id: LinkId,
        connection: ConnectionId,
        key: FlowKey,
        kind: SocketType,
    ) {
        let listener = self.ports.lookup(key.ours);
        let granted = match listener {
            _ if self.links[id].is_leaving => Err("the guest is leaving"),
            Some(listener) if listener.kind == kind => {
                let offered = self.offer_to_listener(id, connection, key, listener.binding);
                offered.ok_or("its queue is full")
            }
            Some(_) => Err("the listener has another socket type"),
            None => {
                let fd = self.offer_to_hybrid(id, key, kind).ok_or("nobody listens there");
                let socket = Socket { uid: NOBODY.uid, cookie: 0 };
                fd.map(|fd| {
                    let peer = PeerCredentials::of(fd.as_fd()).unwrap_or(NOBODY);
                    (fd, peer, self.buffers.share(), socket)
                })
            }
        };
        let (fd, peer, share, socket) = match granted {
            Ok(granted) => granted,
            Err(why) => {
                self.note_unwanted(id, key, kind, why);
                self.links[id].endpoint.refuse(connection);
                return;
            }
        };
        let flow = self.new_flow(id, connection, key, kind, fd, peer);
        let flow = Flow { phase: Phase::Open, is_outgoing: false, share, socket, ..flow };
        self.note_opened(&flow, listener.is_none());
        match self.watch(Source::Flow(Box::new(flow))) {
            Ok(token) => {
                self.sockets.opened(socket, token);
                let slot = &mut self.links[id];
                slot.tie(connection, token);
                slot.endpoint.accept(connection);
                self.queue_flow(token);
            }
            Err(error) => {
                self.journal.write("failed", key.theirs.cid.0, format!("new connection: {error}"));
                self.links[id].endpoint.refuse(connection);
            }
        }
    }

    /// Hands a new stream to the program that listens; `None`: its queue is full or it is gone.
    fn offer_to_listener(
        &mut self,
        id: LinkId,
        connection: ConnectionId,
        key: FlowKey,
        binding: Binding,
    ) -> Option<(OwnedFd, PeerCredentials, Share, Socket)> {
        let token = *self.listeners.get(&binding)?;
        let kind = self.links[id].endpoint.info(connection)?.kind;
        if !self.ports.admit(binding) {
            return None;
        }
        let number = self.next_number;
        let Some(Source::Listener(listener)) = self.sources.get_mut(token) else { return None };
        let mut share = self.buffers.share();
        let is_cut = !share.give(&mut self.links[id].endpoint, connection, listener.buffer);
        self.buffers_cut += u64::from(is_cut);
        let reply = Reply {
            theirs: wire::to_wire(key.theirs),
            peer_buffer: self.links[id].endpoint.max_message(connection),
            flow: number,
            ..wire::ok(op::ACCEPT, key.ours)
        };
        let peer = listener.client.peer;
        let handed = stream_pair(kind).and_then(|(ours, theirs)| {
            let socket = Socket::of(&theirs, peer.uid);
            let Listener { client, queue, inherited, .. } = listener;
            queue.push(client, &reply, inherited, theirs).map(|()| (ours, socket))
        });
        match handed {
            Ok((ours, socket)) => Some((ours, peer, share, socket)),
            Err(error) => {
                self.ports.accepted(binding);
                self.journal.write("refused", key.theirs.cid.0, format!("{}: {error}", key.ours));
                None
            }
        }
    }
}

/// A connected pair of Unix sockets of the kind: our end, and the program's.
fn stream_pair(kind: SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    let unix = match kind {
        SocketType::Stream => UnixType::STREAM,
        SocketType::SeqPacket | SocketType::Datagram => UnixType::SEQPACKET,
    };
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, unix, SocketFlags::CLOEXEC, None)?;
    room::for_messages(&theirs, kind);
    Ok((ours, theirs))
}
