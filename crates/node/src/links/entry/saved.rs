//! One link as plain data: who is at the other end, and its queues.

use std::io::ErrorKind;

use vsock_core::saved::{Unfit, ago, check, check_counts};
use vsock_core::{Admission, Cid, Duration, Instant};

use super::Entry;
use crate::links::interface::{SavedInterface, SavedLink};
use crate::links::{Interface, Role};
use crate::options::GuestOptions;
use crate::reactor::{Owner, SourceId};
use crate::saved::{RestoredGuest, Restoring};
use vsock_virtio::link::Link;
use vsock_virtio::link::device::DeviceLink;
use vsock_virtio::link::loopback::LoopbackLink;
use vsock_virtio::saved::{Fds, SavedFds};
use vsock_virtio::spec::QUEUE_COUNT;
use vsock_virtio::sys::PeerCredentials;
use vsock_virtio::vhost_user::Detach;

/// One link of a node as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedEntry {
    /// What the guest was told to be.
    pub options: GuestOptions,
    /// Its front end.
    pub front_end: Option<PeerCredentials>,
    /// Virtio features that both sides have.
    pub features: u64,
    /// For how long the guest can receive already.
    pub receives_for: Duration,
    /// That the guest's driver is up has been said.
    pub is_announced: bool,
    /// How often the guest's driver came up.
    pub driver_starts: u64,
    /// The queues' eventfds, by queue.
    pub sources: [Option<SourceId>; QUEUE_COUNT],
    /// Attachments ended because of a fault.
    pub faults: u64,
    /// Its queues and connections; none if the kernel gave no memory for new ones after a fault of ours.
    pub interface: Option<SavedInterface>,
}

impl Entry {
    /// As plain data.
    pub(in super::super) fn save<'a>(&'a self, now: Instant, fds: &mut SavedFds<'a>) -> SavedEntry {
        SavedEntry {
            options: self.options.clone(),
            front_end: self.front_end,
            features: self.features,
            receives_for: now.since(self.receives_since),
            is_announced: self.is_announced,
            driver_starts: self.driver_starts,
            sources: self.sources,
            faults: self.faults,
            interface: self.interface().and_then(|it| it.save(now, fds)),
        }
    }

    /// A link that goes on where another was. The control thread of a guest does the same, and has its memory.
    pub(in super::super) fn restore(
        saved: SavedEntry,
        (role, local): (Role, Cid),
        guest: Option<&RestoredGuest>,
        admission: &mut Admission,
        (restoring, seed): (&mut Restoring, u64),
    ) -> Result<Self, Unfit> {
        let SavedEntry { options, front_end, features, mut sources, .. } = saved;
        check_counts([saved.faults, saved.driver_starts])?;
        let mut interface = None;
        if let Some(saved) = saved.interface {
            let mut link = restore_link(&saved.link, guest, &mut restoring.fds)?;
            watch(&mut link, &mut sources, guest, restoring)?;
            let (at, now) = ((role, local), restoring.now);
            interface = Some(Box::new(Interface::restore((saved, link), at, seed, now)?));
        }
        let mut entry = Self {
            front_end,
            receives_since: ago(saved.receives_for, restoring.now),
            is_announced: saved.is_announced,
            driver_starts: saved.driver_starts,
            sources,
            faults: saved.faults,
            control: guest.map(|guest| guest.control.clone()),
            ..Self::of(GuestOptions::default(), interface)
        };
        entry.set_options(admission, options);
        entry.set_features(features);
        Ok(entry)
    }
}

fn restore_link(
    saved: &SavedLink,
    guest: Option<&RestoredGuest>,
    fds: &mut Fds,
) -> Result<Link, Unfit> {
    match (saved, guest) {
        (SavedLink::Device(device), Some(guest)) => {
            for (queue, running) in device.queues.iter().enumerate() {
                // A front end can stop what it has started, and nothing else.
                check(running.is_none() || guest.runs[queue], Unfit::State)?;
            }
            let device = DeviceLink::restore(device.clone(), guest.memory.as_ref(), fds)?;
            Ok(Link::Device(device))
        }
        (SavedLink::Loopback(loopback), None) => {
            let new = LoopbackLink::new().map_err(|_| Unfit::Descriptor)?;
            Ok(Link::Loopback(new.restore(loopback)?))
        }
        (SavedLink::Device(_), None) | (SavedLink::Loopback(_), Some(_)) => Err(Unfit::State),
    }
}

/// Listens for the other side's signals, as before. A front end whose eventfd cannot be listened to any more is sent away.
fn watch(
    link: &mut Link,
    sources: &mut [Option<SourceId>; QUEUE_COUNT],
    guest: Option<&RestoredGuest>,
    restoring: &mut Restoring,
) -> Result<(), Unfit> {
    for (queue, source) in sources.iter_mut().enumerate() {
        match (link.notify_fd(queue), *source) {
            (Some(fd), Some(id)) => match (restoring.sources.claim(fd, id, Owner::Queue), guest) {
                (Err(Unfit::Descriptor), Some(guest)) => {
                    *source = None;
                    if let Link::Device(device) = link {
                        device.stop_queue(queue);
                    }
                    guest.control.detach(Detach::Socket(ErrorKind::InvalidInput));
                }
                (claimed, _) => claimed?,
            },
            (Some(_), None) => return Err(Unfit::State),
            (None, Some(id)) => {
                // Its memory could not be mapped again.
                restoring.sources.give_up(id, Owner::Queue)?;
                *source = None;
            }
            (None, None) => {}
        }
    }
    Ok(())
}
