//! A guest gets another CID while it runs.
//!
//! Others had five bugs here (peers 3.3): the reset that is not told, ports used again, a connection that overtakes the
//! reset, packets in flight, and a plain pause taken for one. Each is a test, with a guest that does what a test wants.

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod node_support;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use node_support::raw::RawGuest;
use node_support::{DEADLINE, Lab, Listener, ask, connect, pattern, request, transfer, wait_until};
use vsock_core::Op;

/// Begins a connect of a host program without waiting for the verdict.
fn begin_connect(lab: &Lab, cid: u32, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(&request(2, cid, port, 0)).unwrap();
    stream
}

/// Answers the next REQUEST as a listener in the guest does; returns the host's port.
fn accept(guest: &mut RawGuest) -> u32 {
    let asked = guest.expect(Op::Request).header;
    let answer = guest.packet(Op::Response, asked.dst_port, (2, asked.src_port));
    guest.send(&answer, &[]);
    asked.src_port
}

fn errno_of(stream: &mut UnixStream) -> u16 {
    let mut reply = [0; 32];
    stream.read_exact(&mut reply).unwrap();
    u16::from_le_bytes([reply[2], reply[3]])
}

/// A counter of the guest `a`.
fn counter(lab: &Lab, name: &str) -> u64 {
    let guests = lab.switch.snapshot().unwrap().guests;
    let guest = guests.iter().find(|guest| guest.options.name == "a").unwrap();
    guest.counters.iter().find(|(it, _)| *it == name).unwrap().1
}

#[test]
fn reset_is_told_and_ends_connections_for_programs_at_once() {
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut program = begin_connect(&lab, 3, 5000);
    accept(&mut guest);
    assert_eq!(errno_of(&mut program), 0);
    lab.switch.set_guest_cid(3, 33).unwrap();
    assert_eq!(program.read(&mut [0; 1]).unwrap(), 0, "the end, not a hang");
    wait_until("the event", || guest.handle_event());
    assert_eq!(guest.cid(), 33);
    // Nothing was sent about the connections: the event says it all.
    let mut again = begin_connect(&lab, 33, 5000);
    let asked = guest.receive();
    assert_eq!((asked.op(), asked.header.dst_cid), (Op::Request, 33));
    let answer = guest.packet(Op::Response, 5000, (2, asked.header.src_port));
    guest.send(&answer, &[]);
    assert_eq!(errno_of(&mut again), 0);
    assert_eq!(connect(&lab.path("host"), 3, 5000).unwrap_err(), 19, "nobody has the old CID");
}

#[test]
fn connection_begun_before_the_guest_handled_the_reset_waits_for_it() {
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    lab.switch.set_guest_cid(3, 33).unwrap();
    let mut program = begin_connect(&lab, 33, 5000);
    // A question to the switch that it answers after it has looked at the connect.
    let mut other = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    for _ in 0..100 {
        assert_eq!(ask(&mut other, &request(6, 0, 0, 0)).0, 0);
        assert!(guest.poll().is_none(), "a packet overtook the reset");
    }
    assert!(guest.handle_event());
    accept(&mut guest);
    assert_eq!(errno_of(&mut program), 0);
}

#[test]
fn packets_in_flight_from_the_old_cid_are_dropped_without_an_answer() {
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    guest.open(1024, (2, 6000));
    let mut theirs = listener.accept();
    lab.switch.set_guest_cid(3, 33).unwrap();
    assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0);
    let late = guest.packet(Op::Rw, 1024, (2, 6000));
    guest.send_data(&late, b"late");
    let late = guest.packet(Op::Request, 1025, (2, 6000));
    guest.send(&late, &[]);
    wait_until("both are seen", || counter(&lab, "late") == 2);
    assert!(guest.handle_event());
    // The first thing the guest hears is about what it does now.
    guest.open(1026, (2, 6000));
    assert_eq!(listener.accept_with_addresses().1, [2, 6000, 33, 1026]);
    assert_eq!(counter(&lab, "spoofed"), 0);
}

#[test]
fn ports_of_ended_connections_are_not_used_again() {
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut ports = HashSet::new();
    let mut cid = 3;
    for new in [33, 34, 35] {
        for _ in 0..20 {
            let mut program = begin_connect(&lab, cid, 5000);
            assert!(ports.insert(accept(&mut guest)), "a port came twice");
            assert_eq!(errno_of(&mut program), 0);
        }
        lab.switch.set_guest_cid(cid, new).unwrap();
        wait_until("the event", || guest.handle_event());
        cid = new;
    }
}

#[test]
fn guest_that_pauses_and_goes_on_keeps_its_connections() {
    // Its driver goes on where it was: nothing is reset, and nothing is held back.
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut program = begin_connect(&lab, 3, 5000);
    let port = accept(&mut guest);
    assert_eq!(errno_of(&mut program), 0);
    guest.pause_and_resume();
    assert!(!guest.handle_event());
    program.write_all(b"still there").unwrap();
    let packet = guest.expect(Op::Rw);
    assert_eq!((packet.header.src_port, packet.payload.as_slice()), (port, &b"still there"[..]));
}

#[test]
fn guest_without_event_queue_gets_rst_for_each_connection_and_goes_on_as_the_new_cid() {
    let lab = Lab::new(0);
    let mut guest = RawGuest::without_event_queue(&lab.path("a.sock"));
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    let mut program = begin_connect(&lab, 3, 5000);
    let port = accept(&mut guest);
    assert_eq!(errno_of(&mut program), 0);
    guest.open(1024, (2, 6000));
    let mut theirs = listener.accept();
    lab.switch.set_guest_cid(3, 33).unwrap();
    assert_eq!(program.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0);
    let mut reset: Vec<_> = (0..2).map(|_| guest.expect(Op::Rst).header).collect();
    reset.sort_by_key(|header| header.dst_port);
    let ports: Vec<_> = reset.iter().map(|header| (header.src_port, header.dst_port)).collect();
    assert_eq!(ports, [(6000, 1024), (port, 5000)]);
    // It does not know its new CID; to everybody else it has it.
    assert_eq!(guest.cid(), 3);
    guest.open(1025, (2, 6000));
    assert_eq!(listener.accept_with_addresses().1, [2, 6000, 33, 1025]);
    let mut again = begin_connect(&lab, 33, 5000);
    accept(&mut guest);
    assert_eq!(errno_of(&mut again), 0);
}

#[test]
fn userspace_guest_takes_the_new_cid_and_its_listeners_go_on() {
    let lab = Lab::new(2);
    let mut on_guest = Listener::new(&lab.path("a"), 5000, 8);
    let mut on_host = Listener::new(&lab.path("host"), 6000, 8);
    let mut on_peer = Listener::new(&lab.path("b"), 7000, 8);
    let mut to_guest = connect(&lab.path("host"), 3, 5000).unwrap();
    let mut to_host = connect(&lab.path("a"), 2, 6000).unwrap();
    let mut to_peer = connect(&lab.path("a"), 4, 7000).unwrap();
    let mut others = [on_guest.accept(), on_host.accept(), on_peer.accept()];
    lab.switch.set_guest_cid(3, 33).unwrap();
    for stream in [&mut to_guest, &mut to_host, &mut to_peer].into_iter().chain(&mut others) {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the end, not a hang");
    }
    let ours = connect(&lab.path("host"), 33, 5000).unwrap();
    transfer(ours, on_guest.accept(), pattern(1_000_000, 1));
    let ours = connect(&lab.path("a"), 2, 6000).unwrap();
    let (theirs, addresses) = on_host.accept_with_addresses();
    assert_eq!(addresses[2], 33);
    transfer(ours, theirs, pattern(1_000_000, 2));
    let ours = connect(&lab.path("a"), 4, 7000).unwrap();
    let (theirs, addresses) = on_peer.accept_with_addresses();
    assert_eq!(addresses[2], 33);
    transfer(ours, theirs, pattern(1_000_000, 3));
    assert!(lab.switch.snapshot().unwrap().guests.iter().any(|guest| guest.cid == 33));
}

#[test]
fn connection_half_closed_or_being_closed_ends_as_well() {
    let lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("a"), 5000, 8);
    let mut half = connect(&lab.path("host"), 3, 5000).unwrap();
    let _one = listener.accept();
    half.shutdown(Shutdown::Write).unwrap();
    let unread = connect(&lab.path("host"), 3, 5000).unwrap();
    let mut two = listener.accept();
    two.write_all(&pattern(100_000, 4)).unwrap();
    lab.switch.set_guest_cid(3, 33).unwrap();
    half.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(half.read(&mut [0; 1]).unwrap(), 0);
    drop(unread);
    wait_until("no flow is left", || lab.switch.snapshot().unwrap().flows.is_empty());
}

#[test]
fn cid_of_another_guest_or_of_nobody_is_refused_and_changes_nothing() {
    let lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("a"), 5000, 8);
    let ours = connect(&lab.path("host"), 3, 5000).unwrap();
    for new in [0, 1, 2, 4, u32::MAX] {
        assert!(lab.switch.set_guest_cid(3, new).is_err(), "{new}");
    }
    assert!(lab.switch.set_guest_cid(77, 78).is_err());
    lab.switch.set_guest_cid(3, 3).unwrap();
    transfer(ours, listener.accept(), pattern(100_000, 5));
}
