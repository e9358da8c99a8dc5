//! The device of a front end as plain data.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vsock_core::saved::{Unfit, check};

use super::super::control::Shared;
use super::super::rings::SavedRing;
use super::super::{Attachment, BackendOptions, Detach};
use super::memory::bad_memory;
use super::{Handler, RingSetup};
use crate::saved::{Fds, SavedFd, SavedFds};
use crate::spec::QUEUE_COUNT;
use crate::sys::PeerCredentials;
use vsock_guest_memory::{GuestMemory, MappedRegion, Region};

/// What a front end has told a device, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedHandler {
    /// Who it is.
    pub peer: PeerCredentials,
    /// It has said something.
    pub has_spoken: bool,
    /// Features that the driver took.
    pub features: u64,
    /// Protocol features that the front end took.
    pub protocol: u64,
    /// Guest memory, if it has been shared.
    pub memory: Option<Vec<SavedRegion>>,
    /// How long until it is said that there is no memory.
    pub memory_due: Option<Duration>,
    /// Its rings.
    pub rings: [SavedRing; QUEUE_COUNT],
}

/// One region of guest memory, as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedRegion {
    /// First guest address.
    pub guest: u64,
    /// First address in the front end's own address space.
    pub user: u64,
    /// Number of bytes.
    pub len: u64,
    /// Where it starts in its file.
    pub offset: u64,
    /// The file.
    pub file: SavedFd,
}

impl Handler {
    /// As plain data; `None`: no front end is attached.
    pub(in super::super) fn save<'a>(&'a self, fds: &mut SavedFds<'a>) -> Option<SavedHandler> {
        let peer = self.peer?;
        let region = |fds: &mut SavedFds<'a>, it: MappedRegion<'a>| SavedRegion {
            guest: it.guest,
            user: it.user,
            len: it.len,
            offset: it.offset,
            file: fds.add_borrowed(it.file),
        };
        let memory = self.memory.as_ref();
        Some(SavedHandler {
            peer,
            has_spoken: self.has_spoken,
            features: self.features,
            protocol: self.protocol.bits(),
            memory: memory.map(|it| it.regions().map(|it| region(fds, it)).collect()),
            memory_due: self.patience(),
            rings: self.rings.each_ref().map(|ring| ring.save(fds)),
        })
    }

    /// A device that goes on with a front end. Memory that cannot be mapped again is the front end's fault, which has made
    /// its file shorter: the reason to send it away.
    pub(in super::super) fn restore(
        saved: SavedHandler,
        options: BackendOptions,
        shared: Arc<Shared>,
        attachment: Box<dyn Attachment>,
        fds: &mut Fds,
    ) -> Result<(Self, Option<Detach>), Unfit> {
        let SavedHandler { peer, has_spoken, features, protocol, memory_due, .. } = saved;
        check(features & !options.features() == 0, Unfit::State)?;
        check(protocol & !options.protocol_features().bits() == 0, Unfit::State)?;
        let mut fault = None;
        let mut memory = None;
        if let Some(regions) = saved.memory {
            let regions = regions.into_iter().map(|region| map(region, fds));
            let regions = regions.collect::<Result<Vec<_>, Unfit>>()?;
            match GuestMemory::map(regions, options.memory_policy) {
                Ok(mapped) => memory = Some(mapped),
                Err(error) => fault = Some(bad_memory(error)),
            }
        }
        let mut handler = Self {
            peer: Some(peer),
            has_spoken,
            features,
            protocol: VhostUserProtocolFeatures::from_bits_truncate(protocol),
            memory_due: memory_due.and_then(|wait| Instant::now().checked_add(wait)),
            memory,
            ..Self::new(options, shared, attachment)
        };
        for (ring, saved) in handler.rings.iter_mut().zip(saved.rings) {
            let has_memory = handler.memory.is_some() || fault.is_some();
            check(!saved.running || has_memory, Unfit::State)?;
            *ring = RingSetup::restore(saved, fds)?;
        }
        Ok((handler, fault))
    }

    /// The memory of the front end.
    pub(in super::super) fn memory(&self) -> Option<&Arc<GuestMemory>> {
        self.memory.as_ref()
    }

    /// Whether the data plane runs this ring.
    pub(in super::super) fn runs(&self, queue: usize) -> bool {
        self.rings.get(queue).is_some_and(|ring| ring.running)
    }
}

fn map(saved: SavedRegion, fds: &mut Fds) -> Result<Region, Unfit> {
    let SavedRegion { guest, user, len, offset, file } = saved;
    Ok(Region { guest, user, len, offset, file: File::from(fds.take(file)?) })
}
