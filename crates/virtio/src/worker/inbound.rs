//! From a link's ring to where its packets belong: a program's socket, another guest, or the protocol core.
//!
//! Packets are taken in ring order. Payload for one flow is collected over as many packets as come in a row and handed
//! to its program with one system call; only then are the buffers returned, so the used index never runs ahead of what
//! has been taken. Nothing here decides about the protocol: the core does, from a header that was copied once.

use std::ops::Range;

use vsock_core::{EOM, EOR, Header, Malformed, Op, RawHeader, Received, Shutdown, SocketType};

use super::Worker;
use super::link_slot::{LinkFault, Role, sort_transfer};
use super::renumber::Former;
use super::source::{LinkId, Source};
use crate::host::stream::{End, Taken};
use crate::link::{Inbound, Token as BufferToken};
use crate::reactor::Token;
use crate::slice::Slices;
use crate::vhost_user::F_DGRAM;

/// Packets taken from one link in one turn.
const PACKETS_PER_TURN: usize = 256;

/// Pieces handed to the kernel at once; it takes 1024.
const PIECES_PER_CALL: usize = 960;

/// Payload in a row for one flow, not handed over yet, and the buffers it lies in.
#[derive(Debug, Default)]
pub(crate) struct Run {
    flow: Option<Token>,
    pieces: Slices,
    bytes: usize,
    packets: u32,
    end: End,
    buffers: Vec<BufferToken>,
}

/// How a turn of taking packets ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// Nothing is left in the ring.
    Empty,
    /// There is more; others first.
    Budget,
    /// There may be more, but no room for the answers it may cause.
    Paused,
}

impl Worker {
    /// Takes what the other side has sent, up to a budget.
    pub(crate) fn drain_inbound(&mut self, id: LinkId) -> Result<Drained, LinkFault> {
        let mut run = std::mem::take(&mut self.run);
        let mut slices = std::mem::take(&mut self.slices);
        let taken = self.take_packets(id, &mut run, &mut slices);
        let handed = self.hand_over(id, &mut run);
        slices.clear();
        self.batch.clear();
        self.run = run;
        self.slices = slices;
        handed.and(taken)
    }

    fn take_packets(
        &mut self,
        id: LinkId,
        run: &mut Run,
        slices: &mut Slices,
    ) -> Result<Drained, LinkFault> {
        let (turn, mut bytes) = (self.turns.bytes(self.now), 0);
        for _ in 0..PACKETS_PER_TURN {
            if bytes >= turn {
                break;
            }
            let Some(slot) = self.links.get_mut(id) else { return Ok(Drained::Empty) };
            let relay_has_room = slot.guest().is_none_or(|cid| self.relay.accepts_packets(cid));
            let is_full = !slot.endpoint.accepts_packets() || !relay_has_room;
            if is_full && slot.can_pause() {
                return Ok(Drained::Paused);
            }
            slices.truncate(0);
            let Some(inbound) = slot.link.next_inbound(slices)? else { return Ok(Drained::Empty) };
            slot.traffic.packets_in += 1;
            slot.traffic.bytes_in += u64::from(inbound.payload_len);
            bytes += inbound.payload_len as usize;
            self.route(id, &inbound, slices, run)?;
            run.buffers.push(inbound.token);
            let is_full = run.bytes >= turn || run.pieces.len() >= PIECES_PER_CALL;
            if is_full || run.end != End::None {
                self.hand_over(id, run)?;
            }
        }
        Ok(Drained::Budget)
    }

    /// Decides where one packet goes.
    fn route(
        &mut self,
        id: LinkId,
        inbound: &Inbound,
        slices: &Slices,
        run: &mut Run,
    ) -> Result<(), LinkFault> {
        let mut raw = RawHeader::parse(&inbound.header);
        if !self.is_current(id, &mut raw) {
            return Ok(());
        }
        let checked = raw.check().and_then(|header| {
            if header.len <= inbound.payload_len { Ok(header) } else { Err(Malformed::Length) }
        });
        let Some(slot) = self.links.get_mut(id) else { return Ok(()) };
        if let Role::Guest(cid) = slot.role
            && raw.src_cid != u64::from(cid.0)
        {
            // An answer would go to an address that is not the sender's: count it and say so.
            slot.traffic.spoofed += 1;
            let text = format!("packet with source CID {}, which is not its own", raw.src_cid);
            self.journal.write("spoofed", cid.0, text);
            return Ok(());
        }
        if raw.kind == SocketType::Datagram.to_wire() && slot.features & F_DGRAM != 0 {
            self.take_datagram(id, &raw, inbound, slices);
            return Ok(());
        }
        let Ok(header) = checked else {
            slot.traffic.malformed += 1;
            if !self.break_relayed(&raw)
                && let Some(slot) = self.links.get_mut(id)
            {
                slot.endpoint.reject(&raw);
            }
            return Ok(());
        };
        let cid = header.dst.cid;
        if cid == self.local || id == self.loopback || slot.options.has_host_alias(cid) {
            return self.take_local(id, &header, (slices, inbound.payload.clone()), run);
        }
        match self.routes.get(&cid) {
            Some(&to) if to != id => {
                self.forward(id, to, &header, (slices, inbound.payload.clone()));
            }
            Some(_) | None => {
                slot.traffic.unroutable += 1;
                slot.endpoint.reject(&raw);
                self.note_unroutable(&header);
            }
        }
        Ok(())
    }

    /// What a guest that had another CID before says under that one. False: it is about connections that are over.
    fn is_current(&mut self, id: LinkId, raw: &mut RawHeader) -> bool {
        let Some(slot) = self.links.get_mut(id) else { return false };
        let (Some(former), Role::Guest(cid)) = (slot.former, &slot.role) else { return true };
        match former {
            Former::Meant(old) if raw.src_cid == u64::from(old.0) => {
                raw.src_cid = cid.0.into();
                true
            }
            Former::Dropped(old) if raw.src_cid == u64::from(old.0) => {
                slot.traffic.late += 1;
                false
            }
            Former::Meant(_) | Former::Dropped(_) => true,
        }
    }

    /// A packet for this node: the core first, then its payload.
    fn take_local(
        &mut self,
        id: LinkId,
        header: &Header,
        (slices, payload): (&Slices, Range<usize>),
        run: &mut Run,
    ) -> Result<(), LinkFault> {
        let Some(slot) = self.links.get_mut(id) else { return Ok(()) };
        let Received::Data(connection) = slot.endpoint.receive(self.now, header) else {
            if header.op == Op::Response {
                // Its program must hear that it is connected before it gets data, which may be the next packet.
                self.hand_over_payload(id, run)?;
                self.settle(id);
            }
            return Ok(());
        };
        let Some(token) = slot.flow_of(connection) else {
            // Its program is gone; the bytes count as read, so that the close can finish.
            slot.endpoint.consumed(connection, header.len, 1);
            return Ok(());
        };
        if run.flow != Some(token) {
            self.hand_over_payload(id, run)?;
            run.flow = Some(token);
        }
        run.pieces.gather(slices, payload, header.len as usize);
        run.bytes += header.len as usize;
        run.packets += 1;
        run.end = match header.kind {
            SocketType::SeqPacket if header.flags & EOM == 0 => End::None,
            SocketType::SeqPacket if header.flags & EOR == 0 => End::Message,
            SocketType::SeqPacket => End::Record,
            SocketType::Stream | SocketType::Datagram => End::None,
        };
        Ok(())
    }

    /// Hands the run to its program and returns the buffers it lies in.
    fn hand_over(&mut self, id: LinkId, run: &mut Run) -> Result<(), LinkFault> {
        let handed = self.hand_over_payload(id, run);
        if let Some(slot) = self.links.get_mut(id) {
            for buffer in run.buffers.drain(..) {
                slot.link.finish_inbound(buffer);
            }
        }
        run.buffers.clear();
        handed
    }

    fn hand_over_payload(&mut self, id: LinkId, run: &mut Run) -> Result<(), LinkFault> {
        let Some(token) = run.flow.take() else { return Ok(()) };
        let (packets, end) = (std::mem::take(&mut run.packets), std::mem::take(&mut run.end));
        let bytes = std::mem::take(&mut run.bytes);
        if self.links.get(id).is_some_and(|slot| slot.link.is_dead()) {
            run.pieces.clear();
            return Err(LinkFault::MemoryDead);
        }
        let delivered = match self.sources.get_mut(token) {
            Some(Source::Flow(flow)) => {
                let delivered = flow.stream.deliver(&run.pieces, packets, end);
                self.is_ahead |= flow.stream.is_behind(bytes);
                delivered
            }
            _ => Ok(Taken::default()),
        };
        run.pieces.clear();
        match delivered {
            Ok(taken) => self.took(id, token, taken),
            Err(error) => {
                let error = sort_transfer(error)?;
                self.fail_flow(token, &error);
            }
        }
        Ok(())
    }

    /// Tells the core what a program took; its side that reads no more is passed on.
    pub(crate) fn took(&mut self, id: LinkId, token: Token, taken: Taken) {
        let now = self.now;
        let (Some(slot), Some(Source::Flow(flow))) =
            (self.links.get_mut(id), self.sources.get_mut(token))
        else {
            return;
        };
        if taken.bytes > 0 || taken.packets > 0 {
            slot.endpoint.consumed(flow.id, taken.bytes, taken.packets);
        }
        if taken.refused && !flow.refusal_sent {
            flow.refusal_sent = true;
            slot.endpoint.shut_down(now, flow.id, Shutdown::RCV);
        }
    }
}
