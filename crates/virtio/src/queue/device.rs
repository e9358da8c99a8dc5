//! The device's side of a queue: takes chains that the driver offers, and gives them back used.
//!
//! A chain is popped into a list of pieces, readable pieces first, whatever its descriptors look like: any
//! number of them, split anywhere, directly or through one level of an indirect table. Used entries are
//! written at once but become visible only with [`publish`](DeviceQueue::publish), once per batch.
//!
//! Chains should be given back in the order they came. Then `used index = number of chains done` is the whole
//! state of the queue, and a successor goes on from it alone: what a front end believes the next chain to be may be
//! behind chains that a lost device took and never gave back.

mod saved;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

pub use self::saved::SavedQueue;
use super::layout::{Areas, Descriptor, INDIRECT, NEXT, NO_SIGNAL, Table, WRITE, passes_event};
use super::{QueueConfig, QueueError};
use vsock_guest_memory::GuestMemory;
use vsock_guest_memory::slice::Slices;

/// The most descriptors of one chain, however long its queue: a packet needs 18, and what is kept of a chain must not grow
/// with the size that a guest chooses.
const MAX_CHAIN: u16 = 1024;

/// The most pieces of one chain: twice the longest chain, as pieces are split where regions meet.
const MAX_PIECES: usize = 2 * MAX_CHAIN as usize;

/// A chain of buffers that the driver offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// What to give back to [`DeviceQueue::push_used`].
    pub head: u16,
    /// The pieces that the driver filled, in the list given to [`DeviceQueue::pop`].
    pub readable: Range<usize>,
    /// The pieces for us to fill, right behind the readable ones.
    pub writable: Range<usize>,
    /// Bytes in the readable pieces.
    pub readable_len: u32,
    /// Bytes in the writable pieces.
    pub writable_len: u32,
}

/// The device's side of a split virtqueue.
pub struct DeviceQueue {
    areas: Areas,
    event_idx: bool,
    /// What it was made from.
    config: QueueConfig,
    /// Index of the next available entry to pop.
    next_avail: u16,
    /// The driver's index as last read.
    avail_idx: u16,
    /// Index of the next used entry to write.
    next_used: u16,
    /// Up to where used entries are visible to the driver.
    published: u16,
    /// Chains popped and not given back.
    in_flight: u16,
    /// Signal with the first batch whatever the driver asked for: what a predecessor signalled is unknown.
    first_signal: bool,
    broken: Option<QueueError>,
}

impl DeviceQueue {
    /// Resolves the areas and goes on at the used index in memory, whatever `config.base` is. A front end that connects
    /// anew while its driver runs names the index up to which the driver has offered chains (Cloud Hypervisor), as
    /// it cannot know which of them its old device was done with; QEMU names the used index. A driver that offers
    /// more than the queue holds beyond it is found when the queue is first looked at.
    ///
    /// # Errors
    /// Size, place or alignment of the areas is not allowed.
    pub fn new(memory: Arc<GuestMemory>, config: &QueueConfig) -> Result<Self, QueueError> {
        let areas = Areas::resolve(memory, config)?;
        let used = areas.used_idx();
        Ok(Self::at(areas, *config, used))
    }

    /// Goes on at this index in both rings.
    fn at(areas: Areas, config: QueueConfig, index: u16) -> Self {
        Self {
            areas,
            event_idx: config.event_idx,
            config,
            next_avail: index,
            avail_idx: index,
            next_used: index,
            published: index,
            in_flight: 0,
            first_signal: true,
            broken: None,
        }
    }

    /// Takes the next chain and appends its pieces to `slices`; `None` when the driver offers none.
    ///
    /// # Errors
    /// The driver broke the rules. The queue is unusable from then on and gives the same error again.
    #[inline]
    pub fn pop(&mut self, slices: &mut Slices) -> Result<Option<Chain>, QueueError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        if self.next_avail == self.avail_idx && !self.look()? {
            return Ok(None);
        }
        let head = self.areas.avail_head(self.next_avail);
        let start = slices.len();
        match Walk::new(slices).chain(&self.areas, head) {
            Ok(chain) => {
                self.next_avail = self.next_avail.wrapping_add(1);
                self.in_flight += 1;
                Ok(Some(chain))
            }
            Err(error) => {
                slices.truncate(start);
                self.broken = Some(error);
                Err(error)
            }
        }
    }

    /// Reads the driver's index; true when there is something to pop.
    fn look(&mut self) -> Result<bool, QueueError> {
        let idx = self.areas.avail_idx();
        let oldest = self.next_avail.wrapping_sub(self.in_flight);
        let offered = idx.wrapping_sub(oldest);
        if offered > self.areas.size() || offered < self.in_flight {
            let error = QueueError::TooManyHeads(offered);
            self.broken = Some(error);
            return Err(error);
        }
        self.avail_idx = idx;
        Ok(idx != self.next_avail)
    }

    /// Gives the last `n` popped chains back untouched: they will be popped again.
    pub fn unpop(&mut self, n: u16) {
        let n = n.min(self.in_flight);
        self.in_flight -= n;
        self.next_avail = self.next_avail.wrapping_sub(n);
    }

    /// How many chains can be popped now; 0 for a broken queue.
    pub fn available(&mut self) -> u16 {
        if self.broken.is_none() && self.look().is_ok() {
            self.avail_idx.wrapping_sub(self.next_avail)
        } else {
            0
        }
    }

    /// Writes the used entry of a chain into which `len` bytes were written. Not visible before
    /// [`publish`](Self::publish).
    #[inline]
    pub fn push_used(&mut self, head: u16, len: u32) {
        debug_assert!(self.in_flight > 0, "a chain is given back once");
        self.areas.set_used_at(self.next_used, head.into(), len);
        self.next_used = self.next_used.wrapping_add(1);
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Makes all used entries visible; true when the driver wants a signal for them.
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        self.areas.set_used_idx(new);
        self.published = new;
        // The index must be visible before we read what the driver wants (see the module's primer).
        fence(Ordering::SeqCst);
        if std::mem::take(&mut self.first_signal) {
            return true;
        }
        if self.event_idx {
            passes_event(self.areas.used_event(), new, old)
        } else {
            self.areas.avail_flags() & NO_SIGNAL == 0
        }
    }

    /// Whether the driver has seen all used chains, as far as it tells: without event indexes it does not. A driver
    /// writes `used_event` when it has nothing left to look at and wants to be called again.
    #[must_use]
    pub fn is_used_seen(&self) -> bool {
        !self.event_idx || self.areas.used_event() == self.published
    }

    /// Asks for a kick with the next chain that the driver offers. True when there is one already: do not sleep.
    /// A broken queue has nothing more.
    pub fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            self.areas.set_avail_event(self.next_avail);
        } else {
            self.areas.set_used_flags(0);
        }
        // The wish must be visible before we look again (see the module's primer).
        fence(Ordering::SeqCst);
        self.has_chain()
    }

    /// The driver offers a chain. A broken queue has nothing more.
    #[must_use]
    pub fn has_chain(&self) -> bool {
        self.broken.is_none() && self.areas.avail_idx() != self.next_avail
    }

    /// Asks for a kick with the next chain beyond `known` ones, which are there and are left alone. True when there are
    /// more already.
    pub fn enable_kicks_beyond(&mut self, known: u16) -> bool {
        if self.event_idx {
            self.areas.set_avail_event(self.next_avail.wrapping_add(known));
        } else {
            self.areas.set_used_flags(0);
        }
        fence(Ordering::SeqCst);
        self.available() > known
    }

    /// Asks for no kicks while we look at the queue anyway.
    pub fn disable_kicks(&mut self) {
        if self.event_idx {
            // The index that is passed last, 65535 entries from now.
            self.areas.set_avail_event(self.next_avail.wrapping_sub(1));
        } else {
            self.areas.set_used_flags(NO_SIGNAL);
        }
    }

    /// Where a successor goes on: behind the chains that were given back.
    #[must_use]
    pub fn next_avail(&self) -> u16 {
        self.next_avail.wrapping_sub(self.in_flight)
    }

    /// True when the memory behind the queue lost its backing.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.areas.memory().is_dead()
    }
}

/// The pieces of a chain as they are found.
struct Walk<'a> {
    slices: &'a mut Slices,
    start: usize,
    /// Where the writable pieces start, once there was a writable descriptor.
    writable: Option<usize>,
    readable_len: u32,
    total: u32,
}

impl<'a> Walk<'a> {
    fn new(slices: &'a mut Slices) -> Self {
        let start = slices.len();
        Self { slices, start, writable: None, readable_len: 0, total: 0 }
    }

    /// Follows the chain from `head`.
    #[inline]
    fn chain(mut self, areas: &Areas, head: u16) -> Result<Chain, QueueError> {
        let mut index = head;
        for _ in 0..areas.size().min(MAX_CHAIN) {
            let descriptor = areas.descriptor(index)?;
            if descriptor.has(INDIRECT) {
                if descriptor.has(NEXT) {
                    return Err(QueueError::BadIndirect(descriptor.len));
                }
                let table = Table::resolve(areas.memory(), descriptor.addr, descriptor.len)?;
                self.table(areas.memory(), &table)?;
                return Ok(self.finish(head));
            }
            self.add(areas.memory(), &descriptor)?;
            if !descriptor.has(NEXT) {
                return Ok(self.finish(head));
            }
            index = descriptor.next;
        }
        Err(endless(areas.size()))
    }

    /// Follows the chain in an indirect table, which starts at its first entry.
    fn table(&mut self, memory: &Arc<GuestMemory>, table: &Table<'_>) -> Result<(), QueueError> {
        let mut index = 0;
        for _ in 0..table.count.min(MAX_CHAIN) {
            let descriptor = table.get(index)?;
            if descriptor.has(INDIRECT) {
                return Err(QueueError::BadIndirect(descriptor.len));
            }
            self.add(memory, &descriptor)?;
            if !descriptor.has(NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(endless(table.count))
    }

    /// Adds the buffer of one descriptor.
    #[inline]
    fn add(
        &mut self,
        memory: &Arc<GuestMemory>,
        descriptor: &Descriptor,
    ) -> Result<(), QueueError> {
        if descriptor.has(WRITE) {
            self.writable.get_or_insert(self.slices.len());
        } else if self.writable.is_some() {
            return Err(QueueError::ReadableAfterWritable);
        } else {
            self.readable_len =
                self.readable_len.checked_add(descriptor.len).ok_or(QueueError::TooLong)?;
        }
        self.total = self.total.checked_add(descriptor.len).ok_or(QueueError::TooLong)?;
        memory.slice(descriptor.addr, descriptor.len, self.slices)?;
        if self.slices.len() - self.start > MAX_PIECES {
            return Err(QueueError::TooLong);
        }
        Ok(())
    }

    fn finish(self, head: u16) -> Chain {
        let end = self.slices.len();
        let middle = self.writable.unwrap_or(end);
        Chain {
            head,
            readable: self.start..middle,
            writable: middle..end,
            readable_len: self.readable_len,
            writable_len: self.total - self.readable_len,
        }
    }
}

/// What is wrong with a chain in a table of `count` descriptors whose end was not found.
fn endless(count: u16) -> QueueError {
    if count > MAX_CHAIN { QueueError::TooLong } else { QueueError::Loop }
}
