//! What the protocol core says has happened, carried out: connections offered, opened, shut down and closed.
//!
//! The same from the other end, a program that ends its data or leaves, is in `flows.rs`.

use rustix::io::Errno;
use vsock_core::{CloseReason, ConnectionId, Event, Shutdown};

use super::Worker;
use super::source::{Flow, Greeting, LinkId, Phase, Source};
use crate::host::client::Client;
use crate::host::stream::reads_no_more;
use crate::host::wire::{self, NOWHERE, Reply, op};
use crate::reactor::Token;

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

    /// The other side has accepted: tell the program, and let its bytes go.
    fn connected(&mut self, id: LinkId, connection: ConnectionId) {
        let Some(token) = self.token_of(id, connection) else { return };
        let peer_buffer = self.links[id].endpoint.max_message(connection);
        let Some(flow) = self.flow(token) else { return };
        let Phase::Connecting(greeting) = flow.phase else { return };
        let (ours, theirs) = (flow.ours, wire::to_wire(flow.theirs));
        let reply = Reply { theirs, peer_buffer, flow: flow.number, ..wire::ok(op::CONNECT, ours) };
        let greeted = match greeting {
            Greeting::Reply => flow.stream.greet(0, &reply.encode()),
            Greeting::Held(len) => flow.stream.release(len),
            Greeting::Hybrid => flow.stream.greet(0, format!("OK {}\n", ours.port.0).as_bytes()),
        };
        flow.phase = Phase::Open;
        if let Some(Source::Flow(flow)) = self.sources.get(token) {
            self.note_opened(flow, greeting == Greeting::Hybrid);
        }
        match greeted {
            Ok(()) => self.queue_flow(token),
            Err(error) if greeting == Greeting::Hybrid && reads_no_more(&error) => {
                self.open_one_way(id, token);
            }
            Err(error) => self.fail_flow(token, &error),
        }
    }

    /// A program that did not wait for OK reads no more, or is gone; what it has written is for the other side all the
    /// same, and the end after it.
    fn open_one_way(&mut self, id: LinkId, token: Token) {
        let Some(flow) = self.flow(token) else { return };
        if flow.stream.is_closed() {
            self.program_left(token);
        } else {
            let taken = flow.stream.stop();
            self.took(id, token, taken);
        }
        self.queue_flow(token);
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
        // All that the other side had to say was said before its link went.
        flow.reason = if flow.their_end { CloseReason::Done } else { reason };
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
        self.note_not_connected(&flow, reason);
        let Flow { kind, peer, binding, mut stream, socket, .. } = *flow;
        self.sockets.forget(socket);
        let held = match greeting {
            Greeting::Reply => 0,
            Greeting::Held(len) => len,
            Greeting::Hybrid => {
                self.release(binding);
                self.ended.push(token);
                stream.finish();
                return;
            }
        };
        // The port stays bound, as the kernel keeps it after a connect that failed.
        let ours = binding.map_or(NOWHERE, |bound| bound.address);
        let reply = wire::not_connected(errno, ours, socket.cookie);
        let told = stream.greet(held, &reply.encode());
        if told.is_err() || stream.hung_up {
            self.release(binding);
            self.ended.push(token);
            return;
        }
        let Some(entry) = self.sources.get_mut(token) else { return };
        *entry = Source::Client(Client::new(stream.into_fd(), kind, peer, binding));
        self.renew(token);
    }
}
