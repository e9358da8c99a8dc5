//! placeholder
use crate::address::{Address, Cid, Port, SocketType};

/// Names one binding for ever; a stale one is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Binding(pub u64);

/// Why an address could not be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindError {
    /// EADDRINUSE: a conflicting binding.
    InUse,
    /// EADDRNOTAVAIL: the CID is not ours.
    NotLocal,
    /// EACCES: a port below 1024 without privilege.
    NotPermitted,
    /// EADDRNOTAVAIL: no free ephemeral port in 24 tries.
    Exhausted,
}

/// Why a binding does not listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenError {
    /// EINVAL: no such binding.
    NotBound,
    /// EOPNOTSUPP: datagram sockets do not listen.
    NotConnectible,
}

/// A snapshot of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its binding.
    pub binding: Binding,
    /// Where it listens; the CID may be ANY.
    pub address: Address,
    /// Socket type.
    pub kind: SocketType,
    /// Backlog; one more is admitted.
    pub backlog: u32,
    /// Connections that wait to be accepted.
    pub waiting: u32,
}

/// Who is bound to which port of a node.
#[derive(Debug)]
pub struct Ports {
    local: Cid,
}

#[allow(unused_variables, clippy::unused_self, missing_docs)]
impl Ports {
    /// No bindings yet. `seed` chooses where ephemeral ports start.
    #[must_use]
    pub fn new(local: Cid, seed: u64) -> Self {
        Self { local }
    }
    /// The CID may change when a link comes up; bindings stay.
    pub fn set_local(&mut self, local: Cid) {}
    /// Binds an address; `Port::ANY` takes an ephemeral port.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(&mut self, address: Address, privileged: bool) -> Result<Binding, BindError> {
        Err(BindError::InUse)
    }
    /// Makes a binding listen, or changes its backlog.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn listen(
        &mut self,
        binding: Binding,
        kind: SocketType,
        backlog: u32,
    ) -> Result<(), ListenError> {
        Err(ListenError::NotBound)
    }
    /// The address of a binding; its CID may be ANY.
    #[must_use]
    pub fn address(&self, binding: Binding) -> Option<Address> {
        None
    }
    /// The listener for a destination.
    #[must_use]
    pub fn lookup(&self, dst: Address) -> Option<Listener> {
        None
    }
    /// Counts one more connection that waits to be accepted; `false`: the queue is full.
    pub fn admit(&mut self, binding: Binding) -> bool {
        false
    }
    /// A waiting connection was accepted, or went away.
    pub fn accepted(&mut self, binding: Binding) {}
    /// Frees a binding.
    pub fn release(&mut self, binding: Binding) {}
    /// All listeners.
    pub fn listeners(&self) -> impl Iterator<Item = Listener> + '_ {
        core::iter::empty()
    }
}
