//! What tests of a hostile guest have in common: a switch under attack, and what must be true afterwards.

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

use std::io::Read;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vsock_core::{Op, Port, RawHeader};
use vsock_node::node::Node;
use vsock_node::snapshot::ListenerInfo;

use super::raw::RawGuest;
use super::{
    DEADLINE, Lab, Listener, connect, descriptors, guest_counter, node_counter, pattern, transfer,
    wait_until,
};

pub(crate) const HOST: u32 = 2;
pub(crate) const A: u32 = 3;
pub(crate) const B: u32 = 4;
pub(crate) const PORT: u32 = 6000;

/// The only test of this process for now.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A switch with a raw guest as a, and a sound one as b.
pub(crate) struct Attack {
    pub(crate) raw: RawGuest,
    pub(crate) listener: Listener,
    pub(crate) lab: Lab,
    pub(crate) descriptors: usize,
    _alone: MutexGuard<'static, ()>,
}

impl Attack {
    pub(crate) fn new() -> Self {
        Self::with_buffers(256)
    }

    pub(crate) fn with_buffers(buffers: u16) -> Self {
        let alone = alone();
        let mut lab = Lab::new(0);
        let sound = Node::start(B, &lab.directory.sub("b")).unwrap();
        sound.join(&lab.path("b.sock"), Some(B), DEADLINE).unwrap();
        lab.guests.push(sound);
        let raw = RawGuest::with_buffers(&lab.path("a.sock"), buffers);
        let listener = Listener::new(&lab.path("host"), PORT, 128);
        let descriptors = descriptors();
        Self { raw, listener, lab, descriptors, _alone: alone }
    }

    pub(crate) fn packet(&self, op: Op, port: u32) -> RawHeader {
        self.raw.packet(op, port, (HOST, PORT))
    }

    pub(crate) fn counted(&self, name: &str) -> u64 {
        guest_counter(&self.lab.switch, A, name)
    }

    pub(crate) fn relay_counted(&self, name: &str) -> u64 {
        node_counter(&self.lab.switch, name)
    }

    /// The neighbour talks to the host and back.
    pub(crate) fn neighbour_is_well(&mut self) {
        let ours = connect(&self.lab.path("b"), HOST, PORT).unwrap();
        let theirs = self.listener.accept();
        transfer(ours.try_clone().unwrap(), theirs.try_clone().unwrap(), pattern(200_000, 1));
        transfer(theirs, ours, pattern(200_000, 2));
    }

    /// The switch has carried out all that the attacker has sent so far, and the listener's queue is empty.
    pub(crate) fn is_heard_out(&mut self) {
        let (port, nowhere) = (0xfffe, (HOST, PORT + 1));
        let last = self.raw.packet(Op::Request, port, nowhere);
        self.raw.send(&last, &[]);
        while self.raw.receive().header.dst_port != port {}
        let is_ours = |it: &ListenerInfo| it.address.port == Port(PORT) && it.waiting > 0;
        while self.lab.switch.snapshot().unwrap().listeners.iter().any(is_ours) {
            while self.listener.has_waiting() {
                self.listener.accept();
            }
        }
    }

    /// The attacker has taken all that was sent to it, and a connection of its own works.
    pub(crate) fn ends_well(mut self) {
        self.neighbour_is_well();
        let mut settled = false;
        while !settled {
            while self.raw.poll().is_some() {}
            self.lab.switch.snapshot().unwrap();
            settled = self.raw.poll().is_none();
        }
        self.raw.open(9999, (HOST, PORT));
        let mut program = self.listener.accept();
        let data = self.packet(Op::Rw, 9999);
        self.raw.send_data(&data, b"still here");
        let mut got = [0; 10];
        program.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"still here");
        let reset = self.packet(Op::Rst, 9999);
        self.raw.send(&reset, &[]);
        assert_eq!(program.read(&mut got).unwrap(), 0);
        drop(program);
        let switch = &self.lab.switch;
        wait_until("no flow is left", || switch.snapshot().unwrap().flows.is_empty());
        wait_until("no descriptor is left", || descriptors() == self.descriptors);
    }
}
