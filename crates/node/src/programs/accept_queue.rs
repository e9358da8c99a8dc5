//! Connections that wait for a listening program to take them.
//!
//! Each is open already, as in the kernel: its other side has been told, and may send. How many may wait is counted by
//! the core (`Ports`); here is where they are. A Unix socket holds fewer messages with descriptors than a backlog
//! may have, so only the oldest lie in the program's socket. The others are kept, and follow as it takes those.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::host::client::Client;
use crate::host::wire::Reply;
use vsock_core::Cid;
use vsock_core::saved::{Unfit, check};
use vsock_virtio::saved::{Fds, SavedFd, SavedFds};

/// The most connections that lie in the program's socket.
const AT_ONCE: usize = 64;

/// The backlog from which on a queue is long.
const LONG: u32 = 1024;

/// One that is kept.
#[derive(Debug)]
struct Kept {
    reply: Reply,
    /// What the program wants back with it.
    inherited: Vec<u8>,
    /// The program's end of the stream.
    theirs: OwnedFd,
}

/// The connections of one listener that it has not taken.
#[derive(Debug, Default)]
pub(super) struct AcceptQueue {
    kept: VecDeque<Kept>,
    /// Who opened those that were handed to the program, which has not said that it has taken them; the oldest first.
    untaken: VecDeque<Cid>,
}

impl AcceptQueue {
    /// Whether one more by `source` may wait, where there is room for so many more of all.
    ///
    /// Of a long queue nobody gets more places than are left, so that one who floods a listener leaves half of them to
    /// others. A short queue is as in the kernel: the first fill it.
    pub(super) fn has_place(&self, source: Cid, backlog: u32, left: u32) -> bool {
        if backlog < LONG {
            return true;
        }
        let handed = self.untaken.iter().filter(|cid| **cid == source).count();
        let kept = self.kept.iter().filter(|it| it.reply.theirs.cid == source.0).count();
        u32::try_from(handed + kept).is_ok_and(|waiting| waiting < left)
    }

    /// Adds a connection: hands it to the program, or keeps it.
    pub(super) fn push(
        &mut self,
        client: &Client,
        reply: &Reply,
        inherited: &[u8],
        theirs: OwnedFd,
    ) -> io::Result<()> {
        if self.kept.is_empty() && self.untaken.len() < AT_ONCE {
            match client.reply_with(reply, inherited, &theirs) {
                Ok(()) => {
                    self.untaken.push_back(Cid(reply.theirs.cid));
                    return Ok(());
                }
                Err(error) if !self.untaken.is_empty() && is_full(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.kept.push_back(Kept { reply: *reply, inherited: inherited.to_vec(), theirs });
        Ok(())
    }

    /// The program has taken one: the next follow.
    pub(super) fn taken(&mut self, client: &Client) {
        self.untaken.pop_front();
        while self.untaken.len() < AT_ONCE
            && let Some(next) = self.kept.front()
        {
            // Where it cannot be handed over now, there are others that the program will take first, or the program is
            // gone, which an event tells.
            if client.reply_with(&next.reply, &next.inherited, &next.theirs).is_err() {
                return;
            }
            self.untaken.push_back(Cid(next.reply.theirs.cid));
            self.kept.pop_front();
        }
    }
}

/// The program's socket, or what the kernel lets be under way in sockets, has no room until some are taken.
fn is_full(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::AGAIN | Errno::TOOMANYREFS))
}

/// Connections that a listener has not taken, as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedAcceptQueue {
    /// Those that are kept here, the oldest first.
    pub kept: Vec<SavedKept>,
    /// Who opened those that the program has been handed and has not taken, the oldest first.
    pub untaken: Vec<Cid>,
}

/// A connection that is kept for a listener, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedKept {
    /// What the program is told with it.
    pub reply: Reply,
    /// What the program wants back with it.
    pub inherited: Vec<u8>,
    /// The program's end of the stream.
    pub theirs: SavedFd,
}

impl AcceptQueue {
    /// As plain data.
    pub(super) fn save<'a>(&'a self, fds: &mut SavedFds<'a>) -> SavedAcceptQueue {
        let mut one = |Kept { reply, inherited, theirs }: &'a Kept| SavedKept {
            reply: *reply,
            inherited: inherited.clone(),
            theirs: fds.add(theirs),
        };
        let kept = self.kept.iter().map(&mut one).collect();
        SavedAcceptQueue { kept, untaken: self.untaken.iter().copied().collect() }
    }

    /// From plain data.
    pub(super) fn restore(saved: SavedAcceptQueue, fds: &mut Fds) -> Result<Self, Unfit> {
        check(saved.untaken.len() <= AT_ONCE, Unfit::TooMany)?;
        let one = |SavedKept { reply, inherited, theirs }| {
            Ok(Kept { reply, inherited, theirs: fds.take(theirs)? })
        };
        let kept = saved.kept.into_iter().map(one).collect::<Result<_, Unfit>>()?;
        Ok(Self { kept, untaken: saved.untaken.into() })
    }
}
