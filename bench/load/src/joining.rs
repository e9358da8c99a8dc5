//! How a userspace guest joins the device behind a vhost-user socket.

use std::path::Path;
use std::time::Duration;

use vsock_virtio::link::driver::{DriverLink, DriverOptions};
use vsock_virtio::spec::{F_EVENT_IDX, QUEUE_COUNT};
use vsock_virtio::vhost_user::{Attached, FrontendOptions, attach};

use crate::Result;

/// What a guest asks of its device; it waits longer for it than a program would, as the device may be under attack.
#[must_use]
pub fn front_end() -> FrontendOptions {
    FrontendOptions { timeout: Duration::from_secs(20), ..FrontendOptions::default() }
}

/// A driver with queues of its own, attached to the device behind `socket`.
///
/// # Errors
/// The options are impossible, or the device does not take the guest.
pub fn join(socket: &Path, options: &DriverOptions) -> Result<(DriverLink, Attached)> {
    let mut link = DriverLink::new(options)?;
    let rings: Vec<_> = (0..QUEUE_COUNT).filter_map(|queue| link.queue_config(queue)).collect();
    let mut attached = attach(socket, link.region(), &rings, front_end())?;
    link.set_event_idx(attached.features & F_EVENT_IDX != 0);
    for (queue, signals) in attached.rings.drain(..).enumerate() {
        link.connect(queue, signals.kick, signals.call)?;
    }
    Ok((link, attached))
}
