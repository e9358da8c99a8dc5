//! The options of a node; and those of a guest: its link stores them whole, and snapshots return them.

use vsock_core::Cid;

use crate::host::directory::Access;
use vsock_sandbox::Sandbox;

/// What a node does otherwise than usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeOptions {
    /// Whether its threads give up what they do not need.
    pub sandbox: Sandbox,
    /// Refuse descriptors that programs send along with their bytes. Where the kernel cannot (before Linux 6.16), and if not,
    /// they are received, and closed on threads of their own.
    pub refuse_descriptors: bool,
    /// Share out so many descriptors among programs and guests, or as many as the process may have (RLIMIT_NOFILE), if that
    /// is less.
    pub descriptors: usize,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self { sandbox: Sandbox::default(), refuse_descriptors: true, descriptors: usize::MAX }
    }
}

/// Why there is no such guest.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The CID is taken.
    #[error("CID {0} belongs to guest {1:?} already")]
    CidInUse(u32, String),
    /// The name is taken.
    #[error("there is a guest {0:?} already")]
    NameInUse(String),
    /// Not a CID a guest can have.
    #[error("{0} is not a CID for a guest (3 to 4294967294)")]
    BadCid(u32),
    /// The kernel said no.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Calls the macro `$then` with the fields of [`GuestOptions`]. The glue to another language declares its own type with
/// it, so that a new field is added in one place.
#[macro_export]
macro_rules! guest_options {
    ($then:ident) => {
        $then! {
            /// Its name, unique in the node.
            name: String,
            /// Its CID, unique in the node.
            cid: u32,
            /// Guests that share a group may connect to each other.
            groups: Vec<String>,
            /// Where its front end will connect: a path for a new Unix socket.
            socket: std::path::PathBuf,
            /// A path for a hybrid socket, if programs are to have one.
            hybrid: Option<std::path::PathBuf>,
            /// The user whose its sockets are, if not the node's own.
            socket_user: Option<u32>,
            /// The group whose its sockets are, if not the node's own.
            socket_group: Option<u32>,
            /// The permission bits of its sockets; 0: read and write for their owner.
            socket_mode: u32,
            /// Let its front end add and remove memory regions one by one; see
            /// [`BackendOptions::memory_slots`](vsock_virtio::vhost_user::BackendOptions::memory_slots).
            memory_slots: bool,
            /// Take its memory in files of any file system; see
            /// [`BackendOptions::file_memory`](vsock_virtio::vhost_user::BackendOptions::file_memory).
            file_memory: bool,
            /// Its memory at most, in GiB; 0: [`MEMORY_LIMIT`](vsock_virtio::vhost_user::MEMORY_LIMIT).
            memory_limit_gib: u32,
            /// Receive buffers of all its connections with this node together, at most, in MiB; 0: 64.
            buffer_limit_mib: u32,
            /// Bytes that go over its link in a second, each way, at most; 0: as many as there are.
            bytes_per_second: u64,
            /// Other CIDs by which it reaches this node, as software in a Nitro enclave reaches its parent by CID 3.
            /// The node takes packets that the guest sends to one of them, even if another guest has that CID, and
            /// answers from it.
            host_aliases: Vec<u32>,
            /// A line of text about it.
            description: String,
        }
    };
}

macro_rules! define {
    ($($(#[$doc:meta])* $field:ident: $kind:ty,)*) => {
        /// A guest to add, or what it is to be from now on.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct GuestOptions {
            $($(#[$doc])* pub $field: $kind,)*
        }
    };
}
guest_options!(define);

impl GuestOptions {
    /// Who may connect to its sockets.
    pub(crate) fn access(&self) -> Access {
        let &Self { socket_user: user, socket_group: group, socket_mode: mode, .. } = self;
        Access { user, group, mode }
    }

    /// Each alias must be the CID of a guest, and not of this one.
    pub(crate) fn check(&self) -> Result<(), AddError> {
        let is_wrong = |&&alias: &&u32| !Cid(alias).is_guest() || alias == self.cid;
        self.host_aliases.iter().find(is_wrong).map_or(Ok(()), |&bad| Err(AddError::BadCid(bad)))
    }
}
