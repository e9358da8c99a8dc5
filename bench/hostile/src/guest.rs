//! A guest with a sound driver and no protocol: every packet is the attack's.

use std::collections::VecDeque;
use std::path::Path;

use vsock_core::{Op, RawHeader};
use vsock_guest_memory::slice::{Slices, copy_in};
use vsock_load::Result;
use vsock_load::joining::join;
use vsock_virtio::link::Link;
use vsock_virtio::link::driver::DriverOptions;
use vsock_virtio::vhost_user::Attached;

use crate::bounds::Bounds;

/// What a guest of Linux announces.
pub(crate) const BUFFER: u32 = 262_144;

/// Packets that are sent before those that came are taken.
const BATCH: u32 = 64;

/// An address as an attack writes it: CID and port.
pub(crate) type To = (u32, u32);

/// The guest.
pub(crate) struct Guest {
    link: Link,
    cid: u32,
    _attached: Attached,
    slices: Slices,
    /// Packets that must not be dropped: they leave before others.
    pub(crate) due: VecDeque<RawHeader>,
}

impl Guest {
    /// Joins the switch.
    pub(crate) fn join(socket: &Path) -> Result<Self> {
        Self::with(socket, &DriverOptions { rx_payload: 4096, ..DriverOptions::default() })
    }

    /// The same, with buffers of the attack's choice.
    pub(crate) fn with(socket: &Path, options: &DriverOptions) -> Result<Self> {
        let (link, attached) = join(socket, options)?;
        let cid = attached.cid;
        let (slices, due) = (Slices::new(), VecDeque::new());
        Ok(Self { link: Link::Driver(link), cid, _attached: attached, slices, due })
    }

    pub(crate) fn cid(&self) -> u32 {
        self.cid
    }

    /// A sound packet from one of our ports, for the attack to spoil.
    pub(crate) fn packet(&self, op: Op, port: u32, to: To) -> RawHeader {
        RawHeader {
            src_cid: self.cid.into(),
            dst_cid: to.0.into(),
            src_port: port,
            dst_port: to.1,
            kind: 1,
            op: op.to_wire(),
            buf_alloc: BUFFER,
            ..RawHeader::default()
        }
    }

    /// Puts a packet into the queue; false when the queue is full.
    pub(crate) fn try_send(&mut self, header: &RawHeader, payload: &[u8]) -> Result<bool> {
        self.slices.clear();
        let Some(buffer) = self.link.next_buffer(&mut self.slices)? else { return Ok(false) };
        let len = copy_in(&self.slices[buffer.payload.clone()], payload);
        self.link.send(&buffer, &self.slices, &header.encode(), u32::try_from(len)?);
        Ok(true)
    }

    /// Shows the device what was sent and taken since the last time.
    pub(crate) fn publish(&mut self) -> Result<()> {
        Ok(self.link.publish()?)
    }

    /// The next packet that came; its buffer is offered again.
    pub(crate) fn poll(&mut self) -> Result<Option<RawHeader>> {
        self.slices.clear();
        let Some(inbound) = self.link.next_inbound(&mut self.slices)? else { return Ok(None) };
        self.link.finish_inbound(inbound.token);
        Ok(Some(RawHeader::parse(&inbound.header)))
    }

    /// Sends as many packets as fit, those due first; takes what came and shows it to `hear`, which may make packets
    /// due. False when nothing went either way.
    pub(crate) fn step(
        &mut self,
        next: &mut impl FnMut(&Self) -> Option<(RawHeader, &'static [u8])>,
        hear: &mut impl FnMut(&mut Self, &RawHeader),
    ) -> Result<bool> {
        let mut has_moved = false;
        while let Some(header) = self.poll()? {
            has_moved = true;
            hear(self, &header);
        }
        for _ in 0..BATCH {
            let is_due = self.due.front().copied();
            let packet = match is_due {
                Some(header) => Some((header, &[][..])),
                None => next(self),
            };
            let Some((header, payload)) = packet else { break };
            if !self.try_send(&header, payload)? {
                break;
            }
            if is_due.is_some() {
                self.due.pop_front();
            }
            has_moved = true;
        }
        self.publish()?;
        Ok(has_moved)
    }

    /// Steps until the attack is over.
    pub(crate) fn flood(
        &mut self,
        bounds: &mut Bounds,
        mut next: impl FnMut(&Self) -> Option<(RawHeader, &'static [u8])>,
        mut hear: impl FnMut(&mut Self, &RawHeader),
    ) -> Result<()> {
        while bounds.another() {
            if !self.step(&mut next, &mut hear)? {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// REQUESTs from one port after the other; RST where one is accepted.
    pub(crate) fn requests(&mut self, bounds: &mut Bounds, to: To) -> Result<()> {
        let mut port = 1000;
        self.flood(
            bounds,
            |guest| {
                port += 1;
                Some((guest.packet(Op::Request, port, to), &[]))
            },
            |guest, header| {
                if Op::from_wire(header.op) == Op::Response {
                    let reset = guest.answer(Op::Rst, header);
                    guest.due.push_back(reset);
                }
            },
        )
    }

    /// Opens a connection; false when it is refused or the attack is over before.
    pub(crate) fn open(
        &mut self,
        bounds: &mut Bounds,
        port: u32,
        to: To,
        kind: u16,
    ) -> Result<bool> {
        let request = RawHeader { kind, ..self.packet(Op::Request, port, to) };
        let mut is_sent = self.try_send(&request, &[])?;
        self.publish()?;
        while bounds.another() {
            if let Some(header) = self.poll()? {
                self.publish()?;
                let op = Op::from_wire(header.op);
                if header.dst_port == port && matches!(op, Op::Response | Op::Rst) {
                    return Ok(op == Op::Response);
                }
                continue;
            }
            if !is_sent {
                is_sent = self.try_send(&request, &[])?;
                self.publish()?;
            }
            std::thread::yield_now();
        }
        Ok(false)
    }

    /// The answer with `op` to a packet that came.
    pub(crate) fn answer(&self, op: Op, to: &RawHeader) -> RawHeader {
        RawHeader {
            src_cid: to.dst_cid,
            dst_cid: to.src_cid,
            src_port: to.dst_port,
            dst_port: to.src_port,
            kind: to.kind,
            op: op.to_wire(),
            buf_alloc: BUFFER,
            ..RawHeader::default()
        }
    }
}
