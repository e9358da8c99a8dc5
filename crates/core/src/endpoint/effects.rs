//! Carries out what a state change asks for: packets, events, timers, and the end.

use super::{Connection, ConnectionId, Endpoint, Event, Received};
use crate::address::{FlowKey, SocketType};
use crate::connection::Due;
use crate::packet::{Header, Op, RawHeader, Shutdown};
use crate::state::{CloseReason, Effects, Input, Payload, Say, State, Tell, Timer, step};
use crate::time::{Duration, Instant};

impl Endpoint {
    /// A packet between addresses that have no connection.
    pub(super) fn receive_stray(&mut self, header: &Header) {
        match header.op {
            Op::Request => self.receive_request(header),
            Op::Rst => {}
            Op::Response
            | Op::Shutdown
            | Op::Rw
            | Op::CreditUpdate
            | Op::CreditRequest
            | Op::Invalid
            | Op::Unknown => {
                self.stats.unknown_flows += 1;
                self.reply(&header.raw());
            }
        }
    }

    fn receive_request(&mut self, header: &Header) {
        let limits = self.limits;
        if self.connections.len() >= limits.max_connections {
            self.stats.requests_over_limit += 1;
            return self.reply(&header.raw());
        }
        if self.offered >= limits.max_half_open {
            self.stats.requests_over_half_open_limit += 1;
            return self.reply(&header.raw());
        }
        let id = self.add(header.inbound_key(), header.kind, limits.connect_timeout);
        if let Some(connection) = self.connections.get_mut(id) {
            let _ = connection.take_credit(header);
        }
        self.apply(id, Input::Request);
    }

    /// Makes room for a connection that `apply` will bring to life.
    pub(super) fn add(
        &mut self,
        key: FlowKey,
        kind: SocketType,
        timeout: Duration,
    ) -> ConnectionId {
        let connection = Connection::new(key, kind, self.limits.buf_alloc, timeout, self.now);
        let id = self.connections.insert(connection);
        self.table.insert(key, id);
        id
    }

    /// Changes the state of a connection and does what follows from it. Returns what to do with
    /// the payload, and whether the packet is to be looked at again without this connection.
    pub(super) fn apply(&mut self, id: ConnectionId, input: Input) -> (Payload, bool) {
        let Some(connection) = self.connections.get_mut(id) else {
            return (Payload::Skip, false);
        };
        let before = connection.state;
        let (after, effects) = step(before, input);
        if after == before && effects.are_quiet() {
            return (effects.payload, false);
        }
        connection.state = after;
        let had_more = !connection.due().is_none();
        connection.settle();
        if had_more && connection.due().is_none() {
            self.outbox.ready -= 1;
        }
        let key = connection.key;
        self.count(before, after, &effects);
        if before.has_address() && !after.has_address() {
            self.table.remove(key, id);
        }
        if after == State::Closed {
            self.say_last(key, effects.say, id);
        } else {
            self.set_timer(id, effects.timer);
            self.say(id, effects.say);
        }
        self.tell(id, effects.tell);
        (effects.payload, effects.again)
    }

    fn count(&mut self, before: State, after: State, effects: &Effects) {
        let is_offer = |state| matches!(state, State::Offered { .. });
        let is_attempt = |state| matches!(state, State::Connecting { .. });
        self.offered -= usize::from(is_offer(before));
        self.offered += usize::from(is_offer(after));
        self.connecting -= usize::from(is_attempt(before));
        self.connecting += usize::from(is_attempt(after));
        self.stats.accepted += u64::from(effects.say == Say::Response);
        let is_refused =
            is_offer(before) && after == State::Closed && effects.tell == Tell::Nothing;
        self.stats.refused += u64::from(is_refused);
        self.stats.connected += u64::from(effects.tell == Tell::Connected);
        self.stats.ended += u64::from(after == State::Closed);
        if let Tell::Closed(reason) = effects.tell {
            match reason {
                CloseReason::OverCredit => self.stats.over_credit += 1,
                CloseReason::ProtocolError => self.stats.protocol_errors += 1,
                CloseReason::TimedOut => self.stats.timeouts += 1,
                CloseReason::Refused
                | CloseReason::Reset
                | CloseReason::Done
                | CloseReason::LinkGone => {}
            }
        }
    }

    fn say(&mut self, id: ConnectionId, say: Say) {
        match say {
            Say::Nothing | Say::Reset => {}
            Say::Request => self.make_due(id, Due::REQUEST),
            Say::Response => self.make_due(id, Due::RESPONSE),
            Say::CreditUpdate => self.make_due(id, Due::CREDIT_UPDATE),
            Say::Shutdown(flags) => self.make_shutdown_due(id, flags),
        }
    }

    /// Forgets a connection, with a RST if the state asks for it.
    fn say_last(&mut self, key: FlowKey, say: Say, id: ConnectionId) {
        let Some(connection) = self.connections.remove(id) else { return };
        if !connection.due().is_none() {
            self.outbox.ready -= 1;
        }
        let connections = &self.connections;
        self.outbox.clean(connections.len(), |id| connections.get(id).is_some());
        // A peer that shut both directions may have used the addresses again; the RST for the
        // old connection would hit the new one.
        let is_reused = self.table.get(key).is_some();
        if say == Say::Reset && !is_reused {
            let reset = Header::outbound(key, connection.kind, Op::Rst).raw();
            if !self.outbox.last_word(reset, &self.limits) {
                self.stats.replies_dropped += 1;
            }
        }
    }

    fn tell(&mut self, id: ConnectionId, tell: Tell) {
        let key_and_kind = self.connections.get(id).map(|it| (it.key, it.kind));
        self.events.extend(match tell {
            Tell::Nothing => None,
            Tell::Offered => key_and_kind.map(|(key, kind)| Event::Offered { id, key, kind }),
            Tell::Connected => Some(Event::Connected { id }),
            Tell::TheirsShutDown(flags) => Some(Event::TheirsShutDown { id, flags }),
            Tell::Closed(reason) => Some(Event::Closed { id, reason }),
        });
    }

    /// Does with payload what the state said.
    pub(super) fn take_payload(
        &mut self,
        id: ConnectionId,
        header: &Header,
        payload: Payload,
    ) -> Received {
        let Some(connection) = self.connections.get_mut(id) else { return Received::Handled };
        match payload {
            Payload::Skip => Received::Handled,
            Payload::Deliver => {
                connection.count_inbound(header.len);
                self.stats.packets_in += 1;
                self.stats.bytes_in += u64::from(header.len);
                Received::Data(id)
            }
            Payload::Discard => {
                self.consumed(id, header.len, 1);
                Received::Handled
            }
        }
    }

    /// Queues the RST that answers a packet, unless it is a RST itself.
    pub(super) fn reply(&mut self, raw: &RawHeader) {
        let Some(reset) = raw.reset_reply() else { return };
        if !self.outbox.reply(reset, &self.limits) {
            self.stats.replies_dropped += 1;
        }
    }

    pub(super) fn make_due(&mut self, id: ConnectionId, what: Due) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let is_first = connection.make_due(what);
        self.enqueue(id, is_first);
    }

    fn make_shutdown_due(&mut self, id: ConnectionId, flags: Shutdown) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let is_first = connection.make_shutdown_due(flags);
        self.enqueue(id, is_first);
    }

    fn enqueue(&mut self, id: ConnectionId, is_first: bool) {
        self.outbox.ready += usize::from(is_first);
        let Some(connection) = self.connections.get_mut(id) else { return };
        if !core::mem::replace(&mut connection.is_queued, true) {
            self.outbox.enqueue(id);
        }
    }

    /// One packet of a connection whose turn it is; it queues again if it has more.
    pub(super) fn speak(&mut self, id: ConnectionId) -> Option<Header> {
        let connection = self.connections.get_mut(id)?;
        connection.is_queued = false;
        let header = connection.next_packet()?;
        let is_writable = connection.has_become_writable(header.op);
        if connection.due().is_none() {
            self.outbox.ready -= 1;
        } else {
            connection.is_queued = true;
            self.outbox.enqueue(id);
        }
        if is_writable {
            self.events.push_back(Event::Writable { id });
        }
        self.stats.credit_updates_sent += u64::from(header.op == Op::CreditUpdate);
        self.stats.credit_requests_sent += u64::from(header.op == Op::CreditRequest);
        Some(header)
    }

    fn set_timer(&mut self, id: ConnectionId, timer: Timer) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let wait = match timer {
            Timer::Keep => return,
            Timer::Off => {
                connection.deadline = None;
                return;
            }
            Timer::Connect => connection.timeout,
            Timer::Close => self.limits.close_timeout,
        };
        connection.deadline = Some(self.now.after(wait));
        self.arm(id);
    }

    /// Makes sure that a timer goes off no later than the deadline of a connection.
    pub(super) fn arm(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Some(deadline) = connection.deadline else { return };
        if connection.armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        connection.armed = Some(deadline);
        self.timers.add(deadline, id);
        let connections = &self.connections;
        self.timers.clean(connections.len(), |at, id| {
            connections.get(id).is_some_and(|connection| connection.armed == Some(at))
        });
    }

    /// A timer of a connection went off; perhaps too early, perhaps for nothing.
    pub(super) fn wake(&mut self, at: Instant, id: ConnectionId) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.armed != Some(at) {
            return;
        }
        connection.armed = None;
        let Some(deadline) = connection.deadline else { return };
        if deadline > now {
            return self.arm(id);
        }
        connection.deadline = None;
        if connection.state.can_send() {
            connection.lose_patience(now);
            self.arm(id);
            self.make_due(id, Due::CREDIT_REQUEST);
        } else if connection.is_close_unsaid() {
            // The link takes nothing: the peer may be paused, and is to hear of the close, not of a reset.
            self.set_timer(id, Timer::Close);
        } else {
            self.apply(id, Input::Expired);
        }
    }
}
