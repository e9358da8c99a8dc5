//! What comes over a link goes to whom it is for.
//!
//! Packets are taken in ring order. Payload of one connection is collected over as many packets as come in a row and
//! handed over at once; only then are the buffers given back, so the used index never runs ahead of what has been taken.
//! Nothing here decides about the protocol: the core does, from a header that was copied once.

use std::ops::Range;

use vsock_core::{ConnectionId, Header, Instant, Op, RawHeader, Received};

use super::connections::Connections;
use super::datagram::{Assembled, Incoming};
use super::filter::{Filter, Role, Sorted};
use super::interface::Budget;
use super::transceiver::Transceiver;
use super::users::{End, Foreign, Payload, Sink};
use crate::fault::{LinkFault, MemoryDead};
use vsock_guest_memory::slice::Slices;
use vsock_virtio::link::{BufferToken, Inbound};

/// Pieces handed over at once; the kernel takes 1024.
const PIECES_PER_CALL: usize = 960;

/// How taking packets ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Nothing is left in the ring.
    Empty,
    /// There is more; others first.
    Budget,
    /// There may be more, but there is no room for the answers it may cause.
    Paused,
    /// There is more, and the link's rate does not allow it yet.
    Limited,
    /// There is an event that must be carried out before the next packet.
    Event,
}

/// Packets that were not taken, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// They could not be understood.
    pub malformed: u64,
    /// They named a source other than their sender.
    pub spoofed: u64,
    /// They came from a CID that the guest had before, for connections that are over.
    pub late: u64,
    /// Their destination does not exist or may not be reached.
    pub unroutable: u64,
    /// They were forwarded to here and found no room to wait.
    pub overflows: u64,
}

/// Payload in a row for one connection, not handed over yet, and the buffers it lies in.
#[derive(Debug, Default)]
pub(super) struct Run {
    connection: Option<ConnectionId>,
    pieces: Slices,
    packets: u32,
    end: End,
    buffers: Vec<BufferToken>,
}

/// What a link receives.
pub(super) struct Receiver {
    pub(super) filter: Filter,
    pub(super) datagram: Incoming,
    pub(super) drops: Drops,
}

/// Whence packets come, and to whom they go.
pub(super) struct Inflow<'a, S> {
    pub(super) link: &'a mut Transceiver,
    pub(super) connections: &'a mut Connections,
    pub(super) run: &'a mut Run,
    pub(super) sink: &'a mut S,
    pub(super) budget: &'a mut Budget,
    pub(super) now: Instant,
}

impl Receiver {
    pub(super) fn new(filter: Filter) -> Self {
        Self { filter, datagram: Incoming::default(), drops: Drops::default() }
    }

    /// Takes what the other side has sent, up to a budget.
    pub(super) fn receive<S: Sink>(
        &mut self,
        inflow: &mut Inflow<'_, S>,
        slices: &mut Slices,
    ) -> Result<Drained, LinkFault> {
        let drained = self.take_packets(inflow, slices);
        let handed = hand_over(inflow);
        slices.clear();
        handed.and(drained)
    }

    fn take_packets<S: Sink>(
        &mut self,
        inflow: &mut Inflow<'_, S>,
        slices: &mut Slices,
    ) -> Result<Drained, LinkFault> {
        while inflow.budget.has_packets() {
            let is_full =
                !inflow.connections.endpoint.accepts_packets() || !inflow.sink.accepts_packets();
            if is_full && self.can_pause() {
                return Ok(Drained::Paused);
            }
            slices.truncate(0);
            let Some(inbound) = inflow.link.receive(slices)? else { return Ok(Drained::Empty) };
            inflow.budget.spend_packet(inbound.payload_len as usize);
            inflow.budget.work_packet(inbound.steps, || inflow.sink.is_over());
            let has_event = self.take_packet(inflow, &inbound, slices)?;
            inflow.run.buffers.push(inbound.token);
            if has_event {
                return Ok(Drained::Event);
            }
            let run = &*inflow.run;
            if run.pieces.len() >= PIECES_PER_CALL || run.end != End::None {
                hand_over(inflow)?;
            }
        }
        Ok(Drained::Budget)
    }

    /// Whether an endpoint that is full of answers may leave packets in the ring until some of them are out. A link
    /// to ourselves must take them in: nobody else makes room there, and it holds fewer than there are answers.
    fn can_pause(&self) -> bool {
        self.filter.role() != Role::Loopback
    }

    /// Decides where one packet goes. True: there is an event to be carried out before the next.
    #[inline]
    fn take_packet<S: Sink>(
        &mut self,
        inflow: &mut Inflow<'_, S>,
        inbound: &Inbound,
        slices: &Slices,
    ) -> Result<bool, LinkFault> {
        let mut raw = RawHeader::parse(&inbound.header);
        let payload = inbound.payload.clone();
        match self.filter.sort(&mut raw, inbound.payload_len) {
            Sorted::Ours(header) => {
                return take_ours(inflow, &header, (slices, payload));
            }
            Sorted::Foreign(header) => {
                let link = inflow.link.link();
                inflow.budget.work_foreign(header.op == Op::Rw, || inflow.sink.is_over());
                if !inflow.sink.foreign(&Foreign { header: &header, slices, payload, link }) {
                    self.drops.unroutable += 1;
                    inflow.connections.endpoint.receive_unusable(&raw);
                }
            }
            Sorted::Datagram => {
                match self.datagram.take(&raw, inbound.payload_len, &slices[payload]) {
                    Assembled::Nothing => {}
                    Assembled::Whole(datagram) => {
                        inflow.budget.work_call(|| inflow.sink.is_over());
                        let is_ours = self.filter.is_ours(datagram.to.cid);
                        inflow.sink.datagram(datagram.from, datagram.to, &datagram.bytes, is_ours);
                    }
                    Assembled::TooLong => inflow.sink.datagram_lost(),
                    Assembled::Malformed => self.drops.malformed += 1,
                }
            }
            Sorted::Spoofed => {
                // An answer would go to an address that is not the sender's: count it and say so.
                self.drops.spoofed += 1;
                inflow.sink.spoofed(raw.src_cid);
            }
            Sorted::Late => self.drops.late += 1,
            Sorted::Malformed => {
                self.drops.malformed += 1;
                if !self.lost(&raw).is_some_and(|header| inflow.sink.foreign_lost(&header)) {
                    inflow.connections.endpoint.receive_unusable(&raw);
                }
            }
        }
        Ok(false)
    }

    /// The packet of somebody else's connection whose payload is lost with a malformed one.
    fn lost(&self, raw: &RawHeader) -> Option<Header> {
        // Without its length, addresses and type can be trusted, or it is no packet of a connection.
        let header = (RawHeader { len: 0, ..*raw }).check().ok()?;
        (header.op == Op::Rw && !self.filter.is_ours(header.dst.cid)).then_some(header)
    }
}

/// A packet for us: the core first, then its payload.
#[inline]
fn take_ours<S: Sink>(
    inflow: &mut Inflow<'_, S>,
    header: &Header,
    (slices, payload): (&Slices, Range<usize>),
) -> Result<bool, LinkFault> {
    let Received::Data(id) = inflow.connections.endpoint.receive(inflow.now, header) else {
        // Its user must hear that it is connected before it gets data, which may be the next packet. What else begins or
        // ends a connection makes system calls, and the time of the turn is looked at after each.
        return Ok(matches!(header.op, Op::Request | Op::Response | Op::Rst | Op::Shutdown));
    };
    if inflow.run.connection != Some(id) {
        hand_over_payload(inflow)?;
        inflow.run.connection = Some(id);
    }
    let run = &mut *inflow.run;
    run.pieces.gather(slices, payload, header.len as usize);
    run.packets += 1;
    run.end = End::of(header);
    Ok(false)
}

/// Hands the run to its user and gives the buffers back in which it lies.
fn hand_over<S: Sink>(inflow: &mut Inflow<'_, S>) -> Result<(), LinkFault> {
    let handed = hand_over_payload(inflow);
    for buffer in inflow.run.buffers.drain(..) {
        inflow.link.link_mut().finish_inbound(buffer);
    }
    handed
}

fn hand_over_payload<S: Sink>(inflow: &mut Inflow<'_, S>) -> Result<(), LinkFault> {
    let run = &mut *inflow.run;
    let Some(id) = run.connection.take() else { return Ok(()) };
    let (packets, end) = (std::mem::take(&mut run.packets), std::mem::take(&mut run.end));
    let handed = if inflow.link.link().is_dead() {
        Err(MemoryDead)
    } else {
        inflow.budget.work_call(|| inflow.sink.is_over());
        inflow.sink.payload(id, Payload { pieces: &run.pieces, packets, end })
    };
    run.pieces.clear();
    inflow.connections.update(inflow.now, id, handed?);
    Ok(())
}
