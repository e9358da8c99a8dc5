//! What a guest is told to be by whoever adds it: kept whole in its link, and shown by snapshots.

use vsock_core::Cid;

use crate::node::AddError;

/// Calls the macro `$then` with the fields of [`GuestOptions`]: the glue to another language makes its own form of
/// the same fields with it, so that a new one stands here once.
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
            /// Let its front end add and remove memory regions one by one; see
            /// [`BackendOptions::memory_slots`](crate::vhost_user::BackendOptions::memory_slots).
            memory_slots: bool,
            /// Other CIDs by which it reaches this node: the parent of a Nitro enclave is CID 3. What it sends to one of
            /// them is for the node, whichever guest has that CID, and answers come from it.
            host_aliases: Vec<u32>,
            /// What it is, for people.
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
    /// What the guest means by one of its aliases must be somebody else's CID.
    pub(crate) fn check(&self) -> Result<(), AddError> {
        let is_wrong = |&&alias: &&u32| !Cid(alias).is_guest() || alias == self.cid;
        self.host_aliases.iter().find(is_wrong).map_or(Ok(()), |&bad| Err(AddError::BadCid(bad)))
    }
}
