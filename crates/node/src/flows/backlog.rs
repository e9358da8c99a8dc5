//! What a guest has sent and its program has not taken yet: bytes in a row, or whole messages.
//!
//! Both are bounded by the credit we announced (the core resets a flow that exceeds it), so they only count.

use std::collections::VecDeque;

use crate::links::End;
use vsock_guest_memory::slice::{self, Slice};

/// Capacity that an empty queue may keep.
const KEEP: usize = 4096;

/// Bytes in order, in one piece of memory, so that one system call offers them all.
#[derive(Debug, Default)]
pub(crate) struct Bytes {
    buffer: Vec<u8>,
    start: usize,
}

impl Bytes {
    pub(crate) fn len(&self) -> usize {
        self.buffer.len() - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is there, oldest first.
    pub(crate) fn front(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Adds the bytes of `pieces` after the first `skip`.
    pub(crate) fn append(&mut self, pieces: &[Slice], skip: usize) {
        if self.start > self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        append(&mut self.buffer, pieces, skip);
    }

    /// The first `n` bytes have been taken.
    pub(crate) fn take(&mut self, n: usize) {
        self.start = (self.start + n).min(self.buffer.len());
        if self.is_empty() {
            self.start = 0;
            self.buffer.clear();
            self.buffer.shrink_to(KEEP);
        }
    }
}

/// Copies the bytes of `pieces` after the first `skip` to the end of `to`.
fn append(to: &mut Vec<u8>, pieces: &[Slice], skip: usize) {
    let total = slice::total(pieces).saturating_sub(skip);
    let mut at = to.len();
    to.resize(at + total, 0);
    let mut skip = skip;
    for piece in pieces {
        at += piece.copy_to_from(skip, &mut to[at..]);
        skip = skip.saturating_sub(piece.len());
    }
}

/// A message and what it took of the announced packet budget.
#[derive(Debug, Default)]
struct Message {
    bytes: Vec<u8>,
    packets: u32,
    ends_record: bool,
}

/// Whole messages in order, and the one that is still arriving.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    whole: VecDeque<Message>,
    partial: Message,
    bytes: usize,
    packets: u32,
}

impl Messages {
    /// No whole message waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.whole.is_empty()
    }

    /// Some of a message is there, but not its end.
    pub(crate) fn has_partial(&self) -> bool {
        self.partial.packets > 0
    }

    /// Bytes held, whole messages and the partial one.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Packets held.
    pub(crate) fn packets(&self) -> u32 {
        self.packets
    }

    /// The oldest whole message, and whether it ends a record.
    pub(crate) fn front(&self) -> Option<(&[u8], bool)> {
        self.whole.front().map(|message| (message.bytes.as_slice(), message.ends_record))
    }

    /// Adds the payload of packets, and what they end.
    pub(crate) fn append(&mut self, pieces: &[Slice], packets: u32, end: End) {
        append(&mut self.partial.bytes, pieces, 0);
        self.partial.packets += packets;
        self.packets += packets;
        self.bytes += slice::total(pieces);
        if end != End::None {
            self.partial.ends_record = end == End::Record;
            self.whole.push_back(std::mem::take(&mut self.partial));
        }
    }

    /// The oldest whole message has been taken: its bytes and packets.
    pub(crate) fn take(&mut self) -> (usize, u32) {
        let Some(message) = self.whole.pop_front() else { return (0, 0) };
        self.bytes -= message.bytes.len();
        self.packets -= message.packets;
        (message.bytes.len(), message.packets)
    }
}
