//! Requests about guest memory: a new table each time, swapped in while no ring runs.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostUserMemory, VhostUserMemoryRegion, VhostUserSingleMemoryRegion,
};

use super::super::Detach;
use super::super::message::{Message, read_body};
use super::{Answer, Handler};
use vsock_guest_memory::{GuestMemory, MemoryError, Region};

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
        let regions = entries.iter().zip(fds).map(|(entry, fd)| region(entry, fd)).collect();
        let memory = GuestMemory::map(regions, self.options.memory_policy).map_err(bad_memory)?;
        self.replace_memory(memory);
        self.start_rings()?;
        Ok(Answer::Done)
    }

    pub(super) fn add_mem_reg(&mut self, mut message: Message) -> Result<Answer, Detach> {
        let entry = message.body::<VhostUserSingleMemoryRegion>()?;
        let region = region(&entry, message.take_fd()?);
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

    /// Swaps the table with no ring running; the old one is unmapped when nothing uses it any more.
    fn replace_memory(&mut self, memory: Arc<GuestMemory>) {
        self.pause_rings();
        self.memory = Some(memory);
        self.memory_due = None;
    }
}

fn region(entry: &VhostUserMemoryRegion, fd: OwnedFd) -> Region {
    Region {
        guest: entry.guest_phys_addr,
        user: entry.user_addr,
        len: entry.memory_size,
        offset: entry.mmap_offset,
        file: File::from(fd),
    }
}

pub(super) fn bad_memory(error: MemoryError) -> Detach {
    Detach::Memory(error.to_string())
}
