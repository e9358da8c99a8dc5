//! The driver's end of a link: a userspace guest's memory, queues and buffers.
//!
//! A guest's whole memory here is one memfd, sealed so that nobody can shrink or grow it, that holds three queues
//! and their buffers one behind the other. The vhost-user front end shows it to the device
//! ([`region`](DriverLink::region), [`queue_config`](DriverLink::queue_config)) and brings the notification fds
//! ([`connect`](DriverLink::connect)).
//!
//! Receive buffers are on offer from the start, as many as `refill` says, and again when their packet is finished.
//! Transmit buffers are taken from a free list; the last freed is used first, because its memory is still in the cache.
//! For the same reason no more than so many bytes are under way to the device: many flows could send far more at once.
//!
//! The device is not trusted; see [`queue`](crate::queue).

mod layout;
mod refill;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vsock_core::HEADER_LEN;

use super::packet::{
    BufferToken, HEADER_BYTES, Inbound, LinkError, LinkStats, OutboundBuffer, split_header,
    take_header,
};
use crate::queue::{DriverQueue, QueueConfig, QueueError};
use crate::spec::{EVENT_QUEUE, QUEUE_COUNT, RX_QUEUE, TX_QUEUE};
use crate::sys::signal;
pub use layout::DriverOptions;
use layout::{Buffers, Layout};
use refill::{HOT, Refill};
use vsock_guest_memory::slice::{self, Slice, Slices};
use vsock_guest_memory::{GuestMemory, SharedRegion};

/// One of our queues, its buffers and notification fds.
struct BufferQueue {
    virtqueue: DriverQueue,
    buffers: Buffers,
    /// The buffer of each chain in flight, by head.
    by_head: Vec<u16>,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
}

impl BufferQueue {
    fn new(
        memory: &Arc<GuestMemory>,
        config: &QueueConfig,
        buffers: Buffers,
    ) -> Result<Self, QueueError> {
        let virtqueue = DriverQueue::new(Arc::clone(memory), config)?;
        let by_head = vec![0; usize::from(config.size)];
        Ok(Self { virtqueue, buffers, by_head, kick: None, call: None })
    }

    /// Offers the first `len` bytes of a buffer. The queue has descriptors for all buffers, so it always fits.
    fn offer(&mut self, buffer: u16, len: u32, device_writes: bool) {
        let (parts, count) = self.buffers.parts(buffer, len);
        let parts = &parts[..count];
        let added = if device_writes {
            self.virtqueue.add(&[], parts)
        } else {
            self.virtqueue.add(parts, &[])
        };
        debug_assert!(added.is_ok(), "one chain per buffer");
        if let Ok(head) = added {
            self.by_head[usize::from(head)] = buffer;
        }
    }

    /// The next buffer that the device is done with, and how many bytes it wrote.
    fn take(&mut self) -> Result<Option<(u16, u32)>, QueueError> {
        let used = self.virtqueue.pop_used()?;
        Ok(used.map(|(head, len)| (self.by_head[usize::from(head)], len)))
    }
}

/// The driver's end of a link.
pub struct DriverLink {
    memory: Arc<GuestMemory>,
    file: File,
    layout: Layout,
    queues: [BufferQueue; QUEUE_COUNT],
    /// Receive buffers that are not on offer, the last used on top.
    idle: Vec<u16>,
    refill: Refill,
    /// Transmit buffers that nobody uses.
    free: Vec<u16>,
    /// What each transmit buffer holds that the device has not used, and all of them, bytes.
    unsent: Vec<u32>,
    unsent_bytes: u32,
    /// Transmit buffers reserved for outbound packets, oldest first.
    reserved: VecDeque<u16>,
    /// The device's used transmit buffers were taken back since the last publish.
    is_reclaimed: bool,
    /// A buffer was wanted and there was none.
    starved: bool,
    stats: LinkStats,
}

impl DriverLink {
    /// Makes memory, queues and buffers, and offers receive and event buffers.
    ///
    /// # Errors
    /// The options ask for more buffers than a queue can have, or the kernel refuses the memory.
    pub fn new(options: &DriverOptions) -> io::Result<Self> {
        let layout = Layout::new(options)?;
        let (file, memory) = layout.allocate()?;
        let queue = |number: usize| {
            BufferQueue::new(&memory, &layout.queues[number], layout.buffers[number].clone())
                .map_err(io::Error::other)
        };
        let mut queues = [queue(RX_QUEUE)?, queue(TX_QUEUE)?, queue(EVENT_QUEUE)?];
        let events = &mut queues[EVENT_QUEUE];
        for buffer in 0..events.buffers.count {
            events.offer(buffer, events.buffers.len, true);
        }
        let tx_count = queues[TX_QUEUE].buffers.count;
        let rx = &queues[RX_QUEUE].buffers;
        let mut link = Self {
            idle: (0..rx.count).rev().collect(),
            refill: Refill::new(rx.count, rx.len - HEADER_BYTES),
            memory,
            file,
            layout,
            queues,
            free: (0..tx_count).rev().collect(),
            unsent: vec![0; tx_count.into()],
            unsent_bytes: 0,
            reserved: VecDeque::with_capacity(tx_count.into()),
            is_reclaimed: false,
            starved: false,
            stats: LinkStats::default(),
        };
        link.offer_idle();
        for queue in &mut link.queues {
            // Nobody is there to be kicked yet: `connect` does it.
            queue.virtqueue.publish();
        }
        Ok(link)
    }

    /// Puts idle receive buffers on offer, up to what is wanted.
    fn offer_idle(&mut self) {
        let queue = &mut self.queues[RX_QUEUE];
        let wanted = self.refill.wanted();
        while queue.virtqueue.in_flight() < wanted
            && let Some(buffer) = self.idle.pop()
        {
            queue.offer(buffer, queue.buffers.len, true);
        }
    }

    /// The memory to show to the device.
    #[must_use]
    pub fn region(&self) -> SharedRegion<'_> {
        let (guest, len) = (layout::BASE, self.layout.len);
        SharedRegion { guest, len, file: self.file.as_fd() }
    }

    /// Where a queue is. Its addresses are guest addresses, which are the user addresses too.
    #[must_use]
    pub fn queue_config(&self, queue: usize) -> Option<QueueConfig> {
        self.layout.queues.get(queue).copied()
    }

    /// Tells what was negotiated; only before the device starts the queues.
    pub fn set_event_idx(&mut self, event_idx: bool) {
        for (queue, config) in self.queues.iter_mut().zip(&mut self.layout.queues) {
            queue.virtqueue.set_event_idx(event_idx);
            config.event_idx = event_idx;
        }
    }

    /// Brings the fds of a queue: `kick` signals the device, `call` is signalled by it. The device is kicked at
    /// once, as there may be buffers already. A queue that does not exist is ignored.
    ///
    /// # Errors
    /// The kick cannot be written.
    pub fn connect(&mut self, queue: usize, kick: OwnedFd, call: OwnedFd) -> io::Result<()> {
        if let Some(queue) = self.queues.get_mut(queue) {
            self.stats.signals += 1;
            signal(&kick)?;
            queue.kick = Some(kick);
            queue.call = Some(call);
        }
        Ok(())
    }

    /// The next event from the device, if any; its buffer is offered again. Events count as something inbound:
    /// whoever waits for packets must take the events too, before [`Link::arm`](crate::link::Link::arm) lets it
    /// sleep.
    ///
    /// # Errors
    /// The device broke the rules of the event queue.
    pub fn next_event(&mut self) -> Result<Option<u32>, LinkError> {
        let queue = &mut self.queues[EVENT_QUEUE];
        let queue_error = |error| LinkError::Queue { queue: EVENT_QUEUE, error };
        while let Some((buffer, len)) = queue.take().map_err(queue_error)? {
            let mut id = [0; 4];
            let mut pieces = Slices::new();
            self.memory
                .slice(queue.buffers.address(buffer), queue.buffers.len, &mut pieces)
                .map_err(|outside| queue_error(outside.into()))?;
            slice::copy_out(&pieces, &mut id);
            queue.offer(buffer, queue.buffers.len, true);
            if len >= 4 {
                return Ok(Some(u32::from_le_bytes(id)));
            }
            self.stats.skipped += 1;
        }
        Ok(None)
    }

    pub(crate) fn next_inbound(
        &mut self,
        slices: &mut Slices,
    ) -> Result<Option<Inbound>, LinkError> {
        let queue = &mut self.queues[RX_QUEUE];
        let queue_error = |error| LinkError::Queue { queue: RX_QUEUE, error };
        while let Some((buffer, len)) = queue.take().map_err(queue_error)? {
            if len < HEADER_BYTES {
                queue.offer(buffer, queue.buffers.len, true);
                self.stats.skipped += 1;
                continue;
            }
            self.refill.note(len - HEADER_BYTES);
            let start = slices.len();
            self.memory
                .slice(queue.buffers.address(buffer), len, slices)
                .map_err(|outside| queue_error(outside.into()))?;
            let end = slices.len();
            let (header, payload) = take_header(slices, start..end);
            let token = BufferToken { index: buffer, epoch: 0 };
            return Ok(Some(Inbound {
                header,
                payload,
                payload_len: len - HEADER_BYTES,
                token,
                steps: 1,
            }));
        }
        Ok(None)
    }

    pub(crate) fn finish_inbound(&mut self, token: BufferToken) {
        self.idle.push(token.index);
        self.offer_idle();
    }

    pub(crate) fn next_buffer(
        &mut self,
        slices: &mut Slices,
    ) -> Result<Option<OutboundBuffer>, LinkError> {
        // Once a batch, so that the same few are used as long as few are needed: their memory is in the cache.
        let is_full = self.free.is_empty() || self.unsent_bytes >= HOT;
        if is_full || !std::mem::replace(&mut self.is_reclaimed, true) {
            self.reclaim()?;
        }
        let Some(buffer) = self.free.pop_if(|_| self.unsent_bytes < HOT) else {
            self.starved = true;
            return Ok(None);
        };
        self.starved = false;
        self.reserved.push_back(buffer);
        let start = slices.len();
        let buffers = &self.queues[TX_QUEUE].buffers;
        self.memory
            .slice(buffers.address(buffer), buffers.len, slices)
            .map_err(|outside| LinkError::Queue { queue: TX_QUEUE, error: outside.into() })?;
        let capacity = buffers.len - HEADER_BYTES;
        let (header, payload) = split_header(slices, start);
        let token = BufferToken { index: buffer, epoch: 0 };
        Ok(Some(OutboundBuffer { header, payload, capacity, token, steps: 1 }))
    }

    /// Takes back the transmit buffers that the device is done with.
    fn reclaim(&mut self) -> Result<(), LinkError> {
        let queue = &mut self.queues[TX_QUEUE];
        let queue_error = |error| LinkError::Queue { queue: TX_QUEUE, error };
        while let Some((buffer, _)) = queue.take().map_err(queue_error)? {
            self.free.push(buffer);
            self.unsent_bytes -= std::mem::take(&mut self.unsent[usize::from(buffer)]);
        }
        Ok(())
    }

    pub(crate) fn return_buffers(&mut self, n: u16) {
        // What is given back is room: there is no need to be told of more.
        self.starved &= n == 0;
        for _ in 0..n {
            if let Some(buffer) = self.reserved.pop_back() {
                self.free.push(buffer);
            }
        }
    }

    pub(crate) fn send(
        &mut self,
        buffer: &OutboundBuffer,
        slices: &[Slice],
        header: &[u8; HEADER_LEN],
        len: u32,
    ) {
        debug_assert!(len <= buffer.capacity, "payload larger than its buffer");
        let sent = self.reserved.pop_front();
        debug_assert_eq!(sent, Some(buffer.token.index), "buffers are sent in the order reserved");
        slice::copy_in(&slices[buffer.header.clone()], header);
        let len = HEADER_BYTES + len.min(buffer.capacity);
        self.queues[TX_QUEUE].offer(buffer.token.index, len, false);
        self.unsent[usize::from(buffer.token.index)] = len;
        self.unsent_bytes += len;
    }

    pub(crate) fn publish(&mut self) -> io::Result<()> {
        self.is_reclaimed = false;
        for queue in &mut self.queues {
            if queue.virtqueue.publish()
                && let Some(kick) = &queue.kick
            {
                self.stats.signals += 1;
                signal(kick)?;
            }
        }
        Ok(())
    }

    pub(crate) fn arm(&mut self) -> bool {
        let has_buffer = self.arm_for_buffers();
        has_buffer | self.queues[RX_QUEUE].virtqueue.enable_calls()
    }

    pub(crate) fn arm_for_buffers(&mut self) -> bool {
        self.queues[RX_QUEUE].virtqueue.disable_calls();
        // Events are few and cost no answer: they are taken in any case.
        let events = self.queues[EVENT_QUEUE].virtqueue.enable_calls();
        let tx = &mut self.queues[TX_QUEUE].virtqueue;
        if self.starved {
            return tx.enable_calls() | events;
        }
        tx.disable_calls();
        events
    }

    pub(crate) fn has_inbound(&self) -> bool {
        [RX_QUEUE, EVENT_QUEUE].iter().any(|&queue| self.queues[queue].virtqueue.has_used())
    }

    pub(crate) fn has_buffer_again(&self) -> bool {
        self.starved && self.queues[TX_QUEUE].virtqueue.has_used()
    }

    pub(crate) fn disarm(&mut self) {
        self.starved = false;
        for queue in [RX_QUEUE, TX_QUEUE] {
            self.queues[queue].virtqueue.disable_calls();
        }
    }

    pub(crate) fn notify_fd(&self, queue: usize) -> Option<BorrowedFd<'_>> {
        self.queues.get(queue)?.call.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn stats(&self) -> LinkStats {
        self.stats
    }
}
