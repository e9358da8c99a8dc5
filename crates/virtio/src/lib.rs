//! virtio-vsock for both ends: virtqueues, links made of them, and vhost-user, which brings them here.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`link`] | the packet path to the other side: as device, as driver, or to ourselves |
//! | [`queue`] | the split virtqueue, both sides |
//! | [`vhost_user`] | how queues and memory get here |
//! | [`joinable`], [`starter`] | threads that are waited for with a deadline, and threads that share a sandbox |
//! | [`saved`] | descriptors beside saved state |
//! | [`spec`], [`sys`] | numbers of the specification; what is asked of the kernel |
//!
//! Guest memory itself, and all pointers to it, are in `crates/guest-memory`. Unsafe code is in [`sys`] alone.

#![deny(unsafe_code)]

pub mod joinable;
pub mod link;
pub mod queue;
pub mod saved;
pub mod spec;
pub mod starter;
#[allow(unsafe_code, reason = "calls that no library has in a safe form")]
pub mod sys;
pub mod vhost_user;
