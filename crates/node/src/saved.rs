//! A whole node as plain data, and what owners restore themselves with.
//!
//! Each owner has its saved form next to it, in a module `saved` or at the end of its file. Here are the whole, and names
//! for all parts. [`Node::save`](crate::node::Node::save) and [`Node::restore`](crate::node::Node::restore) are the way in.
//! What is not saved, and what becomes of it, is told in docs/decisions/0015-saved-state.md.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vsock_core::Instant;
use vsock_core::saved::Unfit;

pub use crate::fabric::SavedFabric;
pub use crate::flows::{
    Ended, FlowId, Parties, SavedBacklog, SavedFlow, SavedFlows, SavedGreeting, SavedLinger,
    SavedMessage, SavedMessageOut, SavedState, SavedStream,
};
pub use crate::host::program::{Bound, Socket};
use crate::host::socket::{ProgramSocket, Sockets};
pub use crate::links::{
    FormerCid, LinkId, SavedEntry, SavedIncoming, SavedInterface, SavedLink, SavedLinks,
    SavedPacket,
};
use crate::options::NodeOptions;
pub use crate::programs::{
    SavedAcceptQueue, SavedAcceptor, SavedClient, SavedDatagramSocket, SavedDatagrams, SavedEnds,
    SavedHybridClient, SavedHybridSocket, SavedHybrids, SavedKept, SavedListener, SavedListeners,
    SavedPrograms, SavedRequest, SavedRequests, SavedSpeaks,
};
use crate::reactor::Claims;
pub use crate::reactor::{Owner, SavedSources, SourceId};
use vsock_guest_memory::GuestMemory;
use vsock_virtio::saved::{Fds, SavedFd};
use vsock_virtio::spec::QUEUE_COUNT;
use vsock_virtio::vhost_user::{BackendControl, SavedBackend};

/// A node as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedNode {
    /// The sockets on which programs connect.
    pub paths: Vec<PathBuf>,
    /// The control threads of its guests.
    pub guests: Vec<SavedGuest>,
    /// What it does otherwise than usual.
    pub options: NodeOptions,
    /// Whether single connections are events.
    pub wants_flows: bool,
    /// How long at most the node looks for packets before it sleeps.
    pub polling: Duration,
    /// All that the worker has.
    pub fabric: SavedFabric,
}

/// A guest as the control plane knows it, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedGuest {
    /// Its link.
    pub link: LinkId,
    /// Its CID.
    pub cid: u32,
    /// Its front end's socket, then its hybrid socket if it has one.
    pub paths: Vec<PathBuf>,
    /// Its control thread.
    pub control: SavedBackend,
}

/// What owners restore themselves with.
pub(crate) struct Restoring {
    pub(crate) fds: Fds,
    pub(crate) sources: Claims,
    pub(crate) now: Instant,
    pub(crate) sockets: Sockets,
}

impl Restoring {
    /// Takes the socket of a program, or one on which programs connect, and listens to it under the key that it had.
    pub(crate) fn claim_socket(
        &mut self,
        fd: SavedFd,
        id: SourceId,
        owner: Owner,
    ) -> Result<ProgramSocket, Unfit> {
        let socket = self.sockets.adopt(self.fds.take(fd)?);
        self.sources.claim(&socket, id, owner)?;
        Ok(socket)
    }
}

/// What the control thread of a guest has, which is restored before the guest's link.
pub(crate) struct RestoredGuest {
    /// Its memory, if there is some that can be mapped.
    pub(crate) memory: Option<Arc<GuestMemory>>,
    /// The rings that its front end takes for running.
    pub(crate) runs: [bool; QUEUE_COUNT],
    pub(crate) control: BackendControl,
}
