//! What a guest has sent and its program has not taken yet: bytes in a row, or whole messages.
//!
//! Both are bounded by the credit we announced (the core resets a flow that exceeds it), so they only count.

use std::collections::VecDeque;

use vsock_core::saved::{Unfit, check};

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

/// A message and what it took of the announced packet budget, as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedMessage {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The packets they came in.
    pub packets: u32,
    /// A record ends with it.
    pub ends_record: bool,
}

impl From<&Message> for SavedMessage {
    fn from(message: &Message) -> Self {
        let Message { bytes, packets, ends_record } = message;
        Self { bytes: bytes.clone(), packets: *packets, ends_record: *ends_record }
    }
}

impl From<SavedMessage> for Message {
    fn from(saved: SavedMessage) -> Self {
        let SavedMessage { bytes, packets, ends_record } = saved;
        Self { bytes, packets, ends_record }
    }
}

/// What a program has not taken yet, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SavedBacklog {
    /// Bytes in a row.
    Bytes(Vec<u8>),
    /// Messages.
    Messages {
        /// Whole ones, the oldest first.
        whole: Vec<SavedMessage>,
        /// The one that is still arriving.
        partial: SavedMessage,
    },
}

impl Bytes {
    /// As plain data.
    pub(super) fn save(&self) -> SavedBacklog {
        SavedBacklog::Bytes(self.front().to_vec())
    }

    /// From plain data.
    pub(super) fn restore(buffer: Vec<u8>) -> Self {
        Self { buffer, start: 0 }
    }
}

impl Messages {
    /// As plain data.
    pub(super) fn save(&self) -> SavedBacklog {
        let whole = self.whole.iter().map(SavedMessage::from).collect();
        SavedBacklog::Messages { whole, partial: (&self.partial).into() }
    }

    /// From plain data.
    pub(super) fn restore(whole: Vec<SavedMessage>, partial: SavedMessage) -> Result<Self, Unfit> {
        let mut messages = Self { partial: partial.into(), ..Self::default() };
        messages.whole = whole.into_iter().map(Message::from).collect();
        for message in messages.whole.iter().chain([&messages.partial]) {
            // Bytes come in packets, but the last packet of a message may have none.
            check(message.packets > 0 || message.bytes.is_empty(), Unfit::Queue)?;
            messages.bytes += message.bytes.len();
            let sum = messages.packets.checked_add(message.packets);
            messages.packets = sum.ok_or(Unfit::TooMany)?;
        }
        check(messages.whole.iter().all(|it| it.packets > 0), Unfit::Queue)?;
        check(!messages.partial.ends_record, Unfit::Queue)?;
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8], packets: u32) -> SavedMessage {
        SavedMessage { bytes: bytes.to_vec(), packets, ends_record: false }
    }

    #[test]
    fn messages_wait_on_after_a_hand_over() {
        let whole = vec![message(b"one", 2), message(b"", 1)];
        let mut messages = Messages::restore(whole, message(b"half", 1)).unwrap();
        let saved = messages.save();
        assert_eq!((messages.len(), messages.packets(), messages.has_partial()), (7, 4, true));
        assert_eq!((messages.take(), messages.take(), messages.take()), ((3, 2), (0, 1), (0, 0)));
        messages.append(&[], 1, End::Record);
        assert_eq!(messages.front(), Some((&b"half"[..], true)));
        let SavedBacklog::Messages { whole, partial } = saved else { panic!() };
        assert_eq!(Messages::restore(whole, partial).unwrap().len(), 7);
    }

    #[test]
    fn messages_that_cannot_be_are_not_restored() {
        let none = SavedMessage::default;
        let restored = |whole, partial| Messages::restore(whole, partial).err();
        assert_eq!(restored(vec![message(b"x", 0)], none()), Some(Unfit::Queue));
        assert_eq!(restored(vec![none()], none()), Some(Unfit::Queue));
        assert_eq!(restored(vec![], message(b"x", 0)), Some(Unfit::Queue));
        let ended = SavedMessage { ends_record: true, ..message(b"x", 1) };
        assert_eq!(restored(vec![], ended), Some(Unfit::Queue));
        let many = message(b"x", u32::MAX);
        assert_eq!(restored(vec![many.clone(), many], none()), Some(Unfit::TooMany));
    }
}
