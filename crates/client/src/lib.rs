//! The client side of a node without I/O: what a program and a node say to each other, and what the socket calls of
//! AF_VSOCK do to a socket.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`wire`] | requests and replies of the client protocol, encoded and decoded |
//! | [`socket`] | what every holder of a socket has to agree on, in 64 bits |
//! | [`name`] | a socket's own address, as the name of its Unix socket |
//! | [`options`] | the table of socket options, and what `getsockopt` and `setsockopt` do |
//! | [`calls`] | what each other call does to a socket: the state machine |
//! | [`transfer`] | what a receive or a send checks before data moves |
//!
//! The node decodes requests with it and the preload library encodes them, so neither has a copy of the format. The
//! Python package has its own; its tests compare it with `tests/vectors.json`, which this crate writes.
//!
//! Nothing here allocates or panics: the preload library calls it inside other people's programs.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod calls;
mod errno;
pub mod name;
pub mod options;
pub mod socket;
pub mod transfer;
pub mod wire;

pub use errno::Errno;
pub use options::Options;
pub use socket::{Flags, Socket, State};

/// The wildcard of both halves of an address: VMADDR_CID_ANY and VMADDR_PORT_ANY.
pub const ANY: u32 = u32::MAX;
/// VMADDR_CID_LOCAL: loopback.
pub const CID_LOCAL: u32 = 1;
/// VMADDR_CID_HOST.
pub const CID_HOST: u32 = 2;

/// A CID and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The number of a machine.
    pub cid: u32,
    /// The port.
    pub port: u32,
}

impl Address {
    /// No address in particular: both halves are the wildcard.
    pub const ANY: Self = Self { cid: ANY, port: ANY };
}
