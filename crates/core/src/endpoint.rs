//! All connections between us and the other side of one link.
//!
//! The shell brings what comes over the link to [`Endpoint::receive`] and what its users want to
//! the commands; it takes away packets ([`Endpoint::next_packet`], [`Endpoint::data_header`]),
//! events ([`Endpoint::next_event`]) and the time of the next deadline. It has checked before that
//! the source of a packet is the other side of the link and its destination is ours.
//!
//! Nothing here grows without a bound of ours: connections, unanswered ones, and replies have
//! limits, and reaching one is counted and answered with RST. Receiving a packet and making a
//! data header cost one hash lookup or none, and arithmetic; neither allocates.
//!
//! | file | what it does |
//! | --- | --- |
//! | `endpoint.rs` | what an endpoint holds, and what the shell calls |
//! | `event.rs` | what the shell is told |
//! | `effects.rs` | carries out what a state change asks for |
//! | `outbox.rs` | what waits for room on the link |
//! | `stats.rs` | counters |
//! | `saved.rs` | all of it as plain data |

mod effects;
mod event;
mod outbox;
mod saved;
pub(crate) mod stats;

use crate::address::{FlowKey, SocketType};
use crate::admission::Refused;
use crate::connection::{Connection, ConnectionInfo, Due};
use crate::credit::Window;
use crate::ids::{Key, Slots};
use crate::packet::{Header, Malformed, Op, RawHeader, Shutdown};
use crate::state::Input;
use crate::table::Table;
use crate::time::{Duration, Instant};
use crate::timers::Timers;
use alloc::collections::VecDeque;
pub use event::{ConnectError, Event, Received};
use outbox::Outbox;
pub use saved::SavedEndpoint;
pub use stats::EndpointStats;

/// What one endpoint may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Receive buffer of a connection.
    pub buf_alloc: u32,
    /// Connections, in any state.
    pub max_connections: usize,
    /// Connections asked for and not answered, per direction.
    pub max_half_open: usize,
    /// Replies that wait for room on the link.
    pub max_replies: usize,
    /// How long REQUEST waits for an answer, unless `connect` says otherwise; also how long an
    /// offer waits for our user.
    pub connect_timeout: Duration,
    /// How long a closed connection waits for RST.
    pub close_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            buf_alloc: 262_144,
            max_connections: 4096,
            max_half_open: 1024,
            max_replies: 256,
            connect_timeout: Duration::from_secs(2),
            close_timeout: Duration::from_secs(8),
        }
    }
}

/// Names one connection of an endpoint for ever; a stale id is harmless.
pub type ConnectionId = Key<Connection>;

/// All connections between us and the other side of one link.
#[derive(Debug)]
pub struct Endpoint {
    limits: Limits,
    table: Table<Connection>,
    connections: Slots<Connection>,
    outbox: Outbox,
    timers: Timers<ConnectionId>,
    events: VecDeque<Event>,
    stats: EndpointStats,
    /// Offers that our user has not answered.
    offered: usize,
    /// Connections of ours that the peer has not answered.
    connecting: usize,
    /// The latest instant we were given.
    now: Instant,
}

impl Endpoint {
    /// An endpoint without connections; `hash_seed` must be unknown to the peer.
    #[must_use]
    pub fn new(limits: Limits, hash_seed: u64) -> Self {
        Self {
            limits,
            table: Table::new(hash_seed),
            connections: Slots::new(),
            outbox: Outbox::default(),
            timers: Timers::default(),
            events: VecDeque::new(),
            stats: EndpointStats::default(),
            offered: 0,
            connecting: 0,
            now: Instant::default(),
        }
    }

    /// Takes a packet that came over the link.
    pub fn receive(&mut self, now: Instant, header: &Header) -> Received {
        self.now = now;
        let Some(id) = self.table.get(header.inbound_key()) else {
            self.receive_stray(header);
            return Received::Handled;
        };
        let Some(connection) = self.connections.get_mut(id) else { return Received::Handled };
        if connection.kind != header.kind {
            self.stats.type_mismatches += 1;
            self.reply(&header.raw());
            return Received::Handled;
        }
        if connection.is_unspoken() {
            // Our REQUEST has not left: this is about an earlier attempt that was given up.
            self.stats.unknown_flows += u64::from(header.op != Op::Rst);
            self.reply(&header.raw());
            return Received::Handled;
        }
        if header.op != Op::Rst {
            let news = connection.take_credit(header);
            self.stats.impossible_credit += u64::from(news.is_impossible);
            if news.is_writable {
                self.events.push_back(Event::Writable { id });
            }
        }
        let Some(input) = connection.input(header) else { return Received::Handled };
        self.stats.resets_received += u64::from(input == Input::Rst);
        let (payload, again) = self.apply(id, input);
        if again {
            self.stats.forgotten += 1;
            self.receive_stray(header);
        }
        self.take_payload(id, header, payload)
    }

    /// Answers a packet that could not be used: [`RawHeader::check`] failed, its payload was
    /// shorter than `len`, or its destination is nobody. Ends the connection, if it belongs to
    /// one, whose bytes are lost with it.
    pub fn receive_unusable(&mut self, raw: &RawHeader) {
        self.stats.malformed += 1;
        // Only a wrong length leaves addresses and type that can be trusted.
        let named = match raw.check() {
            Ok(header) => Some(header),
            Err(Malformed::Length) => RawHeader { len: 0, ..*raw }.check().ok(),
            Err(
                Malformed::SourceCid
                | Malformed::DestinationCid
                | Malformed::Type
                | Malformed::Operation,
            ) => None,
        };
        let id = named.and_then(|header| {
            let id = self.table.get(header.inbound_key())?;
            let is_same_kind = self.connections.get(id)?.kind == header.kind;
            (is_same_kind && header.op == Op::Rw).then_some(id)
        });
        match id {
            Some(id) => {
                self.apply(id, Input::Garbled);
            }
            None => self.reply(raw),
        }
    }

    /// Whether there is room for the answer to one more packet of no connection. While there is
    /// none, packets may be left in the ring; taken in, their answers are dropped and counted.
    #[must_use]
    pub fn accepts_packets(&self) -> bool {
        self.outbox.has_room(&self.limits)
    }

    /// Asks for a connection.
    ///
    /// # Errors
    /// The addresses are taken, or a limit is reached.
    pub fn connect(
        &mut self,
        now: Instant,
        key: FlowKey,
        kind: SocketType,
        timeout: Option<Duration>,
    ) -> Result<ConnectionId, ConnectError> {
        self.now = now;
        if self.table.get(key).is_some() {
            return Err(ConnectError::InUse);
        }
        let is_full = self.connections.len() >= self.limits.max_connections
            || self.connecting >= self.limits.max_half_open;
        if is_full {
            self.stats.connects_over_limit += 1;
            return Err(ConnectError::TooMany);
        }
        let id = self.add(key, kind, timeout.unwrap_or(self.limits.connect_timeout));
        self.apply(id, Input::Connect);
        Ok(id)
    }

    /// Accepts an offered connection.
    pub fn accept(&mut self, id: ConnectionId) {
        self.apply(id, Input::Accept);
    }

    /// Refuses an offered connection. The caller has counted the refusal by its reason. No event
    /// follows.
    pub fn refuse(&mut self, id: ConnectionId, _: Refused) {
        self.apply(id, Input::Refuse);
    }

    /// Shuts directions down; may be called in each direction, and again.
    pub fn shut_down(&mut self, now: Instant, id: ConnectionId, how: Shutdown) {
        self.now = now;
        self.apply(id, Input::ShutDown(how));
    }

    /// Our user is gone: closes in good order. `Closed` follows, at once if nothing is left to
    /// wait for.
    pub fn close(&mut self, now: Instant, id: ConnectionId) {
        self.now = now;
        self.apply(id, Input::Close);
    }

    /// Ends a connection at once with RST; no event follows.
    pub fn reset(&mut self, id: ConnectionId) {
        self.apply(id, Input::Reset);
    }

    /// Our user took data: bytes, and the packets they came in (which matter for SEQPACKET).
    pub fn consumed(&mut self, id: ConnectionId, bytes: u32, packets: u32) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.inbound.consume(bytes, packets);
        if connection.is_update_due() {
            self.make_due(id, Due::CREDIT_UPDATE);
        } else if connection.inbound.unread() == 0 && !connection.state.can_talk() {
            self.apply(id, Input::Drained);
        }
    }

    /// Changes our buffers of one connection: what the peer may send at once, and what we may.
    pub fn set_buf_alloc(&mut self, id: ConnectionId, bytes: u32) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.set_ours(bytes);
        self.announce(id, bytes);
    }

    /// Announces another receive buffer of one connection, and sends as before; the peer is told if it is open.
    pub fn announce(&mut self, id: ConnectionId, bytes: u32) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let is_new = connection.inbound.buf_alloc() != bytes;
        connection.inbound.set_buf_alloc(bytes);
        if is_new && connection.state.can_talk() {
            self.make_due(id, Due::CREDIT_UPDATE);
        }
    }

    /// What may be sent now; zero unless the connection is open in our direction.
    #[must_use]
    pub fn window(&self, id: ConnectionId) -> Window {
        self.connections.get(id).map_or_else(Window::default, Connection::window)
    }

    /// The longest message that the buffers of both sides allow (EMSGSIZE beyond).
    #[must_use]
    pub fn max_message(&self, id: ConnectionId) -> u32 {
        self.connections.get(id).map_or(0, Connection::max_message)
    }

    /// Accounts for one RW packet and makes its header. `None`, and nothing accounted: it is
    /// empty or beyond [`Endpoint::window`].
    pub fn data_header(&mut self, id: ConnectionId, len: u32, flags: u32) -> Option<Header> {
        let connection = self.connections.get_mut(id)?;
        let had_news = !connection.due().is_none();
        let header = connection.data_header(len, flags)?;
        if had_news && connection.due().is_none() {
            self.outbox.ready -= 1;
        }
        self.stats.packets_out += 1;
        self.stats.bytes_out += u64::from(len);
        Some(header)
    }

    /// Our user has something to send that the window does not allow. `Writable` follows when
    /// the window has grown; until then the peer is asked from time to time.
    pub fn wants_to_send(&mut self, now: Instant, id: ConnectionId) {
        self.now = now;
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.begin_stall(now) {
            self.stats.stalls += 1;
            self.arm(id);
        }
    }

    /// Whether there is a control packet to send.
    #[must_use]
    pub fn has_packet(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The next control packet; call when the link has room.
    pub fn next_packet(&mut self) -> Option<RawHeader> {
        if let Some(reply) = self.outbox.next_reply() {
            self.stats.resets_sent += 1;
            return Some(reply);
        }
        while let Some(id) = self.outbox.next_speaker() {
            if let Some(header) = self.speak(id) {
                return Some(header.raw());
            }
        }
        None
    }

    /// The next event.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether there is an event to be carried out.
    #[must_use]
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// The events that are still to come, without taking them.
    pub fn coming_events(&self) -> impl Iterator<Item = &Event> {
        self.events.iter()
    }

    /// When [`Endpoint::expire`] is due; may be earlier than anything happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Does what is due at `now`.
    pub fn expire(&mut self, now: Instant) {
        self.now = now;
        while let Some((at, id)) = self.timers.pop_due(now) {
            self.wake(at, id);
        }
    }

    /// A snapshot of one connection.
    #[must_use]
    pub fn info(&self, id: ConnectionId) -> Option<ConnectionInfo> {
        self.connections.get(id).map(|connection| connection.info(id))
    }

    /// Snapshots of all connections.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionInfo> + '_ {
        self.connections.iter().map(|(id, connection)| connection.info(id))
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> EndpointStats {
        let connections = u64::try_from(self.connections.len()).unwrap_or(u64::MAX);
        EndpointStats { connections, ..self.stats }
    }

    /// The link is gone: every connection ends with `Closed { LinkGone }`, nothing is sent.
    pub fn reset_all(&mut self) {
        let ids: alloc::vec::Vec<ConnectionId> =
            self.connections.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.apply(id, Input::LinkGone);
        }
        self.outbox.clear();
        self.timers.clear();
    }

    /// The other side is gone and another will come in its place: connections end with
    /// `Closed { LinkGone }`, nothing is sent. Attempts of ours that have no answer go on, and ask
    /// whoever comes; they still end in time.
    pub fn start_over(&mut self) {
        let ids: alloc::vec::Vec<(ConnectionId, bool)> =
            self.connections.iter().map(|(id, it)| (id, it.is_attempt())).collect();
        for &(id, _) in ids.iter().filter(|(_, is_attempt)| !is_attempt) {
            self.apply(id, Input::LinkGone);
        }
        self.outbox.clear();
        for &(id, _) in ids.iter().filter(|(_, is_attempt)| *is_attempt) {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.forget_due();
            }
            self.make_due(id, Due::REQUEST);
        }
    }
}

#[cfg(test)]
mod tests;
