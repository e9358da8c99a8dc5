//! What is known of a program here: the port it holds, the socket it has.

use std::os::fd::AsFd;

use rustix::net::sockopt::socket_cookie;
use vsock_core::{Address, Binding};

/// A port that is held for a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// What the port table knows it by.
    pub id: Binding,
    /// Its address.
    pub address: Address,
}

/// One socket of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Socket {
    /// Whose program it is.
    pub uid: u32,
    /// Its SO_COOKIE; 0: not known.
    pub cookie: u64,
}

impl Socket {
    /// A socket that is at hand, of a program of this user.
    pub(crate) fn of(fd: impl AsFd, uid: u32) -> Self {
        Self { uid, cookie: socket_cookie(fd).unwrap_or(0) }
    }
}
