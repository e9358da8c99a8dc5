//! A program asks for a connection: the way, a port, REQUEST; or why not. Its descriptor becomes the flow's.

use std::time::Duration;

use rustix::io::Errno;
use vsock_core::admission::Act;
use vsock_core::{
    Address, Cid, ConnectionId, FlowKey, Instant, Port, Refusal, Refused, SocketType,
};

use super::{Granted, Programs};
use crate::admission::errno;
use crate::context::Context;
use crate::flow_log::FlowLog;
use crate::flows::stream::Stream;
use crate::flows::{Flow, Flows, Greeting, Holdings, Parties};
use crate::host::client::Client;
use crate::host::program::{Bound, Socket};
use crate::host::wire::{self, COOKIE_LEN, MESSAGE_LEN, NOWHERE, Report};
use crate::links::{LinkId, Links};
use crate::reactor::{Owner, SourceId};

/// What a CONNECT asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    to: Address,
    /// How long the answer may take; `None`: the default.
    timeout: Option<Duration>,
    /// Receive buffer; 0: the default.
    buffer: u32,
}

impl Attempt {
    pub(super) fn new(to: Address, timeout_ms: u32, buffer: u32) -> Self {
        let timeout = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms.into()));
        Self { to, timeout, buffer }
    }
}

/// What a CONNECT says beside what it asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    report: Report,
    cookie: u64,
    /// Its length.
    len: usize,
}

impl Held {
    /// Of a request with these bytes behind it.
    pub(super) fn new(report: Report, extra: &[u8]) -> Self {
        let cookie = extra.first_chunk::<COOKIE_LEN>().copied().map_or(0, u64::from_le_bytes);
        Self { report, cookie, len: MESSAGE_LEN + extra.len() }
    }

    /// How much of it is still in the socket.
    fn unread(&self) -> usize {
        if self.report == Report::Reply { 0 } else { self.len }
    }
}

/// Why an attempt did not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    Refused(Refusal),
    /// A connection of this node to itself is between these addresses, and may only wait for our own answer.
    Again,
}

impl Denied {
    pub(super) fn reason(self) -> Refusal {
        match self {
            Self::Refused(reason) => reason,
            Self::Again => Refusal::AddressesInUse,
        }
    }
}

impl From<Refusal> for Denied {
    fn from(reason: Refusal) -> Self {
        Self::Refused(reason)
    }
}

impl Programs {
    /// Starts a connection for a program; its descriptor becomes the flow's.
    pub(super) fn connect(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        flows: &mut Flows,
        id: SourceId,
        attempt: Attempt,
        request: Held,
    ) -> Result<(), Denied> {
        let client = self.clients.get_mut(id).ok_or(Refusal::GivenUp)?;
        let (kind, Address { cid, port }) = (client.kind, attempt.to);
        let asked = links.attempt_of_program(Act::Connect, cid, port, kind);
        let decided = cx.admission.decide(&asked).limits();
        // In the order of the kernel: what is known of the way, then a port, then whether anybody is there. The port
        // stays, also if nobody is.
        if let Err(reason) = decided
            && reason != Refusal::NoRoute
        {
            return Err(reason.into());
        }
        let own = client.bound;
        let bound = own.map_or_else(|| self.listeners.bind_ephemeral(), Ok);
        let bound = bound.map_err(Refusal::from)?;
        let limits = decided.inspect_err(|_| client.bound = Some(bound))?;
        let link = links.route(cid).ok_or(Refusal::NoRoute)?;
        let started = start(cx.now, links, link, bound, attempt, kind);
        let (connection, key) = started.map_err(|reason| {
            if own.is_none() {
                self.listeners.release(Some(bound));
            }
            let is_own = reason == Refusal::AddressesInUse && link == links.loopback();
            if is_own { Denied::Again } else { Denied::Refused(reason) }
        })?;
        let client = self.clients.remove(id).ok_or(Refusal::GivenUp)?;
        let socket = Socket { uid: client.peer.uid, cookie: request.cookie };
        let greeting = match request.report {
            Report::Reply => Greeting::Reply,
            Report::Held { prompt } => {
                if prompt {
                    let begun =
                        wire::not_connected(Errno::INPROGRESS, bound.address, request.cookie);
                    // Should it fail, the program is gone, which an event will tell.
                    let _ = client.reply(&begun);
                }
                Greeting::Held(request.len)
            }
        };
        let mut share = flows.share();
        if let Some(interface) = links.interface(link) {
            let endpoint = interface.endpoint_mut();
            flows.set_buffer(&mut share, endpoint, connection, attempt.buffer.min(limits.buffer));
        }
        let parties = Parties::outgoing(key, kind, client.peer);
        let holdings = Holdings { binding: Some(bound), socket, share };
        let flow = Flow::connecting((link, connection), parties, holdings, client.fd, greeting);
        self.begin(cx, links, flows, id, flow);
        Ok(())
    }

    /// The same for a program on a guest's hybrid socket.
    pub(super) fn connect_hybrid(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        flows: &mut Flows,
        id: SourceId,
        to: Address,
    ) -> Result<(), Refusal> {
        let link = self.hybrids.get(id).ok_or(Refusal::GivenUp)?.link;
        let asked = links.attempt_of_program(Act::Connect, to.cid, to.port, SocketType::Stream);
        cx.admission.decide(&asked).limits()?;
        let bound = self.listeners.bind_ephemeral()?;
        let attempt = Attempt::new(to, 0, 0);
        let started = start(cx.now, links, link, bound, attempt, SocketType::Stream);
        let (connection, key) = started.inspect_err(|_| self.listeners.release(Some(bound)))?;
        let client = self.hybrids.remove(id).ok_or(Refusal::GivenUp)?;
        let parties = Parties::outgoing(key, SocketType::Stream, client.peer);
        let socket = Socket { uid: client.peer.uid, cookie: 0 };
        let holdings = Holdings { binding: Some(bound), socket, share: flows.share() };
        let at = (link, connection);
        let flow = Flow::connecting(at, parties, holdings, client.fd, Greeting::Hybrid);
        self.begin(cx, links, flows, id, flow);
        Ok(())
    }

    /// Puts a flow where its program was.
    fn begin(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        flows: &mut Flows,
        id: SourceId,
        flow: Flow,
    ) {
        links.activate(flow.link);
        self.register.opened(flow.holdings.socket, id);
        // A program may have ended its data right behind the request, and that has been told already.
        cx.sources.hand_over(flow.fd(), id, Owner::Flow);
        flows.begin(id, flow);
    }

    /// An attempt that did not even start: the program is told why and may ask again.
    pub(super) fn deny(
        &mut self,
        cx: &mut Context,
        links: &Links,
        id: SourceId,
        to: Address,
        request: Held,
        refused: Refused,
    ) -> Granted {
        let Some(Client { fd, kind, peer, bound }) = self.clients.remove(id) else {
            return Granted::Over;
        };
        let port = bound.map_or(Port::ANY, |bound| bound.address.port);
        let key = FlowKey { ours: Address { cid: links.local(), port }, theirs: to };
        FlowLog { cx, links }.denied(&Parties::outgoing(key, kind, peer), false, refused);
        let ours = bound.map_or(NOWHERE, |bound| bound.address);
        let mut stream = Stream::new(fd, kind);
        let reply = wire::not_connected(errno(refused.reason()), ours, request.cookie);
        let told = stream.greet(request.unread(), &reply.encode());
        self.clients.insert(id, Client::new(stream.into_fd(), kind, peer, bound));
        if told.is_ok() { Granted::Answered } else { Granted::Over }
    }
}

/// Sends REQUEST over a link.
fn start(
    now: Instant,
    links: &mut Links,
    link: LinkId,
    bound: Bound,
    attempt: Attempt,
    kind: SocketType,
) -> Result<(ConnectionId, FlowKey), Refusal> {
    // Over loopback we are CID 1, whatever the other side was called.
    let cid = if link == links.loopback() { Cid::LOCAL } else { links.local() };
    let ours = Address { cid, port: bound.address.port };
    let key = FlowKey { ours, theirs: attempt.to };
    let endpoint = links.interface(link).ok_or(Refusal::NoRoute)?.endpoint_mut();
    let connection = endpoint.connect(now, key, kind, attempt.timeout)?;
    Ok((connection, key))
}
