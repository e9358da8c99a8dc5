//! What is known of a program here: the port it holds, the socket it has.

use std::os::fd::AsFd;

use rustix::net::sockopt::socket_cookie;
use vsock_core::{Address, Binding};

/// A port that is held for a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) id: Binding,
    pub(crate) address: Address,
}

/// One socket of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Socket {
    /// Whose program it is.
    pub(crate) uid: u32,
    /// Its SO_COOKIE; 0: not known.
    pub(crate) cookie: u64,
}

impl Socket {
    /// A socket that is at hand, of a program of this user.
    pub(crate) fn of(fd: impl AsFd, uid: u32) -> Self {
        Self { uid, cookie: socket_cookie(fd).unwrap_or(0) }
    }
}
