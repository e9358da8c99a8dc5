//! The device's end of a link: queues that a front end hands over, starts and stops.
//!
//! Every queue has a life of its own: it exists from [`start_queue`](DeviceLink::start_queue) to
//! [`stop_queue`](DeviceLink::stop_queue), and while it does not, there is simply nothing inbound, or no buffer.
//! In which order chains are given back is told in `device/queue.rs`.
//!
//! The event queue only carries TRANSPORT_RESET. Most front ends (QEMU) keep it to themselves; User-Mode Linux
//! hands it over.

mod queue;
mod saved;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vsock_core::{HEADER_LEN, MAX_PAYLOAD};

use self::queue::RunningQueue;
pub use self::saved::{SavedDevice, SavedReset, SavedRunningQueue};
use super::packet::{
    BufferToken, HEADER_BYTES, Inbound, LinkError, LinkStats, OutboundBuffer, split_header,
    take_header,
};
use crate::queue::{Chain, DeviceQueue, QueueConfig, QueueError};
use crate::spec::{EVENT_QUEUE, QUEUE_COUNT, RX_QUEUE, TRANSPORT_RESET, TX_QUEUE};
use crate::sys::signal;
use vsock_guest_memory::GuestMemory;
use vsock_guest_memory::slice::{self, Slice, Slices};

/// The device's end of a link.
#[derive(Default)]
pub struct DeviceLink {
    queues: [Option<RunningQueue>; QUEUE_COUNT],
    /// Where each stopped queue would go on.
    bases: [u16; QUEUE_COUNT],
    /// Counts the starts of queues, so that old tokens are known as such.
    epochs: [u32; QUEUE_COUNT],
    /// A buffer was wanted and there was none.
    starved: bool,
    reset: ResetHandshake,
    /// The driver's queues have run in this attachment: what it knows of connections is what we know.
    knows_driver: bool,
    /// The driver is to be told TRANSPORT_RESET if the front end hands over the event queue.
    owes_reset: bool,
    stats: LinkStats,
}

/// How far the driver is with TRANSPORT_RESET. Until it has handled the event no packets may go to it: it would take a
/// new connection for one of the old and drop it, and nobody would be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ResetHandshake {
    /// There is none that it has not handled.
    #[default]
    Done,
    /// The event is still to be sent.
    Pending,
    /// It is sent, and has been handled when the driver offers so many event buffers again.
    Sent(u16),
}

impl DeviceLink {
    /// A link whose queues are all stopped.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts (or restarts) a queue that is ready and enabled. The caller should look at it once in any case:
    /// what was offered before does not kick.
    ///
    /// # Errors
    /// The queue cannot be used as described, or there is no queue of that number (a bad size of 0). It stays
    /// stopped then.
    pub fn start_queue(
        &mut self,
        queue: usize,
        memory: &Arc<GuestMemory>,
        config: &QueueConfig,
        kick: OwnedFd,
        call: Option<OwnedFd>,
    ) -> Result<(), QueueError> {
        if queue >= QUEUE_COUNT {
            return Err(QueueError::BadSize(0));
        }
        let stopped_at = self.stop_queue(queue);
        self.bases[queue] = config.base;
        let virtqueue = DeviceQueue::new(Arc::clone(memory), config)?;
        self.bases[queue] = virtqueue.next_avail();
        self.queues[queue] = Some(RunningQueue::new(virtqueue, kick, call));
        self.epochs[queue] = self.epochs[queue].wrapping_add(1);
        self.note_start(queue, stopped_at);
        Ok(())
    }

    /// What the start of a queue says about its driver, from where the queue was and is.
    fn note_start(&mut self, queue: usize, stopped_at: u16) {
        let is_anew = stopped_at != self.bases[queue];
        if queue != RX_QUEUE && is_anew {
            // A driver that begins anew has no connections to be told about.
            self.reset = ResetHandshake::Done;
        }
        if queue == TX_QUEUE && (!std::mem::replace(&mut self.knows_driver, true) || is_anew) {
            // A queue that starts anew starts at 0. This one's driver has connections of which nothing is left here: its
            // front end has attached again, or has restored it from a snapshot.
            self.owes_reset = self.bases[TX_QUEUE] != 0;
        }
        if self.owes_reset && self.announce_reset() {
            self.owes_reset = false;
        }
    }

    /// Where a queue started last; once it is stopped, where it would go on.
    #[must_use]
    pub fn base(&self, queue: usize) -> u16 {
        self.bases.get(queue).copied().unwrap_or(0)
    }

    /// Stops a queue, after making visible what was completed. Returns where a successor goes on (the *base* of
    /// GET_VRING_BASE). Chains still in use are forgotten: the driver offers them again. Harmless for a stopped queue.
    pub fn stop_queue(&mut self, queue: usize) -> u16 {
        if queue >= QUEUE_COUNT {
            return 0;
        }
        // A signal that cannot be sent has nobody to wait for it.
        let _ = self.publish_queue(queue);
        if let Some(old) = self.queues[queue].take() {
            self.bases[queue] = old.virtqueue.next_avail();
        }
        self.bases[queue]
    }

    /// True while a queue runs.
    #[must_use]
    pub fn is_running(&self, queue: usize) -> bool {
        self.queues.get(queue).is_some_and(Option::is_some)
    }

    /// Changes the fd on which the driver is signalled; a running queue signals at once, because a signal may have
    /// got lost on the old one.
    pub fn set_call(&mut self, queue: usize, call: Option<OwnedFd>) {
        if let Some(Some(queue)) = self.queues.get_mut(queue) {
            queue.call = call;
            if let Some(call) = &queue.call {
                self.stats.signals += 1;
                // An fd that cannot be written will say so again at the next publish.
                let _ = signal(call);
            }
        }
    }

    /// Tells the driver that its connections are gone (TRANSPORT_RESET) as soon as it can be told, and holds all packets
    /// for it back until it has handled that. False: the front end keeps the
    /// event queue to itself (QEMU), so the driver cannot be told.
    pub fn announce_reset(&mut self) -> bool {
        let has_queue = self.queues[EVENT_QUEUE].is_some();
        if has_queue && self.reset == ResetHandshake::Done {
            self.reset = ResetHandshake::Pending;
        }
        has_queue
    }

    /// The driver is gone, and with it what it was to be told.
    pub fn forget_driver(&mut self) {
        self.reset = ResetHandshake::Done;
        self.knows_driver = false;
        self.owes_reset = false;
    }

    /// Whether the driver has taken all packets that were sent, as far as it tells (see
    /// [`DeviceQueue::is_used_seen`](crate::queue::DeviceQueue::is_used_seen)).
    #[must_use]
    pub fn has_taken_all(&self) -> bool {
        self.queues[RX_QUEUE].as_ref().is_none_or(|queue| queue.virtqueue.is_used_seen())
    }

    /// Whether packets may go to the driver: it has handled all events.
    #[must_use]
    pub fn has_handled_reset(&self) -> bool {
        self.reset == ResetHandshake::Done
    }

    /// An event is still to be sent.
    #[must_use]
    pub fn is_reset_due(&self) -> bool {
        self.reset == ResetHandshake::Pending
    }

    /// Whether packets must wait for the driver to handle an event; sends one that is due.
    ///
    /// # Errors
    /// The driver broke the rules of the event queue.
    pub fn awaits_reset(&mut self) -> Result<bool, LinkError> {
        if self.reset == ResetHandshake::Done {
            return Ok(false);
        }
        let Some(queue) = &mut self.queues[EVENT_QUEUE] else { return Ok(true) };
        let offered = queue.virtqueue.available();
        self.reset = match self.reset {
            ResetHandshake::Pending => {
                if self.send_event(TRANSPORT_RESET)? {
                    ResetHandshake::Sent(offered)
                } else {
                    ResetHandshake::Pending
                }
            }
            ResetHandshake::Sent(wanted) if offered < wanted => ResetHandshake::Sent(wanted),
            ResetHandshake::Sent(_) | ResetHandshake::Done => ResetHandshake::Done,
        };
        Ok(self.reset != ResetHandshake::Done)
    }

    /// Sends an event (such as [`TRANSPORT_RESET`]) if the front end handed over the
    /// event queue and the driver has a buffer there; true when it was. Visible with the next publish.
    ///
    /// # Errors
    /// The driver broke the rules of the event queue.
    pub fn send_event(&mut self, id: u32) -> Result<bool, LinkError> {
        let Some(queue) = &mut self.queues[EVENT_QUEUE] else { return Ok(false) };
        let mut slices = Slices::new();
        let holds_id = |chain: &Chain| chain.writable_len >= 4 && chain.readable_len == 0;
        let popped = queue.pop_useful(EVENT_QUEUE, &mut slices, &mut self.stats, holds_id)?;
        let Some(chain) = popped else { return Ok(false) };
        slice::copy_in(&slices[chain.writable], &id.to_le_bytes());
        self.stats.skipped += queue.complete(chain.head, 4);
        Ok(true)
    }

    pub(crate) fn next_inbound(
        &mut self,
        slices: &mut Slices,
    ) -> Result<Option<Inbound>, LinkError> {
        let Some(queue) = &mut self.queues[TX_QUEUE] else { return Ok(None) };
        let is_packet =
            |chain: &Chain| chain.readable_len >= HEADER_BYTES && chain.writable_len == 0;
        let popped = queue.pop_useful(TX_QUEUE, slices, &mut self.stats, is_packet)?;
        let Some(chain) = popped else { return Ok(None) };
        let (header, payload) = take_header(slices, chain.readable);
        let token = BufferToken { index: chain.head, epoch: self.epochs[TX_QUEUE] };
        let payload_len = chain.readable_len - HEADER_BYTES;
        Ok(Some(Inbound { header, payload, payload_len, token }))
    }

    pub(crate) fn finish_inbound(&mut self, token: BufferToken) {
        if token.epoch == self.epochs[TX_QUEUE]
            && let Some(queue) = &mut self.queues[TX_QUEUE]
        {
            self.stats.skipped += queue.complete(token.index, 0);
        }
    }

    pub(crate) fn next_buffer(
        &mut self,
        slices: &mut Slices,
    ) -> Result<Option<OutboundBuffer>, LinkError> {
        if self.awaits_reset()? {
            return Ok(None);
        }
        let Some(queue) = &mut self.queues[RX_QUEUE] else { return Ok(None) };
        // Room for a header alone would never let data on.
        let has_room = |chain: &Chain| chain.writable_len > HEADER_BYTES && chain.readable_len == 0;
        let popped = queue.pop_useful(RX_QUEUE, slices, &mut self.stats, has_room)?;
        self.starved = popped.is_none();
        let Some(chain) = popped else { return Ok(None) };
        let (header, payload) = split_header(slices, chain.writable.start);
        let capacity = (chain.writable_len - HEADER_BYTES).min(MAX_PAYLOAD);
        let token = BufferToken { index: chain.head, epoch: self.epochs[RX_QUEUE] };
        Ok(Some(OutboundBuffer { header, payload, capacity, token }))
    }

    pub(crate) fn return_buffers(&mut self, n: u16) {
        // What is given back is room: there is no need to be told of more.
        self.starved &= n == 0;
        if let Some(queue) = &mut self.queues[RX_QUEUE] {
            queue.unpop(n);
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
        if buffer.token.epoch == self.epochs[RX_QUEUE]
            && let Some(queue) = &mut self.queues[RX_QUEUE]
        {
            slice::copy_in(&slices[buffer.header.clone()], header);
            let len = HEADER_BYTES + len.min(buffer.capacity);
            self.stats.skipped += queue.complete(buffer.token.index, len);
        }
    }

    pub(crate) fn publish(&mut self) -> io::Result<()> {
        for queue in 0..QUEUE_COUNT {
            self.publish_queue(queue)?;
        }
        if self.is_dead() {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        Ok(())
    }

    fn publish_queue(&mut self, queue: usize) -> io::Result<()> {
        let Some(queue) = &mut self.queues[queue] else { return Ok(()) };
        if queue.virtqueue.publish()
            && let Some(call) = &queue.call
        {
            self.stats.signals += 1;
            signal(call)?;
        }
        Ok(())
    }

    pub(crate) fn arm(&mut self) -> bool {
        let buffer = self.arm_for_buffers();
        let inbound = self.queues[TX_QUEUE].as_mut().is_some_and(|q| q.virtqueue.enable_kicks());
        buffer || inbound
    }

    /// Asks to be told when the driver has handled an event, or can be given one. True when that is so already.
    fn arm_for_event(&mut self) -> bool {
        let Some(queue) = &mut self.queues[EVENT_QUEUE] else { return false };
        match self.reset {
            ResetHandshake::Done => false,
            ResetHandshake::Pending => queue.virtqueue.enable_kicks(),
            ResetHandshake::Sent(wanted) => {
                queue.virtqueue.enable_kicks_beyond(wanted.saturating_sub(1))
            }
        }
    }

    pub(crate) fn arm_for_buffers(&mut self) -> bool {
        if let Some(queue) = &mut self.queues[TX_QUEUE] {
            queue.virtqueue.disable_kicks();
        }
        let event = self.arm_for_event();
        let Some(queue) = &mut self.queues[RX_QUEUE] else { return event };
        if self.starved {
            return queue.virtqueue.enable_kicks() || event;
        }
        queue.virtqueue.disable_kicks();
        event
    }

    pub(crate) fn has_inbound(&self) -> bool {
        self.queues[TX_QUEUE].as_ref().is_some_and(|queue| queue.virtqueue.has_chain())
    }

    pub(crate) fn has_buffer_again(&self) -> bool {
        let Some(queue) = &self.queues[RX_QUEUE] else { return false };
        self.starved && self.reset == ResetHandshake::Done && queue.virtqueue.has_chain()
    }

    pub(crate) fn disarm(&mut self) {
        self.starved = false;
        for queue in [RX_QUEUE, TX_QUEUE] {
            if let Some(queue) = &mut self.queues[queue] {
                queue.virtqueue.disable_kicks();
            }
        }
    }

    pub(crate) fn notify_fd(&self, queue: usize) -> Option<BorrowedFd<'_>> {
        self.queues.get(queue)?.as_ref().map(|queue| queue.kick.as_fd())
    }

    pub(crate) fn stats(&self) -> LinkStats {
        self.stats
    }

    /// True when the memory behind any running queue lost its backing.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.queues.iter().flatten().any(|queue| queue.virtqueue.is_dead())
    }
}
