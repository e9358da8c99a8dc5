//! Who is bound to which port of a node, with the rules of the Linux kernel
//! (kernel-semantics, sections 3 and 4).
//!
//! One port space serves STREAM and SEQPACKET. Two bindings conflict when their ports are equal
//! and their CIDs are equal or one of them is the wildcard. A binding stays until it is released,
//! whatever becomes of connections made from it; connections accepted from a listener hold none.
//! Only programs of this machine choose keys here, so an ordered map does.

use crate::address::{Address, Cid, Port, SocketType};
use crate::ids::{Key, Slots};
use crate::saved::{SavedSlots, Unfit, check};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// How many ephemeral ports are tried.
const EPHEMERAL_TRIES: u32 = 24;

/// Names one binding for ever; a stale one is harmless.
pub type Binding = Key<Bound>;

/// Why an address could not be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindError {
    /// EADDRINUSE: a conflicting binding.
    InUse,
    /// EADDRNOTAVAIL: the CID is not ours.
    NotLocal,
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

/// One binding, inside; [`Listener`] is what is to be seen of those that listen.
#[derive(Debug)]
pub struct Bound {
    address: Address,
    listening: Option<Listening>,
}

impl Listener {
    /// Whether its queue takes one more, which it does with the backlog and one more.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.waiting <= self.backlog
    }
}

#[derive(Debug)]
struct Listening {
    kind: SocketType,
    backlog: u32,
    waiting: u32,
}

/// Who is bound to which port of a node.
#[derive(Debug)]
pub struct Ports {
    local: Cid,
    bound: Slots<Bound>,
    by_port: BTreeMap<Port, Vec<Binding>>,
    next_ephemeral: u32,
}

impl Ports {
    /// No bindings yet. `seed` chooses where ephemeral ports start.
    #[must_use]
    pub fn new(local: Cid, seed: u64) -> Self {
        let first = Port::FIRST_UNPRIVILEGED.0;
        let choices = u64::from(u32::MAX - first);
        let start = u32::try_from(seed % choices).unwrap_or(0);
        Self { local, bound: Slots::new(), by_port: BTreeMap::new(), next_ephemeral: first + start }
    }

    /// The CID may change when a link comes up; bindings stay.
    pub fn set_local(&mut self, local: Cid) {
        self.local = local;
    }

    /// Whether programs can be bound to this CID: the node's own and `Cid::LOCAL` are ours, and
    /// `Cid::ANY` stands for all of them.
    #[must_use]
    pub fn is_local(&self, cid: Cid) -> bool {
        [Cid::ANY, Cid::LOCAL, self.local].contains(&cid)
    }

    /// Binds an address; `Port::ANY` takes an ephemeral port. Whether the caller may bind ports
    /// below 1024 is a question for `admission`.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(&mut self, address: Address) -> Result<Binding, BindError> {
        if !self.is_local(address.cid) {
            return Err(BindError::NotLocal);
        }
        let address = if address.port == Port::ANY {
            let port = self.free_ephemeral(address.cid).ok_or(BindError::Exhausted)?;
            Address { port, ..address }
        } else {
            address
        };
        if self.is_taken(address) {
            return Err(BindError::InUse);
        }
        let id = self.bound.insert(Bound { address, listening: None });
        self.by_port.entry(address.port).or_default().push(id);
        Ok(id)
    }

    /// Consecutive numbers from a start nobody can guess, as many as Linux tries.
    fn free_ephemeral(&mut self, cid: Cid) -> Option<Port> {
        for _ in 0..EPHEMERAL_TRIES {
            if Port(self.next_ephemeral) == Port::ANY || Port(self.next_ephemeral).is_privileged() {
                self.next_ephemeral = Port::FIRST_UNPRIVILEGED.0;
            }
            let port = Port(self.next_ephemeral);
            self.next_ephemeral += 1;
            if !self.is_taken(Address { cid, port }) {
                return Some(port);
            }
        }
        None
    }

    fn at_port(&self, port: Port) -> impl Iterator<Item = (Binding, &Bound)> {
        let ids = self.by_port.get(&port).map(Vec::as_slice).unwrap_or_default();
        ids.iter().filter_map(|id| self.bound.get(*id).map(|bound| (*id, bound)))
    }

    fn is_taken(&self, address: Address) -> bool {
        self.at_port(address.port).any(|(_, bound)| {
            let other = bound.address.cid;
            other == address.cid || other == Cid::ANY || address.cid == Cid::ANY
        })
    }

    /// Makes a binding listen, or changes its backlog; who waits keeps waiting.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn listen(
        &mut self,
        binding: Binding,
        kind: SocketType,
        backlog: u32,
    ) -> Result<(), ListenError> {
        if kind == SocketType::Datagram {
            return Err(ListenError::NotConnectible);
        }
        let bound = self.bound.get_mut(binding).ok_or(ListenError::NotBound)?;
        let waiting = bound.listening.as_ref().map_or(0, |listening| listening.waiting);
        bound.listening = Some(Listening { kind, backlog, waiting });
        Ok(())
    }

    /// The address of a binding; its CID may be ANY.
    #[must_use]
    pub fn address(&self, binding: Binding) -> Option<Address> {
        self.bound.get(binding).map(|bound| bound.address)
    }

    /// Whether a binding listens for connections of a type.
    #[must_use]
    pub fn is_listening(&self, binding: Binding, kind: SocketType) -> bool {
        let listening = self.bound.get(binding).and_then(|bound| bound.listening.as_ref());
        listening.is_some_and(|listening| listening.kind == kind)
    }

    /// Who is bound to a destination, whether it listens or not.
    #[must_use]
    pub fn holder(&self, dst: Address) -> Option<Binding> {
        self.at_port(dst.port)
            .find(|(_, bound)| bound.address.cid == dst.cid || bound.address.cid == Cid::ANY)
            .map(|(id, _)| id)
    }

    /// The listener for a destination. Its socket type is the caller's to compare.
    #[must_use]
    pub fn lookup(&self, dst: Address) -> Option<Listener> {
        self.at_port(dst.port)
            .filter(|(_, bound)| bound.address.cid == dst.cid || bound.address.cid == Cid::ANY)
            .find_map(|(id, bound)| listener(id, bound))
    }

    /// Counts one more connection that waits to be accepted. `false`: the queue is full, which
    /// it is with one more than the backlog, or nobody listens.
    #[must_use]
    pub fn admit(&mut self, binding: Binding) -> bool {
        let bound = self.bound.get_mut(binding);
        let Some(listening) = bound.and_then(|bound| bound.listening.as_mut()) else {
            return false;
        };
        let has_room = listening.waiting <= listening.backlog;
        if has_room {
            listening.waiting = listening.waiting.saturating_add(1);
        }
        has_room
    }

    /// A waiting connection was accepted, or went away.
    pub fn accepted(&mut self, binding: Binding) {
        let bound = self.bound.get_mut(binding);
        if let Some(listening) = bound.and_then(|bound| bound.listening.as_mut()) {
            listening.waiting = listening.waiting.saturating_sub(1);
        }
    }

    /// Frees a binding.
    pub fn release(&mut self, binding: Binding) {
        let Some(bound) = self.bound.remove(binding) else { return };
        let port = bound.address.port;
        if let Some(ids) = self.by_port.get_mut(&port) {
            ids.retain(|id| *id != binding);
            if ids.is_empty() {
                self.by_port.remove(&port);
            }
        }
    }

    /// All bindings.
    pub fn bindings(&self) -> impl Iterator<Item = Binding> + '_ {
        self.bound.keys()
    }

    /// All listeners, by port.
    pub fn listeners(&self) -> impl Iterator<Item = Listener> + '_ {
        self.by_port
            .keys()
            .flat_map(|port| self.at_port(*port))
            .filter_map(|(id, bound)| listener(id, bound))
    }
}

/// One binding as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedBinding {
    /// Its address; the CID may be ANY.
    pub address: Address,
    /// Socket type, backlog and how many wait, if it listens.
    pub listening: Option<(SocketType, u32, u32)>,
}

/// [`Ports`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedPorts {
    /// The CID of the node.
    pub local: Cid,
    /// Who is bound, by slot.
    pub bound: SavedSlots<SavedBinding>,
    /// Where the search for an ephemeral port goes on.
    pub next_ephemeral: u32,
}

impl Ports {
    /// All bindings as plain data.
    #[must_use]
    pub fn save(&self) -> SavedPorts {
        let one = |bound: &Bound| SavedBinding {
            address: bound.address,
            listening: bound.listening.as_ref().map(|it| (it.kind, it.backlog, it.waiting)),
        };
        let bound = self.bound.save(one);
        SavedPorts { local: self.local, bound, next_ephemeral: self.next_ephemeral }
    }

    /// Bindings as they were.
    ///
    /// # Errors
    /// The saved state cannot be.
    pub fn restore(saved: SavedPorts) -> Result<Self, Unfit> {
        let SavedPorts { local, bound, next_ephemeral } = saved;
        let mut ports = Self { next_ephemeral, ..Self::new(local, 0) };
        let bound = Slots::restore(bound, |_, SavedBinding { address, listening }| {
            check(address.port != Port::ANY, Unfit::Address)?;
            let datagrams = listening.is_some_and(|(kind, ..)| kind == SocketType::Datagram);
            check(!datagrams, Unfit::State)?;
            let listening =
                listening.map(|(kind, backlog, waiting)| Listening { kind, backlog, waiting });
            Ok(Bound { address, listening })
        })?;
        // One after the other, so that each is compared with those before it.
        let keys: Vec<(Binding, Address)> =
            bound.iter().map(|(id, bound)| (id, bound.address)).collect();
        ports.bound = bound;
        for (id, address) in keys {
            check(!ports.is_taken(address), Unfit::Address)?;
            ports.by_port.entry(address.port).or_default().push(id);
        }
        Ok(ports)
    }
}

fn listener(binding: Binding, bound: &Bound) -> Option<Listener> {
    let listening = bound.listening.as_ref()?;
    Some(Listener {
        binding,
        address: bound.address,
        kind: listening.kind,
        backlog: listening.backlog,
        waiting: listening.waiting,
    })
}

#[cfg(test)]
mod tests;
