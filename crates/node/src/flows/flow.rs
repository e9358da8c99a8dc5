//! One connection between a program here and the other side of a link, seen from the program's end.
//!
//! A flow owns its program's socket and says, by [`Update`]s, what its connection is to be told. It knows no link and no
//! clock. Where it stands is one state; what is waited for in epoll is the same in each (see `reactor.rs`), and what an
//! event means follows from the state:
//!
//! | state | the program's socket is readable | has room | is closed |
//! | --- | --- | --- | --- |
//! | `Connecting` | is left alone | – | the attempt is given up |
//! | `Open` | has a turn to send, unless it has ended its data | the backlog goes there | its data go first, then the close |
//! | `Draining` | is not read | the backlog goes there; then the flow is over | the flow is over |

mod saved;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use vsock_core::{
    Address, CloseReason, ConnectionId, EOM, EOR, Endpoint, FlowKey, Shutdown, SocketType,
};

pub use self::saved::{SavedFlow, SavedGreeting, SavedMessageOut, SavedState};
use super::buffers::Share;
use super::linger::Linger;
use super::stream::{Read, Stream, Taken, reads_no_more};
use crate::fault::sort_transfer;
use crate::host::handshake::Handshake;
use crate::host::places::Place;
use crate::host::program::{Bound, Socket};
use crate::host::socket::ProgramSocket;
use crate::host::wire::{self, Reply, op};
use crate::links::{End, Filled, LinkId, MemoryDead, Offer, Payload, Sends, Update};
use crate::reactor::Readiness;
use vsock_guest_memory::slice::{self, Slice, TransferError};
use vsock_virtio::sys::PeerCredentials;

/// How a program wants to hear that it is connected.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Greeting {
    /// A reply of the client protocol.
    Reply,
    /// The request, so many bytes, is taken out of its socket.
    Held(usize),
    /// The answer of a VMM's convention.
    Handshake(&'static Handshake),
}

impl Greeting {
    /// The convention by which its program asked, if it is not the client protocol.
    pub(crate) fn handshake(self) -> Option<&'static Handshake> {
        match self {
            Self::Reply | Self::Held(_) => None,
            Self::Handshake(handshake) => Some(handshake),
        }
    }

    /// Whether its program waits for it before it writes.
    fn is_awaited(self) -> bool {
        self.handshake().is_none_or(|handshake| handshake.program_waits)
    }
}

/// Where a flow stands.
#[derive(Debug)]
pub(crate) enum State {
    /// REQUEST is out; the program waits.
    Connecting(Greeting),
    /// Bytes flow.
    Open {
        /// What the other side has been told that the program has shut: sending, at the end of its data, and receiving.
        ours: Shutdown,
        /// What the other side has shut; the end of its data is told to the program once the backlog is out.
        theirs: Shutdown,
    },
    /// The connection is over; what the other side sent last still waits for the program.
    Draining(CloseReason),
    /// The program has left before it was connected.
    GivenUp(Greeting),
    /// Nothing is left to do but to close the socket.
    Over(CloseReason),
    /// The same, as the program's socket failed in a way it should not.
    Failed(io::Error),
}

/// A message on its way to the other side.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    /// Flags of its last packet: EOM, perhaps EOR.
    last_flags: u32,
}

/// Between whom a flow is, and how it came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parties {
    /// The program's end.
    pub ours: Address,
    /// The other end.
    pub theirs: Address,
    /// Socket type.
    pub kind: SocketType,
    /// The program; its number is 0 if it cannot be seen.
    pub peer: PeerCredentials,
    /// The program opened it (else the other side did).
    pub is_outgoing: bool,
}

impl Parties {
    /// Of a connection that a program asks for.
    pub(crate) fn outgoing(key: FlowKey, kind: SocketType, peer: PeerCredentials) -> Self {
        Self { ours: key.ours, theirs: key.theirs, kind, peer, is_outgoing: true }
    }

    /// Of a connection that the other side asks for.
    pub(crate) fn incoming(key: FlowKey, kind: SocketType, peer: PeerCredentials) -> Self {
        Self { is_outgoing: false, ..Self::outgoing(key, kind, peer) }
    }

    /// Who asked, and who was asked.
    pub(crate) fn source_and_destination(&self) -> (Address, Address) {
        if self.is_outgoing { (self.ours, self.theirs) } else { (self.theirs, self.ours) }
    }
}

/// What a flow holds that goes back when it is over.
#[derive(Debug)]
pub(crate) struct Holdings {
    /// The port from which its program connected.
    pub(crate) binding: Option<Bound>,
    /// Its program's socket, for those who ask how it is.
    pub(crate) socket: Socket,
    /// What its receive buffer has above the default.
    pub(crate) share: Share,
}

/// One connection between a program here and the other side of a link.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) link: LinkId,
    pub(crate) connection: ConnectionId,
    pub(crate) parties: Parties,
    pub(crate) holdings: Holdings,
    pub(super) state: State,
    stream: Stream,
    /// A message being sent in pieces.
    outgoing: Option<Outgoing>,
    /// Its program is gone, and it has more to send.
    pub(super) linger: Option<Linger>,
    /// As long as the connection has no answer.
    attempt: Option<Place>,
    /// It is looked at now and then, as a record waits for its reader.
    is_watched: bool,
}

impl Flow {
    fn new(
        (link, connection): (LinkId, ConnectionId),
        parties: Parties,
        holdings: Holdings,
        fd: ProgramSocket,
        state: State,
    ) -> Self {
        Self {
            link,
            connection,
            parties,
            holdings,
            state,
            stream: Stream::new(fd, parties.kind),
            outgoing: None,
            linger: None,
            attempt: None,
            is_watched: false,
        }
    }

    /// A flow of a program that waits for its connection.
    pub(crate) fn connecting(
        at: (LinkId, ConnectionId),
        parties: Parties,
        holdings: Holdings,
        fd: ProgramSocket,
        greeting: Greeting,
    ) -> Self {
        Self::new(at, parties, holdings, fd, State::Connecting(greeting))
    }

    /// The same, with what its attempt to connect takes.
    pub(crate) fn answered_in(self, attempt: impl Into<Option<Place>>) -> Self {
        Self { attempt: attempt.into(), ..self }
    }

    /// A flow that is open.
    pub(crate) fn open(
        at: (LinkId, ConnectionId),
        parties: Parties,
        holdings: Holdings,
        fd: ProgramSocket,
    ) -> Self {
        let state = State::Open { ours: Shutdown::NONE, theirs: Shutdown::NONE };
        Self::new(at, parties, holdings, fd, state)
    }

    /// The socket, for registration.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.fd()
    }

    /// The program has closed its socket.
    pub(super) fn has_hung_up(&self) -> bool {
        self.stream.hung_up
    }

    /// Nothing is left to do but to close the socket.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::GivenUp(_) | State::Over(_) | State::Failed(_))
    }

    /// All that its program has sent has been passed on, and that it has ended.
    pub(super) fn is_sent(&self) -> bool {
        !matches!(self.state, State::Open { ours, .. } if !ours.contains(Shutdown::SEND))
    }

    /// Whether its program may send.
    fn can_send(&self) -> bool {
        !self.is_sent()
    }

    /// The program's socket is ready for something.
    pub(super) fn on_ready(&mut self, ready: Readiness) -> Update {
        let is_news = self.stream.note(ready);
        match self.state {
            State::Connecting(greeting) => {
                // A program that does not wait may have written all it has to say, and left.
                let has_spoken = !greeting.is_awaited() && self.stream.has_input();
                if self.stream.hung_up && !has_spoken {
                    self.state = State::GivenUp(greeting);
                    return Update::sends(Sends::Failed);
                }
                Update::default()
            }
            State::Open { .. } => {
                let stop = if is_news { Update::default() } else { self.look_for_stop() };
                let flushed = self.flush();
                let update = merge(stop, flushed);
                if self.is_over() {
                    return update;
                }
                let ended = self.is_sent() && self.stream.hung_up;
                if ended {
                    merge(update, self.end_of_input())
                } else if self.stream.readable && self.can_send() {
                    merge(update, Update::sends(Sends::More))
                } else {
                    update
                }
            }
            State::Draining(reason) => {
                let update = self.flush();
                if !self.is_over() && (self.stream.is_flushed() || self.stream.hung_up) {
                    self.state = State::Over(reason);
                }
                update
            }
            State::GivenUp(_) | State::Over(_) | State::Failed(_) => Update::default(),
        }
    }

    /// Offers the backlog to the program, and the end of data after it.
    fn flush(&mut self) -> Update {
        if self.stream.is_flushed() {
            return Update::default();
        }
        match self.stream.flush() {
            Ok(taken) => {
                let is_end = matches!(self.state, State::Open { theirs, .. } if theirs.contains(Shutdown::SEND));
                if is_end && self.stream.is_flushed() {
                    self.stream.end_of_data();
                }
                self.took(taken)
            }
            Err(error) => self.fail(error),
        }
    }

    /// Its socket may take more than it was offered: what epoll says of it is to be heard once more.
    #[inline]
    pub(super) fn is_interrupted(&self) -> bool {
        self.stream.has_more()
    }

    /// A record waits for its reader, and nobody has asked yet to look at that; once.
    #[inline]
    pub(super) fn begins_to_wait(&mut self) -> bool {
        self.stream.awaits_reader && !std::mem::replace(&mut self.is_watched, true)
    }

    /// Looks whether the program still reads, for whom a record waits; `None`: none waits any more.
    pub(super) fn look_at_reader(&mut self) -> Option<Update> {
        self.is_watched = self.stream.awaits_reader;
        if !self.is_watched {
            return None;
        }
        let taken = self.stream.look_at_reader();
        if let State::Draining(reason) = self.state
            && self.stream.is_flushed()
        {
            self.state = State::Over(reason);
        }
        Some(self.took(taken))
    }

    /// What the program took; that it receives no more is told once.
    fn took(&mut self, taken: Taken) -> Update {
        let Taken { bytes, packets, stops_receiving } = taken;
        let mut update = Update { bytes, packets, ..Update::default() };
        if stops_receiving && let State::Open { ours, .. } = &mut self.state {
            update.stops_receiving = !ours.contains(Shutdown::RCV);
            *ours = ours.with(Shutdown::RCV);
        }
        update
    }

    /// Something happened at the socket that nothing new explains: the program may have shut down its reading half.
    fn look_for_stop(&mut self) -> Update {
        // After the other side's end our half is shut, by ourselves.
        let may =
            matches!(self.state, State::Open { theirs, .. } if !theirs.contains(Shutdown::SEND));
        let stopped = if may { self.stream.stops_receiving() } else { None };
        stopped.map_or_else(Update::default, |taken| self.took(taken))
    }

    /// The program has ended its data, or is gone altogether.
    fn end_of_input(&mut self) -> Update {
        let State::Open { ours, .. } = &mut self.state else { return Update::default() };
        *ours = ours.with(Shutdown::SEND);
        if self.stream.is_closed() {
            self.state = State::Over(CloseReason::Done);
            return Update::sends(Sends::Closed);
        }
        Update::sends(Sends::Ended)
    }

    /// The program's socket failed in a way it should not: the flow ends with a reset.
    pub(super) fn fail(&mut self, error: io::Error) -> Update {
        self.state = State::Failed(error);
        Update::sends(Sends::Failed)
    }

    /// Hands payload to the program.
    pub(super) fn deliver(&mut self, payload: Payload<'_>) -> Result<Update, MemoryDead> {
        match self.stream.deliver(payload.pieces, payload.packets, payload.end) {
            Ok(taken) => Ok(self.took(taken)),
            Err(error) => Ok(self.fail(sort_transfer(error)?)),
        }
    }

    /// The program has not kept up, after `len` bytes were handed to it at once.
    pub(super) fn is_behind(&self, len: usize) -> bool {
        self.stream.is_behind(len)
    }

    /// What the program has to send, whose turn it is. `scratch` is room for a message.
    pub(super) fn next(&mut self, endpoint: &Endpoint, scratch: &mut Vec<u8>) -> Offer {
        if !self.can_send() {
            return Offer::Nothing(Update::default());
        }
        match self.parties.kind {
            SocketType::Stream => Offer::Bytes,
            SocketType::SeqPacket | SocketType::Datagram => {
                let longest = endpoint.max_message(self.connection) as usize;
                self.next_message(longest, scratch)
            }
        }
    }

    fn next_message(&mut self, longest: usize, scratch: &mut Vec<u8>) -> Offer {
        if self.outgoing.is_none() {
            scratch.resize(longest.max(1), 0);
            let update = match self.stream.read_message(scratch) {
                Ok((Read::Bytes(n), end)) if n <= longest => {
                    let last_flags = if end == End::Record { EOM | EOR } else { EOM };
                    let bytes = scratch[..n].to_vec();
                    self.outgoing = Some(Outgoing { bytes, sent: 0, last_flags });
                    Update::default()
                }
                Ok((Read::Bytes(n), _)) => self.fail(io::Error::other(format!(
                    "a message of {n} bytes is longer than the peer's buffer of {longest}"
                ))),
                Ok((Read::Empty, _)) if self.stream.readable => Update::sends(Sends::More),
                Ok((Read::Empty, _)) => Update::default(),
                Ok((Read::End, _)) => self.end_of_input(),
                Err(error) => self.fail(error),
            };
            if self.outgoing.is_none() {
                return Offer::Nothing(update);
            }
        }
        let (len, flags) =
            self.outgoing.as_ref().map_or((0, 0), |it| (it.bytes.len() - it.sent, it.last_flags));
        Offer::Message { len, flags }
    }

    /// Writes what the program has sent into pieces.
    pub(super) fn fill(&mut self, pieces: &[Slice]) -> Result<Filled, MemoryDead> {
        if let Some(message) = &mut self.outgoing {
            let bytes = slice::copy_in(pieces, &message.bytes[message.sent..]);
            message.sent += bytes;
            if message.sent == message.bytes.len() {
                self.outgoing = None;
            }
            return Ok(Filled { bytes, update: Update::default() });
        }
        match self.stream.read(pieces) {
            Ok(Read::Bytes(bytes)) if self.stream.readable => {
                Ok(Filled { bytes, update: Update::sends(Sends::More) })
            }
            Ok(Read::Bytes(bytes)) => Ok(Filled { bytes, update: self.suspicion() }),
            Ok(Read::Empty) => Ok(Filled { bytes: 0, update: self.suspicion() }),
            Ok(Read::End) => Ok(Filled { bytes: 0, update: self.end_of_input() }),
            Err(TransferError::MemoryDead) => Err(MemoryDead),
            Err(TransferError::Io(error)) => Ok(Filled { bytes: 0, update: self.fail(error) }),
        }
    }

    /// Whether something happened that the data did not explain for certain.
    fn suspicion(&mut self) -> Update {
        if self.stream.take_suspicion() { self.look_for_stop() } else { Update::default() }
    }

    /// There is no room for what the program has to send: that it has nothing more to send need not wait for it.
    pub(super) fn stalled(&mut self) -> Update {
        if self.outgoing.is_none() && self.stream.is_at_end() {
            return self.end_of_input();
        }
        self.suspicion()
    }

    /// The other side has accepted: tells the program, and lets its bytes go. `number` is the flow's in listings.
    pub(super) fn connected(&mut self, number: u64, peer_buffer: u32) -> Update {
        let State::Connecting(greeting) = self.state else { return Update::default() };
        let Parties { ours, theirs, .. } = self.parties;
        let theirs = wire::to_wire(theirs);
        let reply = Reply { theirs, peer_buffer, flow: number, ..wire::ok(op::CONNECT, ours) };
        let greeted = match greeting {
            Greeting::Reply => self.stream.greet(0, &reply.encode()),
            Greeting::Held(len) => self.stream.release(len),
            Greeting::Handshake(it) => self.stream.greet(0, &(it.accepted)(ours.port)),
        };
        self.state = State::Open { ours: Shutdown::NONE, theirs: Shutdown::NONE };
        self.attempt = None;
        let more = Update::sends(Sends::More);
        match greeted {
            Ok(()) => more,
            // A program that did not wait reads no more, or is gone; what it has written is for the other side all the
            // same, and the end after it.
            Err(error) if !greeting.is_awaited() && reads_no_more(&error) => {
                if self.stream.is_closed() {
                    return more;
                }
                let taken = self.stream.stop();
                merge(self.took(taken), more)
            }
            Err(error) => self.fail(error),
        }
    }

    /// The other side will send no more, or takes no more.
    pub(super) fn their_shutdown(&mut self, flags: Shutdown) {
        if flags.contains(Shutdown::RCV) {
            self.stream.refuse_data();
        }
        if let State::Open { theirs, .. } = &mut self.state {
            *theirs = theirs.with(flags);
            if flags.contains(Shutdown::SEND) && self.stream.is_flushed() {
                self.stream.end_of_data();
            }
        }
    }

    /// The connection is over; what the program has not read yet stays readable.
    pub(super) fn closed(&mut self, reason: CloseReason) {
        let reason = match self.state {
            // All that the other side had to say was said before its link went.
            State::Open { theirs, .. } if theirs.contains(Shutdown::SEND) => CloseReason::Done,
            State::Open { .. } | State::Draining(_) | State::Connecting(_) => reason,
            State::GivenUp(_) | State::Over(_) | State::Failed(_) => return,
        };
        self.stream.refuse_data();
        let is_flushed = self.stream.is_flushed();
        self.state = if is_flushed { State::Over(reason) } else { State::Draining(reason) };
    }

    /// The program says over another socket that it receives no more.
    pub(crate) fn stop_receiving(&mut self) -> Update {
        if !matches!(self.state, State::Open { .. }) {
            return Update::default();
        }
        let taken = self.stream.stop();
        self.took(taken)
    }

    /// The program can send no more; what it has sent goes out, and the end after it.
    pub(super) fn end_sending(&mut self) -> Update {
        if !matches!(self.state, State::Open { .. }) {
            return Update::default();
        }
        // What is in the socket can still be read, and then the end.
        self.stream.refuse_data();
        self.stream.readable = true;
        Update::sends(Sends::More)
    }

    /// Whether something was left unread until descriptors can be received; once.
    pub(super) fn take_awaits_room(&mut self) -> bool {
        self.stream.take_awaits_room()
    }

    /// The socket, of a flow that never opened: its stream, to say why, and what it held.
    pub(super) fn into_attempt(self) -> (Stream, Parties, Holdings) {
        (self.stream, self.parties, self.holdings)
    }

    /// Closes the program's socket; what it held.
    pub(super) fn finish(self) -> (Parties, Holdings, State) {
        // A program that still waits to be connected is told nothing: a socket closed with the request unread in it gives
        // ECONNRESET, and that is how a node that has gone is told from a connection.
        if !matches!(self.state, State::Connecting(Greeting::Held(_))) {
            self.stream.finish();
        }
        (self.parties, self.holdings, self.state)
    }
}

/// Both, one after the other.
fn merge(one: Update, other: Update) -> Update {
    Update {
        bytes: one.bytes + other.bytes,
        packets: one.packets + other.packets,
        stops_receiving: one.stops_receiving || other.stops_receiving,
        sends: if other.sends == Sends::Nothing { one.sends } else { other.sends },
    }
}

impl AsFd for Flow {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.fd()
    }
}
