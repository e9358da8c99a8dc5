//! The three areas of a split ring as bytes, and the only raw access to them.
//!
//! [`Areas`] resolves the addresses once. Its methods are safe: every entry number is masked to the ring's
//! size, so no number from shared memory can lead outside, and every access is atomic, because the other side
//! writes at the same time. All fields are little endian.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::{RingConfig, RingError};
use crate::memory::GuestMemory;
use crate::slice::Slice;

/// The largest queue there is (virtio 1.2, section 2.7), and what crosvm asks for. Nothing of a device's ring is
/// allocated per entry.
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// VIRTQ_DESC_F_NEXT: the chain goes on at `next`.
pub(super) const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE: the device writes this buffer.
pub(super) const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT: the buffer is a table of descriptors.
pub(super) const INDIRECT: u16 = 4;
/// VIRTQ_USED_F_NO_NOTIFY, VIRTQ_AVAIL_F_NO_INTERRUPT: do not signal.
pub(super) const NO_SIGNAL: u16 = 1;

/// Bytes of one descriptor.
pub(super) const DESC_LEN: u64 = 16;

/// One descriptor, copied out of shared memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    pub(super) const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// From the two halves as they are in memory.
    fn from_words(first: u64, second: u64) -> Self {
        let [l0, l1, l2, l3, f0, f1, n0, n1] = second.to_ne_bytes();
        Self {
            addr: u64::from_le(first),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    fn second_word(&self) -> u64 {
        let [l0, l1, l2, l3] = self.len.to_le_bytes();
        let ([f0, f1], [n0, n1]) = (self.flags.to_le_bytes(), self.next.to_le_bytes());
        u64::from_ne_bytes([l0, l1, l2, l3, f0, f1, n0, n1])
    }
}

/// An indirect table: descriptors at any alignment, copied out one by one.
#[derive(Clone, Copy)]
pub(super) struct Table {
    bytes: Slice,
    pub(super) count: u16,
}

impl Table {
    /// Checks an indirect table of `len` bytes: whole descriptors, at least one, not more than the largest
    /// queue. It must lie in one region, as every table that a driver allocates does.
    pub(super) fn resolve(memory: &GuestMemory, addr: u64, len: u32) -> Result<Self, RingError> {
        let bad = RingError::BadIndirect(len);
        if !u64::from(len).is_multiple_of(DESC_LEN) {
            return Err(bad);
        }
        let count = u16::try_from(u64::from(len) / DESC_LEN).map_err(|_| bad)?;
        if count == 0 || count > MAX_QUEUE_SIZE {
            return Err(bad);
        }
        Ok(Self { bytes: memory.pin(addr, len.into(), 1)?, count })
    }

    /// The descriptor at `index`, which must be below the count.
    pub(super) fn get(&self, index: u16) -> Result<Descriptor, RingError> {
        if index >= self.count {
            return Err(RingError::BadIndex(index));
        }
        let mut copy = [0_u8; 16];
        self.bytes.split_at(usize::from(index) * copy.len()).1.copy_to(&mut copy);
        let (first, second) = copy.split_at(8);
        let word = |half: &[u8]| u64::from_ne_bytes(half.try_into().unwrap_or_default());
        Ok(Descriptor::from_words(word(first), word(second)))
    }
}

/// The areas of one ring, resolved.
pub(super) struct Areas {
    desc: *const AtomicU64,
    avail: *const AtomicU16,
    used: *const AtomicU16,
    size: u16,
    /// Keeps the memory mapped that the pointers name.
    memory: Arc<GuestMemory>,
}

// SAFETY: the pointers name memory that `memory` keeps mapped, whichever thread the ring is on; all access is
// atomic.
unsafe impl Send for Areas {}

impl Areas {
    /// Checks size, place and alignment (16, 2 and 4 bytes) of all three areas.
    pub(super) fn resolve(
        memory: Arc<GuestMemory>,
        config: &RingConfig,
    ) -> Result<Self, RingError> {
        let size = config.size;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(RingError::BadSize(size));
        }
        let entries = u64::from(size);
        // The event fields behind the rings exist with EVENT_IDX only.
        let event = if config.event_idx { 2 } else { 0 };
        let desc = memory.pin(config.desc, entries * DESC_LEN, 16)?;
        let avail = memory.pin(config.avail, 4 + entries * 2 + event, 2)?;
        let used = memory.pin(config.used, 4 + entries * 8 + event, 4)?;
        Ok(Self {
            desc: desc.as_ptr().cast_const().cast(),
            avail: avail.as_ptr().cast_const().cast(),
            used: used.as_ptr().cast_const().cast(),
            size,
            memory,
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn place(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// Field `at` (in 16-bit units) of the available ring; callers keep to `resolve`'s extent.
    fn avail(&self, at: usize) -> &AtomicU16 {
        // SAFETY: flags, idx and the masked ring places are inside the pinned area (and so is the event field
        // when it was negotiated, which is the only time it is asked for); it is 2-aligned and stays mapped.
        unsafe { &*self.avail.add(at) }
    }

    /// Field `at` (in 16-bit units) of the used ring.
    fn used(&self, at: usize) -> &AtomicU16 {
        // SAFETY: as for `avail`.
        unsafe { &*self.used.add(at) }
    }

    fn used_entry(&self, index: u16) -> (&AtomicU32, &AtomicU32) {
        let at = 2 + self.place(index) * 4;
        // SAFETY: the entry lies inside the pinned area, which is 4-aligned; 4 + 8n stays so.
        unsafe { (&*self.used.add(at).cast(), &*self.used.add(at + 2).cast()) }
    }

    fn desc(&self, index: u16) -> (&AtomicU64, &AtomicU64) {
        let at = self.place(index) * 2;
        // SAFETY: the masked descriptor lies inside the pinned table, which is 16-aligned and stays mapped.
        unsafe { (&*self.desc.add(at), &*self.desc.add(at + 1)) }
    }

    /// The descriptor at `index`, which must be below the size.
    pub(super) fn descriptor(&self, index: u16) -> Result<Descriptor, RingError> {
        if index >= self.size {
            return Err(RingError::BadIndex(index));
        }
        let (first, second) = self.desc(index);
        let (first, second) = (first.load(Ordering::Relaxed), second.load(Ordering::Relaxed));
        Ok(Descriptor::from_words(first, second))
    }

    pub(super) fn set_descriptor(&self, index: u16, descriptor: &Descriptor) {
        let (first, second) = self.desc(index);
        first.store(descriptor.addr.to_le(), Ordering::Relaxed);
        second.store(descriptor.second_word(), Ordering::Relaxed);
    }

    pub(super) fn avail_flags(&self) -> u16 {
        u16::from_le(self.avail(0).load(Ordering::Relaxed))
    }

    pub(super) fn set_avail_flags(&self, flags: u16) {
        self.avail(0).store(flags.to_le(), Ordering::Relaxed);
    }

    /// With acquire: entries up to the index may be read after this.
    pub(super) fn avail_idx(&self) -> u16 {
        u16::from_le(self.avail(1).load(Ordering::Acquire))
    }

    /// With release: entries written before are visible to whoever sees the index.
    pub(super) fn set_avail_idx(&self, idx: u16) {
        self.avail(1).store(idx.to_le(), Ordering::Release);
    }

    pub(super) fn avail_head(&self, index: u16) -> u16 {
        u16::from_le(self.avail(2 + self.place(index)).load(Ordering::Relaxed))
    }

    pub(super) fn set_avail_head(&self, index: u16, head: u16) {
        self.avail(2 + self.place(index)).store(head.to_le(), Ordering::Relaxed);
    }

    /// Only with EVENT_IDX.
    pub(super) fn used_event(&self) -> u16 {
        u16::from_le(self.avail(2 + usize::from(self.size)).load(Ordering::Relaxed))
    }

    /// Only with EVENT_IDX.
    pub(super) fn set_used_event(&self, index: u16) {
        self.avail(2 + usize::from(self.size)).store(index.to_le(), Ordering::Relaxed);
    }

    pub(super) fn used_flags(&self) -> u16 {
        u16::from_le(self.used(0).load(Ordering::Relaxed))
    }

    pub(super) fn set_used_flags(&self, flags: u16) {
        self.used(0).store(flags.to_le(), Ordering::Relaxed);
    }

    /// With acquire: entries up to the index may be read after this.
    pub(super) fn used_idx(&self) -> u16 {
        u16::from_le(self.used(1).load(Ordering::Acquire))
    }

    /// With release: entries written before are visible to whoever sees the index.
    pub(super) fn set_used_idx(&self, idx: u16) {
        self.used(1).store(idx.to_le(), Ordering::Release);
    }

    pub(super) fn used_at(&self, index: u16) -> (u32, u32) {
        let (id, len) = self.used_entry(index);
        (u32::from_le(id.load(Ordering::Relaxed)), u32::from_le(len.load(Ordering::Relaxed)))
    }

    pub(super) fn set_used_at(&self, index: u16, id: u32, len: u32) {
        let (entry_id, entry_len) = self.used_entry(index);
        entry_id.store(id.to_le(), Ordering::Relaxed);
        entry_len.store(len.to_le(), Ordering::Relaxed);
    }

    /// Only with EVENT_IDX.
    pub(super) fn avail_event(&self) -> u16 {
        u16::from_le(self.used(2 + usize::from(self.size) * 4).load(Ordering::Relaxed))
    }

    /// Only with EVENT_IDX.
    pub(super) fn set_avail_event(&self, index: u16) {
        self.used(2 + usize::from(self.size) * 4).store(index.to_le(), Ordering::Relaxed);
    }
}

/// True when moving the index from `old` to `new` passed `event`, at which the other side wants a signal
/// (`vring_need_event` of virtio 1.2, section 2.7.10.1).
pub(super) fn passes_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Where the areas of a ring lie when we choose: one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingLayout {
    /// Offset of the available ring from the descriptor table.
    pub avail: u64,
    /// Offset of the used ring from the descriptor table.
    pub used: u64,
    /// Bytes of all three, a multiple of a cache line.
    pub len: u64,
}

impl RingLayout {
    /// Room for a ring of `size` entries. The rings start on cache lines of their own, as different sides
    /// write them.
    #[must_use]
    pub fn new(size: u16) -> Self {
        const LINE: u64 = 64;
        let entries = u64::from(size);
        let avail = (entries * DESC_LEN).next_multiple_of(LINE);
        let used = (avail + 6 + entries * 2).next_multiple_of(LINE);
        Self { avail, used, len: (used + 6 + entries * 8).next_multiple_of(LINE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_passing_event_wants_signal() {
        assert!(passes_event(0, 1, 0));
        assert!(!passes_event(1, 1, 0));
        assert!(passes_event(4, 8, 4));
        assert!(!passes_event(3, 8, 4));
        assert!(passes_event(u16::MAX, 0, u16::MAX));
        assert!(passes_event(1, 3, u16::MAX - 1));
        assert!(!passes_event(7, 7, 7));
    }

    #[test]
    fn descriptor_words_keep_all_fields() {
        let d =
            Descriptor { addr: 0x0102_0304_0506_0708, len: 0xa1b2_c3d4, flags: 5, next: 0x0807 };
        let back = Descriptor::from_words(d.addr.to_le(), d.second_word());
        assert_eq!((back.addr, back.len, back.flags, back.next), (d.addr, d.len, 5, 0x0807));
    }
}
