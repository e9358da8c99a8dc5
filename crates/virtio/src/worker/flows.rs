//! Flows as their programs drive them: something to send, room again, an end of data, a close; and how a flow ends.
//!
//! What the other side says of them is in `verdicts.rs`.

use std::io;
use std::os::fd::OwnedFd;
use vsock_core::{CloseReason, ConnectionId, FlowKey, Shutdown, SocketType};

use super::Worker;
use super::rest::Due;
use super::source::{Bound, Flow, Greeting, LinkId, Phase, Source};
use crate::host::sockets::{Ended, Socket};
use crate::host::stream::Stream;
use crate::reactor::Token;
use crate::vhost_user::PeerCredentials;

impl Worker {
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
            linger: None,
            outgoing: None,
            share: self.buffers.share(),
            number,
            socket: Socket { uid: peer.uid, cookie: 0 },
            reason: CloseReason::Done,
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

    /// A program's socket is ready for something.
    pub(crate) fn wake_flow(&mut self, token: Token) {
        let Some(flow) = self.flow(token) else { return };
        let (phase, link) = (flow.phase, flow.link);
        match phase {
            Phase::Connecting(greeting) => {
                // Without asking for the protocol, a program may have said all it has to say, and left.
                let has_spoken = greeting == Greeting::Hybrid && flow.stream.has_input();
                if flow.stream.hung_up && !has_spoken {
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
                    self.program_left(token);
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

    /// Closes the program's socket and forgets the flow.
    pub(crate) fn end_flow(&mut self, token: Token) {
        let Some(entry) = self.sources.get_mut(token) else { return };
        if !matches!(entry, Source::Flow(_)) {
            return;
        }
        if let Source::Flow(flow) = std::mem::replace(entry, Source::Ended) {
            self.ended.push(token);
            if flow.linger.is_some() {
                self.timers.set(Due::Linger(token), None);
            }
            let Flow { ours, theirs, reason, .. } = *flow;
            self.sockets.closed(flow.socket, Ended { ours, theirs, reason });
            self.release(flow.binding);
            // Who still waits to be connected is told nothing: a socket closed with the request unread in it gives
            // ECONNRESET, and that is how a node that has gone is told from a connection.
            if !matches!(flow.phase, Phase::Connecting(Greeting::Held(_))) {
                flow.stream.finish();
            }
        }
    }

    pub(crate) fn release(&mut self, bound: Option<Bound>) {
        if let Some(bound) = bound {
            self.ports.release(bound.id);
        }
    }
}
