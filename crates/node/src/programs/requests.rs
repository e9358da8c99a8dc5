//! Programs that ask for something: each request in turn, until one makes the program a listener's or a flow's.
//!
//! `vsock_client::wire` and `docs/reference/client-protocol.md` say what the requests mean.

mod saved;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, channel};

use rustix::io::Errno;
use vsock_core::admission::{self, Act, FlowLimits, Party, Program};
use vsock_core::{Address, BindError, Cid, FlowKey, Port, Refusal, SecondaryMap, SocketType};

pub use self::saved::{SavedClient, SavedRequest, SavedRequests};
use super::Parts;
use super::accept_queue::AcceptQueue;
use super::connect::{Denied, Held, Target, begin, start};
use super::datagrams::Clients;
use super::listeners::Listener;
use super::privilege::{Inquiry, is_privileged_unseen};
use super::register::end_errno;
use crate::admission::{errno, program};
use crate::context::Context;
use crate::events::{Event, Failure};
use crate::flow_log::FlowLog;
use crate::flows::stream::Stream;
use crate::flows::{Ended, Flow, Greeting, Holdings, Parties};
use crate::helper::Helper;
use crate::host::client::{Client, Heard, has_hung_up};
use crate::host::program::{Bound, Socket};
use crate::host::wire::{
    self, BadRequest, NO_ADDRESS, Reply, Report, Request, from_wire, name_behind, op, to_wire,
};
use crate::links::{Links, Update};
use crate::reactor::{Owner, SourceId};

/// Requests of one program before others have their turn.
pub(super) const REQUESTS_PER_TURN: usize = 4;

/// A request that is to be tried again when the node has taken in what it has told itself.
#[derive(Debug)]
pub(crate) struct Again {
    client: SourceId,
    request: Request,
    extra: Vec<u8>,
}

/// What became of a request.
enum Granted {
    /// It was carried out, or refused by an answer.
    Answered,
    /// The program can ask nothing more.
    Over,
    /// It is to be tried again.
    Again,
    /// It is carried out when it is known whether its program is privileged.
    Waits,
}

/// What is known of a request beside what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempted {
    /// It is tried for the first time.
    First,
    /// For the last time.
    Again,
    /// Whether its program may bind ports below 1024.
    Privileged(bool),
}

/// All programs that may ask for something.
pub(super) struct Requests {
    pub(super) clients: Clients,
    /// Requests to be tried again.
    again: VecDeque<Again>,
    /// Requests that wait until it is known whether their programs are privileged. Such a program is not read.
    waiting: SecondaryMap<Owner, Again>,
    /// Looks what programs may do.
    privileges: Helper<(SourceId, Inquiry), (SourceId, bool)>,
    pub(super) privileges_known: Receiver<(SourceId, bool)>,
    /// Requests that broke the rules of the protocol.
    pub(super) bad: u64,
}

impl Requests {
    pub(super) fn new() -> Self {
        let (sender, privileges_known) = channel();
        Self {
            clients: Clients::new(),
            again: VecDeque::new(),
            waiting: SecondaryMap::new(),
            privileges: Helper::new("vsock-privilege", look_at_privilege, sender),
            privileges_known,
            bad: 0,
        }
    }

    /// Carries out what a program asks, as long as it is a client; `ended`: it will ask no more.
    pub(super) fn read(&mut self, parts: &mut Parts<'_>, id: SourceId, ended: bool) {
        for _ in 0..REQUESTS_PER_TURN {
            if self.waiting.get(id).is_some() {
                return;
            }
            let Some(client) = self.clients.get(id) else { return };
            match client.hear() {
                // Part of a request will never be a whole one then.
                Ok(Heard::Nothing) if ended => {
                    return self.refuse(parts, id, 0, BadRequest::Length);
                }
                Ok(Heard::Nothing) => return,
                Ok(Heard::Gone) => return self.drop_client(parts, id),
                Ok(Heard::Bad(op, bad)) => return self.refuse(parts, id, op, bad),
                Ok(Heard::Request(request, _)) if !client.may_ask(&request) => {
                    return self.refuse(parts, id, request.op(), BadRequest::Order);
                }
                Ok(Heard::Request(request, extra)) => {
                    parts.services.silent.remove(id);
                    match self.grant(parts, id, (request, &extra, Attempted::First)) {
                        Granted::Answered => {}
                        Granted::Over => return self.drop_client(parts, id),
                        Granted::Waits => {
                            self.waiting.insert(id, Again { client: id, request, extra });
                            return;
                        }
                        Granted::Again => {
                            return self.again.push_back(Again { client: id, request, extra });
                        }
                    }
                }
                Err(error) => {
                    parts.cx.failed(Failure::ReadingRequest(error));
                    return self.drop_client(parts, id);
                }
            }
        }
        self.renew(parts, id);
    }

    /// A request to be tried again.
    pub(super) fn next_again(&mut self) -> Option<Again> {
        self.again.pop_front()
    }

    /// Tries a request again, for the last time.
    pub(super) fn try_again(&mut self, parts: &mut Parts<'_>, again: &Again) {
        self.finish(parts, again, Attempted::Again);
    }

    /// It is known whether a program may bind ports below 1024: what it asked is carried out.
    pub(super) fn privilege_known(
        &mut self,
        parts: &mut Parts<'_>,
        id: SourceId,
        is_privileged: bool,
    ) {
        if let Some(waited) = self.waiting.remove(id) {
            self.finish(parts, &waited, Attempted::Privileged(is_privileged));
        }
    }

    fn finish(&mut self, parts: &mut Parts<'_>, again: &Again, attempted: Attempted) {
        let Again { client, request, extra } = again;
        match self.grant(parts, *client, (*request, extra, attempted)) {
            Granted::Answered | Granted::Again | Granted::Waits => self.renew(parts, *client),
            Granted::Over => self.drop_client(parts, *client),
        }
    }

    /// What epoll said of a client has not been carried out to its end: asks for it once more.
    fn renew(&self, parts: &Parts<'_>, id: SourceId) {
        if let Some(client) = self.clients.get(id) {
            parts.cx.sources.renew(&client.fd, id);
        }
    }

    /// A program breaks the rules of the protocol: its connection ends.
    fn refuse(&mut self, parts: &mut Parts<'_>, id: SourceId, op: u8, bad: BadRequest) {
        if let Some(client) = self.clients.get(id) {
            self.bad += 1;
            refuse(parts.cx, client, op, bad);
        }
        self.drop_client(parts, id);
    }

    /// A program is gone, or can ask nothing more.
    pub(super) fn drop_client(&mut self, parts: &mut Parts<'_>, id: SourceId) {
        let Some(client) = self.clients.remove(id) else { return };
        self.waiting.remove(id);
        parts.services.silent.remove(id);
        parts.cx.sources.remove(id);
        match client.kind {
            SocketType::Stream | SocketType::SeqPacket => {
                parts.services.listeners.release(client.bound);
            }
            SocketType::Datagram => parts.services.datagrams.release(client.bound),
        }
    }

    /// Carries out one request.
    fn grant(
        &mut self,
        parts: &mut Parts<'_>,
        id: SourceId,
        (request, extra, attempted): (Request, &[u8], Attempted),
    ) -> Granted {
        let reply = match request {
            Request::Bind(address) => {
                let address = from_wire(address);
                if attempted == Attempted::First && self.asks_privilege(parts.cx, id, address) {
                    return Granted::Waits;
                }
                let bound = self.bind(parts, id, address, attempted);
                bound.map_err(|errno| (op::BIND, errno))
            }
            Request::Listen { backlog, buffer, .. } => {
                return self.listen(parts, id, backlog, clamp_buffer(buffer), extra);
            }
            Request::Flow { cookie, buffer, receive_shut } => self
                .describe_flow(parts, id, (cookie, clamp_buffer(buffer), receive_shut))
                .map_err(|errno| (op::FLOW, errno)),
            Request::LocalCid => {
                let cid = parts.links.routes.local();
                Ok(wire::ok(op::LOCAL_CID, Address { cid, port: Port::ANY }))
            }
            Request::Send { to, number, .. } => {
                let Parts { cx, links, services, .. } = parts;
                let (from, to) = ((id, number), from_wire(to));
                let admission = &mut cx.admission;
                let sent =
                    services.datagrams.send(admission, links, &self.clients, from, to, extra);
                sent.map(|()| wire::ok(op::SEND, NO_ADDRESS)).map_err(|errno| (op::SEND, errno))
            }
            Request::Resolve { .. } => {
                resolve(parts.links, extra).map_err(|errno| (op::RESOLVE, errno))
            }
            Request::Connect { to, is_named, timeout_ms, buffer, report, .. } => {
                let mut to = from_wire(to);
                let held = Held::new(report, extra);
                if is_named {
                    let name = name_behind(extra).and_then(|name| std::str::from_utf8(name).ok());
                    let Some(cid) = name.and_then(|name| parts.links.resolve(name)) else {
                        to.cid = Cid::ANY;
                        return self.deny(parts, id, to, held, Refusal::NoRoute);
                    };
                    to.cid = cid;
                }
                let target = Target::new(to, timeout_ms, clamp_buffer(buffer));
                return match self.connect(parts, id, target, held) {
                    Ok(()) => Granted::Answered,
                    Err(Denied::Again) if attempted == Attempted::First => Granted::Again,
                    Err(denied) => self.deny(parts, id, to, held, denied.reason()),
                };
            }
            // No client may ask this.
            Request::Accepted => return Granted::Over,
        };
        let Some(client) = self.clients.get(id) else { return Granted::Over };
        let reply = reply.unwrap_or_else(|(op, errno)| wire::error(op, errno));
        match client.reply(&reply) {
            Ok(()) => Granted::Answered,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.refuse(parts, id, reply.op, BadRequest::Unread);
                Granted::Answered
            }
            Err(_) => Granted::Over,
        }
    }

    /// Asks whether the program may bind ports below 1024, if it matters. False: it does not, or nobody can be asked.
    fn asks_privilege(&mut self, cx: &Context, id: SourceId, address: Address) -> bool {
        let Some(client) = self.clients.get(id) else { return false };
        address.port.is_privileged() && client.bound.is_none() && {
            let inquiry = Inquiry::new(client.fd.as_fd(), client.peer);
            self.privileges.give(cx, (id, inquiry))
        }
    }

    fn bind(
        &mut self,
        parts: &mut Parts<'_>,
        id: SourceId,
        address: Address,
        attempted: Attempted,
    ) -> Result<Reply, Errno> {
        let client = self.clients.get(id).ok_or(Errno::INVAL)?;
        if client.bound.is_some() {
            return Err(Errno::INVAL);
        }
        let kind = client.kind;
        let is_privileged = match attempted {
            Attempted::Privileged(known) => known,
            Attempted::First | Attempted::Again => is_privileged_unseen(client.peer),
        };
        let taken = may_bind(parts, client, address, is_privileged).and_then(|()| {
            // A port is free as soon as the program that held it has closed its socket, which an event may tell later.
            let taken = match take_port(parts, id, kind, address) {
                Err(BindError::InUse) if self.drop_closed(parts, address.port) => {
                    take_port(parts, id, kind, address)
                }
                outcome => outcome,
            };
            Ok(taken?)
        });
        let bound = taken.map_err(|reason| errno_of_refused(parts.cx, reason))?;
        if let Some(client) = self.clients.get_mut(id) {
            client.bound = Some(bound);
        }
        let number = if kind == SocketType::Datagram { bound.id.to_bits() } else { 0 };
        Ok(Reply { flow: number, ..wire::ok(op::BIND, bound.address) })
    }

    /// Lets go of those that hold a port and have closed their socket; whether there were any.
    fn drop_closed(&mut self, parts: &mut Parts<'_>, port: Port) -> bool {
        let holds = |it: &Client| it.bound.is_some_and(|bound| bound.address.port == port);
        let clients = self.clients.iter().filter(|(_, it)| holds(it) && has_hung_up(&it.fd));
        let closed: Vec<SourceId> =
            clients.map(|(id, _)| id).chain(parts.services.listeners.closed_at(port)).collect();
        for &id in &closed {
            self.drop_client(parts, id);
            parts.services.listeners.drop(parts.cx, id);
        }
        !closed.is_empty()
    }

    /// What is to be known of a connection that its program cannot see, its receive buffer from now on, and that the
    /// program receives no more, which its descriptor does not tell us in every state; or how it ended.
    fn describe_flow(
        &mut self,
        parts: &mut Parts<'_>,
        id: SourceId,
        (cookie, buffer, stops): (u64, u32, bool),
    ) -> Result<Reply, Errno> {
        let uid = self.clients.get(id).ok_or(Errno::INVAL)?.peer.uid;
        let socket = Socket { uid, cookie };
        let Parts { cx, links, flows, services } = parts;
        let Some(flow_id) = services.register.flow(socket) else {
            let Ended { ours, theirs, reason } =
                services.register.ended(socket).ok_or(Errno::NOTCONN)?;
            let (ours, theirs) = (to_wire(ours), to_wire(theirs));
            return Ok(Reply { ours, theirs, ..wire::error(op::FLOW, end_errno(reason)) });
        };
        let flow = flows.get_mut(flow_id).ok_or(Errno::NOTCONN)?;
        let (link, connection) = (flow.link, flow.connection);
        let Parties { ours, theirs, .. } = flow.parties;
        let update = if stops { flow.stop_receiving() } else { Update::default() };
        flows.tell(cx, links, flow_id, update);
        let endpoint = links.interface(link).ok_or(Errno::NOTCONN)?.endpoint_mut();
        flows.set_buffer_of(flow_id, endpoint, buffer);
        let peer_buffer = endpoint.max_message(connection);
        links.activate(link);
        let number = flow_id.to_bits();
        Ok(Reply { theirs: to_wire(theirs), peer_buffer, flow: number, ..wire::ok(op::FLOW, ours) })
    }

    fn listen(
        &mut self,
        parts: &mut Parts<'_>,
        id: SourceId,
        backlog: u32,
        buffer: u32,
        extra: &[u8],
    ) -> Granted {
        let Some(client) = self.clients.get(id) else { return Granted::Over };
        let Parts { cx, services, .. } = parts;
        let listens = client.bound.ok_or(Refusal::NotBound).and_then(|bound| {
            let own = Party::Program(program(client.peer));
            let asked = admission::Attempt::connect(own, own, bound.address.port, client.kind);
            let asked = admission::Attempt { act: Act::Listen, ..asked };
            cx.admission.decide(&asked).limits()?;
            services.listeners.listen(bound, client.kind, backlog)?;
            Ok(bound)
        });
        let reply = match listens {
            Ok(bound) => wire::ok(op::LISTEN, bound.address),
            Err(reason) => wire::error(op::LISTEN, errno_of_refused(cx, reason)),
        };
        if client.reply(&reply).is_err() {
            return Granted::Over;
        }
        if let Ok(bound) = listens
            && let Some(client) = self.clients.remove(id)
        {
            let (inherited, queue) = (extra.to_vec(), AcceptQueue::default());
            let listener = Listener { client, bound, buffer, inherited, queue };
            parts.services.listeners.add(parts.cx, id, listener);
        }
        Granted::Answered
    }

    /// Starts a connection for a program; its descriptor becomes the flow's.
    fn connect(
        &mut self,
        parts: &mut Parts<'_>,
        id: SourceId,
        target: Target,
        request: Held,
    ) -> Result<(), Denied> {
        let Parts { cx, links, flows, services } = parts;
        let client = self.clients.get_mut(id).ok_or(Refusal::GivenUp)?;
        if has_hung_up(&client.fd) {
            // Its REQUEST would reach whoever listens by now, which the program never asked.
            return Err(Refusal::GivenUp.into());
        }
        let (kind, user) = (client.kind, client.peer.uid);
        let asked = links.attempt_of_program(program(client.peer), Act::Connect, target.to, kind);
        let decided = cx.admission.decide(&asked).limits();
        // In the order of the kernel: what is known of the way, then a port, then whether anybody is there. The port
        // stays, also if nobody is.
        if let Err(reason) = decided
            && reason != Refusal::NoRoute
        {
            return Err(reason.into());
        }
        let own = client.bound;
        let bound = own.map_or_else(|| services.listeners.bind_ephemeral(), Ok);
        let bound = bound.map_err(Refusal::from)?;
        let limits = decided.inspect_err(|_| client.bound = Some(bound))?;
        let link = links.routes.to(target.to.cid).ok_or(Refusal::NoRoute)?;
        let started = start(cx, links, (link, user), bound, target, kind);
        let (connection, key, attempt) = started.map_err(|reason| {
            if own.is_none() {
                services.listeners.release(Some(bound));
            }
            let is_own = reason == Refusal::AddressesInUse && link == links.routes.loopback();
            if is_own { Denied::Again } else { Denied::Refused(reason) }
        })?;
        let interface = links.interface(link).ok_or(Refusal::NoRoute)?;
        let share = flows.share(interface, connection, target.buffer.min(limits.buffer));
        let client = self.clients.remove(id).ok_or(Refusal::GivenUp)?;
        let socket = Socket { uid: client.peer.uid, cookie: request.cookie };
        let greeting = match request.report {
            Report::Reply => Greeting::Reply,
            Report::Held { prompt } => {
                if prompt {
                    let begun =
                        wire::not_connected(Errno::INPROGRESS, bound.address, request.cookie);
                    // A program that named the guest learns the CID by this.
                    let begun = Reply { theirs: to_wire(target.to), ..begun };
                    // Should it fail, the program is gone, which an event will tell.
                    let _ = client.reply(&begun);
                }
                Greeting::Held(request.len)
            }
        };
        let parties = Parties::outgoing(key, kind, client.peer);
        let holdings = Holdings { binding: Some(bound), socket, share };
        let flow = Flow::connecting((link, connection), parties, holdings, client.fd, greeting);
        begin(parts, id, flow.answered_in(attempt));
        Ok(())
    }

    /// An attempt that did not even start: the program is told why and may ask again.
    fn deny(
        &mut self,
        parts: &mut Parts<'_>,
        id: SourceId,
        to: Address,
        request: Held,
        reason: Refusal,
    ) -> Granted {
        let Some(Client { fd, kind, peer, bound }) = self.clients.remove(id) else {
            return Granted::Over;
        };
        let refused = parts.cx.admission.refuse(reason);
        let port = bound.map_or(Port::ANY, |bound| bound.address.port);
        let key = FlowKey { ours: Address { cid: parts.links.routes.local(), port }, theirs: to };
        FlowLog { cx: parts.cx, links: parts.links }.denied(
            &Parties::outgoing(key, kind, peer),
            None,
            refused,
        );
        let ours = bound.map_or(NO_ADDRESS, |bound| bound.address);
        let mut stream = Stream::new(fd, kind);
        let reply = wire::not_connected(errno(reason), ours, request.cookie);
        let told = stream.greet(request.unread(), &reply.encode());
        self.clients.insert(id, Client::new(stream.into_fd(), kind, peer, bound));
        if told.is_ok() { Granted::Answered } else { Granted::Over }
    }
}

/// Looks whether a program may bind ports below 1024.
fn look_at_privilege((client, inquiry): (SourceId, Inquiry)) -> (SourceId, bool) {
    (client, inquiry.answer())
}

/// Takes a port of the kind that a program's sockets have.
fn take_port(
    parts: &mut Parts<'_>,
    id: SourceId,
    kind: SocketType,
    address: Address,
) -> Result<Bound, BindError> {
    match kind {
        SocketType::Stream | SocketType::SeqPacket => parts.services.listeners.bind(address),
        SocketType::Datagram => parts.services.datagrams.bind(id, address),
    }
}

/// Whether a program may take a port here.
fn may_bind(
    parts: &Parts<'_>,
    client: &Client,
    address: Address,
    may_use_privileged: bool,
) -> Result<(), Refusal> {
    let Address { cid, port } = address;
    let own = Party::Program(Program { may_use_privileged, ..program(client.peer) });
    let to = if parts.services.listeners.is_local(cid) { own } else { Party::Nobody(cid) };
    let asked = admission::Attempt::connect(own, to, port, client.kind);
    let asked = admission::Attempt { act: Act::Bind, ..asked };
    parts.cx.admission.decide(&asked).limits().map(|_| ())
}

/// Counts a refusal and says what the program's call gives.
fn errno_of_refused(cx: &mut Context, reason: Refusal) -> Errno {
    errno(cx.admission.refuse(reason).reason())
}

/// Tells a program that it breaks the rules of the protocol, which ends its connection.
pub(super) fn refuse(cx: &Context, client: &Client, op: u8, bad: BadRequest) {
    cx.note(None, Event::BadRequest { pid: client.peer.pid, bad });
    // It may not even read; the connection ends all the same.
    let _ = client.reply(&wire::error(op, Errno::PROTO));
    client.fd.finish();
}

/// A buffer size as programs say it: cut to what one flow may hold of our memory.
pub(super) fn clamp_buffer(buffer: u64) -> u32 {
    u32::try_from(buffer).unwrap_or(u32::MAX).min(FlowLimits::default().buffer)
}

/// The CID of a guest of this name.
fn resolve(links: &Links, name: &[u8]) -> Result<Reply, Errno> {
    let name = std::str::from_utf8(name).map_err(|_| Errno::INVAL)?;
    let cid = links.resolve(name).ok_or(Errno::NODEV)?;
    let theirs = to_wire(Address { cid, port: Port::ANY });
    Ok(Reply { theirs, ..wire::ok(op::RESOLVE, NO_ADDRESS) })
}
