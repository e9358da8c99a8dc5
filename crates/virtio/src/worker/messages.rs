//! From a program's socket of messages into a link's ring: one message at a time, cut to what the ring has room for.
//!
//! A message is read as a whole, with its end, and goes out in packets as credit and buffers come; the last has the flags.

use std::io;

use vsock_core::{ConnectionId, EOM, EOR};

use super::Worker;
use super::link_slot::{LinkFault, LinkSlot};
use super::outbound::{Batch, Turn};
use super::source::{LinkId, Outgoing, Phase, Source};
use crate::host::stream::{End, Read};
use crate::reactor::Token;
use crate::slice;

/// What became of the next part of a message.
enum Part {
    /// So many bytes of it are in the ring.
    Sent(usize),
    /// The other side has no room for any.
    NoCredit,
    /// The ring is full.
    NoRoom,
    /// The connection takes no more.
    Over,
}

impl Worker {
    /// One message, or the next part of one, when all of it can be sent or it is longer than credit will ever be.
    pub(super) fn send_message(
        &mut self,
        id: LinkId,
        token: Token,
        batch: &mut Batch,
    ) -> Result<Turn, LinkFault> {
        match self.fetch_message(id, token) {
            Ok(true) => self.send_parts(id, token, batch),
            Ok(false) => {
                let may_have_more = self.flow(token).is_some_and(|it| {
                    it.stream.readable && it.phase == Phase::Open && !it.our_end_sent
                });
                Ok(if may_have_more { Turn::Again(0) } else { Turn::Done })
            }
            Err(error) => {
                self.fail_flow(token, &error);
                Ok(Turn::Done)
            }
        }
    }

    /// What is left of the message, part by part.
    fn send_parts(
        &mut self,
        id: LinkId,
        token: Token,
        batch: &mut Batch,
    ) -> Result<Turn, LinkFault> {
        let (Some(slot), Some(Source::Flow(flow))) =
            (self.links.get_mut(id), self.sources.get_mut(token))
        else {
            return Ok(Turn::Done);
        };
        let Some(message) = flow.outgoing.as_mut() else { return Ok(Turn::Done) };
        let mut bytes = 0;
        while message.sent < message.bytes.len() {
            match send_part(slot, flow.id, message, batch)? {
                Part::Sent(len) => bytes += len,
                Part::Over => return Ok(Turn::Done),
                Part::NoCredit => {
                    slot.endpoint.wants_to_send(self.now, flow.id);
                    self.stalled(token);
                    return Ok(Turn::Done);
                }
                Part::NoRoom => {
                    slot.is_blocked = true;
                    self.stalled(token);
                    return Ok(Turn::NoRoom);
                }
            }
        }
        flow.outgoing = None;
        Ok(Turn::Again(bytes))
    }

    /// Makes sure that there is a message to send; false when there is none.
    fn fetch_message(&mut self, id: LinkId, token: Token) -> io::Result<bool> {
        let (Some(slot), Some(Source::Flow(flow))) =
            (self.links.get_mut(id), self.sources.get_mut(token))
        else {
            return Ok(false);
        };
        if flow.outgoing.is_some() {
            return Ok(true);
        }
        let longest = slot.endpoint.max_message(flow.id) as usize;
        self.scratch.resize(longest.max(1), 0);
        let (read, end) = flow.stream.read_message(&mut self.scratch)?;
        match read {
            Read::Bytes(n) if n <= longest => {
                let last_flags = if end == End::Record { EOM | EOR } else { EOM };
                let bytes = self.scratch[..n].to_vec();
                flow.outgoing = Some(Outgoing { bytes, sent: 0, last_flags });
                Ok(true)
            }
            Read::Bytes(n) => Err(io::Error::other(format!(
                "a message of {n} bytes is longer than the peer's buffer of {longest}"
            ))),
            Read::Empty => Ok(false),
            Read::End => {
                self.program_ended(token);
                Ok(false)
            }
        }
    }
}

/// Sends as much of the message as credit and the next buffer allow.
fn send_part(
    slot: &mut LinkSlot,
    id: ConnectionId,
    message: &mut Outgoing,
    batch: &mut Batch,
) -> Result<Part, LinkFault> {
    let window = slot.endpoint.window(id);
    let left = message.bytes.len() - message.sent;
    let len = left.min(window.bytes as usize);
    if len == 0 || window.packets == 0 {
        return Ok(Part::NoCredit);
    }
    batch.slices.truncate(0);
    let Some(space) = slot.link.next_space(&mut batch.slices)? else { return Ok(Part::NoRoom) };
    let len = len.min(space.capacity as usize);
    let flags = if len == left { message.last_flags } else { 0 };
    // `len` is at most the capacity, which is a u32.
    #[allow(clippy::cast_possible_truncation)]
    let Some(header) = slot.endpoint.data_header(id, len as u32, flags) else {
        slot.link.return_spaces(1);
        return Ok(Part::Over);
    };
    let part = &message.bytes[message.sent..message.sent + len];
    slice::copy_in(&batch.slices[space.payload.clone()], part);
    slot.link.send(&space, &batch.slices, &header.encode(), header.len);
    message.sent += len;
    slot.traffic.packets_out += 1;
    slot.traffic.bytes_out += len as u64;
    Ok(Part::Sent(len))
}
