//! What the protocol core says has happened, carried out: connections offered, opened, shut down and closed.
//!
//! And the same from the other end: a program that ends its data or leaves.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType as UnixType};
use vsock_core::{CloseReason, ConnectionId, Event, FlowKey, Shutdown, SocketType};

use super::source::{Bound, Flow, Greeting, Lingering, LinkId, Phase, Source};
use super::{LINGER, Worker};
use crate::host::budget::Share;
use crate::host::client::Client;
use crate::host::room;
use crate::host::stream::Stream;
use crate::host::wire::{NOWHERE, Reply, op};
use crate::reactor::Token;
use crate::vhost_user::PeerCredentials;

/// The program behind a hybrid socket, which is not asked.
const NOBODY: PeerCredentials = PeerCredentials { pid: 0, uid: u32::MAX, gid: u32::MAX };

impl Worker {
    /// Carries out all that the link's endpoint has to tell.
    pub(crate) fn settle(&mut self, id: LinkId) {
        while let Some(event) = self.links.get_mut(id).and_then(|slot| slot.endpoint.next_event()) {
            match event {
                Event::Offered { id: connection, key, kind } => {
                    self.offered(id, connection, key, kind);
                }
                Event::Connected { id: connection } => self.connected(id, connection),
                Event::Writable { id: connection } => {
                    if let Some(token) = self.token_of(id, connection) {
                        self.queue_flow(token);
                    }
                }
                Event::TheirsShutDown { id: connection, flags } => {
                    self.their_end(id, connection, flags);
                }
                Event::Closed { id: connection, reason } => self.closed(id, connection, reason),
            }
        }
    }

    fn token_of(&self, id: LinkId, connection: ConnectionId) -> Option<Token> {
        self.links.get(id).and_then(|slot| slot.flow_of(connection))
    }

    /// The other side asks for a connection: a listener's queue, a hybrid socket, or a refusal.
    fn offered(&mut self, id: LinkId, connection: ConnectionId, key: FlowKey, kind: SocketType) {
        let granted = match self.ports.lookup(key.ours) {
            Some(listener) if listener.kind == kind => {
                self.offer_to_listener(id, connection, key, listener.binding)
            }
            Some(_) => None,
            None => {
                let fd = self.offer_to_hybrid(id, key, kind);
                fd.map(|fd| (fd, NOBODY, self.buffers.share()))
            }
        };
        let Some((fd, peer, share)) = granted else {
            self.links[id].endpoint.refuse(connection);
            return;
        };
        let flow = self.new_flow(id, connection, key, kind, fd, peer);
        let number = flow.number;
        let flow = Flow { phase: Phase::Open, is_outgoing: false, share, ..flow };
        match self.watch(Source::Flow(Box::new(flow))) {
            Ok(token) => {
                self.numbers.insert(number, token);
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
        binding: vsock_core::Binding,
    ) -> Option<(OwnedFd, PeerCredentials, Share)> {
        let token = *self.listeners.get(&binding)?;
        let kind = self.links[id].endpoint.info(connection)?.kind;
        if !self.ports.admit(binding) {
            return None;
        }
        let number = self.next_number;
        let Some(Source::Listener(listener)) = self.sources.get(token) else { return None };
        let mut share = self.buffers.share();
        let is_cut = !share.give(&mut self.links[id].endpoint, connection, listener.buffer);
        self.buffers_cut += u64::from(is_cut);
        let reply = Reply {
            op: op::ACCEPT,
            errno: 0,
            ours: key.ours,
            theirs: key.theirs,
            peer_buffer: self.links[id].endpoint.max_message(connection),
            flow: number,
        };
        let handed = stream_pair(kind).and_then(|(ours, theirs)| {
            let told = listener.client.reply_with(&reply, &listener.inherited, &theirs);
            told.map(|()| ours)
        });
        let peer = listener.client.peer;
        match handed {
            Ok(ours) => Some((ours, peer, share)),
            Err(error) => {
                self.ports.accepted(binding);
                self.journal.write("refused", key.theirs.cid.0, format!("{}: {error}", key.ours));
                None
            }
        }
    }

    /// A flow that is not tied to anything yet.
    pub(crate) fn new_flow(
        &mut self,
        link: LinkId,
        id: ConnectionId,
        key: FlowKey,
        kind: SocketType,
        fd: OwnedFd,
        peer: PeerCredentials,
    ) -> Flow {
        let number = self.next_number;
        self.next_number += 1;
        Flow {
            link,
            id,
            kind,
            ours: key.ours,
            theirs: key.theirs,
            stream: Stream::new(fd, kind),
            phase: Phase::Connecting(Greeting::Hybrid),
            peer,
            binding: None,
            is_outgoing: true,
            is_queued: false,
            our_end_sent: false,
            their_end: false,
            refusal_sent: false,
            lingers: false,
            outgoing: None,
            share: self.buffers.share(),
            number,
        }
    }

    /// The other side has accepted: tell the program, and let its bytes go.
    fn connected(&mut self, id: LinkId, connection: ConnectionId) {
        let Some(token) = self.token_of(id, connection) else { return };
        let peer_buffer = self.links[id].endpoint.max_message(connection);
        let Some(flow) = self.flow(token) else { return };
        let Phase::Connecting(greeting) = flow.phase else { return };
        let (ours, theirs) = (flow.ours, flow.theirs);
        let reply =
            Reply { op: op::CONNECT, errno: 0, ours, theirs, peer_buffer, flow: flow.number };
        let greeted = match greeting {
            Greeting::Reply { held } => flow.stream.greet(held, &reply.encode()),
            Greeting::Hybrid => flow.stream.greet(0, format!("OK {}\n", ours.port.0).as_bytes()),
        };
        flow.phase = Phase::Open;
        match greeted {
            Ok(()) => self.queue_flow(token),
            Err(error) => self.fail_flow(token, &error),
        }
    }

    /// The other side will send no more, or takes no more.
    fn their_end(&mut self, id: LinkId, connection: ConnectionId, flags: Shutdown) {
        let Some(token) = self.token_of(id, connection) else { return };
        let Some(flow) = self.flow(token) else { return };
        if flags.contains(Shutdown::RCV) {
            flow.stream.refuse_data();
        }
        if flags.contains(Shutdown::SEND) {
            flow.their_end = true;
            if flow.stream.is_flushed() {
                flow.stream.end_of_data();
            }
        }
    }

    /// The connection is over; what its program has not read yet stays readable.
    pub(crate) fn closed(&mut self, id: LinkId, connection: ConnectionId, reason: CloseReason) {
        let Some(token) = self.token_of(id, connection) else { return };
        self.links[id].untie(connection);
        let Some(flow) = self.flow(token) else { return };
        match flow.phase {
            Phase::Connecting(greeting) => self.not_connected(token, greeting, reason),
            Phase::Open | Phase::Draining => {
                flow.phase = Phase::Draining;
                flow.stream.refuse_data();
                if flow.stream.is_flushed() {
                    self.end_flow(token);
                }
            }
        }
    }

    /// A connect that came to nothing: the program is told why and may ask again.
    fn not_connected(&mut self, token: Token, greeting: Greeting, reason: CloseReason) {
        let errno = match reason {
            CloseReason::TimedOut => Errno::TIMEDOUT,
            CloseReason::ProtocolError => Errno::PROTO,
            CloseReason::LinkGone => Errno::NODEV,
            CloseReason::Refused
            | CloseReason::Reset
            | CloseReason::Done
            | CloseReason::OverCredit => Errno::CONNRESET,
        };
        let Some(entry) = self.sources.get_mut(token) else { return };
        let Source::Flow(flow) = std::mem::replace(entry, Source::Ended) else { return };
        let Flow { kind, peer, binding, mut stream, number, .. } = *flow;
        self.numbers.remove(&number);
        let Greeting::Reply { held } = greeting else {
            self.release(binding);
            self.ended.push(token);
            stream.finish();
            return;
        };
        // The port stays bound, as the kernel keeps it after a connect that failed.
        let ours = binding.map_or(NOWHERE, |bound| bound.address);
        let told = stream.greet(held, &Reply::not_connected(errno, ours).encode());
        if told.is_err() || stream.hung_up {
            self.release(binding);
            self.ended.push(token);
            return;
        }
        *entry = Source::Client(Client::new(stream.into_fd(), kind, peer, binding));
        self.renew(token);
    }

    /// The program has ended its data, or is gone altogether.
    pub(crate) fn program_ended(&mut self, token: Token) {
        let now = self.now;
        let Some(Source::Flow(flow)) = self.sources.get_mut(token) else { return };
        let Some(slot) = self.links.get_mut(flow.link) else { return };
        flow.our_end_sent = true;
        if flow.stream.is_closed() {
            slot.endpoint.close(now, flow.id);
            slot.untie(flow.id);
            let link = flow.link;
            self.end_flow(token);
            self.activate(link);
        } else {
            slot.endpoint.shut_down(now, flow.id, Shutdown::SEND);
            let link = flow.link;
            self.activate(link);
        }
    }

    /// A program's socket woke us with nothing new: it may have shut down its reading half.
    pub(crate) fn look_for_refusal(&mut self, token: Token) {
        let Some(flow) = self.flow(token) else { return };
        // After the other side's end our half is shut, by ourselves.
        if flow.phase == Phase::Open
            && !flow.their_end
            && let Some(taken) = flow.stream.refuses()
        {
            let link = flow.link;
            self.took(link, token, taken);
        }
    }

    /// A program's socket is ready for something.
    pub(crate) fn wake_flow(&mut self, token: Token) {
        let Some(flow) = self.flow(token) else { return };
        let (phase, link) = (flow.phase, flow.link);
        match phase {
            Phase::Connecting(_) => {
                if flow.stream.hung_up {
                    self.abandon(token);
                }
            }
            Phase::Open => {
                self.flush_flow(token);
                let Some(flow) = self.flow(token) else { return };
                let is_gone = flow.stream.hung_up;
                if flow.our_end_sent && is_gone {
                    self.program_ended(token);
                } else if flow.stream.readable && !flow.our_end_sent {
                    self.queue_flow(token);
                }
                if is_gone {
                    self.begin_linger(token);
                }
                self.activate(link);
            }
            Phase::Draining => {
                self.flush_flow(token);
                let done = self
                    .flow(token)
                    .is_some_and(|flow| flow.stream.is_flushed() || flow.stream.hung_up);
                if done {
                    self.end_flow(token);
                }
            }
        }
    }

    /// Offers the backlog to the program, and the end of data after it.
    fn flush_flow(&mut self, token: Token) {
        let Some(flow) = self.flow(token) else { return };
        if flow.stream.is_flushed() {
            return;
        }
        let link = flow.link;
        match flow.stream.flush() {
            Ok(taken) => {
                if flow.their_end && flow.stream.is_flushed() {
                    flow.stream.end_of_data();
                }
                self.took(link, token, taken);
            }
            Err(error) => self.fail_flow(token, &error),
        }
    }

    /// Puts a flow among those with something to send.
    pub(crate) fn queue_flow(&mut self, token: Token) {
        let Some(Source::Flow(flow)) = self.sources.get_mut(token) else { return };
        let (link, id) = (flow.link, flow.id);
        if !flow.is_queued {
            flow.is_queued = true;
            if let Some(slot) = self.links.get_mut(link) {
                slot.push_ready(id);
            }
        }
        self.activate(link);
    }

    /// A program's socket failed in a way it should not: that flow ends with a reset.
    pub(crate) fn fail_flow(&mut self, token: Token, error: &io::Error) {
        let Some(flow) = self.flow(token) else { return };
        let text = format!("{} -> {}: {error}", flow.ours, flow.theirs);
        let cid = flow.theirs.cid.0;
        self.journal.write("reset", cid, text);
        self.abandon(token);
    }

    /// Ends a flow at once, with RST for the other side.
    fn abandon(&mut self, token: Token) {
        let Some(Source::Flow(flow)) = self.sources.get_mut(token) else { return };
        let (link, id) = (flow.link, flow.id);
        if let Some(slot) = self.links.get_mut(link) {
            slot.endpoint.reset(id);
            slot.untie(id);
        }
        self.end_flow(token);
        self.activate(link);
    }

    /// A flow whose program is gone has a deadline: the ring may be full for ever.
    fn begin_linger(&mut self, token: Token) {
        let Some(flow) = self.flow(token).filter(|flow| !flow.lingers) else { return };
        flow.lingers = true;
        let number = flow.number;
        self.linger(token, number);
    }

    fn linger(&mut self, token: Token, number: u64) {
        let at = self.now + LINGER;
        let bytes_out = self.bytes_out(token);
        self.lingering.push_back(Lingering { at, token, number, bytes_out });
    }

    fn bytes_out(&self, token: Token) -> u64 {
        let Some(Source::Flow(flow)) = self.sources.get(token) else { return 0 };
        let info = self.links.get(flow.link).and_then(|slot| slot.endpoint.info(flow.id));
        info.map_or(0, |info| info.bytes_out)
    }

    /// The deadline of a flow whose program is gone: it ends unless the other side has taken something since.
    pub(crate) fn linger_is_over(&mut self, lingering: &Lingering) {
        let Lingering { token, number, .. } = *lingering;
        if self.flow(token).is_none_or(|flow| flow.number != number) {
            return;
        }
        if self.bytes_out(token) > lingering.bytes_out {
            self.linger(token, number);
        } else {
            let error = io::Error::other("its program left, and what it sent last is not taken");
            self.fail_flow(token, &error);
        }
    }

    /// Closes the program's socket and forgets the flow.
    pub(crate) fn end_flow(&mut self, token: Token) {
        let Some(entry) = self.sources.get_mut(token) else { return };
        if !matches!(entry, Source::Flow(_)) {
            return;
        }
        if let Source::Flow(flow) = std::mem::replace(entry, Source::Ended) {
            self.ended.push(token);
            self.numbers.remove(&flow.number);
            self.release(flow.binding);
            flow.stream.finish();
        }
    }

    pub(crate) fn release(&mut self, bound: Option<Bound>) {
        if let Some(bound) = bound {
            self.ports.release(bound.id);
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
