//! Guest memory: a table of mapped regions, and the only translation from guest addresses to pointers.
//!
//! A front end shares its guest's memory as files (memfd, hugetlbfs, tmpfs) with an address range each. Every
//! region is checked against its real file before it is mapped, mapped between guard pages, kept out of core
//! dumps and put under the care of `sigbus`. A table never changes: adding or removing a
//! region makes a new table that shares the mappings of the old one, so that rings which still hold the old
//! table stay valid until the worker has let go of it. A mapping is unmapped when its last table goes.
//!
//! Three kinds of address meet here: *guest* addresses (in descriptors), the front end's *user* addresses (in
//! SET_VRING_ADDR), and our own pointers, which leave this module only inside a [`Slice`] or a [`Pinned`].

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::mapping::Mapping;
use crate::pinned::{Pinned, Shared};
use crate::slice::{Piece, Slice, Slices};

/// The most regions of one guest (what QEMU and the kernel's vhost agree on for memory slots).
pub const MAX_REGIONS: usize = 509;

/// One region as the front end describes it.
#[derive(Debug)]
pub struct Region {
    /// First guest address.
    pub guest: u64,
    /// First address in the front end's own address space.
    pub user: u64,
    /// Number of bytes.
    pub len: u64,
    /// Where the region starts in `file`.
    pub offset: u64,
    /// The memory itself.
    pub file: File,
}

/// One region of a table, to be mapped again elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct MappedRegion<'a> {
    /// First guest address.
    pub guest: u64,
    /// First address in the front end's own address space.
    pub user: u64,
    /// Number of bytes.
    pub len: u64,
    /// Where the region starts in `file`.
    pub offset: u64,
    /// The memory itself.
    pub file: BorrowedFd<'a>,
}

/// Memory of our own that is lent to a device: one whole file. Its user addresses are its guest addresses, so that where
/// it is mapped here stays our own affair.
#[derive(Debug, Clone, Copy)]
pub struct SharedRegion<'a> {
    /// First guest address; not 0.
    pub guest: u64,
    /// Number of bytes.
    pub len: u64,
    /// The memory.
    pub file: BorrowedFd<'a>,
}

impl SharedRegion<'_> {
    /// What a device maps: the region with a descriptor of its own.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn to_region(&self) -> io::Result<Region> {
        let file = self.file.try_clone_to_owned()?.into();
        Ok(Region { guest: self.guest, user: self.guest, len: self.len, offset: 0, file })
    }
}

/// What to do with memory whose file its owner can still shrink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryPolicy {
    /// Refuse files that are not sealed against shrinking.
    RequireSeals,
    /// Map it and remember (see [`GuestMemory::is_sealed`]); SIGBUS is survived anyway.
    #[default]
    RecordSeals,
}

/// Why a memory table was refused: always the front end's fault, but for `Map`.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// More regions than [`MAX_REGIONS`].
    #[error("more than {MAX_REGIONS} memory regions")]
    TooManyRegions,
    /// A region without a byte.
    #[error("memory region at guest address {guest:#x} is empty")]
    Empty {
        /// Its guest address.
        guest: u64,
    },
    /// Addresses or offsets of the region pass the end of 64 bits.
    #[error("memory region at guest address {guest:#x} wraps around")]
    Overflow {
        /// Its guest address.
        guest: u64,
    },
    /// Two regions claim the same guest or user addresses.
    #[error("memory region at guest address {guest:#x} overlaps another")]
    Overlap {
        /// The guest address of the later one.
        guest: u64,
    },
    /// The file is no file with a size (a socket, a pipe, a device).
    #[error("memory region at guest address {guest:#x} is not backed by a regular file")]
    NotAFile {
        /// Its guest address.
        guest: u64,
    },
    /// The region ends past the end of its file.
    #[error("memory region at guest address {guest:#x} needs {need} bytes of a file of {size}")]
    FileTooSmall {
        /// Its guest address.
        guest: u64,
        /// Offset plus length.
        need: u64,
        /// What the file has.
        size: u64,
    },
    /// The policy wants seals and the file has none against shrinking.
    #[error("memory region at guest address {guest:#x} is not sealed against shrinking")]
    Unsealed {
        /// Its guest address.
        guest: u64,
    },
    /// Removal of a region that is not there.
    #[error("no memory region at guest address {guest:#x} with that length and user address")]
    Unknown {
        /// The guest address that was named.
        guest: u64,
    },
    /// The kernel refused to map it.
    #[error("memory region cannot be mapped: {0}")]
    Map(#[from] io::Error),
}

/// Addresses that are not (all) guest memory, or not usable as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at guest address {guest:#x} are outside guest memory")]
pub struct OutsideMemory {
    /// First guest address asked for.
    pub guest: u64,
    /// How many bytes.
    pub len: u64,
}

/// A region in the table.
#[derive(Debug, Clone)]
struct Entry {
    guest: u64,
    user: u64,
    len: u64,
    mapping: Arc<Mapping>,
}

impl Entry {
    /// How far into the region a guest address is.
    fn offset(&self, guest: u64) -> Option<u64> {
        guest.checked_sub(self.guest).filter(|offset| *offset < self.len)
    }

    /// The piece at `offset`, cut at the end of the region.
    fn piece(&self, offset: u64, len: u64) -> Slice {
        let len = len.min(self.len - offset);
        self.mapping.slice(offset, len)
    }
}

/// A new memfd of `len` bytes that can neither shrink nor grow, and our mapping of it at the guest address `base`.
///
/// # Errors
/// The kernel gives no memory.
pub fn sealed_memory(name: &str, base: u64, len: u64) -> io::Result<(File, Arc<GuestMemory>)> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create(name, flags)?);
    ftruncate(&file, len)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let region = Region { guest: base, user: base, len, offset: 0, file: file.try_clone()? };
    let memory =
        GuestMemory::map(vec![region], MemoryPolicy::RequireSeals).map_err(io::Error::other)?;
    Ok((file, memory))
}

/// The memory of one guest at one time.
#[derive(Debug)]
pub struct GuestMemory {
    /// Sorted by guest address, not overlapping.
    entries: Vec<Entry>,
    /// The entry that answered last: most descriptors lie in the same region as the one before.
    last: AtomicUsize,
}

impl GuestMemory {
    /// Checks and maps all regions.
    ///
    /// # Errors
    /// The first region that is wrong; nothing stays mapped then.
    pub fn map(regions: Vec<Region>, policy: MemoryPolicy) -> Result<Arc<Self>, MemoryError> {
        if regions.len() > MAX_REGIONS {
            return Err(MemoryError::TooManyRegions);
        }
        let mut memory = Self { entries: Vec::new(), last: AtomicUsize::new(0) };
        for region in regions {
            memory.insert(region, policy)?;
        }
        Ok(Arc::new(memory))
    }

    /// A table with one more region, sharing the mappings of this one.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn with_region_added(
        &self,
        region: Region,
        policy: MemoryPolicy,
    ) -> Result<Arc<Self>, MemoryError> {
        let mut memory = self.share();
        memory.insert(region, policy)?;
        Ok(Arc::new(memory))
    }

    /// A table without the region that has exactly these addresses and this length.
    ///
    /// # Errors
    /// There is no such region.
    pub fn with_region_removed(
        &self,
        guest: u64,
        user: u64,
        len: u64,
    ) -> Result<Arc<Self>, MemoryError> {
        let mut memory = self.share();
        memory.entries.retain(|e| (e.guest, e.user, e.len) != (guest, user, len));
        if memory.entries.len() == self.entries.len() {
            return Err(MemoryError::Unknown { guest });
        }
        Ok(Arc::new(memory))
    }

    fn share(&self) -> Self {
        Self { entries: self.entries.clone(), last: AtomicUsize::new(0) }
    }

    fn insert(&mut self, region: Region, policy: MemoryPolicy) -> Result<(), MemoryError> {
        let Region { guest, user, len, offset, file } = region;
        if self.entries.len() >= MAX_REGIONS {
            return Err(MemoryError::TooManyRegions);
        }
        if len == 0 {
            return Err(MemoryError::Empty { guest });
        }
        let wraps = [guest, user, offset].iter().any(|start| start.checked_add(len).is_none());
        if wraps {
            return Err(MemoryError::Overflow { guest });
        }
        let meet = |a: u64, b: u64, b_len: u64| a < b + b_len && b < a + len;
        if self.entries.iter().any(|e| meet(guest, e.guest, e.len) || meet(user, e.user, e.len)) {
            return Err(MemoryError::Overlap { guest });
        }
        let mapping = Arc::new(Mapping::new(guest, file, offset, len, policy)?);
        let place = self.entries.partition_point(|e| e.guest < guest);
        self.entries.insert(place, Entry { guest, user, len, mapping });
        Ok(())
    }

    /// The entry that holds a guest address: its position, itself, and how far into it the address is.
    #[inline]
    fn find(&self, guest: u64) -> Option<(usize, &Entry, u64)> {
        let last = self.last.load(Ordering::Relaxed);
        if let Some(entry) = self.entries.get(last)
            && let Some(offset) = entry.offset(guest)
        {
            return Some((last, entry, offset));
        }
        let position = self.entries.partition_point(|e| e.guest <= guest).checked_sub(1)?;
        let entry = self.entries.get(position)?;
        let offset = entry.offset(guest)?;
        self.last.store(position, Ordering::Relaxed);
        Some((position, entry, offset))
    }

    /// Appends the pieces that hold `len` bytes at a guest address to `out`, split where regions meet. No
    /// bytes are no pieces.
    ///
    /// # Errors
    /// A byte of it is not guest memory; `out` is then as before.
    pub fn slice(
        self: &Arc<Self>,
        guest: u64,
        len: u32,
        out: &mut Slices,
    ) -> Result<(), OutsideMemory> {
        let outside = OutsideMemory { guest, len: len.into() };
        if len == 0 {
            return Ok(());
        }
        let (position, entry, offset) = self.find(guest).ok_or(outside)?;
        let before = out.len();
        out.hold(self);
        let piece = entry.piece(offset, len.into());
        let left = u64::from(len) - piece.len() as u64;
        out.push(piece);
        if left > 0 && !self.slice_rest(position, left, out) {
            out.truncate(before);
            return Err(outside);
        }
        Ok(())
    }

    /// Appends the next `left` bytes behind the region at `position`, whose followers must each start where the one
    /// before ends; false when they do not.
    #[cold]
    fn slice_rest(&self, position: usize, mut left: u64, out: &mut Slices) -> bool {
        for pair in self.entries[position..].windows(2) {
            let [before, entry] = pair else { return false };
            if before.guest + before.len != entry.guest {
                return false;
            }
            let piece = entry.piece(0, left);
            left -= piece.len() as u64;
            out.push(piece);
            if left == 0 {
                return true;
            }
        }
        false
    }

    /// The one piece that holds `len` bytes at a guest address, all in one region.
    ///
    /// # Errors
    /// It is not guest memory, or crosses a border of regions.
    pub fn piece(&self, guest: u64, len: u64) -> Result<Piece<'_>, OutsideMemory> {
        let outside = OutsideMemory { guest, len };
        let (_, entry, offset) = self.find(guest).ok_or(outside)?;
        let piece = entry.piece(offset, len);
        if piece.len() as u64 == len { Ok(Piece::new(self, piece)) } else { Err(outside) }
    }

    /// Checks that `len` bytes at a guest address lie in one region, and in our own address space at a multiple of
    /// `align`: what an area of a ring needs.
    ///
    /// # Errors
    /// They do not.
    pub fn check_area(&self, guest: u64, len: u64, align: usize) -> Result<(), OutsideMemory> {
        let aligned = self.piece(guest, len)?.as_ptr().addr().is_multiple_of(align);
        if aligned { Ok(()) } else { Err(OutsideMemory { guest, len }) }
    }

    /// The `count` elements at a guest address.
    ///
    /// # Errors
    /// They are not guest memory, cross a border of regions, or are not aligned.
    ///
    /// # Panics
    /// `count` is not a power of two.
    pub fn pin<T: Shared>(
        self: &Arc<Self>,
        guest: u64,
        count: u16,
    ) -> Result<Pinned<T>, OutsideMemory> {
        assert!(count.is_power_of_two(), "{count} elements cannot be indexed modulo their number");
        let len = u64::from(count) * size_of::<T>() as u64;
        self.check_area(guest, len, align_of::<T>())?;
        let first = self.piece(guest, len)?.as_ptr().cast();
        let first = NonNull::new(first).ok_or(OutsideMemory { guest, len })?;
        // SAFETY: all elements lie in one mapping of this memory, aligned for their type, as was just checked.
        Ok(unsafe { Pinned::new(first, count - 1, Arc::clone(self)) })
    }

    /// The guest address that the front end knows by this address of its own.
    #[must_use]
    pub fn user_to_guest(&self, user: u64) -> Option<u64> {
        self.entries.iter().find_map(|e| {
            let offset = user.checked_sub(e.user).filter(|offset| *offset < e.len)?;
            Some(e.guest + offset)
        })
    }

    /// True once any region was found without its backing. The attachment must be ended: what was read may be
    /// zeros, what was written is lost.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.entries.iter().any(|e| e.mapping.is_dead())
    }

    /// True when no region's file can be shrunk under us.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.entries.iter().all(|e| e.mapping.is_sealed())
    }

    /// All regions, by guest address.
    pub fn regions(&self) -> impl Iterator<Item = MappedRegion<'_>> {
        self.entries.iter().map(|&Entry { guest, user, len, ref mapping }| {
            let (file, offset) = mapping.source();
            MappedRegion { guest, user, len, offset, file }
        })
    }
}
