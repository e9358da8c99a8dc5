//! The connections of programs here: each a socket of the program, and a connection over a link.
//!
//! | file | what it is |
//! | --- | --- |
//! | `flows.rs` | all flows, and what links and the reactor ask of them |
//! | `flow.rs` | one flow: where it stands, and what follows from that |
//! | `stream.rs`, `backlog.rs` | its socket, and what its program has not taken yet |
//! | `linger.rs` | how long one may last whose program has closed |
//! | `buffers.rs` | the budget for receive buffers above the default |
//! | `saved.rs`, also below others | flows as plain data |
//! | `record.rs`, `room.rs` | the end of a record, and the send buffer, of a Unix socket |
//!
//! A flow is known by the id of its socket in the reactor, and by its link and connection.

pub(crate) mod backlog;
pub(crate) mod buffers;
mod flow;
mod linger;
pub(crate) mod record;
pub(crate) mod room;
mod saved;
pub(crate) mod stream;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use vsock_core::connection::Connection;
use vsock_core::{Address, CloseReason, ConnectionId, Endpoint, Event, Instant, SecondaryMap};

pub use self::backlog::{SavedBacklog, SavedMessage};
use self::buffers::{Budget, Share};
use self::flow::State;
pub(crate) use self::flow::{Flow, Greeting, Holdings};
pub use self::flow::{Parties, SavedFlow, SavedGreeting, SavedMessageOut, SavedState};
pub use self::linger::SavedLinger;
use self::linger::{LINGER_TIMEOUT, Linger};
pub use self::saved::SavedFlows;
pub use self::stream::SavedStream;
use self::stream::Stream;
use crate::context::Context;
use crate::events;
use crate::links::{Entry, Filled, Interface, LinkId, Links, MemoryDead, Offer, Payload, Update};
use crate::reactor::{Owner, Readiness, SourceId};
use vsock_guest_memory::slice::{self, Slice};

/// Names a flow: its socket in the reactor.
pub type FlowId = SourceId;

/// What has become of a flow that is none any more.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It has ended: the port from which its program connected is free, and this is how.
    Ended(FlowId, Holdings, Ended),
    /// The attempt to connect came to nothing: the program, if it is still there, is told why and may ask again.
    NotConnected(FlowId, Box<NotConnected>),
}

/// How often it is looked at whether a program still reads for whom a record waits.
const READER_LOOKED_AT: Duration = Duration::from_millis(500);

/// At how many of them before others have their turn.
const READERS_AT_ONCE: usize = 16;

/// A connection that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The program's end.
    pub ours: Address,
    /// The other end.
    pub theirs: Address,
    /// Why it is over.
    pub reason: CloseReason,
}

/// An attempt that came to nothing.
#[derive(Debug)]
pub(crate) struct NotConnected {
    pub(crate) stream: Stream,
    pub(crate) parties: Parties,
    pub(crate) holdings: Holdings,
    pub(crate) greeting: Greeting,
    pub(crate) reason: CloseReason,
    pub(crate) link: LinkId,
}

/// All flows of a node.
pub(crate) struct Flows {
    table: SecondaryMap<Owner, Box<Flow>>,
    /// The flow of each connection, by link.
    by_connection: SecondaryMap<Entry, SecondaryMap<Connection, FlowId>>,
    /// Flows whose connections are over, as they are still to be told, and whose places there others have by now.
    displaced: HashMap<(LinkId, ConnectionId), FlowId>,
    /// What receive buffers may have above the default.
    buffers: Budget,
    /// Receive buffers that are smaller than asked for.
    buffers_cut: u64,
    /// How long nothing may be taken of what a program sent before it closed.
    linger_timeout: Duration,
    /// Flows that ended with data undelivered.
    linger_timeouts: u64,
    /// Those whose programs left in this round; nearly all end in it.
    left: Vec<FlowId>,
    /// Those in which a record waits for its reader, and when that is looked at.
    waiting: VecDeque<(Instant, FlowId)>,
    /// Those that are none any more, until somebody asks.
    outcomes: VecDeque<Outcome>,
    /// A program has not kept up with its guest in this round.
    is_behind: bool,
    /// Room for a message.
    scratch: Vec<u8>,
}

impl Flows {
    /// No flows.
    pub(crate) fn new() -> Self {
        Self {
            table: SecondaryMap::new(),
            by_connection: SecondaryMap::new(),
            displaced: HashMap::new(),
            buffers: Budget::default(),
            buffers_cut: 0,
            linger_timeout: LINGER_TIMEOUT,
            linger_timeouts: 0,
            left: Vec::new(),
            waiting: VecDeque::new(),
            outcomes: VecDeque::new(),
            is_behind: false,
            scratch: Vec::new(),
        }
    }

    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.table.get_mut(id).map(|flow| &mut **flow)
    }

    /// Over which link a flow is.
    pub(crate) fn link(&self, id: FlowId) -> Option<LinkId> {
        self.table.get(id).map(|flow| flow.link)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (FlowId, &Flow)> {
        self.table.iter().map(|(id, flow)| (id, &**flow))
    }

    /// The flow of a connection.
    fn of(&self, link: LinkId, connection: ConnectionId) -> Option<FlowId> {
        let known = self.by_connection.get(link)?.get(connection);
        known.or_else(|| self.displaced.get(&(link, connection))).copied()
    }

    /// A connection has no flow any more.
    fn forget(&mut self, link: LinkId, connection: ConnectionId) {
        if let Some(connections) = self.by_connection.get_mut(link) {
            connections.remove(connection);
        }
        self.displaced.remove(&(link, connection));
    }

    /// Gives a new connection the receive buffer that its program asks for (0: the default), or what is left.
    pub(crate) fn share(
        &mut self,
        interface: &mut Interface,
        connection: ConnectionId,
        wanted: u32,
    ) -> Share {
        let mut share = self.buffers.share(interface.buffers());
        let is_given = share.give(interface.endpoint_mut(), connection, wanted);
        self.buffers_cut += u64::from(!is_given);
        share
    }

    /// Gives an open flow another receive buffer; 0: as it is.
    pub(crate) fn set_buffer_of(&mut self, id: FlowId, endpoint: &mut Endpoint, wanted: u32) {
        if let Some(flow) = self.table.get_mut(id).filter(|_| wanted != 0) {
            let is_given = flow.holdings.share.give(endpoint, flow.connection, wanted);
            self.buffers_cut += u64::from(!is_given);
        }
    }

    /// A flow begins, at a descriptor that the reactor knows.
    pub(crate) fn begin(&mut self, id: FlowId, flow: Flow) {
        if self.by_connection.get(flow.link).is_none() {
            self.by_connection.insert(flow.link, SecondaryMap::new());
        }
        if let Some(connections) = self.by_connection.get_mut(flow.link)
            && let Some((before, displaced)) = connections.replace(flow.connection, id)
        {
            self.displaced.insert((flow.link, before), displaced);
        }
        self.table.insert(id, Box::new(flow));
    }

    /// A program's socket is ready for something.
    pub(crate) fn on_ready(&mut self, cx: &mut Context, links: &mut Links, ready: Readiness) {
        let id = ready.source;
        let Some(flow) = self.table.get_mut(id) else { return };
        let update = flow.on_ready(ready);
        if flow.has_hung_up() && matches!(flow.state, State::Open { .. }) {
            self.left.push(id);
        }
        if flow.begins_to_wait() {
            self.waiting.push_back((cx.now + READER_LOOKED_AT, id));
        }
        if flow.is_interrupted() {
            cx.sources.renew(flow.fd(), id);
        }
        self.tell(cx, links, id, update);
    }

    /// Tells the connection of a flow, outside a turn of its link, what the flow has done.
    pub(crate) fn tell(&mut self, cx: &mut Context, links: &mut Links, id: FlowId, update: Update) {
        let Some(flow) = self.table.get(id) else { return };
        let (link, connection) = (flow.link, flow.connection);
        let is_over = flow.is_over();
        if update != Update::default() {
            if let Some(interface) = links.interface(link) {
                interface.update(cx.now, connection, update);
            }
            links.activate(link);
        }
        if is_over {
            self.end(cx, id);
        }
    }

    /// Hands payload of a connection to its program.
    pub(crate) fn deliver(
        &mut self,
        cx: &mut Context,
        (link, connection): (LinkId, ConnectionId),
        payload: Payload<'_>,
    ) -> Result<Update, MemoryDead> {
        let found = self.of(link, connection).and_then(|id| Some((id, self.table.get_mut(id)?)));
        let Some((id, flow)) = found else {
            // Its program is gone; the bytes count as read, so that the close can finish.
            let bytes = u32::try_from(slice::total(payload.pieces)).unwrap_or(u32::MAX);
            return Ok(Update { bytes, packets: payload.packets, ..Update::default() });
        };
        let update = flow.deliver(payload)?;
        self.is_behind |= flow.is_behind(slice::total(payload.pieces));
        if flow.begins_to_wait() {
            self.waiting.push_back((cx.now + READER_LOOKED_AT, id));
        }
        if flow.is_interrupted() {
            cx.sources.renew(flow.fd(), id);
        }
        if flow.is_over() {
            self.end(cx, id);
        }
        Ok(update)
    }

    /// What the program of a connection has to send, whose turn it is.
    pub(crate) fn next(
        &mut self,
        cx: &mut Context,
        (link, connection): (LinkId, ConnectionId),
        endpoint: &Endpoint,
    ) -> Offer {
        let Some(id) = self.of(link, connection) else { return Offer::Nothing(Update::default()) };
        let Some(flow) = self.table.get_mut(id) else { return Offer::Nothing(Update::default()) };
        let offer = flow.next(endpoint, &mut self.scratch);
        if flow.is_over() {
            self.end(cx, id);
        }
        offer
    }

    /// Writes what a program has sent into the other side's buffers.
    pub(crate) fn fill(
        &mut self,
        cx: &mut Context,
        (link, connection): (LinkId, ConnectionId),
        pieces: &[Slice],
    ) -> Result<Filled, MemoryDead> {
        let Some(id) = self.of(link, connection) else { return Ok(Filled::default()) };
        let Some(flow) = self.table.get_mut(id) else { return Ok(Filled::default()) };
        let filled = flow.fill(pieces)?;
        if flow.is_over() {
            self.end(cx, id);
        }
        Ok(filled)
    }

    /// There is no room for what the program of a connection has to send.
    pub(crate) fn stalled(
        &mut self,
        cx: &mut Context,
        (link, connection): (LinkId, ConnectionId),
    ) -> Update {
        let Some(id) = self.of(link, connection) else { return Update::default() };
        let Some(flow) = self.table.get_mut(id) else { return Update::default() };
        let update = flow.stalled();
        if flow.is_over() {
            self.end(cx, id);
        }
        update
    }

    /// What has happened to a connection of an interface; if it is open now, between whom, and how its program hears it.
    pub(crate) fn on_event(
        &mut self,
        cx: &mut Context,
        link: LinkId,
        interface: &mut Interface,
        event: Event,
    ) -> Option<(Parties, Greeting)> {
        let connection = event.id();
        let id = self.of(link, connection)?;
        let flow = self.table.get_mut(id)?;
        let mut opened = None;
        let update = match event {
            Event::Offered { .. } => Update::default(),
            Event::Connected { .. } => {
                if let State::Connecting(greeting) = flow.state {
                    opened = Some((flow.parties, greeting));
                }
                let peer_buffer = interface.endpoint().max_message(connection);
                flow.connected(id.to_bits(), peer_buffer)
            }
            Event::Writable { .. } => Update::sends(crate::links::Sends::More),
            Event::TheirsShutDown { flags, .. } => {
                flow.their_shutdown(flags);
                Update::default()
            }
            Event::Closed { reason, .. } => {
                self.closed(cx, id, reason);
                return None;
            }
        };
        if flow.has_hung_up() {
            self.left.push(id);
        }
        let is_over = flow.is_over();
        interface.update(cx.now, connection, update);
        if is_over {
            self.end(cx, id);
        }
        opened
    }

    /// The connection of a flow is over.
    fn closed(&mut self, cx: &mut Context, id: FlowId, reason: CloseReason) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let (link, connection) = (flow.link, flow.connection);
        if let State::Connecting(greeting) = flow.state {
            if let Some(flow) = self.remove(id) {
                self.not_connected(id, flow, greeting, reason);
            }
            return;
        }
        flow.closed(reason);
        if flow.is_over() {
            return self.end(cx, id);
        }
        // The flow goes on without it.
        self.forget(link, connection);
    }

    fn not_connected(&mut self, id: FlowId, flow: Flow, greeting: Greeting, reason: CloseReason) {
        let link = flow.link;
        let (stream, parties, holdings) = flow.into_attempt();
        let attempt = NotConnected { stream, parties, holdings, greeting, reason, link };
        self.outcomes.push_back(Outcome::NotConnected(id, Box::new(attempt)));
    }

    fn remove(&mut self, id: FlowId) -> Option<Flow> {
        let flow = *self.table.remove(id)?;
        if self.of(flow.link, flow.connection) == Some(id) {
            self.forget(flow.link, flow.connection);
        }
        Some(flow)
    }

    /// Closes the program's socket, whatever its program has not taken yet: the link is lost.
    fn lose(&mut self, cx: &mut Context, id: FlowId) {
        if let Some(flow) = self.table.get_mut(id) {
            flow.state = State::Over(CloseReason::LinkGone);
        }
        self.end(cx, id);
    }

    /// Closes the program's socket and forgets the flow.
    pub(crate) fn end(&mut self, cx: &mut Context, id: FlowId) {
        let Some(flow) = self.remove(id) else { return };
        if let State::GivenUp(greeting) = flow.state {
            return self.not_connected(id, flow, greeting, CloseReason::Done);
        }
        let (Parties { ours, theirs, .. }, holdings, state) = flow.finish();
        let reason = match state {
            State::Draining(reason) | State::Over(reason) => reason,
            State::Failed(error) => {
                cx.note(theirs.cid, events::Event::FlowReset { ours, theirs, error });
                CloseReason::Done
            }
            State::Connecting(_) | State::GivenUp(_) | State::Open { .. } => CloseReason::Done,
        };
        cx.sources.remove(id);
        self.outcomes.push_back(Outcome::Ended(id, holdings, Ended { ours, theirs, reason }));
    }

    /// A flow that is none any more.
    pub(crate) fn next_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// A link is lost, and all its connections with it: programs that wait for theirs are told, all other sockets are closed.
    pub(crate) fn lose_link(&mut self, cx: &mut Context, link: LinkId) {
        let on_link = self.table.iter().filter(|(_, flow)| flow.link == link);
        let lost: Vec<FlowId> = on_link.map(|(id, _)| id).collect();
        for id in lost {
            let flow = self.table.get(id);
            if flow.is_some_and(|flow| matches!(flow.state, State::Connecting(_))) {
                self.closed(cx, id, CloseReason::LinkGone);
            } else {
                self.lose(cx, id);
            }
        }
        self.forget_link(link);
    }

    /// A link is gone: its connections have ended before.
    pub(crate) fn forget_link(&mut self, link: LinkId) {
        self.by_connection.remove(link);
        self.displaced.retain(|(of, _), _| *of != link);
    }

    /// Whether a program has not kept up with its guest since this was asked last.
    pub(crate) fn take_is_behind(&mut self) -> bool {
        std::mem::take(&mut self.is_behind)
    }

    /// How long nothing may be taken of what a program sent before it closed.
    pub(crate) fn set_linger_timeout(&mut self, timeout: Duration) {
        self.linger_timeout = timeout;
    }

    /// Begins to watch those that programs left in this round, and says when each is to be looked at.
    pub(crate) fn watch_left(
        &mut self,
        now: Instant,
        links: &Links,
        mut set_timer: impl FnMut(FlowId, Instant),
    ) {
        for id in self.left.drain(..) {
            let Some(flow) = self.table.get_mut(id).filter(|flow| flow.linger.is_none()) else {
                continue;
            };
            flow.linger = Some(Linger::new(now, bytes_out(flow, links)));
            set_timer(id, now + self.linger_timeout);
        }
    }

    /// Looks at a flow whose program has closed: it is given more time, until when is returned, if some was taken, or
    /// could not be.
    pub(crate) fn look_at_linger(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        id: FlowId,
    ) -> Option<Instant> {
        let timeout = self.linger_timeout;
        let flow = self.table.get_mut(id)?;
        let (sent, since) = (bytes_out(flow, links), links.receives_since(flow.link, cx.now));
        let next = flow.linger.as_mut()?.look(cx.now, sent, since, timeout);
        if next.is_none() {
            self.linger_timeouts += 1;
            let error =
                std::io::Error::other("its program left, and what it sent last is not taken");
            let update = flow.fail(error);
            self.tell(cx, links, id, update);
        }
        next
    }

    /// When to look whether programs still read for whom records wait.
    pub(crate) fn look_at_readers_at(&self) -> Option<Instant> {
        self.waiting.front().map(|&(at, _)| at)
    }

    /// Looks whether programs still read for whom records wait, some at a time.
    pub(crate) fn look_at_readers(&mut self, cx: &mut Context, links: &mut Links) {
        for _ in 0..READERS_AT_ONCE {
            let Some(&(at, id)) = self.waiting.front() else { return };
            if at > cx.now {
                return;
            }
            self.waiting.pop_front();
            let update = self.table.get_mut(id).and_then(|flow| flow.look_at_reader());
            if let Some(update) = update {
                self.waiting.push_back((cx.now + READER_LOOKED_AT, id));
                self.tell(cx, links, id, update);
            }
        }
    }

    /// Descriptors can be received again: what was left unread for that is there to be read.
    pub(crate) fn on_room(&mut self, cx: &Context) {
        let ids: Vec<FlowId> = self.table.iter().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(flow) = self.table.get_mut(id)
                && flow.take_awaits_room()
            {
                cx.sources.renew(flow.fd(), id);
            }
        }
    }

    /// Programs can send no more; what they have sent goes out, and the end after it.
    pub(crate) fn end_sending(&mut self, cx: &mut Context, links: &mut Links) {
        let ids: Vec<FlowId> = self.table.iter().map(|(id, _)| id).collect();
        for id in ids {
            let update = self.get_mut(id).map(Flow::end_sending).unwrap_or_default();
            self.tell(cx, links, id, update);
        }
    }

    /// Nothing that programs have sent is left here, nor that it has ended.
    pub(crate) fn is_all_sent(&self) -> bool {
        self.table.iter().all(|(_, flow)| flow.is_sent())
    }

    /// Ends all.
    pub(crate) fn end_all(&mut self, cx: &mut Context) {
        let ids: Vec<FlowId> = self.table.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.end(cx, id);
        }
    }

    /// Counters, by name.
    pub(crate) fn counters(&self) -> [(&'static str, u64); 2] {
        [("buffers_cut", self.buffers_cut), ("linger_timeouts", self.linger_timeouts)]
    }
}

/// What has been sent of a flow.
fn bytes_out(flow: &Flow, links: &Links) -> u64 {
    let interface = links.get(flow.link).and_then(Entry::interface);
    interface.and_then(|it| it.endpoint().info(flow.connection)).map_or(0, |info| info.bytes_out)
}
