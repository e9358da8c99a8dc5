//! A program asks for a connection: the way, a port, REQUEST; or why not. Its entry becomes the flow.
//!
//! What comes of it is told in `verdicts.rs`.

use std::time::Duration;

use rustix::io::Errno;
use vsock_core::{Address, Cid, ConnectError, ConnectionId, FlowKey, SocketType};

use super::Worker;
use super::programs::narrow;
use super::source::{Bound, Flow, Greeting, LinkId, Phase, Source};
use crate::host::client::Client;
use crate::host::sockets::Socket;
use crate::host::stream::Stream;
use crate::host::wire::{self, COOKIE_LEN, MESSAGE_LEN, NOWHERE, Report};
use crate::reactor::Token;
use crate::vhost_user::F_SEQPACKET;

/// From a close to the end of its connection: SHUTDOWN goes out, comes in, and so does RST.
const OWN_ANSWERS: usize = 3;

/// What a CONNECT says beside where to.
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

impl Worker {
    /// Starts a connection for a program; its entry becomes the flow.
    pub(super) fn grant_connect(
        &mut self,
        token: Token,
        to: Address,
        timeout: Option<Duration>,
        buffer: u64,
        request: Held,
    ) -> Result<(), Errno> {
        let Some(Source::Client(client)) = self.sources.get(token) else {
            return Err(Errno::INVAL);
        };
        let (kind, bound) = (client.kind, client.bound);
        if kind == SocketType::Datagram {
            return Err(Errno::OPNOTSUPP);
        }
        let (link, bound) = self.begin_attempt(token, to.cid, kind, bound)?;
        let mut started = self.start_connection(link, bound, to, kind, timeout);
        if started == Err(Errno::ADDRINUSE) && link == self.loopback {
            self.hear_ourselves();
            started = self.start_connection(link, bound, to, kind, timeout);
        }
        let (connection, key) = started.inspect_err(|_| self.release_unless_kept(token, bound))?;
        let Some(entry) = self.sources.get_mut(token) else { return Err(Errno::INVAL) };
        let Source::Client(client) = std::mem::replace(entry, Source::Ended) else {
            return Err(Errno::INVAL);
        };
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
        let mut flow = self.new_flow(link, connection, key, kind, client.fd, client.peer);
        self.set_buffer(&mut flow, narrow(buffer));
        let phase = Phase::Connecting(greeting);
        self.begin_flow(token, Flow { phase, binding: Some(bound), socket, ..flow });
        Ok(())
    }

    /// Gives a new flow the receive buffer that its program asks for, or what is left; 0: the default.
    fn set_buffer(&mut self, flow: &mut Flow, wanted: u32) {
        if let Some(slot) = self.links.get_mut(flow.link)
            && !flow.share.give(&mut slot.endpoint, flow.id, wanted)
        {
            self.buffers_cut += 1;
        }
    }

    /// The way and the port of an attempt, in the order of the kernel: what is known of the way, then a port, then
    /// whether anybody is there. The port stays, also if nobody is.
    fn begin_attempt(
        &mut self,
        token: Token,
        to: Cid,
        kind: SocketType,
        bound: Option<Bound>,
    ) -> Result<(LinkId, Bound), Errno> {
        let link = self.route_to(to, kind)?;
        let bound = bound.map_or_else(|| self.bind_ephemeral(), Ok)?;
        if link.is_none()
            && let Some(Source::Client(client)) = self.sources.get_mut(token)
        {
            client.bound = Some(bound);
        }
        Ok((link.ok_or(Errno::NODEV)?, bound))
    }

    /// An attempt that did not even start.
    pub(super) fn deny_connect(&mut self, token: Token, request: Held, errno: Errno) -> bool {
        let Some(entry) = self.sources.get_mut(token) else { return false };
        let Source::Client(client) = std::mem::replace(entry, Source::Ended) else { return false };
        let Client { fd, kind, peer, bound } = client;
        let ours = bound.map_or(NOWHERE, |bound| bound.address);
        let mut stream = Stream::new(fd, kind);
        let reply = wire::not_connected(errno, ours, request.cookie);
        let told = stream.greet(request.unread(), &reply.encode());
        *entry = Source::Client(Client::new(stream.into_fd(), kind, peer, bound));
        told.is_ok()
    }

    /// Puts a flow where its client was.
    pub(crate) fn begin_flow(&mut self, token: Token, flow: Flow) {
        let (link, id) = (flow.link, flow.id);
        if let Some(slot) = self.links.get_mut(link) {
            slot.tie(id, token);
        }
        self.sockets.opened(flow.socket, token);
        self.sources[token] = Source::Flow(Box::new(flow));
        // A program may have ended its data right behind the request, and that has been told already.
        self.renew(token);
        self.activate(link);
    }

    /// Which link leads to a CID, for a socket of this kind; `None`: guests may have it, and none has.
    ///
    /// Errors are those that the kernel's choice of a transport gives (kernel-semantics, 1.3): only a driver that runs
    /// can have said that it knows SEQPACKET.
    fn route_to(&self, cid: Cid, kind: SocketType) -> Result<Option<LinkId>, Errno> {
        if cid == self.local || cid == Cid::LOCAL {
            return Ok(Some(self.loopback));
        }
        let id = self.routes.get(&cid).copied().or(self.default_route);
        if id.is_none() && cid == Cid::HYPERVISOR {
            return Err(Errno::NODEV);
        }
        let features = id.and_then(|id| self.links.get(id)).map_or(0, |slot| slot.features);
        if kind == SocketType::SeqPacket && features & F_SEQPACKET == 0 {
            return Err(Errno::SOCKTNOSUPPORT);
        }
        Ok(id)
    }

    /// Takes in what we have told ourselves. The port of a closed socket is free, and its connection between the same
    /// ports may only wait for our own answer: whoever comes back from there must not meet it.
    fn hear_ourselves(&mut self) {
        for _ in 0..OWN_ANSWERS {
            if let Err(fault) = self.serve(self.loopback) {
                return self.break_link(self.loopback, &fault);
            }
        }
    }

    /// Sends REQUEST over a link.
    pub(crate) fn start_connection(
        &mut self,
        link: LinkId,
        bound: Bound,
        to: Address,
        kind: SocketType,
        timeout: Option<Duration>,
    ) -> Result<(ConnectionId, FlowKey), Errno> {
        // Over loopback we are CID 1, whatever the other side was called.
        let cid = if link == self.loopback { Cid::LOCAL } else { self.local };
        let ours = Address { cid, port: bound.address.port };
        let key = FlowKey { ours, theirs: to };
        let now = self.now;
        let slot = self.links.get_mut(link).ok_or(Errno::NODEV)?;
        let connection =
            slot.endpoint.connect(now, key, kind, timeout).map_err(|error| match error {
                ConnectError::InUse => Errno::ADDRINUSE,
                ConnectError::TooMany => Errno::NOBUFS,
            })?;
        Ok((connection, key))
    }

    /// A port taken for an attempt that did not start goes back; one the program bound itself stays.
    fn release_unless_kept(&mut self, token: Token, bound: Bound) {
        let is_kept =
            matches!(self.sources.get(token), Some(Source::Client(Client { bound: Some(_), .. })));
        if !is_kept {
            self.ports.release(bound.id);
        }
    }
}
