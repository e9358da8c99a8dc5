//! One flow as plain data.

use vsock_core::saved::{Unfit, check};
use vsock_core::{CloseReason, ConnectionId, EOM, EOR, Instant, Shutdown, SocketType};

use super::{Flow, Greeting, Holdings, Outgoing, Parties, State};
use crate::flows::FlowId;
use crate::flows::buffers::Budget;
use crate::flows::linger::{Linger, SavedLinger};
use crate::flows::stream::{SavedStream, Stream};
use crate::host::handshake::Handshake;
use crate::host::places::Holder;
use crate::host::program::{Bound, Socket};
use crate::links::{Buffers, LinkId};
use crate::reactor::Owner;
use crate::saved::Restoring;
use vsock_virtio::saved::SavedFds;

/// A [`Flow`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedFlow {
    /// Its name.
    pub id: FlowId,
    /// Its link.
    pub link: LinkId,
    /// Its connection, which is not there any more if the flow is draining.
    pub connection: ConnectionId,
    /// Between whom it is.
    pub parties: Parties,
    /// The port from which its program connected.
    pub binding: Option<Bound>,
    /// Its program's socket.
    pub socket: Socket,
    /// What its receive buffer has above the default, in bytes.
    pub share: u64,
    /// What it has of its guest's budget for receive buffers, in bytes.
    pub held: u32,
    /// Where it stands.
    pub state: SavedState,
    /// Its program's socket, and what waits for it.
    pub stream: SavedStream,
    /// A message that is being sent in pieces.
    pub outgoing: Option<SavedMessageOut>,
    /// Its program is gone, and it has more to send.
    pub linger: Option<SavedLinger>,
}

/// Where a flow stands, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SavedState {
    /// The program waits for the connection, and wants to hear of it like this.
    Connecting(SavedGreeting),
    /// Bytes flow.
    Open {
        /// What the other side has been told that the program has shut.
        ours: Shutdown,
        /// What the other side has shut.
        theirs: Shutdown,
    },
    /// The connection is over; what the other side sent last still waits for the program.
    Draining(CloseReason),
}

/// How a program wants to hear that it is connected, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SavedGreeting {
    /// A reply of the client protocol.
    Reply,
    /// The request, so many bytes, is taken out of its socket.
    Held(usize),
    /// The answer of the handshake of this name.
    Handshake(String),
}

impl SavedGreeting {
    fn of(greeting: Greeting) -> Self {
        match greeting {
            Greeting::Reply => Self::Reply,
            Greeting::Held(len) => Self::Held(len),
            Greeting::Handshake(handshake) => Self::Handshake(handshake.name.to_owned()),
        }
    }

    fn restore(self) -> Result<Greeting, Unfit> {
        Ok(match self {
            Self::Reply => Greeting::Reply,
            Self::Held(len) => Greeting::Held(len),
            Self::Handshake(name) => Greeting::Handshake(Handshake::named(&name)?),
        })
    }
}

/// A message on its way to the other side, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedMessageOut {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Bytes that have gone out.
    pub sent: usize,
    /// Flags of its last packet.
    pub last_flags: u32,
}

impl Flow {
    /// As plain data.
    pub(in crate::flows) fn save<'a>(
        &'a self,
        id: FlowId,
        now: Instant,
        fds: &mut SavedFds<'a>,
    ) -> SavedFlow {
        let Holdings { binding, socket, share } = &self.holdings;
        let outgoing = self.outgoing.as_ref().map(|it| SavedMessageOut {
            bytes: it.bytes.clone(),
            sent: it.sent,
            last_flags: it.last_flags,
        });
        SavedFlow {
            id,
            link: self.link,
            connection: self.connection,
            parties: self.parties,
            binding: *binding,
            socket: *socket,
            share: share.bytes(),
            held: share.held(),
            state: match &self.state {
                State::Connecting(greeting) => SavedState::Connecting(SavedGreeting::of(*greeting)),
                State::Open { ours, theirs } => SavedState::Open { ours: *ours, theirs: *theirs },
                State::Draining(reason) | State::Over(reason) => SavedState::Draining(*reason),
                State::GivenUp(_) | State::Failed(_) => SavedState::Draining(CloseReason::Done),
            },
            stream: self.stream.save(fds),
            outgoing,
            linger: self.linger.map(|linger| linger.save(now)),
        }
    }

    /// A flow that goes on where another was. Whether its connection is there is for its owner to see.
    pub(in crate::flows) fn restore(
        saved: SavedFlow,
        (node, guest): (&Budget, &Buffers),
        restoring: &mut Restoring,
    ) -> Result<Self, Unfit> {
        let SavedFlow { id, link, connection, parties, binding, socket, .. } = saved;
        let fd = restoring.claim_socket(saved.stream.fd, id, Owner::Flow)?;
        let (places, user) = (&restoring.sockets.places, parties.peer.uid);
        let is_of_guest = !parties.is_outgoing && parties.theirs.cid.is_guest();
        let holder = if is_of_guest { Holder::Guest(link) } else { Holder::User(user) };
        let fd = fd.counted(places.keep(holder));
        let attempt = matches!(saved.state, SavedState::Connecting(_))
            .then(|| places.keep(Holder::Attempts(link, user)));
        let outgoing = saved.outgoing.map(|message| outgoing(message, parties.kind)).transpose()?;
        let share = node.restore(guest, (saved.share, saved.held))?;
        Ok(Self {
            link,
            connection,
            parties,
            holdings: Holdings { binding, socket, share },
            state: match saved.state {
                SavedState::Connecting(greeting) => State::Connecting(greeting.restore()?),
                SavedState::Open { ours, theirs } => State::Open { ours, theirs },
                SavedState::Draining(reason) => State::Draining(reason),
            },
            stream: Stream::restore(saved.stream, fd, parties.kind)?,
            outgoing,
            linger: saved.linger.map(|linger| Linger::restore(linger, restoring.now)),
            attempt: attempt.flatten(),
            is_watched: false,
        })
    }

    /// Bytes of the other side's that wait for the program.
    pub(in crate::flows) fn backlog(&self) -> usize {
        self.stream.backlog()
    }
}

fn outgoing(saved: SavedMessageOut, kind: SocketType) -> Result<Outgoing, Unfit> {
    let SavedMessageOut { bytes, sent, last_flags } = saved;
    check(kind == SocketType::SeqPacket && sent < bytes.len(), Unfit::Queue)?;
    check([EOM, EOM | EOR].contains(&last_flags), Unfit::Queue)?;
    Ok(Outgoing { bytes, sent, last_flags })
}
