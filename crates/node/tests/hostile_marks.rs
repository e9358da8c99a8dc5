//! A guest that sends marked records to programs which do not read: marks are descriptors in flight, which the kernel counts
//! for a user, and those of one guest leave enough for the others.

#![allow(clippy::unwrap_used)] // tests panic

mod node_support;

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use node_support::raw::RawGuest;
use node_support::{Lab, Listener, connect};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Uid, geteuid, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities, set_thread_res_uid};
use vsock_core::{EOM, EOR, Op, RawHeader};
use vsock_node::node::NodeOptions;

const HOST: u32 = 2;
const PORT: u32 = 6000;
const DESCRIPTORS: u64 = 1024;
const RECORDS: usize = 50;

/// Lets this thread, and those that it starts, have no more descriptors in flight than open ones. The kernel counts these for a
/// user: who is root becomes one that nobody else is, so that other programs of root do not count.
fn give_up_privileges() {
    let few = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    setrlimit(Resource::Nofile, few).unwrap();
    let mut sets = capabilities(None).unwrap();
    sets.effective &= !(CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_RESOURCE);
    set_capabilities(None, sets).unwrap();
    if geteuid().is_root() {
        let nobody_else = Uid::from_raw(0x4000_0000 | std::process::id());
        set_thread_res_uid(nobody_else, nobody_else, nobody_else).unwrap();
        // For /proc/self.
        set_dumpable_behavior(DumpableBehavior::Dumpable).unwrap();
    }
}

/// Descriptors that lie in a socket, as /proc tells.
fn in_flight(program: &UnixStream) -> usize {
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().find_map(|line| line.strip_prefix("scm_fds:")).unwrap().trim().parse().unwrap()
}

#[test]
fn flood_of_marked_records_leaves_descriptors_in_flight_for_a_neighbour() {
    give_up_privileges();
    let lab = Lab::with(1, NodeOptions::default());
    let mut listener = Listener::of_messages(&lab.path("host"), PORT, 8);
    let mut neighbours = Listener::new(&lab.path("host"), PORT + 1, 8);
    let mut guest = RawGuest::join(&lab.path("b.sock"));
    let mut programs = Vec::new();
    // As many connections as a guest gets: a quarter of what there is beyond a reserve.
    while programs.len() < 192 {
        let port = u32::try_from(programs.len()).unwrap();
        let to = RawHeader { kind: 2, ..guest.packet(Op::Request, port, (HOST, PORT)) };
        guest.send(&to, &[]);
        guest.expect(Op::Response);
        programs.push(listener.accept());
        let record = RawHeader { op: Op::Rw.to_wire(), flags: EOM | EOR, ..to };
        (0..RECORDS).for_each(|_| guest.send_data(&record, b"m"));
    }
    // What comes last is answered last.
    let last = guest.packet(Op::Request, 0xfffe, (HOST, PORT + 2));
    guest.send(&last, &[]);
    guest.expect(Op::Rst);
    let marks = programs.iter().map(in_flight).sum::<usize>();
    assert_eq!(marks, programs.len(), "one for each connection");
    let ours = connect(&lab.path("a"), HOST, PORT + 1).unwrap();
    drop((neighbours.accept(), ours));
    // Nothing is lost.
    for program in &mut programs {
        for _ in 0..RECORDS {
            assert_eq!(program.read(&mut [0; 8]).unwrap(), 1);
        }
    }
}
