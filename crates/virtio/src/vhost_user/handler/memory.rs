//! Requests about guest memory: a new table each time, swapped in while no ring runs.
//!
//! The worker reads and writes guest memory while others wait for it, so only files that are nothing but memory are taken,
//! unless the guest's options say otherwise. A file may claim any size, so the options limit what one guest maps.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostUserMemory, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserSingleMemoryRegion,
};

use super::super::Detach;
use super::super::message::{Message, read_body};
use super::{Answer, Handler};
use vsock_guest_memory::{GuestMemory, MemoryError, Region, is_memory_file};

/// The usual case is QEMU with `memory-backend-file` on a disk.
const NO_MEMORY: &str = "is a file on a disk or another file system that may make the switch wait. \
    Use memory-backend-memfd, as `vsock qemu-args` prints, or a file in /dev/shm or on hugetlbfs \
    (User-Mode Linux: TMPDIR=/dev/shm); \
    or, if you trust this file system, set file_memory = true for the guest";

impl Handler {
    pub(super) fn set_mem_table(&mut self, mut message: Message) -> Result<Answer, Detach> {
        let (table, entries) = message.body_and_rest::<VhostUserMemory>()?;
        let size = size_of::<VhostUserMemoryRegion>();
        // User-Mode Linux always sends room for two regions, and says that there is one.
        let entries = entries
            .get(..table.num_regions as usize * size)
            .ok_or_else(|| message.malformed("the table is not as long as it says"))?;
        let entries: Option<Vec<_>> =
            entries.chunks_exact(size).map(read_body::<VhostUserMemoryRegion>).collect();
        let entries = entries.ok_or_else(|| message.malformed("a region is invalid"))?;
        let fds = message.take_fds(entries.len())?;
        let len = entries.iter().map(|entry| entry.memory_size).fold(0, u64::saturating_add);
        self.check_len(len)?;
        let regions = entries.iter().zip(fds).map(|(entry, fd)| self.region(entry, fd));
        let regions = regions.collect::<Result<Vec<_>, _>>()?;
        let memory = GuestMemory::map(regions, self.options.memory_policy).map_err(bad_memory)?;
        self.replace_memory(memory);
        self.start_rings()?;
        Ok(Answer::Done)
    }

    pub(super) fn add_mem_reg(&mut self, mut message: Message) -> Result<Answer, Detach> {
        self.expect_slots(&message)?;
        let entry = message.body::<VhostUserSingleMemoryRegion>()?;
        let before = self.memory.as_ref().map_or(0, |memory| memory.len());
        self.check_len(before.saturating_add(entry.memory_size))?;
        let region = self.region(&entry, message.take_fd()?)?;
        let policy = self.options.memory_policy;
        let memory = match &self.memory {
            Some(memory) => memory.with_region_added(region, policy),
            None => GuestMemory::map(vec![region], policy),
        };
        self.replace_memory(memory.map_err(bad_memory)?);
        self.start_located_rings()?;
        Ok(Answer::Done)
    }

    /// Older front ends pass an fd with it; it is closed unused, as the specification asks.
    pub(super) fn rem_mem_reg(&mut self, message: &Message) -> Result<Answer, Detach> {
        self.expect_slots(message)?;
        let entry = message.body::<VhostUserSingleMemoryRegion>()?;
        let (guest, user, len) = (entry.guest_phys_addr, entry.user_addr, entry.memory_size);
        let memory = match &self.memory {
            Some(memory) => memory.with_region_removed(guest, user, len),
            None => Err(MemoryError::Unknown { guest }),
        };
        self.replace_memory(memory.map_err(bad_memory)?);
        self.start_located_rings()?;
        Ok(Answer::Done)
    }

    /// Regions may come and go one by one only where that was negotiated.
    fn expect_slots(&self, message: &Message) -> Result<(), Detach> {
        let has_slots = self.protocol.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);
        if has_slots { Ok(()) } else { Err(Detach::Unsupported(message.request)) }
    }

    /// Checks how much memory there is to be in all.
    fn check_len(&self, len: u64) -> Result<(), Detach> {
        let limit = self.options.memory_limit;
        if len <= limit {
            return Ok(());
        }
        let fault =
            format!("{len} bytes are more than the guest's memory_limit_gib allows ({limit})");
        Err(Detach::Memory(fault))
    }

    /// What to map, if the guest's memory may be in such a file.
    fn region(&self, entry: &VhostUserMemoryRegion, fd: OwnedFd) -> Result<Region, Detach> {
        let (guest, file) = (entry.guest_phys_addr, File::from(fd));
        let is_memory = self.options.file_memory || is_memory_file(&file)?;
        if !is_memory {
            return Err(Detach::Memory(format!(
                "the region at guest address {guest:#x} {NO_MEMORY}"
            )));
        }
        Ok(Region {
            guest,
            user: entry.user_addr,
            len: entry.memory_size,
            offset: entry.mmap_offset,
            file,
        })
    }

    /// Swaps the table with no ring running; the old one is unmapped when nothing uses it any more.
    fn replace_memory(&mut self, memory: Arc<GuestMemory>) {
        self.pause_rings();
        self.memory = Some(memory);
        self.memory_due = None;
    }
}

pub(super) fn bad_memory(error: MemoryError) -> Detach {
    Detach::Memory(error.to_string())
}
