//! The link of a node to itself: what is sent comes back as inbound, in order.
//!
//! Two programs of one node talk over it as they would over any other link: the same endpoint, the same credit, the
//! same packets, only that both ends of a connection live in one endpoint, each under its own key. The kernel's
//! loopback transport does the same (kernel-semantics, 12.11).
//!
//! The buffers are our own memory and few: who is sent to faster than it takes in waits for room, like behind a queue.
//! The last freed is used first, because its memory is still in the cache.

mod saved;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use vsock_core::{HEADER_LEN, MAX_PAYLOAD};

pub use self::saved::SavedLoopback;
use super::packet::{
    BufferToken, HEADER_BYTES, Inbound, LinkError, LinkStats, OutboundBuffer, split_header,
    take_header,
};
use crate::spec::TX_QUEUE;
use vsock_guest_memory::slice::{self, Slice, Slices};
use vsock_guest_memory::{GuestMemory, sealed_memory};

/// Packets under way at once. Fewer than an endpoint's replies may be: taking in all of them always leaves room for
/// what they cause.
const BUFFERS: u16 = 64;

/// From one buffer to the next: the payload starts at a cache line.
const STRIDE: u64 = 64 + MAX_PAYLOAD as u64;

/// Where the header starts in a buffer.
const LEAD: u64 = 64 - HEADER_LEN as u64;

/// First address: not 0, so that a zero address is always wrong.
const BASE: u64 = 1 << 20;

/// The link of a node to itself.
pub struct LoopbackLink {
    memory: Arc<GuestMemory>,
    /// Buffers that nobody uses.
    free: Vec<u16>,
    /// Buffers reserved for outbound packets, oldest first.
    reserved: VecDeque<u16>,
    /// Packets sent and not taken in, with their lengths.
    sent: VecDeque<(u16, u32)>,
    /// A buffer was wanted and there was none.
    starved: bool,
}

impl LoopbackLink {
    /// A link with nothing under way.
    ///
    /// # Errors
    /// The kernel gives no memory.
    pub fn new() -> io::Result<Self> {
        let (_, memory) = sealed_memory("vsock-loopback", BASE, u64::from(BUFFERS) * STRIDE)?;
        let free = (0..BUFFERS).rev().collect();
        let (reserved, sent) = (VecDeque::new(), VecDeque::new());
        Ok(Self { memory, free, reserved, sent, starved: false })
    }

    fn slice(&self, buffer: u16, len: u32, slices: &mut Slices) -> Result<(), LinkError> {
        self.memory
            .slice(BASE + LEAD + u64::from(buffer) * STRIDE, len, slices)
            .map_err(|outside| LinkError::Queue { queue: TX_QUEUE, error: outside.into() })
    }

    /// Something that was sent waits to be taken in.
    pub(crate) fn has_inbound(&self) -> bool {
        !self.sent.is_empty()
    }

    pub(crate) fn next_inbound(
        &mut self,
        slices: &mut Slices,
    ) -> Result<Option<Inbound>, LinkError> {
        let Some((buffer, len)) = self.sent.pop_front() else { return Ok(None) };
        let start = slices.len();
        self.slice(buffer, len, slices)?;
        let end = slices.len();
        let (header, payload) = take_header(slices, start..end);
        let token = BufferToken { index: buffer, epoch: 0 };
        Ok(Some(Inbound { header, payload, payload_len: len - HEADER_BYTES, token }))
    }

    pub(crate) fn finish_inbound(&mut self, token: BufferToken) {
        self.free.push(token.index);
    }

    pub(crate) fn next_buffer(
        &mut self,
        slices: &mut Slices,
    ) -> Result<Option<OutboundBuffer>, LinkError> {
        let Some(buffer) = self.free.pop() else {
            self.starved = true;
            return Ok(None);
        };
        self.starved = false;
        self.reserved.push_back(buffer);
        let start = slices.len();
        self.slice(buffer, HEADER_BYTES + MAX_PAYLOAD, slices)?;
        let (header, payload) = split_header(slices, start);
        let token = BufferToken { index: buffer, epoch: 0 };
        Ok(Some(OutboundBuffer { header, payload, capacity: MAX_PAYLOAD, token }))
    }

    pub(crate) fn return_buffers(&mut self, n: u16) {
        for _ in 0..n {
            self.free.extend(self.reserved.pop_back());
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
        self.sent.push_back((buffer.token.index, HEADER_BYTES + len.min(buffer.capacity)));
    }

    /// There is nobody to ask for signals; true when there is something to do.
    pub(crate) fn arm(&mut self) -> bool {
        self.has_inbound() || self.has_buffer_again()
    }

    pub(crate) fn has_buffer_again(&self) -> bool {
        self.starved && !self.free.is_empty()
    }

    pub(crate) fn disarm(&mut self) {
        self.starved = false;
    }

    pub(crate) fn stats(&self) -> LinkStats {
        LinkStats::default()
    }
}

#[cfg(test)]
mod tests {
    use vsock_core::saved::Unfit;

    use super::*;

    fn send(link: &mut LoopbackLink, mark: u8, payload: &[u8]) -> bool {
        let mut slices = Slices::new();
        let Some(buffer) = link.next_buffer(&mut slices).unwrap() else { return false };
        slice::copy_in(&slices[buffer.payload.clone()], payload);
        let len = u32::try_from(payload.len()).unwrap();
        link.send(&buffer, &slices, &[mark; HEADER_LEN], len);
        true
    }

    #[test]
    fn packets_come_back_whole_and_in_order() {
        let mut link = LoopbackLink::new().unwrap();
        assert!(send(&mut link, 1, b"first"));
        assert!(send(&mut link, 2, b""));
        let mut slices = Slices::new();
        let first = link.next_inbound(&mut slices).unwrap().unwrap();
        assert_eq!((first.header, first.payload_len), ([1; HEADER_LEN], 5));
        let mut bytes = [0; 5];
        slice::copy_out(&slices[first.payload.clone()], &mut bytes);
        assert_eq!(&bytes, b"first");
        let second = link.next_inbound(&mut slices).unwrap().unwrap();
        assert_eq!((second.header, second.payload_len), ([2; HEADER_LEN], 0));
        assert_eq!(link.next_inbound(&mut slices).unwrap(), None);
    }

    #[test]
    fn full_link_has_room_again_when_a_packet_was_finished() {
        let mut link = LoopbackLink::new().unwrap();
        for _ in 0..BUFFERS {
            assert!(send(&mut link, 1, b"x"));
        }
        assert!(!send(&mut link, 1, b"x"));
        let inbound = link.next_inbound(&mut Slices::new()).unwrap().unwrap();
        assert!(!send(&mut link, 1, b"x"));
        link.finish_inbound(inbound.token);
        assert!(send(&mut link, 1, b"x"));
    }

    #[test]
    fn packets_under_way_come_back_over_a_restored_link() {
        let mut before = LoopbackLink::new().unwrap();
        assert!(send(&mut before, 1, b"first") && send(&mut before, 2, b""));
        let saved = before.save();
        let mut after = LoopbackLink::new().unwrap().restore(&saved).unwrap();
        assert_eq!(after.save(), saved);
        let mut slices = Slices::new();
        let first = after.next_inbound(&mut slices).unwrap().unwrap();
        assert_eq!((first.header, first.payload_len), ([1; HEADER_LEN], 5));
        let second = after.next_inbound(&mut slices).unwrap().unwrap();
        after.finish_inbound(first.token);
        after.finish_inbound(second.token);
        for _ in 0..BUFFERS {
            assert!(send(&mut after, 3, b"x"));
        }
        assert!(!send(&mut after, 3, b"x"));
    }

    #[test]
    fn packets_that_cannot_be_are_not_restored() {
        let restored = |sent| LoopbackLink::new().unwrap().restore(&SavedLoopback { sent }).err();
        assert_eq!(restored(vec![vec![0; HEADER_LEN - 1]]), Some(Unfit::Queue));
        assert_eq!(restored(vec![vec![0; HEADER_LEN + 65537]]), Some(Unfit::Queue));
        assert_eq!(restored(vec![vec![0; HEADER_LEN]; 65]), Some(Unfit::TooMany));
        assert_eq!(restored(vec![vec![0; HEADER_LEN + 65536]; 64]), None);
    }

    #[test]
    fn returned_space_is_free_and_sends_nothing() {
        let mut link = LoopbackLink::new().unwrap();
        for _ in 0..3 * BUFFERS {
            assert!(link.next_buffer(&mut Slices::new()).unwrap().is_some());
            link.return_buffers(1);
        }
        assert!(!link.arm());
    }
}
