//! The Unix sockets on which programs connect, and what is done when nobody can be let in.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use vsock_core::saved::Unfit;
use vsock_core::{Instant, Refusal, SecondaryMap, SocketType};

use crate::context::Context;
use crate::events::Failure;
use crate::host::handshake::Handshake;
use crate::host::places::Holder;
use crate::host::socket::ProgramSocket;
use crate::links::LinkId;
use crate::reactor::{Owner, SourceId};
use crate::saved::Restoring;
use vsock_virtio::saved::{SavedFd, SavedFds};
use vsock_virtio::sys::PeerCredentials;

/// How long nobody is let in after the process ran out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What is spoken on a socket.
#[derive(Clone, Copy, Debug)]
pub(super) enum Speaks {
    /// The client protocol, for sockets of this type.
    Requests(SocketType),
    /// A VMM's convention, for the guest of this link.
    Handshake(LinkId, &'static Handshake),
}

/// A program that has just connected.
pub(super) struct Arrival {
    pub(super) fd: ProgramSocket,
    pub(super) peer: PeerCredentials,
    pub(super) speaks: Speaks,
}

/// All sockets on which programs connect.
#[derive(Debug, Default)]
pub(super) struct Acceptors {
    table: SecondaryMap<Owner, (ProgramSocket, Speaks)>,
    /// Those on which programs wait that could not be let in. Epoll will not tell of them again.
    paused: Vec<SourceId>,
    /// When these are looked at.
    resume_at: Option<Instant>,
}

impl Acceptors {
    pub(super) fn add(
        &mut self,
        cx: &mut Context,
        socket: UnixListener,
        speaks: Speaks,
    ) -> io::Result<SourceId> {
        socket.set_nonblocking(true)?;
        let socket = cx.sockets.adopt(socket.into());
        let id = cx.sources.add_input(&socket, Owner::Acceptor)?;
        self.table.insert(id, (socket, speaks));
        Ok(id)
    }

    pub(super) fn remove(&mut self, cx: &mut Context, id: SourceId) {
        self.table.remove(id);
        self.paused.retain(|&paused| paused != id);
        cx.sources.remove(id);
    }

    /// Lets in the next program that waits on a socket. True: more may wait. One at a time: nobody is let in faster than
    /// those are served who have been.
    pub(super) fn accept(&mut self, cx: &mut Context, id: SourceId) -> (Option<Arrival>, bool) {
        let Some((socket, speaks)) = self.table.get(id) else { return (None, false) };
        let next = if cx.sockets.places.is_full() {
            Err(io::Error::other("no descriptor is left for programs"))
        } else {
            accept(socket)
        };
        match next {
            Ok(Some(fd)) => (admit(cx, fd, *speaks), true),
            Ok(None) => (None, false),
            Err(error) => {
                // No descriptors are left: tries again a little later, as the edge will not come again.
                cx.failed(Failure::Accepting(error));
                if !self.paused.contains(&id) {
                    self.paused.push(id);
                }
                self.resume_at.get_or_insert(cx.now + PAUSE);
                (None, false)
            }
        }
    }

    /// When [`resume`](Self::resume) is due.
    pub(super) fn resume_at(&self) -> Option<Instant> {
        self.resume_at
    }

    /// The sockets to be looked at again.
    pub(super) fn resume(&mut self, now: Instant) -> Vec<SourceId> {
        if self.resume_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.resume_at = None;
        std::mem::take(&mut self.paused)
    }
}

/// A program that has connected, if its user may have one more connection. Else it is closed: the program may wait for
/// nothing.
fn admit(cx: &mut Context, fd: OwnedFd, speaks: Speaks) -> Option<Arrival> {
    let fd = cx.sockets.adopt(fd);
    let peer = PeerCredentials::of(fd.as_fd()).ok()?;
    let Some(place) = cx.sockets.places.take(Holder::User(peer.uid)) else {
        // It has asked for nothing, so that there is nothing to answer.
        let _ = cx.admission.refuse(Refusal::UserOverLimits);
        cx.failed(Failure::OverShare(peer.uid));
        return None;
    };
    Some(Arrival { fd: fd.counted(place), peer, speaks })
}

/// The next connection on a socket; `None` when nobody waits.
fn accept(socket: &ProgramSocket) -> io::Result<Option<OwnedFd>> {
    loop {
        match accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A socket on which programs connect, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedAcceptor {
    /// Its name.
    pub id: SourceId,
    /// The socket.
    pub socket: SavedFd,
    /// What is spoken on it.
    pub speaks: SavedSpeaks,
}

/// What is spoken on a socket, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SavedSpeaks {
    /// The client protocol, for sockets of this type.
    Requests(SocketType),
    /// The handshake of this name, for the guest of this link.
    Handshake(LinkId, String),
}

impl SavedSpeaks {
    fn of(speaks: Speaks) -> Self {
        match speaks {
            Speaks::Requests(kind) => Self::Requests(kind),
            Speaks::Handshake(link, handshake) => Self::Handshake(link, handshake.name.to_owned()),
        }
    }

    fn restore(self) -> Result<Speaks, Unfit> {
        Ok(match self {
            Self::Requests(kind) => Speaks::Requests(kind),
            Self::Handshake(link, name) => Speaks::Handshake(link, Handshake::named(&name)?),
        })
    }
}

impl Acceptors {
    /// As plain data. Programs that wait are not: epoll tells of them again.
    pub(super) fn save<'a>(&'a self, fds: &mut SavedFds<'a>) -> Vec<SavedAcceptor> {
        let mut one = |(id, (socket, speaks)): (SourceId, &'a (ProgramSocket, Speaks))| {
            SavedAcceptor { id, socket: fds.add(socket), speaks: SavedSpeaks::of(*speaks) }
        };
        self.table.iter().map(&mut one).collect()
    }

    /// From plain data.
    pub(super) fn restore(
        saved: Vec<SavedAcceptor>,
        restoring: &mut Restoring,
    ) -> Result<Self, Unfit> {
        let mut acceptors = Self::default();
        for SavedAcceptor { id, socket, speaks } in saved {
            let socket = restoring.claim_socket(socket, id, Owner::Acceptor)?;
            rustix::io::ioctl_fionbio(&socket, true).map_err(|_| Unfit::Descriptor)?;
            acceptors.table.insert(id, (socket, speaks.restore()?));
        }
        Ok(acceptors)
    }

    /// What is spoken on a socket.
    pub(super) fn speaks(&self, id: SourceId) -> Option<Speaks> {
        self.table.get(id).map(|(_, speaks)| *speaks)
    }
}
