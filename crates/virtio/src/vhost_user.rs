//! vhost-user for a virtio-vsock device: how a front end (QEMU, User-Mode Linux, our own userspace guest) hands guest
//! memory and rings to a back end.
//!
//! [`backend`] is the device's side: one control thread per guest owns the guest's listening socket, reads messages
//! and turns them into calls of an [`Attachment`], which the data plane implements. [`frontend`] is the driver's
//! side: it gives one memfd and its rings to any vhost-user-vsock device.
//!
//! Message layouts, their validity rules and the whole front end come from rust-vmm's `vhost` crate. Its
//! `BackendReqHandler` is *not* used; `message.rs` and `handler.rs` take its place, because that reader
//!
//! - starts with no protocol features and keeps them private, so a QEMU 7.2 that reconnects and never repeats
//!   `SET_PROTOCOL_FEATURES` could not be served;
//! - hides the fd of `SET_BACKEND_REQ_FD`, so a change of the CID could not be announced;
//! - loops forever on a message with more than 32 fds, and blocks in the middle of a short one;
//! - receives fds without close-on-exec, and reports one "invalid message" for most faults.
//!
//! No data passes here. What runs per packet is in the rings.

pub mod attachment;
pub mod backend;
pub mod detach;
pub mod frontend;

mod accept;
mod control;
mod handler;
mod message;
mod rings;

pub use attachment::{Attachment, Change, QueueStart};
pub use backend::{BackendHandle, BackendOptions, Paused, SavedBackend, SavedFrontEnd, spawn};
pub use control::BackendControl;
pub use detach::Detach;
pub use frontend::{Attached, ConfigSpace, FrontendError, FrontendOptions, RingSignals, attach};
pub use handler::{SavedHandler, SavedRegion};
pub use rings::SavedRing;

/// `VHOST_USER_F_PROTOCOL_FEATURES`, which is not for the driver; rings start disabled.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;
