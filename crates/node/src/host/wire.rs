//! The client protocol as the node speaks it: the messages of `vsock-client`, with the core's addresses and the errno
//! of rustix.

use rustix::io::Errno;
use vsock_core::{Address, Cid, Port};

pub(crate) use vsock_client::wire::{
    BadRequest, COOKIE_LEN, MAX_DATAGRAM, MAX_EXTRA, MESSAGE_LEN, Reply, Report, Request,
    name_behind, op,
};

/// What a reply holds where no address applies.
pub(crate) const NO_ADDRESS: Address = Address { cid: Cid::ANY, port: Port::ANY };

/// An address for a message.
pub(crate) fn to_wire(Address { cid, port }: Address) -> vsock_client::Address {
    vsock_client::Address { cid: cid.0, port: port.0 }
}

/// An address that a message has.
pub(crate) fn from_wire(address: vsock_client::Address) -> Address {
    Address { cid: Cid(address.cid), port: Port(address.port) }
}

/// Success of operation `op`, at our address.
pub(crate) fn ok(op: u8, ours: Address) -> Reply {
    Reply::ok(op, to_wire(ours))
}

/// Failure of operation `op`.
pub(crate) fn error(op: u8, errno: Errno) -> Reply {
    Reply::error(op, number(errno))
}

/// A CONNECT of the socket with this cookie that has led to no connection (yet); the socket is bound to `ours`.
pub(crate) fn not_connected(errno: Errno, ours: Address, cookie: u64) -> Reply {
    Reply::not_connected(number(errno), to_wire(ours), cookie)
}

fn number(errno: Errno) -> vsock_client::Errno {
    vsock_client::Errno(errno.raw_os_error())
}
