//! SOCK_DGRAM: single messages, best effort, without connections (kernel-semantics, 8: what VMCI does).
//!
//! A program binds on its connection to the door `dgram` and receives there; what it sends comes as requests, each with a
//! verdict. Ports are a space of their own. On a link a datagram is a run of RW packets of type 3 with neither credit nor
//! answers, the last one with EOM, and only where both sides have negotiated it, which no Linux guest does. Nothing is
//! ever kept for later: what finds no room is dropped and counted. From one guest to another they go under the same policy
//! as connections, one whole datagram at a time, so that those of several senders are not mixed.

use std::io::IoSlice;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use vsock_core::datagram::{self, Arrived, MAX_DATAGRAM as MOST, Reassembly, Split};
use vsock_core::{Address, BindError, Binding, Cid, Port, RawHeader};

use super::link_slot::LinkFault;
use super::source::{LinkId, Source};
use super::{Bound, Worker};
use crate::host::client::has_hung_up;
use crate::host::wire::{self, MAX_DATAGRAM, Reply, op};
use crate::link::Inbound;
use crate::reactor::Token;
use crate::slice::{self, Slice};
use crate::vhost_user::F_DGRAM;

// What programs may send is what links take.
const _: () = assert!(MAX_DATAGRAM == MOST as usize);

/// What became of datagrams.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DatagramStats {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// For want of room, or of somebody to receive them.
    pub(crate) dropped: u64,
}

/// A program that is bound to a datagram port, and what became of its datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DatagramSocket {
    /// Its entry, a client.
    pub(crate) token: Token,
    /// By it, and not lost before they left this node.
    pub(crate) sent: u64,
    /// For it, and not lost.
    pub(crate) received: u64,
    /// For it, and lost because it did not receive.
    pub(crate) dropped: u64,
}

/// A datagram of which not all packets have come.
#[derive(Debug, Default)]
pub(crate) struct Arriving {
    reassembly: Reassembly,
    bytes: Vec<u8>,
}

impl Worker {
    /// Takes a port for a program that receives datagrams.
    pub(crate) fn bind_datagram(
        &mut self,
        token: Token,
        address: Address,
        may_use_privileged: bool,
    ) -> Result<Bound, BindError> {
        let id = match self.datagram_ports.bind(address, may_use_privileged) {
            Err(BindError::InUse) if self.drop_closed(address.port) => {
                self.datagram_ports.bind(address, may_use_privileged)?
            }
            outcome => outcome?,
        };
        let socket = DatagramSocket { token, sent: 0, received: 0, dropped: 0 };
        self.datagram_sockets.insert(id, socket);
        Ok(Bound { id, address: self.datagram_ports.address(id).unwrap_or(address) })
    }

    /// Gives it back.
    pub(crate) fn release_datagram(&mut self, bound: Bound) {
        self.datagram_sockets.remove(&bound.id);
        self.datagram_ports.release(bound.id);
    }

    /// Sends a datagram for the program behind `token`, from the socket with this number.
    pub(crate) fn send_datagram(
        &mut self,
        token: Token,
        number: u64,
        to: Address,
        payload: &[u8],
    ) -> Result<(), Errno> {
        let binding = Binding::from_bits(number).ok_or(Errno::BADF)?;
        let from = self.own_datagram_port(token, binding)?;
        let to = if to.cid == Cid::ANY { Address { cid: self.local, ..to } } else { to };
        // Services of a hypervisor: only its resolver has a port there, and we have no hypervisor.
        if to.port == Port::ANY || (to.cid == Cid::HYPERVISOR && to.port != Port(14)) {
            return Err(Errno::INVAL);
        }
        if to.cid == self.local || to.cid == Cid::LOCAL {
            let from = Address { cid: self.local, port: from };
            if !self.deliver_datagram(from, to, payload) {
                return Err(Errno::HOSTUNREACH);
            }
            self.count_sent(binding);
            return Ok(());
        }
        let link = self.routes.get(&to.cid).copied().or(self.default_route);
        let link =
            link.filter(|id| self.links.get(*id).is_some_and(|slot| slot.features & F_DGRAM != 0));
        let link = link.ok_or(Errno::HOSTUNREACH)?;
        let from = Address { cid: self.local, port: from };
        match self.transmit_datagram(link, from, to, payload) {
            Ok(true) => {
                self.datagrams.sent += 1;
                self.count_sent(binding);
            }
            Ok(false) => self.datagrams.dropped += 1,
            Err(fault) => self.break_link(link, &fault),
        }
        self.activate(link);
        Ok(())
    }

    fn count_sent(&mut self, binding: Binding) {
        if let Some(socket) = self.datagram_sockets.get_mut(&binding) {
            socket.sent += 1;
        }
    }

    /// The port of a datagram socket, if it belongs to the user who asks.
    fn own_datagram_port(&self, token: Token, binding: Binding) -> Result<Port, Errno> {
        let user = match self.sources.get(token) {
            Some(Source::Client(client)) => client.peer.uid,
            Some(_) | None => return Err(Errno::INVAL),
        };
        let owner =
            self.datagram_sockets.get(&binding).and_then(|it| match self.sources.get(it.token) {
                Some(Source::Client(client)) => Some((client.peer.uid, client.bound?.address.port)),
                Some(_) | None => None,
            });
        match owner {
            Some((owner, port)) if user == 0 || user == owner => Ok(port),
            Some(_) => Err(Errno::PERM),
            None => Err(Errno::BADF),
        }
    }

    /// Hands a datagram to who is bound to its destination. False: nobody is.
    fn deliver_datagram(&mut self, from: Address, to: Address, payload: &[u8]) -> bool {
        let binding = self.datagram_ports.holder(to);
        let Some(socket) = binding.and_then(|it| self.datagram_sockets.get_mut(&it)) else {
            return false;
        };
        let Some(Source::Client(client)) = self.sources.get(socket.token) else { return false };
        let head = Reply { theirs: wire::to_wire(from), ..wire::ok(op::RECEIVED, to) }.encode();
        let parts = [IoSlice::new(&head), IoSlice::new(payload)];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // A program that does not receive loses them: that is what best effort means.
        match sendmsg(&client.fd, &parts, &mut SendAncillaryBuffer::default(), flags) {
            Ok(_) => {
                self.datagrams.received += 1;
                socket.received += 1;
            }
            // It has closed, and we have not heard of it yet.
            Err(_) if has_hung_up(&client.fd) => return false,
            Err(_) => {
                self.datagrams.dropped += 1;
                socket.dropped += 1;
            }
        }
        true
    }

    /// Writes a datagram into the other side's ring; false when there is no room for all of it.
    fn transmit_datagram(
        &mut self,
        id: LinkId,
        from: Address,
        to: Address,
        payload: &[u8],
    ) -> Result<bool, LinkFault> {
        let sent = self.fill_datagram(id, from, to, payload);
        self.batch.clear();
        sent
    }

    fn fill_datagram(
        &mut self,
        id: LinkId,
        from: Address,
        to: Address,
        payload: &[u8],
    ) -> Result<bool, LinkFault> {
        let Some(slot) = self.links.get_mut(id) else { return Ok(false) };
        let batch = &mut self.batch;
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        // First whether there is room for all of it.
        let mut fits = Split::new(from, to, len);
        while !fits.is_done() {
            let Some(space) = slot.link.next_space(&mut batch.slices)? else {
                let reserved = u16::try_from(batch.spaces.len()).unwrap_or(u16::MAX);
                slot.link.return_spaces(reserved);
                return Ok(false);
            };
            let _ = fits.next(space.capacity);
            batch.spaces.push(space);
        }
        let mut packets = Split::new(from, to, len);
        let mut rest = payload;
        for space in &batch.spaces {
            let Some(header) = packets.next(space.capacity) else { break };
            let (part, after) = rest.split_at(rest.len().min(header.len as usize));
            rest = after;
            slice::copy_in(&batch.slices[space.payload.clone()], part);
            slot.link.send(space, &batch.slices, &header.encode(), header.len);
            slot.traffic.packets_out += 1;
            slot.traffic.bytes_out += u64::from(header.len);
        }
        Ok(true)
    }

    /// A packet of type 3. It is never answered.
    pub(crate) fn take_datagram(
        &mut self,
        id: LinkId,
        raw: &RawHeader,
        inbound: &Inbound,
        slices: &[Slice],
    ) {
        let Some(slot) = self.links.get_mut(id) else { return };
        let header = match datagram::check(raw) {
            Ok(header) if header.len <= inbound.payload_len => header,
            Ok(_) | Err(_) => {
                slot.traffic.malformed += 1;
                return;
            }
        };
        let arriving = &mut slot.arriving;
        match arriving.reassembly.receive(&header) {
            Arrived::Lost => {}
            Arrived::TooLong => {
                arriving.bytes = Vec::new();
                self.datagrams.dropped += 1;
            }
            Arrived::Part { at, is_last } => {
                let (at, len) = (at as usize, header.len as usize);
                arriving.bytes.resize(at + len, 0);
                slice::copy_out(&slices[inbound.payload.clone()], &mut arriving.bytes[at..]);
                if is_last {
                    let bytes = std::mem::take(&mut arriving.bytes);
                    if !self.pass_datagram(id, header.src, header.dst, &bytes) {
                        self.datagrams.dropped += 1;
                    }
                }
            }
        }
    }

    /// A whole datagram of a link, for a program here or another guest. False: there is nobody, or no room.
    fn pass_datagram(&mut self, from: LinkId, sender: Address, to: Address, bytes: &[u8]) -> bool {
        let is_alias = self.links.get(from).is_some_and(|slot| slot.options.has_host_alias(to.cid));
        if to.cid == self.local || is_alias {
            return self.deliver_datagram(sender, to, bytes);
        }
        let Some(&link) = self.routes.get(&to.cid) else { return false };
        let (Some(source), Some(target)) = (self.links.get(from), self.links.get(link)) else {
            return false;
        };
        if link == from || target.features & F_DGRAM == 0 || !source.shares_group(target) {
            return false;
        }
        let sent = self.transmit_datagram(link, sender, to, bytes);
        self.activate(link);
        // The receiver's fault must not end the sender's turn.
        sent.unwrap_or_else(|fault| {
            self.break_link(link, &fault);
            false
        })
    }
}
