//! From one guest to another: the relay's verdict, then one copy from guest memory to guest memory.
//!
//! Credit runs end to end between the two guests; the relay clamps what each announces, so that what finds no room in
//! the receiver's ring, and has to wait in this process, is bounded. A receiver that posts no buffers costs its own
//! flows their progress and nobody else's anything.

use std::ops::Range;

use vsock_core::{Cid, Header, Op, RawHeader, Verdict};

use super::Worker;
use super::link_slot::{LinkFault, LinkSlot, Stored};
use super::outbound::Batch;
use super::source::LinkId;
use crate::slice::{self, Slices};

/// Buffers of a receiver that one packet may fill at once.
const SPACES_PER_PACKET: usize = 64;

impl Stored {
    /// The header of the part that fits `room`.
    pub(crate) fn next_piece(&self, room: u32) -> Header {
        // `sent` is at most the payload's length, which came from a u32.
        self.header.piece(u32::try_from(self.sent).unwrap_or(u32::MAX), room)
    }

    /// The next `len` bytes, which are sent then.
    pub(crate) fn take(&mut self, len: usize) -> &[u8] {
        let start = self.sent;
        self.sent += len;
        &self.payload[start..self.sent]
    }

    /// Nothing of it is left. A header without payload goes out once.
    pub(crate) fn is_sent(&self) -> bool {
        self.sent >= self.payload.len()
    }
}

impl Worker {
    /// A packet of the guest on `from` for the guest on `to`.
    pub(crate) fn forward(
        &mut self,
        from: LinkId,
        to: LinkId,
        header: &Header,
        payload: (&Slices, Range<usize>),
    ) {
        let Some((source, target)) = self.links.get2_mut(from, to) else { return };
        let allowed = || source.shares_group(target);
        let was_asked = header.op == Op::Rst && self.relay.is_asked(header);
        let verdict = self.relay.receive(self.now, header, allowed);
        if let Verdict::Forward(header) = verdict {
            // A reset that waits was caused before this packet, and must arrive before it.
            let is_free = target.store.is_empty() && !self.relay.has_packet(header.dst.cid);
            match pass_on(source, target, is_free, &header, payload, &mut self.batch) {
                Ok(true) => {}
                Ok(false) => {
                    target.traffic.overflows += 1;
                    let _ = self.relay.reset_flow(&header);
                }
                // The receiver's fault must not end the sender's turn.
                Err(fault) => self.break_link(to, &fault),
            }
            self.activate(to);
        }
        if header.op != Op::Rw {
            self.note_relayed((from, to), header, verdict, was_asked);
        }
        self.activate_relayed();
    }

    /// A packet whose payload is not what its header says: if bytes of a flow between guests are lost with it, the flow
    /// ends. False: there is none.
    pub(crate) fn break_relayed(&mut self, raw: &RawHeader) -> bool {
        // Without its length, addresses and type can be trusted, or it is no packet of a flow.
        let Ok(header) = (RawHeader { len: 0, ..*raw }).check() else { return false };
        let is_relayed =
            header.dst.cid != self.local && header.op == Op::Rw && self.relay.reset_flow(&header);
        self.activate_relayed();
        is_relayed
    }

    /// Serves the guests for which the relay has queued control packets.
    pub(crate) fn activate_relayed(&mut self) {
        while let Some(cid) = self.relay.next_ready() {
            if let Some(&id) = self.routes.get(&cid) {
                self.activate(id);
            }
        }
    }

    /// A guest's connections to other guests end: it was removed, or its device reset.
    pub(crate) fn forget_relayed(&mut self, guest: Cid) {
        let (links, routes) = (&mut self.links, &self.routes);
        self.relay.remove_guest(guest, |to, reset| {
            let target = routes.get(&to).and_then(|&id| links.get_mut(id));
            // What the guest has sent waits there; its end must not overtake that.
            target.is_some_and(|target| {
                !target.store.is_empty() && target.store_last_word(reset.check().ok())
            })
        });
        self.activate_relayed();
    }
}

/// Copies a packet into the receiver's buffers and keeps what finds no room; false when that is too much.
///
/// Of a sender whose memory died nothing is passed on; its own turn ends with that fault.
fn pass_on(
    source: &LinkSlot,
    target: &mut LinkSlot,
    is_free: bool,
    header: &Header,
    (slices, payload): (&Slices, Range<usize>),
    batch: &mut Batch,
) -> Result<bool, LinkFault> {
    batch.pieces.clear();
    batch.pieces.gather(slices, payload, header.len as usize);
    let mut rest = 0..batch.pieces.len();
    let mut sent = 0;
    // A receiver with tiny buffers must not cost the sender its turn: the rest goes in the receiver's own.
    let spaces = if is_free { SPACES_PER_PACKET } else { 0 };
    for _ in 0..spaces {
        batch.slices.truncate(0);
        let Some(space) = target.link.next_space(&mut batch.slices)? else { break };
        let piece = header.piece(sent, space.capacity);
        slice::copy(&batch.slices[space.payload.clone()], &batch.pieces[rest.clone()]);
        if source.link.is_dead() {
            target.link.return_spaces(1);
            return Ok(true);
        }
        rest = batch.pieces.advance(rest, piece.len as usize);
        target.link.send(&space, &batch.slices, &piece.encode(), piece.len);
        target.traffic.packets_out += 1;
        target.traffic.bytes_out += u64::from(piece.len);
        sent += piece.len;
        if sent >= header.len {
            return Ok(true);
        }
    }
    let mut bytes = vec![0; (header.len - sent) as usize];
    slice::copy_out(&batch.pieces[rest], &mut bytes);
    if source.link.is_dead() {
        return Ok(true);
    }
    Ok(target.store.push(Stored {
        header: header.piece(sent, header.len),
        payload: bytes,
        sent: 0,
    }))
}
