//! Serves host programs on the endpoint sockets: each request in turn, until one makes the connection a stream or a
//! listener. `vsock_client::wire` and `docs/reference/client-protocol.md` say what the requests mean.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use vsock_core::{Address, BindError, Cid, ListenError, Port, SocketType};

use super::Worker;
use super::connecting::Held;
use super::source::{Bound, Listener, Phase, Source};
use crate::host::accept_queue::AcceptQueue;
use crate::host::client::{Client, Heard};
use crate::host::privilege::may_bind_any_port;
use crate::host::sockets::Socket;
use crate::host::stream::finish;
use crate::host::wire::{self, BadRequest, NOWHERE, Reply, Request, from_wire, op, to_wire};
use crate::reactor::Token;
use crate::vhost_user::PeerCredentials;

/// Programs let in by one door before others have their turn.
pub(crate) const PROGRAMS_PER_TURN: usize = 64;

/// Requests of one program before others have their turn.
const REQUESTS_PER_TURN: usize = 32;

/// The longest backlog: what the kernel's net.core.somaxconn is by default.
const SOMAXCONN: u32 = 4096;

/// How long the doors stay shut after the process ran out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

impl Worker {
    /// Opens an endpoint socket.
    pub(crate) fn open_door(&mut self, door: UnixListener, kind: SocketType) -> io::Result<()> {
        door.set_nonblocking(true)?;
        self.watch(Source::Programs(door, kind)).map(|_| ())
    }

    /// Takes all programs that wait at a door.
    pub(crate) fn accept_programs(&mut self, token: Token) {
        for _ in 0..PROGRAMS_PER_TURN {
            let Some(Source::Programs(door, kind)) = self.sources.get(token) else { return };
            let kind = *kind;
            let Some(fd) = accept(door).unwrap_or_else(|error| self.shut_door(token, error)) else {
                return;
            };
            let Ok(peer) = PeerCredentials::of(std::os::fd::AsFd::as_fd(&fd)) else { continue };
            match self.watch(Source::Client(Client::new(fd, kind, peer, None))) {
                Ok(client) => self.hear_client(client, false),
                Err(error) => self.journal.write("failed", u32::MAX, format!("epoll: {error}")),
            }
        }
        self.try_again(token);
    }

    /// More may wait at this door, which will not say so again.
    pub(crate) fn try_again(&mut self, token: Token) {
        self.shut_doors.push(token);
        self.doors_open_at = Some(self.now);
    }

    /// Nobody can be let in (no descriptors left): tries again a little later, as the edge will not come again.
    pub(crate) fn shut_door<T>(&mut self, token: Token, error: io::Error) -> Option<T> {
        self.journal.write("failed", u32::MAX, format!("accepting a program: {error}"));
        self.shut_doors.push(token);
        self.doors_open_at.get_or_insert(self.now + PAUSE);
        None
    }

    /// Carries out what a program asks, as long as it is a client; `ended`: it will ask no more.
    pub(crate) fn hear_client(&mut self, token: Token, ended: bool) {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(Source::Client(client)) = self.sources.get(token) else { return };
            match client.hear() {
                // Part of a request will never be a whole one then.
                Ok(Heard::Nothing) if ended => {
                    return self.refuse_client(token, 0, BadRequest::Length);
                }
                Ok(Heard::Nothing) => return,
                Ok(Heard::Gone) => return self.drop_client(token),
                Ok(Heard::Bad(op, bad)) => return self.refuse_client(token, op, bad),
                Ok(Heard::Request(request, _)) if !client.may_ask(&request) => {
                    return self.refuse_client(token, request.op(), BadRequest::Order);
                }
                Ok(Heard::Request(request, extra)) => {
                    if !self.grant(token, request, &extra) {
                        return self.drop_client(token);
                    }
                }
                Err(error) => {
                    self.journal.write("failed", u32::MAX, format!("reading a request: {error}"));
                    return self.drop_client(token);
                }
            }
        }
        self.renew(token);
    }

    fn refuse_client(&mut self, token: Token, op: u8, bad: BadRequest) {
        if let Some(Source::Client(client) | Source::Listener(Listener { client, .. })) =
            self.sources.get(token)
        {
            let text = format!("request of pid {}: {bad}", client.peer.pid);
            self.journal.write("bad-request", u32::MAX, text);
            self.bad_requests += 1;
            // It may not even read; the connection ends all the same.
            let _ = client.reply(&wire::error(op, Errno::PROTO));
            finish(&client.fd);
        }
        self.drop_client(token);
    }

    pub(crate) fn drop_client(&mut self, token: Token) {
        let bound = match self.sources.get(token) {
            Some(Source::Client(client)) if client.kind == SocketType::Datagram => {
                let bound = client.bound;
                self.end_source(token);
                if let Some(bound) = bound {
                    self.release_datagram(bound);
                }
                return;
            }
            Some(Source::Client(client)) => client.bound,
            Some(Source::Listener(listener)) => Some(listener.bound),
            Some(_) | None => return,
        };
        if let Some(bound) = bound {
            self.listeners.remove(&bound.id);
        }
        self.end_source(token);
        self.release(bound);
    }

    /// Carries out one request; false when the connection cannot go on.
    fn grant(&mut self, token: Token, request: Request, extra: &[u8]) -> bool {
        let reply = match request {
            Request::Bind(address) => self.grant_bind(token, from_wire(address)),
            Request::Listen { backlog, buffer, .. } => {
                return self.grant_listen(token, backlog, narrow(buffer), extra);
            }
            Request::Flow { cookie, buffer, receive_shut } => {
                self.grant_flow(token, cookie, narrow(buffer), receive_shut)
            }
            Request::LocalCid => {
                Ok(wire::ok(op::LOCAL_CID, Address { cid: self.local, port: Port::ANY }))
            }
            Request::Send { to, number, .. } => self
                .send_datagram(token, number, from_wire(to), extra)
                .map(|()| wire::ok(op::SEND, NOWHERE))
                .map_err(|errno| (op::SEND, errno)),
            Request::Resolve { .. } => self.grant_resolve(extra),
            Request::Connect { to, timeout_ms, buffer, report, .. } => {
                let timeout = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms.into()));
                let (to, held) = (from_wire(to), Held::new(report, extra));
                match self.grant_connect(token, to, timeout, buffer, held) {
                    Ok(()) => return true,
                    Err(errno) => {
                        self.note_denied(token, to, errno);
                        return self.deny_connect(token, held, errno);
                    }
                }
            }
            // No client may ask this.
            Request::Accepted => return false,
        };
        let Some(Source::Client(client)) = self.sources.get(token) else { return false };
        let reply = reply.unwrap_or_else(|(op, errno)| wire::error(op, errno));
        match client.reply(&reply) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.refuse_client(token, reply.op, BadRequest::Unread);
                true
            }
            told => told.is_ok(),
        }
    }

    fn grant_bind(&mut self, token: Token, address: Address) -> Result<Reply, (u8, Errno)> {
        let Some(Source::Client(client)) = self.sources.get_mut(token) else {
            return Err((op::BIND, Errno::INVAL));
        };
        if client.bound.is_some() {
            return Err((op::BIND, Errno::INVAL));
        }
        // Asked only where it matters: it costs a look at the program's entry in /proc.
        let may = address.port.is_privileged() && may_bind_any_port(client.fd.as_fd(), client.peer);
        if client.kind == SocketType::Datagram {
            let bound = self.bind_datagram(token, address, may);
            let bound = bound.map_err(|error| (op::BIND, bind_errno(error)))?;
            if let Some(Source::Client(client)) = self.sources.get_mut(token) {
                client.bound = Some(bound);
            }
            return Ok(Reply { flow: bound.id.to_bits(), ..wire::ok(op::BIND, bound.address) });
        }
        let bound = self.bind_port(address, may).map_err(|error| (op::BIND, bind_errno(error)))?;
        if let Some(Source::Client(client)) = self.sources.get_mut(token) {
            client.bound = Some(bound);
        }
        Ok(wire::ok(op::BIND, bound.address))
    }

    fn grant_resolve(&self, name: &[u8]) -> Result<Reply, (u8, Errno)> {
        let name = std::str::from_utf8(name).map_err(|_| (op::RESOLVE, Errno::INVAL))?;
        let mut guests = self.links.iter().filter_map(|(_, slot)| Some((slot, slot.guest()?)));
        let found = guests.find(|(slot, _)| slot.options.name == name);
        let (_, cid) = found.ok_or((op::RESOLVE, Errno::NODEV))?;
        let theirs = to_wire(Address { cid, port: Port::ANY });
        Ok(Reply { theirs, ..wire::ok(op::RESOLVE, NOWHERE) })
    }

    /// What is to be known of a connection that its program cannot see, its receive buffer from now on, and that the
    /// program receives no more, which its descriptor does not tell us in every state; or how it ended.
    fn grant_flow(
        &mut self,
        token: Token,
        cookie: u64,
        buffer: u32,
        receive_shut: bool,
    ) -> Result<Reply, (u8, Errno)> {
        let Some(Source::Client(client)) = self.sources.get(token) else {
            return Err((op::FLOW, Errno::INVAL));
        };
        let socket = Socket { uid: client.peer.uid, cookie };
        let Some(flow_token) = self.sockets.flow(socket) else {
            let ended = self.sockets.ended(socket).ok_or((op::FLOW, Errno::NOTCONN))?;
            let (ours, theirs) = (to_wire(ended.ours), to_wire(ended.theirs));
            return Ok(Reply { ours, theirs, ..wire::error(op::FLOW, ended.errno()) });
        };
        let Some(Source::Flow(flow)) = self.sources.get_mut(flow_token) else {
            return Err((op::FLOW, Errno::NOTCONN));
        };
        let (link, id, number) = (flow.link, flow.id, flow.number);
        let (ours, theirs) = (flow.ours, to_wire(flow.theirs));
        let stopped = (receive_shut && flow.phase == Phase::Open).then(|| flow.stream.stop());
        let slot = self.links.get_mut(link).ok_or((op::FLOW, Errno::NOTCONN))?;
        let is_cut = !flow.share.give(&mut slot.endpoint, id, buffer);
        self.buffers_cut += u64::from(is_cut);
        if let Some(taken) = stopped {
            self.took(link, flow_token, taken);
        }
        let slot = self.links.get(link).ok_or((op::FLOW, Errno::NOTCONN))?;
        let peer_buffer = slot.endpoint.max_message(id);
        self.activate(link);
        Ok(Reply { theirs, peer_buffer, flow: number, ..wire::ok(op::FLOW, ours) })
    }

    fn grant_listen(&mut self, token: Token, backlog: u32, buffer: u32, extra: &[u8]) -> bool {
        let Some(entry) = self.sources.get_mut(token) else { return false };
        let Source::Client(client) = entry else { return false };
        let Some(bound) = client.bound else {
            return client.reply(&wire::error(op::LISTEN, Errno::INVAL)).is_ok();
        };
        if let Err(error) = self.ports.listen(bound.id, client.kind, backlog.min(SOMAXCONN)) {
            return client.reply(&wire::error(op::LISTEN, listen_errno(error))).is_ok();
        }
        if client.reply(&wire::ok(op::LISTEN, bound.address)).is_err() {
            return false;
        }
        if let Source::Client(client) = std::mem::replace(entry, Source::Ended) {
            let inherited = extra.to_vec();
            let queue = AcceptQueue::default();
            *entry = Source::Listener(Listener { client, bound, buffer, inherited, queue });
            self.listeners.insert(bound.id, token);
            self.renew(token);
        }
        true
    }

    /// What a listening program says: that it has taken a connection, or a new backlog.
    pub(crate) fn hear_listener(&mut self, token: Token, ended: bool) {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(Source::Listener(listener)) = self.sources.get_mut(token) else { return };
            let (id, kind) = (listener.bound.id, listener.client.kind);
            match listener.client.hear() {
                Ok(Heard::Nothing) if ended => {
                    return self.refuse_client(token, 0, BadRequest::Length);
                }
                Ok(Heard::Nothing) => return,
                Ok(Heard::Request(Request::Accepted, _)) => {
                    self.ports.accepted(id);
                    listener.queue.taken(&listener.client);
                }
                Ok(Heard::Request(Request::Listen { backlog, buffer, .. }, extra)) => {
                    listener.buffer = narrow(buffer);
                    listener.inherited = extra;
                    // It listens, so this can only change these.
                    let _ = self.ports.listen(id, kind, backlog.min(SOMAXCONN));
                }
                Ok(Heard::Request(request, _)) => {
                    return self.refuse_client(token, request.op(), BadRequest::Order);
                }
                Ok(Heard::Bad(op, bad)) => return self.refuse_client(token, op, bad),
                Ok(Heard::Gone) | Err(_) => return self.drop_client(token),
            }
        }
        self.renew(token);
    }

    pub(crate) fn bind_ephemeral(&mut self) -> Result<Bound, Errno> {
        let any = Address { cid: Cid::ANY, port: Port::ANY };
        self.bind_port(any, false).map_err(bind_errno)
    }
}

/// The largest receive buffer a program may ask for: what one flow may hold of our memory.
const MAX_BUFFER: u32 = 16 << 20;

/// A buffer size as programs say it: cut to what is possible.
pub(super) fn narrow(buffer: u64) -> u32 {
    u32::try_from(buffer).unwrap_or(u32::MAX).min(MAX_BUFFER)
}

fn bind_errno(error: BindError) -> Errno {
    match error {
        BindError::InUse => Errno::ADDRINUSE,
        BindError::NotLocal | BindError::Exhausted => Errno::ADDRNOTAVAIL,
        BindError::NotPermitted => Errno::ACCESS,
    }
}

fn listen_errno(error: ListenError) -> Errno {
    match error {
        ListenError::NotBound => Errno::INVAL,
        ListenError::NotConnectible => Errno::OPNOTSUPP,
    }
}

/// The next connection at a door; `None` when nobody waits.
pub(crate) fn accept(door: &UnixListener) -> io::Result<Option<OwnedFd>> {
    loop {
        match accept_with(door, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
