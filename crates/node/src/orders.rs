//! What other threads tell the worker to do: each order a value with fields, and the way back for its answer.
//!
//! The control plane's requests (`node.rs`), and what front ends say over vhost-user (`guest_port.rs`), are rare. The
//! worker carries out one order after the other between two rounds (`worker.rs`).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use vsock_core::{Cid, SocketType};

use crate::admission::Verdict;
use crate::fabric::SavedFabric;
use crate::host::directory::Directory;
use crate::host::handshake::Handshake;
use crate::links::{LinkId, NewUplink};
use crate::mailbox::{Reply, Stopped};
use crate::options::{AddError, GuestOptions};
use crate::snapshot::Snapshot;
use vsock_virtio::vhost_user::{BackendControl, Change};

/// What a worker gives away: all that it has, and the descriptors beside it.
pub(crate) struct SavedWorker {
    pub(crate) fabric: SavedFabric,
    /// How long it looks for packets before it sleeps.
    pub(crate) polling: Duration,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Why a node cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It has joined a device, and that link has no saved form.
    #[error("a node that has joined a device cannot be saved")]
    HasJoined,
    /// The control thread of a guest has ended by itself.
    #[error("the control thread of guest {0} is gone")]
    NoControl(u32),
    /// It has been stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// There are no descriptors left to hand over, or no thread for a guest.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A hybrid socket of a guest.
pub(crate) struct HybridSocket {
    pub(crate) path: PathBuf,
    /// Where it is, and where the programs are that take the guest's connections.
    pub(crate) directory: Directory,
    pub(crate) listener: UnixListener,
    /// What is spoken on it.
    pub(crate) handshake: &'static Handshake,
}

/// One thing to do.
pub(crate) enum Order {
    /// Listen for programs that ask for sockets of a type.
    AddAcceptor { socket: UnixListener, kind: SocketType, reply: Reply<io::Result<()>> },
    /// Add a guest whose front end may attach from now on.
    AddGuest {
        options: Box<GuestOptions>,
        hybrid: Option<HybridSocket>,
        seed: u64,
        reply: Reply<Result<LinkId, AddError>>,
    },
    /// The control thread of a guest runs.
    SetControl { link: LinkId, control: BackendControl },
    /// End all connections of a guest, each with RST. Answered when the guest has taken that.
    SayFarewell { link: LinkId, told: Reply<()> },
    /// Forget a guest whose control thread has ended.
    RemoveGuest { link: LinkId, reply: Reply<()> },
    /// Say whether a guest can have this CID.
    CheckCid { cid: Cid, reply: Reply<Result<(), AddError>> },
    /// Give a guest another CID, which its configuration space has already.
    ChangeCid { link: LinkId, cid: Cid, reply: Reply<Result<(), AddError>> },
    /// Give a guest another hybrid socket, or none.
    SetHybrid { link: LinkId, hybrid: Option<HybridSocket>, reply: Reply<io::Result<()>> },
    /// Make a guest what it is to be from now on.
    SetOptions { link: LinkId, options: Box<GuestOptions>, reply: Reply<()> },
    /// Answer when a guest has taken what there is to tell it.
    AwaitTold { link: LinkId, told: Reply<()> },
    /// Join a device: everything that is not here is behind it.
    AddUplink { uplink: Box<NewUplink>, reply: Reply<io::Result<()>> },
    /// End what programs of a userspace guest send. Answered when all is sent.
    EndSending { sent: Reply<()> },
    /// A front end has said or done something.
    Apply { link: LinkId, change: Change, reply: Reply<()> },
    /// Stop a running queue, and say where a successor goes on.
    StopQueue { link: LinkId, queue: usize, reply: Reply<u16> },
    /// Look at most so long for packets before sleeping.
    SetPolling { most: Duration, reply: Reply<()> },
    /// How long what a program sent before it closed may wait for the other side to take some of it.
    SetLingerTimeout { most: Duration, reply: Reply<()> },
    /// Say who may connect to whom, and by which rule.
    Explain { from: Cid, to: Cid, reply: Reply<Verdict> },
    /// Say how often a guest's driver came up; nothing of a guest that is not there.
    DriverStarts { guest: Cid, reply: Reply<Option<u64>> },
    /// Say how everything is now.
    Snapshot { reply: Reply<Snapshot> },
    /// Give everything away as plain data, and end: nobody is told anything. Only these guests are saved; their control
    /// threads do not run, and have `before` descriptors of the list. A node that cannot be saved goes on.
    Save { guests: Vec<LinkId>, before: usize, reply: Reply<Result<SavedWorker, SaveError>> },
    /// End after this round.
    Stop,
    /// Panic.
    #[cfg(test)]
    Panic,
}
