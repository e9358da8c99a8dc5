//! What waits goes out over a link.
//!
//! The order is fixed: control packets first (an answer must precede the data it permits), then packets of other guests
//! that found no room before, each guest in its turn, then connections by turns, a quantum each. Where the ring has room for
//! one of the two only, the other is first when it has some again. A turn of one that carries bytes is one read
//! from its user, straight into as many of the other side's buffers as credit and quantum allow; a turn of one that
//! carries messages is one message.

use vsock_core::datagram::Split;
use vsock_core::{Address, ConnectionId, Header, Instant};

use super::connections::Connections;
use super::interface::{Budget, Scratch};
use super::store::{PACKET_COST, Store, Stored};
use super::transceiver::Transceiver;
use super::users::{Filled, Foreign, Offer, Sends, Source};
use crate::fault::LinkFault;
use vsock_guest_memory::slice;
use vsock_virtio::link::OutboundBuffer;

/// Bytes of one connection before the next has its turn.
const QUANTUM: usize = 64 * 1024;

/// What a turn costs besides its bytes: one byte at a time must not take for ever.
const TURN_COST: usize = 1024;

/// Buffers filled by one read; the kernel takes 1024 pieces, a buffer is one or two.
const BUFFERS_PER_READ: usize = 256;

/// Buffers of a receiver that one packet of another guest may fill at once.
const BUFFERS_PER_PACKET: usize = 64;

/// Descriptors that may be looked at for one read: a buffer is one or two, unless its driver wants to keep us busy.
const STEPS_PER_READ: u32 = 1024;

/// Descriptors of a receiver that may be looked at for one packet of another guest.
const STEPS_PER_PACKET: u32 = 256;

/// How filling the ring ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Nothing is left that could be sent.
    All,
    /// There is more; others first.
    Budget,
    /// The ring is full.
    Full,
    /// The link's rate allows no more yet.
    Limited,
}

/// How the turn of one connection ended.
enum Turn {
    /// It may have more.
    Again(usize),
    /// It has nothing to send, or no credit; an event will tell.
    Done,
    /// The ring is full.
    NoRoom,
}

/// Where packets go, and from whom they come.
pub(super) struct Outflow<'a, S> {
    pub(super) link: &'a mut Transceiver,
    pub(super) connections: &'a mut Connections,
    pub(super) scratch: &'a mut Scratch,
    pub(super) source: &'a mut S,
    pub(super) budget: &'a mut Budget,
    pub(super) now: Instant,
}

/// What a link is to send besides what its connections have.
#[derive(Default)]
pub(super) struct Sender {
    pub(super) store: Store,
    /// There was no room in the ring; the other side's next signal will tell.
    pub(super) is_blocked: bool,
    /// Packets of other guests have had their turn, and there was no room left for that of a connection.
    pub(super) owes_connection: bool,
    /// Packets of other guests that found no room to wait.
    pub(super) overflows: u64,
}

impl Sender {
    /// Fills the ring with what waits, up to a budget.
    pub(super) fn transmit<S: Source>(
        &mut self,
        out: &mut Outflow<'_, S>,
    ) -> Result<Sent, LinkFault> {
        while out.budget.has_bytes() {
            match self.send_control(out)? {
                Sent::All => {}
                ended @ (Sent::Budget | Sent::Full | Sent::Limited) => return Ok(ended),
            }
            if !self.owes_connection {
                let turn = self.send_stored(out)?;
                self.owes_connection = !out.connections.ready.is_empty();
                match turn {
                    Turn::Again(bytes) => out.budget.spend(bytes),
                    Turn::NoRoom => return Ok(Sent::Full),
                    Turn::Done => {}
                }
            }
            let Some(id) = out.connections.ready.pop() else {
                self.owes_connection = false;
                if self.store.is_empty() {
                    return Ok(Sent::All);
                }
                continue;
            };
            out.budget.work_call(|| out.source.is_over());
            match self.send_of(out, id)? {
                Turn::Again(bytes) => {
                    self.owes_connection = false;
                    out.budget.spend(bytes + TURN_COST);
                    out.connections.ready.push(id, &out.connections.endpoint);
                }
                Turn::Done => self.owes_connection = false,
                Turn::NoRoom => {
                    out.connections.ready.push_first(id);
                    return Ok(Sent::Full);
                }
            }
        }
        Ok(Sent::Budget)
    }

    /// Control packets alone, as the link's rate allows no bytes.
    pub(super) fn transmit_control<S: Source>(
        &mut self,
        out: &mut Outflow<'_, S>,
    ) -> Result<Sent, LinkFault> {
        match self.send_control(out)? {
            Sent::All | Sent::Limited => {}
            ended @ (Sent::Budget | Sent::Full) => return Ok(ended),
        }
        // Of other guests, those whose turn it is.
        let is_control = |stored: &mut Stored| stored.next_piece(u32::MAX).len == 0;
        while self.store.front().is_some_and(is_control) {
            if !out.budget.has_bytes() {
                return Ok(Sent::Budget);
            }
            if self.send_first_stored(out)?.is_none() {
                return Ok(Sent::Full);
            }
        }
        Ok(Sent::Limited)
    }

    /// All control packets.
    fn send_control<S: Source>(&mut self, out: &mut Outflow<'_, S>) -> Result<Sent, LinkFault> {
        while out.budget.has_bytes() {
            let is_of_others = out.source.has_packet();
            if !is_of_others && !out.connections.endpoint.has_packet() {
                return Ok(Sent::All);
            }
            let Some(buffer) = self.reserve(out.link, out.scratch)? else { return Ok(Sent::Full) };
            out.budget.work_packet(buffer.steps, || out.source.is_over());
            // What others say was queued before what they send later; both queues are short.
            let packet = if is_of_others {
                out.source.next_packet()
            } else {
                out.connections.endpoint.next_packet()
            };
            match packet {
                Some(packet) => {
                    out.link.transmit(&buffer, &out.scratch.slices, &packet.encode(), 0);
                }
                None => out.link.link_mut().return_buffers(1),
            }
        }
        Ok(Sent::Budget)
    }

    /// Room for one packet.
    fn reserve(
        &mut self,
        link: &mut Transceiver,
        scratch: &mut Scratch,
    ) -> Result<Option<OutboundBuffer>, LinkFault> {
        scratch.slices.truncate(0);
        let buffer = link.reserve(&mut scratch.slices)?;
        self.is_blocked |= buffer.is_none();
        Ok(buffer)
    }

    /// Packets of other guests that found no room before, a quantum of them.
    fn send_stored<S: Source>(&mut self, out: &mut Outflow<'_, S>) -> Result<Turn, LinkFault> {
        let mut bytes = 0;
        while !self.store.is_empty() && out.budget.has_bytes() {
            let Some(sent) = self.send_first_stored(out)? else { return Ok(Turn::NoRoom) };
            bytes += sent + PACKET_COST;
            if bytes >= QUANTUM.min(out.budget.turn()) {
                return Ok(Turn::Again(bytes));
            }
        }
        Ok(if bytes > 0 { Turn::Again(bytes) } else { Turn::Done })
    }

    /// As much of the first of them as a buffer holds: so many bytes; `None`: there is no buffer.
    fn send_first_stored<S: Source>(
        &mut self,
        out: &mut Outflow<'_, S>,
    ) -> Result<Option<usize>, LinkFault> {
        let Some(buffer) = self.reserve(out.link, out.scratch)? else { return Ok(None) };
        out.budget.work_packet(buffer.steps, || out.source.is_over());
        let Some(stored) = self.store.front() else {
            out.link.link_mut().return_buffers(1);
            return Ok(Some(0));
        };
        let piece = stored.next_piece(buffer.capacity);
        let from = stored.take(piece.len as usize);
        let slices = &out.scratch.slices;
        slice::copy_in(&slices[buffer.payload.clone()], from);
        out.link.transmit(&buffer, slices, &piece.encode(), piece.len);
        self.store.sent(piece.len as usize);
        Ok(Some(piece.len as usize))
    }

    /// The turn of one connection.
    fn send_of<S: Source>(
        &mut self,
        out: &mut Outflow<'_, S>,
        id: ConnectionId,
    ) -> Result<Turn, LinkFault> {
        match out.source.next(id, &out.connections.endpoint) {
            Offer::Nothing(update) => {
                out.connections.update(out.now, id, update);
                Ok(if update.sends == Sends::More { Turn::Again(0) } else { Turn::Done })
            }
            Offer::Bytes => self.send_bytes(out, id),
            Offer::Message { len, flags } => self.send_message(out, id, len, flags),
        }
    }

    /// One read of a connection's bytes into as many of the other side's buffers as credit and quantum allow.
    fn send_bytes<S: Source>(
        &mut self,
        out: &mut Outflow<'_, S>,
        id: ConnectionId,
    ) -> Result<Turn, LinkFault> {
        let window = out.connections.endpoint.window(id);
        let turn = out.budget.turn();
        let quantum = if out.connections.ready.is_empty() { turn } else { QUANTUM.min(turn) };
        let room = quantum.min(window.bytes as usize);
        let packets = BUFFERS_PER_READ.min(window.packets as usize);
        if room == 0 || packets == 0 {
            return Ok(no_credit(out, id));
        }
        if !self.reserve_many(out.link, out.scratch, room, packets)? {
            return Ok(no_room(out, id));
        }
        let filled = out.source.fill(id, &out.scratch.pieces);
        send_filled(out, id, filled.map_or(0, |filled| filled.bytes));
        let Filled { bytes, update } = filled?;
        out.connections.update(out.now, id, update);
        Ok(if update.sends == Sends::More { Turn::Again(bytes) } else { Turn::Done })
    }

    /// What is left of a message, part by part, as far as credit and buffers go.
    fn send_message<S: Source>(
        &mut self,
        out: &mut Outflow<'_, S>,
        id: ConnectionId,
        len: usize,
        last_flags: u32,
    ) -> Result<Turn, LinkFault> {
        let mut sent = 0;
        while sent < len {
            let window = out.connections.endpoint.window(id);
            let part = (len - sent).min(window.bytes as usize);
            if part == 0 || window.packets == 0 {
                return Ok(no_credit(out, id));
            }
            let Some(buffer) = self.reserve(out.link, out.scratch)? else {
                return Ok(no_room(out, id));
            };
            let part = part.min(buffer.capacity as usize);
            let flags = if sent + part == len { last_flags } else { 0 };
            // At most the capacity, which is a u32.
            #[allow(clippy::cast_possible_truncation)]
            let Some(header) = out.connections.endpoint.data_header(id, part as u32, flags) else {
                out.link.link_mut().return_buffers(1);
                return Ok(Turn::Done);
            };
            let Scratch { slices, pieces, .. } = &mut *out.scratch;
            pieces.truncate(0);
            pieces.gather(slices, buffer.payload.clone(), part);
            out.source.fill(id, pieces)?;
            out.link.transmit(&buffer, slices, &header.encode(), header.len);
            sent += part;
            out.budget.work_call(|| out.source.is_over());
            if !out.budget.has_bytes() {
                break;
            }
        }
        Ok(Turn::Again(sent))
    }

    /// Reserves buffers for `room` bytes, at most `packets`; false when there are none.
    fn reserve_many(
        &mut self,
        link: &mut Transceiver,
        scratch: &mut Scratch,
        room: usize,
        packets: usize,
    ) -> Result<bool, LinkFault> {
        scratch.empty();
        let Scratch { slices, pieces, buffers, .. } = scratch;
        let (mut left, mut steps) = (room, 0);
        while left > 0 && buffers.len() < packets && steps < STEPS_PER_READ {
            let Some(buffer) = link.reserve(slices)? else { break };
            steps += buffer.steps;
            let len = left.min(buffer.capacity as usize);
            pieces.gather(slices, buffer.payload.clone(), len);
            left -= len;
            buffers.push(buffer);
        }
        self.is_blocked |= buffers.is_empty();
        Ok(!buffers.is_empty())
    }

    /// Takes a packet of another guest: into the ring what has room there, if `is_free` says that nothing must go before
    /// it and nothing of our own has waited for that room, and the rest into the store. False: that is too much.
    pub(super) fn forward(
        &mut self,
        link: &mut Transceiver,
        header: &Header,
        packet: &Foreign<'_>,
        is_free: bool,
        scratch: &mut Scratch,
    ) -> Result<bool, LinkFault> {
        scratch.empty();
        let Scratch { slices, pieces, .. } = scratch;
        pieces.gather(packet.slices, packet.payload.clone(), header.len as usize);
        let mut rest = 0..pieces.len();
        let (mut sent, mut steps) = (0, 0);
        // A receiver with tiny buffers must not cost the sender its turn: the rest goes in the receiver's own.
        let goes_at_once = is_free && self.store.is_empty() && !self.is_blocked;
        let buffers = if goes_at_once { BUFFERS_PER_PACKET } else { 0 };
        for _ in 0..buffers {
            slices.truncate(0);
            if steps >= STEPS_PER_PACKET {
                break;
            }
            let Some(buffer) = link.reserve(slices)? else { break };
            steps += buffer.steps;
            let piece = header.piece(sent, buffer.capacity);
            slice::copy(&slices[buffer.payload.clone()], &pieces[rest.clone()]);
            // Of a sender whose memory died nothing is passed on; its own turn ends with that fault.
            if packet.link.is_dead() {
                link.link_mut().return_buffers(1);
                return Ok(true);
            }
            rest = pieces.advance(rest, piece.len as usize);
            link.transmit(&buffer, slices, &piece.encode(), piece.len);
            sent += piece.len;
            if sent >= header.len {
                return Ok(true);
            }
        }
        let mut bytes = vec![0; (header.len - sent) as usize];
        slice::copy_out(&pieces[rest], &mut bytes);
        if packet.link.is_dead() {
            return Ok(true);
        }
        let is_stored = self.store.push(Stored::new(header.piece(sent, header.len), bytes));
        self.overflows += u64::from(!is_stored);
        Ok(is_stored)
    }
}

fn no_credit<S: Source>(out: &mut Outflow<'_, S>, id: ConnectionId) -> Turn {
    out.connections.endpoint.wants_to_send(out.now, id);
    stalled(out, id);
    Turn::Done
}

fn no_room<S: Source>(out: &mut Outflow<'_, S>, id: ConnectionId) -> Turn {
    stalled(out, id);
    Turn::NoRoom
}

/// That its user has nothing more to send need not wait for room.
fn stalled<S: Source>(out: &mut Outflow<'_, S>, id: ConnectionId) {
    let update = out.source.stalled(id);
    out.connections.update(out.now, id, update);
}

/// Sends as many of the reserved buffers as `left` bytes have filled, and returns the others.
fn send_filled<S>(out: &mut Outflow<'_, S>, id: ConnectionId, mut left: usize) {
    let mut used = 0u16;
    for buffer in &out.scratch.buffers {
        let len = left.min(buffer.capacity as usize);
        // At most the capacity, which is a u32.
        #[allow(clippy::cast_possible_truncation)]
        let Some(header) =
            (len > 0).then(|| out.connections.endpoint.data_header(id, len as u32, 0)).flatten()
        else {
            break;
        };
        out.link.transmit(buffer, &out.scratch.slices, &header.encode(), header.len);
        left -= len;
        used += 1;
    }
    // At most `BUFFERS_PER_READ` buffers.
    let unused = u16::try_from(out.scratch.buffers.len()).unwrap_or(u16::MAX) - used;
    out.link.link_mut().return_buffers(unused);
}

/// Sends a datagram; false when there is no room for all of it, or none that is found soon.
pub(super) fn send_datagram(
    link: &mut Transceiver,
    (from, to): (Address, Address),
    payload: &[u8],
    scratch: &mut Scratch,
) -> Result<bool, LinkFault> {
    scratch.empty();
    let Scratch { slices, buffers, .. } = scratch;
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    // First whether there is room for all of it.
    let mut fits = Split::new(from, to, len);
    let mut steps = 0;
    while !fits.is_done() {
        let buffer = if steps < STEPS_PER_READ { link.reserve(slices)? } else { None };
        let Some(buffer) = buffer else {
            let reserved = u16::try_from(buffers.len()).unwrap_or(u16::MAX);
            link.link_mut().return_buffers(reserved);
            return Ok(false);
        };
        let _ = fits.next(buffer.capacity);
        steps += buffer.steps;
        buffers.push(buffer);
    }
    let mut packets = Split::new(from, to, len);
    let mut rest = payload;
    for buffer in buffers.iter() {
        let Some(header) = packets.next(buffer.capacity) else { break };
        let (part, after) = rest.split_at(rest.len().min(header.len as usize));
        rest = after;
        slice::copy_in(&slices[buffer.payload.clone()], part);
        link.transmit(buffer, slices, &header.encode(), header.len);
    }
    Ok(true)
}
