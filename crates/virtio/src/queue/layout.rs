//! The three areas of a split virtqueue, field by field.
//!
//! [`Areas`] resolves the addresses once. Every access is atomic, because the other side writes at the same time, and
//! entries are numbered modulo the queue's size, so that no number from shared memory leads outside. All fields are
//! little endian.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::{QueueConfig, QueueError};
use vsock_guest_memory::slice::Piece;
use vsock_guest_memory::{GuestMemory, Pinned};

/// The largest queue there is (virtio 1.2, section 2.7), and what crosvm asks for. Nothing of a device's queue is
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
pub(super) struct Table<'m> {
    bytes: Piece<'m>,
    pub(super) count: u16,
}

impl<'m> Table<'m> {
    /// Checks an indirect table of `len` bytes: whole descriptors, at least one, not more than the largest
    /// queue. It must lie in one region, as every table that a driver allocates does.
    pub(super) fn resolve(
        memory: &'m GuestMemory,
        addr: u64,
        len: u32,
    ) -> Result<Self, QueueError> {
        let bad = QueueError::BadIndirect(len);
        if !u64::from(len).is_multiple_of(DESC_LEN) {
            return Err(bad);
        }
        let count = u16::try_from(u64::from(len) / DESC_LEN).map_err(|_| bad)?;
        if count == 0 || count > MAX_QUEUE_SIZE {
            return Err(bad);
        }
        Ok(Self { bytes: memory.piece(addr, len.into())?, count })
    }

    /// The descriptor at `index`, which must be below the count.
    pub(super) fn get(&self, index: u16) -> Result<Descriptor, QueueError> {
        if index >= self.count {
            return Err(QueueError::BadIndex(index));
        }
        let mut copy = [0_u8; 16];
        self.bytes.copy_to_from(usize::from(index) * copy.len(), &mut copy);
        let (first, second) = copy.split_at(8);
        let word = |half: &[u8]| u64::from_ne_bytes(half.try_into().unwrap_or_default());
        Ok(Descriptor::from_words(word(first), word(second)))
    }
}

/// The areas of one queue, resolved.
pub(super) struct Areas {
    desc: Pinned<[AtomicU64; 2]>,
    /// Flags and index of the available ring, and its entries.
    avail: Pinned<[AtomicU16; 2]>,
    avail_ring: Pinned<AtomicU16>,
    /// Flags and index of the used ring, and its entries.
    used: Pinned<[AtomicU16; 2]>,
    used_ring: Pinned<[AtomicU32; 2]>,
    /// The fields behind the rings, which exist with EVENT_IDX only.
    used_event: Option<Pinned<AtomicU16>>,
    avail_event: Option<Pinned<AtomicU16>>,
    size: u16,
    memory: Arc<GuestMemory>,
}

/// Which field of `avail` and `used` holds the flags.
const FLAGS: usize = 0;
/// Which field of `avail` and `used` holds the index.
const IDX: usize = 1;

impl Areas {
    /// Checks size, place and alignment (16, 2 and 4 bytes) of all three areas.
    pub(super) fn resolve(
        memory: Arc<GuestMemory>,
        config: &QueueConfig,
    ) -> Result<Self, QueueError> {
        let size = config.size;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(QueueError::BadSize(size));
        }
        let entries = u64::from(size);
        let (avail_len, used_len) = (4 + entries * 2, 4 + entries * 8);
        let event = if config.event_idx { 2 } else { 0 };
        memory.check_area(config.desc, entries * DESC_LEN, 16)?;
        memory.check_area(config.avail, avail_len + event, 2)?;
        memory.check_area(config.used, used_len + event, 4)?;
        let event = |at: u64| config.event_idx.then(|| memory.pin(at, 1)).transpose();
        Ok(Self {
            desc: memory.pin(config.desc, size)?,
            avail: memory.pin(config.avail, 1)?,
            avail_ring: memory.pin(config.avail + 4, size)?,
            used: memory.pin(config.used, 1)?,
            used_ring: memory.pin(config.used + 4, size)?,
            used_event: event(config.avail + avail_len)?,
            avail_event: event(config.used + used_len)?,
            size,
            memory,
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The descriptor at `index`, which must be below the size.
    pub(super) fn descriptor(&self, index: u16) -> Result<Descriptor, QueueError> {
        if index >= self.size {
            return Err(QueueError::BadIndex(index));
        }
        let [first, second] = self.desc.at(index);
        let (first, second) = (first.load(Ordering::Relaxed), second.load(Ordering::Relaxed));
        Ok(Descriptor::from_words(first, second))
    }

    pub(super) fn set_descriptor(&self, index: u16, descriptor: &Descriptor) {
        let [first, second] = self.desc.at(index);
        first.store(descriptor.addr.to_le(), Ordering::Relaxed);
        second.store(descriptor.second_word(), Ordering::Relaxed);
    }

    pub(super) fn avail_flags(&self) -> u16 {
        u16::from_le(self.avail.at(0)[FLAGS].load(Ordering::Relaxed))
    }

    pub(super) fn set_avail_flags(&self, flags: u16) {
        self.avail.at(0)[FLAGS].store(flags.to_le(), Ordering::Relaxed);
    }

    /// With acquire: entries up to the index may be read after this.
    pub(super) fn avail_idx(&self) -> u16 {
        u16::from_le(self.avail.at(0)[IDX].load(Ordering::Acquire))
    }

    /// With release: entries written before are visible to whoever sees the index.
    pub(super) fn set_avail_idx(&self, idx: u16) {
        self.avail.at(0)[IDX].store(idx.to_le(), Ordering::Release);
    }

    pub(super) fn avail_head(&self, index: u16) -> u16 {
        u16::from_le(self.avail_ring.at(index).load(Ordering::Relaxed))
    }

    pub(super) fn set_avail_head(&self, index: u16, head: u16) {
        self.avail_ring.at(index).store(head.to_le(), Ordering::Relaxed);
    }

    /// Only with EVENT_IDX.
    pub(super) fn used_event(&self) -> u16 {
        load_event(self.used_event.as_ref())
    }

    /// Only with EVENT_IDX.
    pub(super) fn set_used_event(&self, index: u16) {
        store_event(self.used_event.as_ref(), index);
    }

    pub(super) fn used_flags(&self) -> u16 {
        u16::from_le(self.used.at(0)[FLAGS].load(Ordering::Relaxed))
    }

    pub(super) fn set_used_flags(&self, flags: u16) {
        self.used.at(0)[FLAGS].store(flags.to_le(), Ordering::Relaxed);
    }

    /// With acquire: entries up to the index may be read after this.
    pub(super) fn used_idx(&self) -> u16 {
        u16::from_le(self.used.at(0)[IDX].load(Ordering::Acquire))
    }

    /// With release: entries written before are visible to whoever sees the index.
    pub(super) fn set_used_idx(&self, idx: u16) {
        self.used.at(0)[IDX].store(idx.to_le(), Ordering::Release);
    }

    pub(super) fn used_at(&self, index: u16) -> (u32, u32) {
        let [id, len] = self.used_ring.at(index);
        (u32::from_le(id.load(Ordering::Relaxed)), u32::from_le(len.load(Ordering::Relaxed)))
    }

    pub(super) fn set_used_at(&self, index: u16, id: u32, len: u32) {
        let [entry_id, entry_len] = self.used_ring.at(index);
        entry_id.store(id.to_le(), Ordering::Relaxed);
        entry_len.store(len.to_le(), Ordering::Relaxed);
    }

    /// Only with EVENT_IDX.
    pub(super) fn avail_event(&self) -> u16 {
        load_event(self.avail_event.as_ref())
    }

    /// Only with EVENT_IDX.
    pub(super) fn set_avail_event(&self, index: u16) {
        store_event(self.avail_event.as_ref(), index);
    }
}

fn load_event(field: Option<&Pinned<AtomicU16>>) -> u16 {
    field.map_or(0, |field| u16::from_le(field.at(0).load(Ordering::Relaxed)))
}

fn store_event(field: Option<&Pinned<AtomicU16>>, index: u16) {
    if let Some(field) = field {
        field.at(0).store(index.to_le(), Ordering::Relaxed);
    }
}

/// True when moving the index from `old` to `new` passed `event`, at which the other side wants a signal
/// (`vring_need_event` of virtio 1.2, section 2.7.10.1).
pub(super) fn passes_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Where the areas of a queue lie when we choose: one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLayout {
    /// Offset of the available ring from the descriptor table.
    pub avail: u64,
    /// Offset of the used ring from the descriptor table.
    pub used: u64,
    /// Bytes of all three, a multiple of a cache line.
    pub len: u64,
}

impl QueueLayout {
    /// Room for a queue of `size` entries. The rings start on cache lines of their own, as different sides
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

    /// All starts, all moves of up to 8, all events around them: what the one comparison says is what counting says.
    #[test]
    fn index_passes_an_event_if_one_of_its_steps_does() {
        for old in 0..=u16::MAX {
            for moved in 0..=8 {
                for ahead in 0..16u16 {
                    let event = old.wrapping_sub(4).wrapping_add(ahead);
                    let passed = (0..moved).any(|step| old.wrapping_add(step) == event);
                    let new = old.wrapping_add(moved);
                    assert_eq!(passes_event(event, new, old), passed, "{event} {new} {old}");
                }
            }
        }
    }

    #[test]
    fn descriptor_words_keep_all_fields() {
        let d =
            Descriptor { addr: 0x0102_0304_0506_0708, len: 0xa1b2_c3d4, flags: 5, next: 0x0807 };
        let back = Descriptor::from_words(d.addr.to_le(), d.second_word());
        assert_eq!((back.addr, back.len, back.flags, back.next), (d.addr, d.len, 5, 0x0807));
    }
}
