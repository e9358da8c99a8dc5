//! The user of one connection, and what it checks.

use super::Packet;
use std::collections::{BTreeMap, VecDeque};
use vsock_core::{FlowKey, Shutdown, SocketType};

/// What the user of one connection knows.
#[derive(Debug)]
pub(super) struct User {
    pub(super) serial: u64,
    pub(super) key: FlowKey,
    pub(super) kind: SocketType,
    pub(super) peer: Option<u64>,
    pub(super) to_send: u64,
    pub(super) message_left: u64,
    pub(super) sent: u64,
    pub(super) packets: usize,
    pub(super) received: u64,
    /// Packets not consumed: bytes left in each.
    pub(super) unread: VecDeque<u32>,
    pub(super) is_connected: bool,
    pub(super) ours: Shutdown,
    pub(super) theirs: Shutdown,
    pub(super) is_waiting: bool,
}

impl User {
    pub(super) fn new(serial: u64, key: FlowKey, kind: SocketType, is_connected: bool) -> Self {
        Self {
            serial,
            key,
            kind,
            peer: None,
            to_send: 0,
            message_left: 0,
            sent: 0,
            packets: 0,
            received: 0,
            unread: VecDeque::new(),
            is_connected,
            ours: Shutdown::NONE,
            theirs: Shutdown::NONE,
            is_waiting: false,
        }
    }

    /// Checks that a packet comes from the connection that this one is connected to.
    pub(super) fn position_of(&mut self, packet: &Packet) -> u64 {
        let serial = packet.serial.expect("data has a sender");
        assert_eq!(*self.peer.get_or_insert(serial), serial, "data of another connection");
        packet.position
    }

    /// The peer has ended its direction in good order: all its bytes are here.
    pub(super) fn check_complete(&self, sent: &BTreeMap<u64, u64>) {
        let is_reading = !self.ours.contains(Shutdown::RCV);
        if let Some(peer) = self.peer
            && is_reading
        {
            assert_eq!(self.received, sent[&peer], "bytes lost before a clean end: {self:?}");
        }
    }
}
