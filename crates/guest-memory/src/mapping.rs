//! One mapped file range: checks, guard pages, seals.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, SealFlags, fcntl_get_seals, fstat, fstatfs};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use crate::memory::{MemoryError, MemoryPolicy};
use crate::sigbus::Registration;
use crate::slice::Slice;

/// f_type of hugetlbfs: its files are mapped in whole huge pages only.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// A shared mapping of `len` bytes of a file, between guard pages.
pub(crate) struct Mapping {
    /// What was reserved, guards included.
    reserved: *mut u8,
    reserved_len: usize,
    /// The first byte of the region, inside the reservation.
    start: *mut u8,
    len: usize,
    sealed: bool,
    /// What is mapped, from where on: a successor maps it again.
    file: File,
    offset: u64,
    /// None only while dropping: the registry must forget the range before it is unmapped.
    registration: Option<Registration>,
}

// SAFETY: the pointers name a mapping that belongs to this value alone and stays where it is; all access to
// the bytes is through `Slice`, which copies.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method changes anything through a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Checks `len` bytes at `offset` of `file` against the file as it really is, and maps them.
    pub(crate) fn new(
        guest: u64,
        file: File,
        offset: u64,
        len: u64,
        policy: MemoryPolicy,
    ) -> Result<Self, MemoryError> {
        let sealed = check_file(guest, &file, offset, len, policy)?;
        let page = page_size(&file)?;
        let overflow = || MemoryError::Overflow { guest };
        // The file is mapped from the page that holds the first byte.
        let lead = usize::try_from(offset % page as u64).map_err(|_| overflow())?;
        let len = usize::try_from(len).map_err(|_| overflow())?;
        let mapped = len
            .checked_add(lead)
            .and_then(|n| n.checked_next_multiple_of(page))
            .ok_or_else(overflow)?;
        let reserved_len = mapped.checked_add(3 * page).ok_or_else(overflow)?;
        // SAFETY: a new anonymous mapping at a place of the kernel's choice disturbs nothing.
        let reserved = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            mmap_anonymous(std::ptr::null_mut(), reserved_len, ProtFlags::empty(), flags)
        };
        let reserved = reserved.map_err(std::io::Error::from)?.cast::<u8>();
        // At least one guard page before, one behind, and the file at a multiple of its page size.
        let skip = (reserved.addr() + page).next_multiple_of(page) - reserved.addr();
        let base = reserved.wrapping_add(skip);
        let mut mapping = Self {
            reserved,
            reserved_len,
            start: base.wrapping_add(lead),
            len,
            sealed,
            file,
            offset,
            registration: None,
        };
        // SAFETY: `base..base+mapped` lies inside our own reservation (skip + mapped <= reserved_len - page),
        // so MAP_FIXED replaces nothing but our guard.
        unsafe {
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
            mmap(base.cast(), mapped, prot, flags, &mapping.file, offset - lead as u64)
                .map_err(std::io::Error::from)?;
            // Guest memory in a core dump of ours would be a leak; a kernel without the advice still runs.
            let _ = madvise(base.cast(), mapped, Advice::LinuxDontDump);
        }
        base.expose_provenance();
        mapping.registration = Some(Registration::new(base, mapped)?);
        Ok(mapping)
    }

    /// `len` bytes at `offset`, cut at the end.
    pub(crate) fn slice(&self, offset: u64, len: u64) -> Slice {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len);
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(self.len - offset);
        // SAFETY: inside `start..start+len`, which is mapped as long as we live; no reference to it is made.
        unsafe { Slice::new(self.start.add(offset), len) }
    }

    /// What is mapped, and from where on.
    pub(crate) fn source(&self) -> (BorrowedFd<'_>, u64) {
        (self.file.as_fd(), self.offset)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.registration.as_ref().is_some_and(Registration::is_dead)
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        drop(self.registration.take());
        // SAFETY: the reservation is ours; the table that owned us is gone, and with it everything that pointed here,
        // as that holds the table (`Slices`, `Pinned`) or borrows it (`Piece`). An error can only mean a bug of ours and cannot be acted on.
        let _ = unsafe { munmap(self.reserved.cast(), self.reserved_len) };
    }
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapping")
            .field("start", &self.start)
            .field("len", &self.len)
            .field("sealed", &self.sealed)
            .field("dead", &self.is_dead())
            .finish_non_exhaustive()
    }
}

/// Compares what is claimed with the file; returns whether it is sealed against shrinking.
fn check_file(
    guest: u64,
    file: &File,
    offset: u64,
    len: u64,
    policy: MemoryPolicy,
) -> Result<bool, MemoryError> {
    let status = fstat(file).map_err(std::io::Error::from)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(MemoryError::NotAFile { guest });
    }
    let need = offset.checked_add(len).ok_or(MemoryError::Overflow { guest })?;
    let size = u64::try_from(status.st_size).unwrap_or(0);
    if need > size {
        return Err(MemoryError::FileTooSmall { guest, need, size });
    }
    // Only memory files know seals; any other answers with an error, which means none.
    let sealed = fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    match policy {
        MemoryPolicy::RequireSeals if !sealed => Err(MemoryError::Unsealed { guest }),
        MemoryPolicy::RequireSeals | MemoryPolicy::RecordSeals => Ok(sealed),
    }
}

/// The unit in which the file can be mapped.
fn page_size(file: &File) -> Result<usize, MemoryError> {
    let page = rustix::param::page_size();
    let system = fstatfs(file).map_err(std::io::Error::from)?;
    let huge = u64::try_from(system.f_type).is_ok_and(|kind| kind == HUGETLBFS_MAGIC);
    let block = usize::try_from(system.f_bsize).unwrap_or(page);
    Ok(if huge && block.is_power_of_two() { block.max(page) } else { page })
}
