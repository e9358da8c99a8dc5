//! The I/O shell of vsock.

pub mod device;
pub mod driver;
pub mod link;
pub mod memory;
pub mod ring;
mod sigbus;
pub mod slice;
pub mod vhost_user;
