//! The host side of a node: programs on Unix sockets, what they ask, and what is asked of them.
//!
//! | file | what it is |
//! | --- | --- |
//! | `programs.rs` | which program an event is about; what a guest asks goes to a program |
//! | `pending.rs` | programs that wait for their turn |
//! | `requests.rs`, `connect.rs` | what a program asks is carried out |
//! | `acceptors.rs`, `silent.rs` | the sockets on which programs connect; programs that have not spoken yet |
//! | `listeners.rs`, `accept_queue.rs`, `privilege.rs` | ports, and programs that take connections |
//! | `hybrid.rs` | hybrid sockets; what is spoken on them is in `host/handshake.rs` |
//! | `datagrams.rs` | programs that send and receive datagrams |
//! | `register.rs` | which connection a program's socket is, and how the last ones ended |
//! | `saved.rs`, also below others | programs as plain data |

mod accept_queue;
mod acceptors;
mod connect;
mod datagrams;
mod hybrid;
mod listeners;
mod pending;
mod privilege;
mod register;
mod requests;
mod saved;
mod silent;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

use rustix::io::Errno;
use vsock_core::admission::{Act, Answerer, Attempt};
use vsock_core::{Address, Cid, CloseReason, ConnectionId, FlowKey, Instant, Refusal, SocketType};

pub use self::accept_queue::{SavedAcceptQueue, SavedKept};
use self::acceptors::{Acceptors, Arrival, Speaks};
pub use self::acceptors::{SavedAcceptor, SavedSpeaks};
use self::datagrams::Datagrams;
pub use self::datagrams::{SavedDatagramSocket, SavedDatagrams};
pub(crate) use self::hybrid::Connected;
use self::hybrid::{HybridClient, Hybrids};
pub use self::hybrid::{SavedHybridClient, SavedHybridSocket, SavedHybrids};
use self::listeners::{Given, Listeners};
pub use self::listeners::{SavedListener, SavedListeners};
use self::pending::Pending;
use self::register::Register;
pub use self::register::SavedEnds;
use self::requests::{Again, Requests};
pub use self::requests::{SavedClient, SavedRequest, SavedRequests};
pub use self::saved::SavedPrograms;
use self::silent::Silent;
use crate::context::Context;
use crate::events::{Event, Failure, NotOpened};
use crate::flow_log::FlowLog;
use crate::flows::{Flow, Flows, Greeting, Holdings, NotConnected, Outcome, Parties};
use crate::host::client::Client;
use crate::host::handshake::{Handshake, NoConnection};
use crate::host::places::Holder;
use crate::host::program::Socket;
use crate::host::socket::ProgramSocket;
use crate::host::wire::{self, NO_ADDRESS};
use crate::links::{Interface, LinkId, Links, Role, Sends, Update};
use crate::orders::HybridSocket;
use crate::reactor::{Owner, Readiness, SourceId};
use crate::snapshot::{DatagramInfo, ListenerInfo};
use vsock_virtio::sys::PeerCredentials;

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

/// What programs may have besides a connection: ports, and what is known of their sockets.
struct Services {
    listeners: Listeners,
    datagrams: Datagrams,
    register: Register,
    silent: Silent,
}

/// All that a request may have to do with.
struct Parts<'a> {
    cx: &'a mut Context,
    links: &'a mut Links,
    flows: &'a mut Flows,
    services: &'a mut Services,
}

/// All programs of a node, but for their connections.
pub(crate) struct Programs {
    /// At whose descriptors something has happened.
    pub(crate) pending: Pending,
    acceptors: Acceptors,
    requests: Requests,
    hybrids: Hybrids,
    services: Services,
}

impl Programs {
    /// No programs.
    pub(crate) fn new(local: Cid, seed: u64) -> Self {
        let services = Services {
            listeners: Listeners::new(local, seed),
            // Their ports are a space of their own.
            datagrams: Datagrams::new(local, seed.rotate_left(32)),
            register: Register::default(),
            silent: Silent::default(),
        };
        Self {
            pending: Pending::default(),
            acceptors: Acceptors::default(),
            requests: Requests::new(),
            hybrids: Hybrids::new(),
            services,
        }
    }

    /// The node has another CID.
    pub(crate) fn set_local(&mut self, cid: Cid) {
        self.services.listeners.set_local(cid);
        self.services.datagrams.set_local(cid);
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
        socket: Option<HybridSocket>,
    ) -> io::Result<()> {
        self.hybrids.set(cx, &mut self.acceptors, link, socket)
    }

    /// A guest is gone.
    pub(crate) fn forget_link(&mut self, cx: &mut Context, link: LinkId) {
        for id in self.hybrids.forget(cx, &mut self.acceptors, link) {
            self.services.silent.remove(id);
        }
    }

    /// Lets a program stand in line at whose descriptor something has happened, or who wants to be let in.
    pub(crate) fn wait(&mut self, owner: Owner, ready: Readiness) {
        let id = ready.source;
        let asker = match owner {
            Owner::Client => self.requests.clients.get(id).map(|it| it.peer),
            Owner::HybridClient => self.hybrids.peer(id),
            Owner::Listener => self.services.listeners.peer(id),
            Owner::Acceptor | Owner::Queue | Owner::Device | Owner::Flow => None,
        };
        self.pending.push(asker, ready);
    }

    /// Carries out what happened at a program's descriptor, or where programs connect.
    pub(crate) fn on_ready(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        flows: &mut Flows,
        (owner, ready): (Owner, Readiness),
    ) {
        if owner == Owner::Acceptor {
            return self.accept(cx, links, flows, ready.source);
        }
        let Self { requests, hybrids, services, .. } = self;
        let (id, ended) = (ready.source, ready.read_closed);
        match owner {
            Owner::Client => requests.read(&mut Parts { cx, links, flows, services }, id, ended),
            Owner::HybridClient => {
                hybrids.read_request(&mut Parts { cx, links, flows, services }, id, ended);
            }
            Owner::Listener => services.listeners.read(cx, id, ended),
            Owner::Acceptor | Owner::Queue | Owner::Device | Owner::Flow => {}
        }
    }

    /// When [`resume`](Self::resume) is due.
    pub(crate) fn resume_at(&self) -> Option<Instant> {
        self.acceptors.resume_at().into_iter().chain(self.services.silent.next()).min()
    }

    /// Lets in a program that waits at a socket of ours. It may have said something already.
    fn accept(&mut self, cx: &mut Context, links: &mut Links, flows: &mut Flows, id: SourceId) {
        let (arrival, has_more) = self.acceptors.accept(cx, id);
        if let Some(arrival) = arrival {
            let peer = arrival.peer;
            if let Some(source) = self.let_in(cx, arrival) {
                self.pending.push(Some(peer), Readiness::readable(source));
                let waits = |id| self.pending.has(id);
                let oldest = self.services.silent.add(source, peer.uid, cx.now, waits);
                if let Some(oldest) = oldest {
                    self.drop_program(cx, links, flows, oldest);
                }
            }
        }
        if has_more {
            self.pending.push(None, Readiness::readable(id));
        }
    }

    /// Programs that could not be let in before are to be let in now, and those that say nothing are let go.
    pub(crate) fn resume(&mut self, cx: &mut Context, links: &mut Links, flows: &mut Flows) {
        let waits = |id| self.pending.has(id);
        for id in self.services.silent.take_due(cx.now, waits) {
            self.drop_program(cx, links, flows, id);
        }
        for id in self.acceptors.resume(cx.now) {
            self.pending.push(None, Readiness::readable(id));
        }
    }

    fn let_in(&mut self, cx: &mut Context, arrival: Arrival) -> Option<SourceId> {
        let Arrival { fd, peer, speaks } = arrival;
        let owner = match speaks {
            Speaks::Requests(_) => Owner::Client,
            Speaks::Handshake(..) => Owner::HybridClient,
        };
        let added = cx.sources.add(&fd, owner);
        let id = added.map_err(|error| cx.failed(Failure::Watching(error))).ok()?;
        match speaks {
            Speaks::Requests(kind) => {
                self.requests.clients.insert(id, Client::new(fd, kind, peer, None));
            }
            Speaks::Handshake(link, handshake) => {
                self.hybrids.add(id, HybridClient { fd, link, peer, handshake });
            }
        }
        Some(id)
    }

    /// Which program has been looked at, and whether it may bind ports below 1024.
    pub(crate) fn next_privilege(&self) -> Option<(SourceId, bool)> {
        self.requests.privileges_known.try_recv().ok()
    }

    /// The program's end of a connection that a guest asked for over its hybrid socket, or that nobody is there.
    pub(crate) fn next_connected(&self) -> Option<Connected> {
        self.hybrids.connected.try_recv().ok()
    }

    /// It is known whether a program that waits for that may bind ports below 1024.
    pub(crate) fn privilege_known(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        flows: &mut Flows,
        (client, is_privileged): (SourceId, bool),
    ) {
        let Self { requests, services, .. } = self;
        let parts = &mut Parts { cx, links, flows, services };
        requests.privilege_known(parts, client, is_privileged);
    }

    /// Asks again what helpers of a predecessor were asked for programs.
    pub(crate) fn ask_again(&mut self, cx: &mut Context, links: &mut Links, flows: &mut Flows) {
        let Self { requests, services, .. } = self;
        requests.ask_again(&mut Parts { cx, links, flows, services });
    }

    /// A request to be tried again.
    pub(crate) fn next_again(&mut self) -> Option<Again> {
        self.requests.next_again()
    }

    /// Tries a request again, for the last time.
    pub(crate) fn try_again(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        flows: &mut Flows,
        again: &Again,
    ) {
        let services = &mut self.services;
        self.requests.try_again(&mut Parts { cx, links, flows, services }, again);
    }

    /// Lets go of a program with which something went wrong here.
    pub(crate) fn drop_program(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        flows: &mut Flows,
        id: SourceId,
    ) {
        let services = &mut self.services;
        services.silent.remove(id);
        services.listeners.drop(cx, id);
        self.hybrids.drop_client(cx, id);
        self.requests.drop_client(&mut Parts { cx, links, flows, services }, id);
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
        let listener = self.services.listeners.lookup(key.ours);
        let answerer = match listener {
            Some(listener) => Answerer::Listener(listener),
            None if self.hybrids.has(link) => Answerer::Hybrid,
            None => Answerer::Nobody,
        };
        let attempt = links.attempt_over((link, interface.role()), Act::Connect, key, kind);
        let attempt = Attempt { answerer, ..attempt };
        let decision = match interface.role() {
            Role::Loopback => cx.admission.decide_answer(&attempt),
            Role::Guest(_) | Role::Uplink => cx.admission.decide(&attempt).limits(),
        };
        let user = listener.as_ref().and_then(|it| self.services.listeners.user(it));
        let holder = match (interface.role(), user) {
            (Role::Loopback | Role::Uplink, Some(user)) => Holder::User(user),
            // Where nobody listens it is a guest's, for its hybrid socket, or refused.
            (Role::Guest(_) | Role::Loopback | Role::Uplink, _) => Holder::Guest(link),
        };
        let given = decision.and_then(|limits| {
            if interface.endpoint().info(connection).is_none() {
                return Err(Refusal::GivenUp);
            }
            if interface.buffers().are_used_up() {
                return Err(Refusal::OverLimits);
            }
            let place = cx.sockets.places.take(holder).ok_or(Refusal::OverLimits)?;
            match &listener {
                Some(listener) => {
                    let asked = (connection, key, limits);
                    let at = (listener, place);
                    let given = self.services.listeners.offer(cx, flows, interface, asked, at)?;
                    Ok(Some((given, None)))
                }
                None => self.hybrids.connect_to(cx, asked, place).map(|()| None),
            }
        });
        if let Some(given) = given.transpose() {
            self.answer(cx, links, flows, interface, (asked, given));
        }
    }

    /// A program is there, or is not, for the connection that a guest with a hybrid socket asks for.
    pub(crate) fn hybrid_connected(
        &mut self,
        cx: &mut Context,
        links: &Links,
        flows: &mut Flows,
        interface: &mut Interface,
        Connected { asked, handshake, program }: Connected,
    ) {
        let given = program.and_then(|fd| {
            if interface.endpoint().info(asked.connection).is_none() {
                return Err(Refusal::GivenUp);
            }
            Ok((self.give_hybrid(cx, flows, interface, &asked, fd)?, Some(handshake)))
        });
        self.answer(cx, links, flows, interface, (asked, given));
    }

    /// Accepts a connection, which is the program's flow from now on, or refuses it.
    fn answer(
        &mut self,
        cx: &mut Context,
        links: &Links,
        flows: &mut Flows,
        interface: &mut Interface,
        (asked, given): (Asked, Result<(Given, Option<&'static Handshake>), Refusal>),
    ) {
        let Asked { link, connection, key, kind } = asked;
        let at = (link, interface.role().label());
        let (Given { fd, source, peer, share, socket }, by) = match given {
            Ok(given) => given,
            Err(reason) => {
                let refused = cx.admission.refuse(reason);
                FlowLog { cx, links }.unwanted(at, key, kind, refused);
                return interface.endpoint_mut().refuse(connection, refused);
            }
        };
        let parties = Parties::incoming(key, kind, peer);
        FlowLog { cx, links }.opened(at, &parties, by);
        self.services.register.opened(socket, source);
        let holdings = Holdings { binding: None, socket, share };
        flows.begin(source, Flow::open((link, connection), parties, holdings, fd));
        interface.endpoint_mut().accept(connection);
        interface.update(cx.now, connection, Update::sends(Sends::More));
    }

    fn give_hybrid(
        &self,
        cx: &mut Context,
        flows: &mut Flows,
        interface: &mut Interface,
        asked: &Asked,
        fd: ProgramSocket,
    ) -> Result<Given, Refusal> {
        let peer = PeerCredentials::of(fd.as_fd()).unwrap_or(NOBODY);
        let source = cx.sources.add(&fd, Owner::Flow);
        let source = source.map_err(|error| {
            cx.note(asked.key.theirs.cid, Event::Failed(Failure::NewConnection(error)));
            Refusal::OutOfDescriptors
        })?;
        let socket = Socket { uid: NOBODY.uid, cookie: 0 };
        let share = flows.share(interface, asked.connection, 0);
        Ok(Given { fd, source, peer, share, socket })
    }

    /// A flow is none any more.
    pub(crate) fn flow_over(&mut self, cx: &mut Context, links: &Links, outcome: Outcome) {
        match outcome {
            Outcome::Ended(_, Holdings { binding, socket, .. }, ended) => {
                self.services.register.closed(socket, ended);
                self.services.listeners.release(binding);
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
        self.services.register.forget(socket);
        let held = match greeting {
            Greeting::Reply => 0,
            Greeting::Held(len) => len,
            Greeting::Handshake(handshake) => {
                self.services.listeners.release(binding);
                cx.sources.remove(id);
                let words = (handshake.refused)(NoConnection::NotOpened(NotOpened::Closed(reason)));
                // Fails only when the program has gone already.
                let _ = stream.greet(0, &words);
                return stream.finish();
            }
        };
        // The port stays bound, as the kernel keeps it after a connect that failed.
        let ours = binding.map_or(NO_ADDRESS, |bound| bound.address);
        let reply = wire::not_connected(errno, ours, socket.cookie);
        let told = stream.greet(held, &reply.encode());
        if told.is_err() || stream.hung_up {
            self.services.listeners.release(binding);
            cx.sources.remove(id);
            return;
        }
        let client = Client::new(stream.into_fd(), parties.kind, parties.peer, binding);
        cx.sources.hand_over(&client.fd, id, Owner::Client);
        self.requests.clients.insert(id, client);
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
        self.services.datagrams.received(
            &mut cx.admission,
            links,
            &self.requests.clients,
            from,
            addresses,
            (bytes, is_ours),
        );
    }

    /// A datagram that came over a link was lost.
    pub(crate) fn datagram_lost(&mut self) {
        self.services.datagrams.lost();
    }

    /// Programs that listen.
    pub(crate) fn listener_infos(&self) -> Vec<ListenerInfo> {
        self.services.listeners.infos()
    }

    /// Programs that receive datagrams.
    pub(crate) fn datagram_infos(&self) -> Vec<DatagramInfo> {
        self.services.datagrams.infos(&self.requests.clients)
    }

    /// Counters, by name.
    pub(crate) fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let bad = self.requests.bad + self.services.listeners.bad + self.hybrids.bad;
        [("bad_requests", bad)].into_iter().chain(self.services.datagrams.counters())
    }
}
