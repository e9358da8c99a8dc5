//! The I/O shell of vsock: guest memory, rings, vhost-user, and the loop that joins them to programs' sockets.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`node`] | a running switch or userspace guest, as other threads hold it |
//! | `options` | the options of a guest |
//! | `worker` | the thread behind it: all state, all packets |
//! | `host` | programs: their requests, their end of each connection |
//! | [`link`] | the packet path to the other side: as device, as driver, or to ourselves |
//! | [`queue`] | the split virtqueue, both sides |
//! | [`vhost_user`] | how queues and memory get here |
//! | `reactor`, `timers`, `mailbox`, [`polling`] | one epoll set; one timer queue; how other threads talk to the worker; when it sleeps |
//! | [`spec`], [`sys`] | numbers of the specification; what is asked of the kernel |
//! | [`journal`], [`snapshot`] | what is told upwards |
//!
//! Guest memory itself, and all pointers to it, are in `crates/guest-memory`. Unsafe code is in [`sys`] alone.

#![deny(unsafe_code)]

mod admission;
mod awaited;
mod context;
mod fabric;
mod flow_log;
mod flows;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod guest_port;
mod host;
pub mod journal;
pub mod link;
pub mod links;
mod mailbox;
pub mod node;
mod options;
pub mod polling;
mod programs;
pub mod queue;
mod reactor;
mod report;
pub mod snapshot;
pub mod spec;
#[allow(unsafe_code, reason = "calls that no library has in a safe form")]
pub mod sys;
mod timers;
mod turn;
pub mod vhost_user;
mod worker;

pub use vsock_guest_memory::{self as memory, slice};
