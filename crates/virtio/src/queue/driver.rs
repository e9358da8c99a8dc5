//! The driver's side of a queue: offers chains and takes them back used.
//!
//! The device is not trusted: the free list and what is in flight are kept in memory of our own, descriptors
//! are written and never read back, and every used entry is compared with what was offered. A device can
//! therefore waste our buffers' content, but not make us take a chain back twice or read past a buffer.
//!
//! Chains are direct ones. That costs a descriptor per buffer and no table per chain; the users here offer
//! one or two buffers at a time.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::layout::{Areas, Descriptor, NEXT, NO_SIGNAL, WRITE, passes_event};
use super::{QueueConfig, QueueError};
use vsock_guest_memory::GuestMemory;

/// There are fewer free descriptors than the chain needs (or the chain has none).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no free descriptors in the ring")]
pub struct QueueFull;

/// What we know about one descriptor.
#[derive(Debug, Clone, Copy)]
struct Shadow {
    /// The next free one, or the next of its chain.
    next: u16,
    /// For the head of a chain in flight: number of descriptors; else 0.
    count: u16,
    /// For the head of a chain in flight: bytes that the device may write.
    writable: u32,
}

/// The driver's side of a split virtqueue.
pub struct DriverQueue {
    areas: Areas,
    event_idx: bool,
    shadow: Vec<Shadow>,
    first_free: u16,
    free: u16,
    /// Chains offered and not taken back.
    in_flight: u16,
    /// Index of the next available entry to write.
    next_avail: u16,
    /// Up to where available entries are visible to the device.
    published: u16,
    /// Index of the next used entry to read.
    next_used: u16,
    broken: Option<QueueError>,
}

impl DriverQueue {
    /// A new, empty queue in `memory`, which must be fresh (zero) there; `config.base` is where both indexes
    /// start.
    ///
    /// # Errors
    /// Size, place or alignment of the areas is not allowed.
    pub fn new(memory: Arc<GuestMemory>, config: &QueueConfig) -> Result<Self, QueueError> {
        // Our own memory has room for the event fields; whether they are used may be negotiated later.
        let areas = Areas::resolve(memory, &QueueConfig { event_idx: true, ..*config })?;
        areas.set_avail_idx(config.base);
        areas.set_used_idx(config.base);
        let shadow = (1..=config.size).map(|next| Shadow { next, count: 0, writable: 0 }).collect();
        Ok(Self {
            areas,
            event_idx: config.event_idx,
            shadow,
            first_free: 0,
            free: config.size,
            in_flight: 0,
            next_avail: config.base,
            published: config.base,
            next_used: config.base,
            broken: None,
        })
    }

    /// Offers a chain of buffers (guest address and length): those that the device reads, then those that it
    /// writes. Not visible before [`publish`](Self::publish). Returns the head that the used entry will name.
    ///
    /// # Errors
    /// Not enough free descriptors; nothing was offered.
    pub fn add(
        &mut self,
        readable: &[(u64, u32)],
        writable: &[(u64, u32)],
    ) -> Result<u16, QueueFull> {
        let count = u16::try_from(readable.len() + writable.len()).map_err(|_| QueueFull)?;
        if count == 0 || count > self.free {
            return Err(QueueFull);
        }
        let head = self.first_free;
        let mut index = head;
        let mut writable_len = 0_u32;
        let buffers = readable.iter().map(|b| (b, 0)).chain(writable.iter().map(|b| (b, WRITE)));
        for (position, (&(addr, len), write)) in (1..=count).zip(buffers) {
            if write != 0 {
                writable_len = writable_len.saturating_add(len);
            }
            let next = self.shadow[usize::from(index)].next;
            let more = if position < count { NEXT } else { 0 };
            self.areas.set_descriptor(index, &Descriptor { addr, len, flags: write | more, next });
            index = next;
        }
        self.first_free = index;
        self.free -= count;
        self.in_flight += 1;
        let shadow = &mut self.shadow[usize::from(head)];
        (shadow.count, shadow.writable) = (count, writable_len);
        self.areas.set_avail_head(self.next_avail, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(head)
    }

    /// Makes all offered chains visible; true when the device wants a kick for them.
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return false;
        }
        self.areas.set_avail_idx(new);
        self.published = new;
        // The index must be visible before we read what the device wants (see the module's primer).
        fence(Ordering::SeqCst);
        if self.event_idx {
            passes_event(self.areas.avail_event(), new, old)
        } else {
            self.areas.used_flags() & NO_SIGNAL == 0
        }
    }

    /// Takes back the next used chain: its head and how many bytes the device wrote; `None` when there is none.
    ///
    /// # Errors
    /// The device broke the rules. The queue is unusable from then on and gives the same error again.
    pub fn pop_used(&mut self) -> Result<Option<(u16, u32)>, QueueError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let done = self.areas.used_idx().wrapping_sub(self.next_used);
        if done == 0 {
            return Ok(None);
        }
        let taken = self.take(done);
        self.broken = taken.as_ref().err().copied();
        taken.map(Some)
    }

    fn take(&mut self, done: u16) -> Result<(u16, u32), QueueError> {
        // What is not published yet cannot have been used.
        let visible = self.in_flight - self.next_avail.wrapping_sub(self.published);
        if done > visible {
            return Err(QueueError::TooManyHeads(done));
        }
        let (id, len) = self.areas.used_at(self.next_used);
        let bad = QueueError::BadUsedId(id);
        let head = u16::try_from(id).map_err(|_| bad)?;
        let shadow = *self.shadow.get(usize::from(head)).ok_or(bad)?;
        if shadow.count == 0 {
            return Err(bad);
        }
        if len > shadow.writable {
            return Err(QueueError::BadUsedLength(len));
        }
        self.release(head, shadow.count);
        self.next_used = self.next_used.wrapping_add(1);
        Ok((head, len))
    }

    /// Puts a chain's descriptors on top of the free list.
    fn release(&mut self, head: u16, count: u16) {
        let mut tail = head;
        for _ in 1..count {
            tail = self.shadow[usize::from(tail)].next;
        }
        self.shadow[usize::from(tail)].next = self.first_free;
        self.shadow[usize::from(head)].count = 0;
        self.first_free = head;
        self.free += count;
        self.in_flight -= 1;
    }

    /// Chains offered and not taken back.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Descriptors that can still be used by [`add`](Self::add).
    #[must_use]
    pub fn free_descriptors(&self) -> u16 {
        self.free
    }

    /// Asks for a call with the next chain that the device uses. True when there is one already: do not sleep.
    /// A broken queue has nothing more.
    pub fn enable_calls(&mut self) -> bool {
        if self.event_idx {
            self.areas.set_used_event(self.next_used);
        } else {
            self.areas.set_avail_flags(0);
        }
        // The wish must be visible before we look again (see the module's primer).
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// The device has used a chain. A broken queue has nothing more.
    #[must_use]
    pub fn has_used(&self) -> bool {
        self.broken.is_none() && self.areas.used_idx() != self.next_used
    }

    /// Asks for no calls while we look at the queue anyway.
    pub fn disable_calls(&mut self) {
        if self.event_idx {
            // The index that is passed last, 65535 entries from now.
            self.areas.set_used_event(self.next_used.wrapping_sub(1));
        } else {
            self.areas.set_avail_flags(NO_SIGNAL);
        }
    }

    /// Whether event indexes are used; allowed to change only before the device has started the queue.
    pub fn set_event_idx(&mut self, event_idx: bool) {
        self.event_idx = event_idx;
    }
}
