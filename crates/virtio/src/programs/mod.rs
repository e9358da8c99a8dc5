//! The host side of a node: programs on Unix sockets, what they ask, and what is asked of them.
//!
//! | file | what it is |
//! | --- | --- |
//! | `mod.rs` | what a program asks is carried out; what a guest asks goes to a program |
//! | `acceptors.rs` | the sockets on which programs connect |
//! | `listeners.rs`, `accept_queue.rs`, `privilege.rs` | ports, and programs that take connections |
//! | `hybrid.rs`, `handshake.rs` | hybrid sockets, and the line that is spoken on them |
//! | `datagrams.rs` | programs that send and receive datagrams |
//! | `register.rs` | which connection a program's socket is, and how the last ones ended |
//!
//! `vsock_client::wire` and `docs/reference/client-protocol.md` say what the requests mean.

mod accept_queue;
mod acceptors;
mod connect;
mod datagrams;
pub(crate) mod handshake;
mod hybrid;
mod listeners;
mod privilege;
mod register;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use rustix::io::Errno;
use vsock_core::admission::{self, Act, Answerer, FlowLimits, Party};
use vsock_core::{
    Address, BindError, Cid, CloseReason, ConnectionId, FlowKey, Instant, Port, Refusal, SocketType,
};

use self::accept_queue::AcceptQueue;
use self::acceptors::{Acceptors, Arrival, Speaks};
use self::connect::{Attempt, Denied, Held};
use self::datagrams::{Clients, Datagrams};
use self::handshake::Progress;
use self::hybrid::{HybridClient, Hybrids};
use self::listeners::{Given, Listener, Listeners};
use self::privilege::may_bind_any_port;
use self::register::{Register, end_errno};
use crate::admission::errno;
use crate::context::Context;
use crate::flow_log::FlowLog;
use crate::flows::stream::finish;
use crate::flows::{Ended, Flow, Flows, Greeting, Holdings, NotConnected, Outcome, Parties};
use crate::host::client::{Client, Heard, has_hung_up};
use crate::host::program::{Bound, Socket};
use crate::host::wire::{self, BadRequest, NOWHERE, Reply, Request, from_wire, op, to_wire};
use crate::links::{Interface, LinkId, Links, Role, Sends, Update};
use crate::reactor::{Owner, Readiness, SourceId};
use crate::snapshot::{DatagramInfo, ListenerInfo};
use crate::sys::PeerCredentials;

/// Requests of one program before others have their turn.
const REQUESTS_PER_TURN: usize = 32;

/// The program behind a hybrid socket that cannot be seen.
const NOBODY: PeerCredentials = PeerCredentials { pid: 0, uid: u32::MAX, gid: u32::MAX };

/// A connection that the other side of a link asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) link: LinkId,
    pub(crate) connection: ConnectionId,
    pub(crate) key: FlowKey,
    pub(crate) kind: SocketType,
}

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
}

/// All programs of a node, but for their connections.
pub(crate) struct Programs {
    acceptors: Acceptors,
    clients: Clients,
    hybrids: Hybrids,
    listeners: Listeners,
    register: Register,
    datagrams: Datagrams,
    /// Requests to be tried again.
    again: VecDeque<Again>,
    bad_requests: u64,
}

impl Programs {
    /// No programs.
    pub(crate) fn new(local: Cid, seed: u64) -> Self {
        Self {
            acceptors: Acceptors::default(),
            clients: Clients::new(),
            hybrids: Hybrids::default(),
            listeners: Listeners::new(local, seed),
            register: Register::default(),
            // Their ports are a space of their own.
            datagrams: Datagrams::new(local, seed.rotate_left(32)),
            again: VecDeque::new(),
            bad_requests: 0,
        }
    }

    /// The node has another CID.
    pub(crate) fn set_local(&mut self, cid: Cid) {
        self.listeners.set_local(cid);
        self.datagrams.set_local(cid);
    }

    /// Listens for programs that ask for sockets of a type.
    pub(crate) fn add_acceptor(
        &mut self,
        cx: &mut Context,
        socket: UnixListener,
        kind: SocketType,
    ) -> io::Result<()> {
        self.acceptors.add(cx, socket, Speaks::Requests(kind)).map(|_| ())
    }

    /// Gives a guest another hybrid socket, or none.
    pub(crate) fn set_hybrid(
        &mut self,
        cx: &mut Context,
        link: LinkId,
        socket: Option<(PathBuf, UnixListener)>,
    ) -> io::Result<()> {
        self.hybrids.set(cx, &mut self.acceptors, link, socket)
    }

    /// A guest is gone.
    pub(crate) fn forget_link(&mut self, cx: &mut Context, link: LinkId) {
        self.hybrids.forget(cx, &mut self.acceptors, link);
    }

    /// Something happened at a program's descriptor, or one of ours on which they connect.
    pub(crate) fn on_ready(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        flows: &mut Flows,
        (owner, ready): (Owner, Readiness),
    ) {
        let id = ready.source;
        match owner {
            Owner::Acceptor => self.accept(cx, links, flows, id),
            Owner::Client => self.read_requests(cx, links, flows, id, ready.read_closed),
            Owner::HybridClient => self.read_line(cx, links, flows, id, ready.read_closed),
            Owner::Listener => self.read_of_listener(cx, id, ready.read_closed),
            Owner::Ring | Owner::Device | Owner::Flow => {}
        }
    }

    /// When [`resume`](Self::resume) is due.
    pub(crate) fn resume_at(&self) -> Option<Instant> {
        self.acceptors.resume_at()
    }

    /// Lets in programs that could not be let in before.
    pub(crate) fn resume(&mut self, cx: &mut Context, links: &mut Links, flows: &mut Flows) {
        for id in self.acceptors.resume() {
            self.accept(cx, links, flows, id);
        }
    }

    fn accept(&mut self, cx: &mut Context, links: &mut Links, flows: &mut Flows, id: SourceId) {
        for Arrival { fd, peer, speaks } in self.acceptors.accept(cx, id) {
            let owner = match speaks {
                Speaks::Requests(_) => Owner::Client,
                Speaks::Hybrid(_) => Owner::HybridClient,
            };
            let id = match cx.sources.add(&fd, owner) {
                Ok(id) => id,
                Err(error) => {
                    cx.failed(format_args!("epoll: {error}"));
                    continue;
                }
            };
            match speaks {
                Speaks::Requests(kind) => {
                    self.clients.insert(id, Client::new(fd, kind, peer, None));
                    self.read_requests(cx, links, flows, id, false);
                }
                Speaks::Hybrid(link) => {
                    self.hybrids.add(id, HybridClient { fd, link, peer });
                    self.read_line(cx, links, flows, id, false);
                }
            }
        }
    }

    /// Carries out what a program asks, as long as it is a client; `ended`: it will ask no more.
    fn read_requests(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        flows: &mut Flows,
        id: SourceId,
        ended: bool,
    ) {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(client) = self.clients.get(id) else { return };
            match client.hear() {
                // Part of a request will never be a whole one then.
                Ok(Heard::Nothing) if ended => {
                    return self.refuse(cx, id, 0, BadRequest::Length);
                }
                Ok(Heard::Nothing) => return,
                Ok(Heard::Gone) => return self.drop_program(cx, id),
                Ok(Heard::Bad(op, bad)) => return self.refuse(cx, id, op, bad),
                Ok(Heard::Request(request, _)) if !client.may_ask(&request) => {
                    return self.refuse(cx, id, request.op(), BadRequest::Order);
                }
                Ok(Heard::Request(request, extra)) => {
                    match self.grant(cx, links, flows, id, (request, &extra, true)) {
                        Granted::Answered => {}
                        Granted::Over => return self.drop_program(cx, id),
                        Granted::Again => {
                            return self.again.push_back(Again { client: id, request, extra });
                        }
                    }
                }
                Err(error) => {
                    cx.failed(format_args!("reading a request: {error}"));
                    return self.drop_program(cx, id);
                }
            }
        }
        self.renew(cx, id);
    }

    /// A request to be tried again.
    pub(crate) fn next_again(&mut self) -> Option<Again> {
        self.again.pop_front()
    }

    /// Tries a request again, for the last time.
    pub(crate) fn try_again(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        flows: &mut Flows,
        again: &Again,
    ) {
        let Again { client, request, extra } = again;
        match self.grant(cx, links, flows, *client, (*request, extra, false)) {
            Granted::Answered | Granted::Again => self.renew(cx, *client),
            Granted::Over => self.drop_program(cx, *client),
        }
    }

    /// What epoll said of a client has not been carried out to its end: asks for it once more.
    fn renew(&self, cx: &Context, id: SourceId) {
        if let Some(client) = self.clients.get(id) {
            cx.sources.renew(&client.fd, id);
        }
    }

    /// A program breaks the rules of the protocol: its connection ends.
    fn refuse(&mut self, cx: &mut Context, id: SourceId, op: u8, bad: BadRequest) {
        let listener = self.listeners.get_mut(id).map(|listener| &listener.client);
        if let Some(client) = self.clients.get(id).or(listener) {
            let text = format!("request of pid {}: {bad}", client.peer.pid);
            cx.journal.write("bad-request", u32::MAX, text);
            self.bad_requests += 1;
            // It may not even read; the connection ends all the same.
            let _ = client.reply(&wire::error(op, Errno::PROTO));
            finish(&client.fd);
        }
        self.drop_program(cx, id);
    }

    /// A program is gone, or can ask nothing more.
    pub(crate) fn drop_program(&mut self, cx: &mut Context, id: SourceId) {
        let client = self.clients.remove(id);
        let listener = self.listeners.remove(id);
        if client.is_none() && listener.is_none() {
            return self.hybrids.drop_client(cx, id);
        }
        cx.sources.remove(id);
        match client {
            Some(client) if client.kind == SocketType::Datagram => {
                self.datagrams.release(client.bound);
            }
            Some(client) => self.listeners.release(client.bound),
            None => {}
        }
    }

    /// Carries out one request.
    fn grant(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        flows: &mut Flows,
        id: SourceId,
        (request, extra, is_first): (Request, &[u8], bool),
    ) -> Granted {
        let reply = match request {
            Request::Bind(address) => {
                self.bind(cx, id, from_wire(address)).map_err(|errno| (op::BIND, errno))
            }
            Request::Listen { backlog, buffer, .. } => {
                return self.listen(cx, id, backlog, clamp_buffer(buffer), extra);
            }
            Request::Flow { cookie, buffer, receive_shut } => self
                .describe_flow(cx, links, flows, id, (cookie, clamp_buffer(buffer), receive_shut))
                .map_err(|errno| (op::FLOW, errno)),
            Request::LocalCid => {
                let cid = links.local();
                Ok(wire::ok(op::LOCAL_CID, Address { cid, port: Port::ANY }))
            }
            Request::Send { to, number, .. } => self
                .datagrams
                .send(&mut cx.admission, links, &self.clients, (id, number), from_wire(to), extra)
                .map(|()| wire::ok(op::SEND, NOWHERE))
                .map_err(|errno| (op::SEND, errno)),
            Request::Resolve { .. } => resolve(links, extra).map_err(|errno| (op::RESOLVE, errno)),
            Request::Connect { to, timeout_ms, buffer, report, .. } => {
                let to = from_wire(to);
                let attempt = Attempt::new(to, timeout_ms, clamp_buffer(buffer));
                let held = Held::new(report, extra);
                return match self.connect(cx, links, flows, id, attempt, held) {
                    Ok(()) => Granted::Answered,
                    Err(Denied::Again) if is_first => Granted::Again,
                    Err(denied) => {
                        let refused = cx.admission.refuse(denied.reason());
                        self.deny(cx, links, id, to, held, refused)
                    }
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
                self.refuse(cx, id, reply.op, BadRequest::Unread);
                Granted::Answered
            }
            Err(_) => Granted::Over,
        }
    }

    fn bind(&mut self, cx: &mut Context, id: SourceId, address: Address) -> Result<Reply, Errno> {
        let client = self.clients.get(id).ok_or(Errno::INVAL)?;
        if client.bound.is_some() {
            return Err(Errno::INVAL);
        }
        let kind = client.kind;
        let taken = self.may_bind(cx, client, address).and_then(|()| {
            // A port is free as soon as the program that held it has closed its socket, which an event may tell later.
            let taken = match self.take_port(id, kind, address) {
                Err(BindError::InUse) if self.drop_closed(cx, address.port) => {
                    self.take_port(id, kind, address)
                }
                outcome => outcome,
            };
            Ok(taken?)
        });
        let bound = taken.map_err(|reason| refuse(cx, reason))?;
        if let Some(client) = self.clients.get_mut(id) {
            client.bound = Some(bound);
        }
        let number = if kind == SocketType::Datagram { bound.id.to_bits() } else { 0 };
        Ok(Reply { flow: number, ..wire::ok(op::BIND, bound.address) })
    }

    /// Whether a program may take a port here.
    fn may_bind(&self, cx: &Context, client: &Client, address: Address) -> Result<(), Refusal> {
        let Address { cid, port } = address;
        // Asked only where it matters: it costs a look at the program's entry in /proc.
        let may_use_privileged =
            port.is_privileged() && may_bind_any_port(client.fd.as_fd(), client.peer);
        let program = Party::Program { may_use_privileged };
        let to = if self.listeners.is_local(cid) { program } else { Party::Nobody(cid) };
        let attempt = admission::Attempt::connect(program, to, port, client.kind);
        let attempt = admission::Attempt { act: Act::Bind, ..attempt };
        cx.admission.decide(&attempt).limits().map(|_| ())
    }

    fn take_port(
        &mut self,
        id: SourceId,
        kind: SocketType,
        address: Address,
    ) -> Result<Bound, BindError> {
        match kind {
            SocketType::Stream | SocketType::SeqPacket => self.listeners.bind(address),
            SocketType::Datagram => self.datagrams.bind(id, address),
        }
    }

    /// Lets go of those that hold a port and have closed their socket; whether there were any.
    fn drop_closed(&mut self, cx: &mut Context, port: Port) -> bool {
        let holds = |it: &Client| it.bound.is_some_and(|bound| bound.address.port == port);
        let clients = self.clients.iter().filter(|(_, it)| holds(it) && has_hung_up(&it.fd));
        let closed: Vec<SourceId> =
            clients.map(|(id, _)| id).chain(self.listeners.closed_at(port)).collect();
        for &id in &closed {
            self.drop_program(cx, id);
        }
        !closed.is_empty()
    }

    /// What is to be known of a connection that its program cannot see, its receive buffer from now on, and that the
    /// program receives no more, which its descriptor does not tell us in every state; or how it ended.
    fn describe_flow(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        flows: &mut Flows,
        id: SourceId,
        (cookie, buffer, stops): (u64, u32, bool),
    ) -> Result<Reply, Errno> {
        let uid = self.clients.get(id).ok_or(Errno::INVAL)?.peer.uid;
        let socket = Socket { uid, cookie };
        let Some(flow_id) = self.register.flow(socket) else {
            let Ended { ours, theirs, reason } =
                self.register.ended(socket).ok_or(Errno::NOTCONN)?;
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
        cx: &mut Context,
        id: SourceId,
        backlog: u32,
        buffer: u32,
        extra: &[u8],
    ) -> Granted {
        let Some(client) = self.clients.get(id) else { return Granted::Over };
        let listens = client.bound.ok_or(Refusal::NotBound).and_then(|bound| {
            let own = Party::PROGRAM;
            let attempt = admission::Attempt::connect(own, own, bound.address.port, client.kind);
            let attempt = admission::Attempt { act: Act::Listen, ..attempt };
            cx.admission.decide(&attempt).limits()?;
            self.listeners.listen(bound, client.kind, backlog)?;
            Ok(bound)
        });
        let reply = match listens {
            Ok(bound) => wire::ok(op::LISTEN, bound.address),
            Err(reason) => wire::error(op::LISTEN, refuse(cx, reason)),
        };
        if client.reply(&reply).is_err() {
            return Granted::Over;
        }
        if let Ok(bound) = listens
            && let Some(client) = self.clients.remove(id)
        {
            let (inherited, queue) = (extra.to_vec(), AcceptQueue::default());
            self.listeners.add(cx, id, Listener { client, bound, buffer, inherited, queue });
        }
        Granted::Answered
    }

    /// What a listening program says: that it has taken a connection, or a new backlog.
    fn read_of_listener(&mut self, cx: &mut Context, id: SourceId, ended: bool) {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(listener) = self.listeners.get_mut(id) else { return };
            match listener.client.hear() {
                Ok(Heard::Nothing) if ended => {
                    return self.refuse(cx, id, 0, BadRequest::Length);
                }
                Ok(Heard::Nothing) => return,
                Ok(Heard::Request(Request::Accepted, _)) => self.listeners.accepted(id),
                Ok(Heard::Request(Request::Listen { backlog, buffer, .. }, extra)) => {
                    listener.buffer = clamp_buffer(buffer);
                    listener.inherited = extra;
                    let (bound, kind) = (listener.bound, listener.client.kind);
                    // It listens, so this can only change these.
                    let _ = self.listeners.listen(bound, kind, backlog);
                }
                Ok(Heard::Request(request, _)) => {
                    return self.refuse(cx, id, request.op(), BadRequest::Order);
                }
                Ok(Heard::Bad(op, bad)) => return self.refuse(cx, id, op, bad),
                Ok(Heard::Gone) | Err(_) => return self.drop_program(cx, id),
            }
        }
        if let Some(listener) = self.listeners.get_mut(id) {
            cx.sources.renew(&listener.client.fd, id);
        }
    }

    /// A program on a hybrid socket has written more of its line, or left.
    fn read_line(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        flows: &mut Flows,
        id: SourceId,
        ended: bool,
    ) {
        let Some(client) = self.hybrids.get(id) else { return };
        let (link, peer) = (client.link, client.peer);
        let guest = links.get(link).and_then(crate::links::Entry::guest);
        match handshake::advance(&client.fd, ended) {
            Ok(Progress::Waiting) => {}
            Ok(Progress::Connect(port)) => {
                let Some(cid) = guest else { return self.hybrids.drop_client(cx, id) };
                let to = Address { cid, port };
                if let Err(reason) = self.connect_hybrid(cx, links, flows, id, to) {
                    let refused = cx.admission.refuse(reason);
                    let ours = Address { cid: links.local(), port: Port::ANY };
                    let key = FlowKey { ours, theirs: to };
                    let parties = Parties::outgoing(key, SocketType::Stream, peer);
                    FlowLog { cx, links }.denied(&parties, true, refused);
                    self.hybrids.drop_client(cx, id);
                }
            }
            Ok(Progress::Bad) => {
                let text = format!("hybrid line of pid {}: not CONNECT and a port", peer.pid);
                cx.note("bad-request", guest.unwrap_or(Cid::ANY), text);
                self.bad_requests += 1;
                self.hybrids.drop_client(cx, id);
            }
            Ok(Progress::Gone) | Err(_) => self.hybrids.drop_client(cx, id),
        }
    }

    /// The other side of a link asks for a connection: a listener's queue, a hybrid socket, or a refusal.
    pub(crate) fn offered(
        &mut self,
        cx: &mut Context,
        links: &Links,
        flows: &mut Flows,
        interface: &mut Interface,
        asked: Asked,
    ) {
        let Asked { link, connection, key, kind } = asked;
        let at = (link, interface.role().label());
        let listener = self.listeners.lookup(key.ours);
        let answerer = match listener {
            Some(listener) => Answerer::Listener(listener),
            None if self.hybrids.path(link).is_some() => Answerer::Hybrid,
            None => Answerer::Nobody,
        };
        let from =
            links.get(link).map_or(Party::Nobody(key.theirs.cid), |it| it.party(interface.role()));
        let attempt = admission::Attempt::connect(from, Party::PROGRAM, key.ours.port, kind);
        let attempt = admission::Attempt { answerer, ..attempt };
        let given = cx.admission.decide(&attempt).limits().and_then(|limits| {
            if interface.endpoint().info(connection).is_none() {
                return Err(Refusal::GivenUp);
            }
            match &listener {
                Some(listener) => {
                    let asked = (connection, key, limits);
                    self.listeners.offer(cx, flows, interface, asked, listener)
                }
                None => self.offer_hybrid(cx, flows, &asked),
            }
        });
        let Given { fd, source, peer, share, socket } = match given {
            Ok(given) => given,
            Err(reason) => {
                let refused = cx.admission.refuse(reason);
                FlowLog { cx, links }.unwanted(at, key, kind, refused);
                return interface.endpoint_mut().refuse(connection, refused);
            }
        };
        let parties = Parties::incoming(key, kind, peer);
        let by_hybrid = listener.is_none().then_some(Greeting::Hybrid);
        FlowLog { cx, links }.opened(at, &parties, by_hybrid);
        self.register.opened(socket, source);
        let holdings = Holdings { binding: None, socket, share };
        flows.begin(source, Flow::open((link, connection), parties, holdings, fd));
        interface.endpoint_mut().accept(connection);
        interface.update(cx.now, connection, Update::sends(Sends::More));
    }

    fn offer_hybrid(
        &mut self,
        cx: &mut Context,
        flows: &mut Flows,
        asked: &Asked,
    ) -> Result<Given, Refusal> {
        let fd = self.hybrids.connect(asked.link, asked.key)?;
        let peer = PeerCredentials::of(fd.as_fd()).unwrap_or(NOBODY);
        let source = cx.sources.add(&fd, Owner::Flow);
        let source = source.map_err(|error| {
            let text = format!("new connection: {error}");
            cx.note("failed", asked.key.theirs.cid, text);
            Refusal::OutOfDescriptors
        })?;
        let socket = Socket { uid: NOBODY.uid, cookie: 0 };
        Ok(Given { fd, source, peer, share: flows.share(), socket })
    }

    /// A flow is none any more.
    pub(crate) fn flow_over(&mut self, cx: &mut Context, links: &Links, outcome: Outcome) {
        match outcome {
            Outcome::Ended(_, Holdings { binding, socket, .. }, ended) => {
                self.register.closed(socket, ended);
                self.listeners.release(binding);
            }
            Outcome::NotConnected(id, attempt) => self.not_connected(cx, links, id, *attempt),
        }
    }

    /// A connect that came to nothing: the program is told why and may ask again.
    fn not_connected(
        &mut self,
        cx: &mut Context,
        links: &Links,
        id: SourceId,
        attempt: NotConnected,
    ) {
        FlowLog { cx, links }.not_connected(&attempt);
        let NotConnected { mut stream, parties, holdings, greeting, reason, .. } = attempt;
        let Holdings { binding, socket, .. } = holdings;
        let errno = match reason {
            CloseReason::TimedOut => Errno::TIMEDOUT,
            CloseReason::ProtocolError => Errno::PROTO,
            CloseReason::LinkGone => Errno::NODEV,
            CloseReason::Refused
            | CloseReason::Reset
            | CloseReason::Done
            | CloseReason::OverCredit => Errno::CONNRESET,
        };
        self.register.forget(socket);
        let held = match greeting {
            Greeting::Reply => 0,
            Greeting::Held(len) => len,
            Greeting::Hybrid => {
                self.listeners.release(binding);
                cx.sources.remove(id);
                return stream.finish();
            }
        };
        // The port stays bound, as the kernel keeps it after a connect that failed.
        let ours = binding.map_or(NOWHERE, |bound| bound.address);
        let reply = wire::not_connected(errno, ours, socket.cookie);
        let told = stream.greet(held, &reply.encode());
        if told.is_err() || stream.hung_up {
            self.listeners.release(binding);
            cx.sources.remove(id);
            return;
        }
        let client = Client::new(stream.into_fd(), parties.kind, parties.peer, binding);
        cx.sources.hand_over(&client.fd, id, Owner::Client);
        self.clients.insert(id, client);
    }

    /// A datagram came over a link.
    pub(crate) fn datagram(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        from: (LinkId, Role),
        addresses: (Address, Address),
        bytes: &[u8],
        is_ours: bool,
    ) {
        let admission = &mut cx.admission;
        self.datagrams.received(admission, links, &self.clients, from, addresses, (bytes, is_ours));
    }

    /// A datagram that came over a link was lost.
    pub(crate) fn datagram_lost(&mut self) {
        self.datagrams.lost();
    }

    /// Programs that listen.
    pub(crate) fn listener_infos(&self) -> Vec<ListenerInfo> {
        self.listeners.infos()
    }

    /// Programs that receive datagrams.
    pub(crate) fn datagram_infos(&self) -> Vec<DatagramInfo> {
        self.datagrams.infos(&self.clients)
    }

    /// Counters, by name.
    pub(crate) fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [("bad_requests", self.bad_requests)].into_iter().chain(self.datagrams.counters())
    }
}

/// A buffer size as programs say it: cut to what one flow may hold of our memory.
fn clamp_buffer(buffer: u64) -> u32 {
    u32::try_from(buffer).unwrap_or(u32::MAX).min(FlowLimits::default().buffer)
}

/// Counts a refusal and says what the program's call gives.
fn refuse(cx: &mut Context, reason: Refusal) -> Errno {
    errno(cx.admission.refuse(reason).reason())
}

/// The CID of a guest of this name.
fn resolve(links: &Links, name: &[u8]) -> Result<Reply, Errno> {
    let name = std::str::from_utf8(name).map_err(|_| Errno::INVAL)?;
    let cid = links.resolve(name).ok_or(Errno::NODEV)?;
    let theirs = to_wire(Address { cid, port: Port::ANY });
    Ok(Reply { theirs, ..wire::ok(op::RESOLVE, NOWHERE) })
}
