//! A running switch or userspace guest: the loop that joins links to programs' sockets.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`node`], `options` | a node as other threads hold it; the options of a guest |
//! | `worker`, `turn`, `context` | the thread behind it, one turn of one link, and what every part works with |
//! | `fault` | why a link is ended |
//! | `fabric`, `guest_port` | what concerns several parts at once; what a guest's front end does |
//! | [`links`] | the guest side: one interface per link, packets in and out |
//! | `flows` | one flow per connection of a program: bytes between its socket and a link |
//! | `programs`, `host` | the host side: programs, what they ask, and how they say it |
//! | `admission` | what is known of those who want to begin something |
//! | `orders`, `mailbox` | what other threads tell the worker to do, and how |
//! | `helper`, `reaper` | threads that do for the worker what may block; that close what may |
//! | `reactor`, `timers`, `awaited`, [`polling`] | what happened, deadlines, threads that wait, busy-polling |
//! | [`saved`] | all of it as plain data, for a successor |
//! | [`events`], [`journal`], `flow_log`, `report`, [`snapshot`] | what is told upwards |
//!
//! Virtqueues and vhost-user are in `crates/virtio`, guest memory in `crates/guest-memory`, the protocol in `crates/core`.

#![forbid(unsafe_code)]

mod admission;
mod awaited;
mod context;
pub mod events;
mod fabric;
mod fault;
mod flow_log;
mod flows;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod guest_port;
mod helper;
mod host;
pub mod journal;
pub mod links;
mod mailbox;
pub mod node;
mod options;
mod orders;
pub mod polling;
mod programs;
mod reactor;
mod reaper;
mod report;
pub mod saved;
pub mod snapshot;
mod timers;
mod turn;
mod worker;
