//! From programs, other guests and the protocol core into a link's ring.
//!
//! The order is fixed: control packets first (an answer must precede the data it permits), then packets of other guests
//! that found no room before, then flows by turns, a quantum each. A turn of a stream is one vectored read from its
//! program's socket, straight into as many of the other side's buffers as credit and quantum allow. A turn of a flow of
//! messages is one message (`messages.rs`).

use vsock_core::{ConnectionId, SocketType};

use super::Worker;
use super::link_slot::{LinkFault, LinkSlot, sort_transfer};
use super::source::{LinkId, Phase, Source};
use crate::host::stream::Read;
use crate::link::{Link, Space};
use crate::reactor::Token;
use crate::slice::{self, Slices, TransferError};

/// Bytes of one flow before the next has its turn.
const QUANTUM: usize = 64 * 1024;

/// What a packet of another guest costs besides its bytes, as a receiver may have tiny buffers.
const PACKET_COST: usize = 256;

/// What a turn costs besides its bytes: one byte at a time must not take for ever.
const TURN_COST: usize = 1024;

/// Buffers filled by one read; the kernel takes 1024 pieces, a buffer is one or two.
const SPACES_PER_READ: usize = 256;

/// Scratch for filling buffers of a ring, so that no packet allocates.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) slices: Slices,
    pub(crate) spaces: Vec<Space>,
    pub(crate) pieces: Slices,
}

impl Batch {
    /// At the end of every turn: lets go of guest memory.
    pub(crate) fn clear(&mut self) {
        self.slices.clear();
        self.spaces.clear();
        self.pieces.clear();
    }
}

/// How a flow's turn ended.
pub(super) enum Turn {
    /// It may have more.
    Again(usize),
    /// Nothing to send, or no credit; an event will tell.
    Done,
    /// The ring is full.
    NoRoom,
}

impl Worker {
    /// Fills the ring with what waits; true when more could go out in another turn.
    pub(crate) fn fill_outbound(&mut self, id: LinkId) -> Result<bool, LinkFault> {
        let mut batch = std::mem::take(&mut self.batch);
        let filled = self.fill(id, &mut batch);
        batch.clear();
        self.batch = batch;
        filled
    }

    fn fill(&mut self, id: LinkId, batch: &mut Batch) -> Result<bool, LinkFault> {
        let (turn, mut sent) = (self.turns.bytes(self.now), 0);
        while sent < turn {
            if !self.send_control(id, batch)? {
                return Ok(false);
            }
            match self.send_stored(id, batch)? {
                Turn::Again(bytes) => sent += bytes,
                Turn::NoRoom => return Ok(false),
                Turn::Done => {}
            }
            let Some(slot) = self.links.get_mut(id) else { return Ok(false) };
            let Some(token) = slot.next_ready() else {
                if slot.store.is_empty() {
                    return Ok(false);
                }
                continue;
            };
            match self.send_flow(id, token, batch)? {
                Turn::Again(bytes) => {
                    sent += bytes + TURN_COST;
                    self.queue_again(id, token, false);
                }
                Turn::Done => {
                    if let Some(flow) = self.flow(token) {
                        flow.is_queued = false;
                    }
                }
                Turn::NoRoom => {
                    self.queue_again(id, token, true);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn queue_again(&mut self, id: LinkId, token: Token, first: bool) {
        let (Some(slot), Some(Source::Flow(flow))) =
            (self.links.get_mut(id), self.sources.get(token))
        else {
            return;
        };
        if first {
            slot.push_ready_first(flow.id);
        } else {
            slot.push_ready(flow.id);
        }
    }

    /// All control packets; false when the ring is full.
    fn send_control(&mut self, id: LinkId, batch: &mut Batch) -> Result<bool, LinkFault> {
        let Some(slot) = self.links.get_mut(id) else { return Ok(false) };
        loop {
            let relayed = slot.guest().filter(|&cid| self.relay.has_packet(cid));
            if relayed.is_none() && !slot.endpoint.has_packet() {
                return Ok(true);
            }
            batch.slices.truncate(0);
            let Some(space) = slot.link.next_space(&mut batch.slices)? else {
                slot.is_blocked = true;
                return Ok(false);
            };
            // What the relay says was queued before what it forwards later; both queues are short.
            let packet = match relayed {
                Some(cid) => self.relay.next_packet(cid),
                None => slot.endpoint.next_packet(),
            };
            match packet {
                Some(packet) => {
                    slot.link.send(&space, &batch.slices, &packet.encode(), 0);
                    slot.traffic.packets_out += 1;
                }
                None => slot.link.return_spaces(1),
            }
        }
    }

    /// Packets of other guests that found no room before, a quantum of them.
    fn send_stored(&mut self, id: LinkId, batch: &mut Batch) -> Result<Turn, LinkFault> {
        let quantum = QUANTUM.min(self.turns.bytes(self.now));
        let Some(slot) = self.links.get_mut(id) else { return Ok(Turn::Done) };
        let mut bytes = 0;
        while let Some(stored) = slot.store.front() {
            batch.slices.truncate(0);
            let Some(space) = slot.link.next_space(&mut batch.slices)? else {
                slot.is_blocked = true;
                return Ok(Turn::NoRoom);
            };
            let piece = stored.next_piece(space.capacity);
            let from = stored.take(piece.len as usize);
            slice::copy_in(&batch.slices[space.payload.clone()], from);
            slot.link.send(&space, &batch.slices, &piece.encode(), piece.len);
            slot.traffic.packets_out += 1;
            slot.traffic.bytes_out += u64::from(piece.len);
            bytes += piece.len as usize + PACKET_COST;
            if stored.is_sent() {
                slot.store.pop();
            }
            if bytes >= quantum {
                return Ok(Turn::Again(bytes));
            }
        }
        Ok(if bytes > 0 { Turn::Again(bytes) } else { Turn::Done })
    }

    fn send_flow(
        &mut self,
        id: LinkId,
        token: Token,
        batch: &mut Batch,
    ) -> Result<Turn, LinkFault> {
        let kind = match self.flow(token) {
            Some(flow) if flow.phase == Phase::Open && !flow.our_end_sent => flow.kind,
            Some(_) | None => return Ok(Turn::Done),
        };
        match kind {
            SocketType::Stream => self.send_bytes(id, token, batch),
            SocketType::SeqPacket | SocketType::Datagram => self.send_message(id, token, batch),
        }
    }

    /// One vectored read of a stream into the other side's buffers.
    fn send_bytes(
        &mut self,
        id: LinkId,
        token: Token,
        batch: &mut Batch,
    ) -> Result<Turn, LinkFault> {
        let turn = self.turns.bytes(self.now);
        let (Some(slot), Some(Source::Flow(flow))) =
            (self.links.get_mut(id), self.sources.get_mut(token))
        else {
            return Ok(Turn::Done);
        };
        let window = slot.endpoint.window(flow.id);
        let quantum = if slot.has_ready() { QUANTUM } else { turn };
        let room = turn.min(quantum).min(window.bytes as usize);
        let packets = SPACES_PER_READ.min(window.packets as usize);
        if room == 0 || packets == 0 {
            slot.endpoint.wants_to_send(self.now, flow.id);
            self.stalled(token);
            return Ok(Turn::Done);
        }
        if !reserve(&mut slot.link, batch, room, packets)? {
            slot.is_blocked = true;
            self.stalled(token);
            return Ok(Turn::NoRoom);
        }
        let read = flow.stream.read(&batch.pieces);
        let came = if let Ok(Read::Bytes(n)) = read { n } else { 0 };
        send_filled(slot, flow.id, batch, came);
        match read {
            Ok(Read::Bytes(n)) if flow.stream.readable => Ok(Turn::Again(n)),
            last => self.pause(token, last),
        }
    }

    /// A stream has no more to read: for now, for ever, or because its socket failed.
    fn pause(
        &mut self,
        token: Token,
        last: Result<Read, TransferError>,
    ) -> Result<Turn, LinkFault> {
        match last {
            Ok(Read::Bytes(_) | Read::Empty) => {
                if self.flow(token).is_some_and(|it| it.stream.take_suspicion()) {
                    self.look_for_refusal(token);
                }
            }
            Ok(Read::End) => self.program_ended(token),
            Err(error) => {
                let error = sort_transfer(error)?;
                self.fail_flow(token, &error);
            }
        }
        Ok(Turn::Done)
    }

    /// A flow that cannot send: that its program has nothing more to send need not wait for room.
    pub(super) fn stalled(&mut self, token: Token) {
        let is_done =
            self.flow(token).is_some_and(|it| it.outgoing.is_none() && it.stream.is_at_end());
        if is_done {
            self.program_ended(token);
        } else if self.flow(token).is_some_and(|it| it.stream.take_suspicion()) {
            self.look_for_refusal(token);
        }
    }
}

/// Reserves buffers for `room` bytes, at most `packets`; false when there are none.
fn reserve(
    link: &mut Link,
    batch: &mut Batch,
    room: usize,
    packets: usize,
) -> Result<bool, LinkFault> {
    batch.clear();
    let mut left = room;
    while left > 0 && batch.spaces.len() < packets {
        let Some(space) = link.next_space(&mut batch.slices)? else { break };
        let len = left.min(space.capacity as usize);
        batch.pieces.gather(&batch.slices, space.payload.clone(), len);
        left -= len;
        batch.spaces.push(space);
    }
    Ok(!batch.spaces.is_empty())
}

/// Sends as many of the reserved buffers as `left` bytes have filled, and returns the others.
fn send_filled(slot: &mut LinkSlot, id: ConnectionId, batch: &Batch, mut left: usize) {
    let mut used = 0u16;
    for space in &batch.spaces {
        let len = left.min(space.capacity as usize);
        // `len` is at most the capacity, which is a u32.
        #[allow(clippy::cast_possible_truncation)]
        let Some(header) =
            (len > 0).then(|| slot.endpoint.data_header(id, len as u32, 0)).flatten()
        else {
            break;
        };
        slot.link.send(space, &batch.slices, &header.encode(), header.len);
        left -= len;
        used += 1;
        slot.traffic.packets_out += 1;
        slot.traffic.bytes_out += len as u64;
    }
    // At most `SPACES_PER_READ` spaces.
    slot.link.return_spaces(u16::try_from(batch.spaces.len()).unwrap_or(u16::MAX) - used);
}
