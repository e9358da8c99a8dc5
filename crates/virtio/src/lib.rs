//! The I/O shell of vsock: guest memory, rings, vhost-user, and the loop that joins them to programs' sockets.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`node`] | a running switch or userspace guest, as other threads hold it |
//! | `worker` | the thread behind it: all state, all packets |
//! | `host` | programs: their requests, their end of each connection |
//! | [`link`] | the packet path to the other side: [`device`], [`driver`] or [`loopback`] |
//! | [`ring`] | the split virtqueue, both sides |
//! | [`vhost_user`] | how rings and memory get here |
//! | `reactor`, `mailbox`, [`polling`] | one epoll set; how other threads talk to the worker; when it sleeps |
//! | [`journal`], [`snapshot`] | what is told upwards |
//!
//! Guest memory itself, and all pointers to it, are in `crates/guest-memory`.
//!
//! Has unsafe code, as only `crates/preload` does beside it: every block says why it is sound.

pub mod device;
pub mod driver;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod host;
pub mod journal;
pub mod link;
pub mod loopback;
mod mailbox;
pub mod node;
pub mod polling;
mod reactor;
pub mod ring;
pub mod snapshot;
pub mod vhost_user;
mod worker;

pub use vsock_guest_memory::{self as memory, slice};
