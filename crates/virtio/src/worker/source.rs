//! Everything the worker listens to: one entry per file descriptor, at the index that is its token.
//!
//! A descriptor keeps its entry and its registration for life while its role changes: a program's connection starts as
//! a `Client`, and becomes a `Listener` or a `Flow` when its request is granted.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use vsock_core::{Address, Binding, CloseReason, ConnectionId, Instant, SocketType};

use crate::host::accept_queue::AcceptQueue;
use crate::host::budget::Share;
use crate::host::client::Client;
use crate::host::sockets::Socket;
use crate::host::stream::Stream;
use crate::vhost_user::PeerCredentials;

/// Which link of the node; never reused while anything refers to it.
pub(crate) type LinkId = usize;

/// No link: where a flow stands that outlives its link, because its program still reads.
pub(crate) const NOWHERE: LinkId = usize::MAX;

/// One entry.
#[derive(Debug)]
pub(crate) enum Source {
    /// Nothing any more; the index is free after this round.
    Ended,
    /// A ring's eventfd: there may be work on the link. The link owns the descriptor.
    Ring(LinkId),
    /// The vhost-user connection of a driver link: readable means that the device has gone.
    Device(LinkId, OwnedFd),
    /// Where programs connect.
    Programs(UnixListener, SocketType),
    /// A guest's hybrid socket.
    HybridDoor(UnixListener, LinkId),
    /// A program that has not got a stream yet.
    Client(Client),
    /// A program on a guest's hybrid socket, writing its line.
    HybridClient(HybridClient),
    /// A program that takes connections.
    Listener(Listener),
    /// A connection.
    Flow(Box<Flow>),
}

/// A port held for a program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) id: Binding,
    pub(crate) address: Address,
}

/// A program on a hybrid socket.
#[derive(Debug)]
pub(crate) struct HybridClient {
    pub(crate) fd: OwnedFd,
    pub(crate) link: LinkId,
    pub(crate) peer: PeerCredentials,
}

/// A program that listens; how long its queue is, is counted by the core.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) client: Client,
    pub(crate) bound: Bound,
    /// Receive buffer of the connections it takes; 0: the default.
    pub(crate) buffer: u32,
    /// What the program wants back with each of them: the options that they inherit as of now.
    pub(crate) inherited: Vec<u8>,
    /// Those it has not taken.
    pub(crate) queue: AcceptQueue,
}

/// How a program wants to hear that it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// A reply of the client protocol.
    Reply,
    /// The request, so many bytes, is taken out of its socket.
    Held(usize),
    /// `OK <port>\n`.
    Hybrid,
}

/// Where a flow stands, seen from its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// REQUEST is out; the program waits.
    Connecting(Greeting),
    /// Bytes flow.
    Open,
    /// The guest's side is over; what it sent last still waits for the program.
    Draining,
}

/// One connection between a program here and the other side of a link.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) link: LinkId,
    pub(crate) id: ConnectionId,
    pub(crate) kind: SocketType,
    pub(crate) ours: Address,
    pub(crate) theirs: Address,
    pub(crate) stream: Stream,
    pub(crate) phase: Phase,
    pub(crate) peer: PeerCredentials,
    pub(crate) binding: Option<Bound>,
    /// We opened it (else the other side did).
    pub(crate) is_outgoing: bool,
    /// In the link's queue of flows with something to send.
    pub(crate) is_queued: bool,
    /// The program's end of data has been passed on.
    pub(crate) our_end_sent: bool,
    /// The guest has ended its data; told to the program once the backlog is out.
    pub(crate) their_end: bool,
    /// That the program takes no more has been passed on.
    pub(crate) refusal_sent: bool,
    /// When it is looked at, because its program is gone.
    pub(crate) lingers_until: Option<Instant>,
    /// A message being sent in pieces.
    pub(crate) outgoing: Option<Outgoing>,
    /// What its receive buffer has above the default.
    pub(crate) share: Share,
    /// Its number in listings.
    pub(crate) number: u64,
    /// Its program's socket, for those who ask how it is.
    pub(crate) socket: Socket,
    /// Why it is over, once it is.
    pub(crate) reason: CloseReason,
}

/// A message on its way to the other side.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) bytes: Vec<u8>,
    pub(crate) sent: usize,
    /// Flags of its last packet: EOM, perhaps EOR.
    pub(crate) last_flags: u32,
}
