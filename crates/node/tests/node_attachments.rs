//! Attachments that begin and end while connections are open, and what each side is told of it (F3, F6, N12).

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod node_support;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use node_support::raw::RawGuest;
use node_support::{DEADLINE, Lab, Listener, connect, request, wait_until};
use vsock_core::Op;
use vsock_node::node::{GuestOptions, Node};
use vsock_node::snapshot::GuestState;

const ENODEV: u16 = 19;
const ECONNRESET: u16 = 104;
const ETIMEDOUT: u16 = 110;

/// Begins a connect of a host program to guest a, without waiting for the verdict.
fn begin_connect(lab: &Lab, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(&request(2, 3, port, 20_000)).unwrap();
    stream
}

fn errno_of(stream: &mut UnixStream) -> u16 {
    let mut reply = [0; 32];
    stream.read_exact(&mut reply).unwrap();
    u16::from_le_bytes([reply[2], reply[3]])
}

/// Answers the next REQUEST as a listener does; returns who asked.
fn accept(guest: &mut RawGuest) -> u32 {
    let asked = guest.expect(Op::Request).header;
    let answer = guest.packet(Op::Response, asked.dst_port, (2, asked.src_port));
    guest.send(&answer, &[]);
    asked.src_port
}

/// A guest with a connection of each kind: from a host program, to one, and (the last) to the guest b.
fn guest_with_connections(lab: &Lab) -> (RawGuest, Vec<UnixStream>) {
    let mut guest = RawGuest::without_event_queue(&lab.path("a.sock"));
    let mut on_host = Listener::new(&lab.path("host"), 6000, 8);
    let mut program = begin_connect(lab, 5000);
    accept(&mut guest);
    assert_eq!(errno_of(&mut program), 0);
    guest.open(1024, (2, 6000));
    let mut streams = vec![program, on_host.accept()];
    let directory = lab.directory.sub("b");
    let peer = Node::start(4, &directory).unwrap();
    peer.join(&lab.path("b.sock"), Some(4), DEADLINE).unwrap();
    let mut on_peer = Listener::new(&directory, 7000, 8);
    guest.open(1025, (4, 7000));
    streams.push(on_peer.accept());
    std::mem::forget(peer); // it stays until the test ends
    (guest, streams)
}

/// Every connection of `guest_with_connections` ended by RST on the guest's side and by an end on the other.
fn assert_all_told(guest: &mut RawGuest, streams: Vec<UnixStream>) {
    let told: HashSet<_> =
        (0..streams.len()).map(|_| guest.expect(Op::Rst).header.dst_port).collect();
    assert_eq!(told, HashSet::from([5000, 1024, 1025]));
    for mut stream in streams {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the end, not a hang");
    }
}

#[test]
fn guest_that_is_removed_gets_rst_for_each_connection_first() {
    let lab = Lab::new(0);
    let (mut guest, streams) = guest_with_connections(&lab);
    let begun = Instant::now();
    lab.switch.remove_guest(3).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "it took all there was to tell");
    assert_all_told(&mut guest, streams);
}

#[test]
fn guest_of_a_switch_that_stops_gets_rst_for_each_connection_first() {
    let lab = Lab::new(0);
    let (mut guest, streams) = guest_with_connections(&lab);
    lab.switch.stop();
    assert_all_told(&mut guest, streams);
}

#[test]
fn what_was_sent_before_a_guest_is_removed_goes_before_the_end() {
    for _ in 0..20 {
        let lab = Lab::new(0);
        let mut guest = RawGuest::join(&lab.path("a.sock"));
        let mut on_host = Listener::new(&lab.path("host"), 6000, 8);
        guest.open(1024, (2, 6000));
        let mut program = on_host.accept();
        let data = node_support::pattern(50_000, 1);
        program.write_all(&data).unwrap();
        // The switch has heard of that when it answers this, but need not have sent all.
        lab.switch.snapshot().unwrap();
        let said = guest.packet(Op::Rw, 1024, (2, 6000));
        guest.send_data(&said, b"last words");
        lab.switch.remove_guest(3).unwrap();
        let mut got = Vec::new();
        program.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"last words");
        let mut got = Vec::new();
        let end = loop {
            let packet = guest.receive();
            if packet.op() != Op::Rw {
                break packet;
            }
            got.extend(packet.payload);
        };
        assert_eq!(end.op(), Op::Rst);
        assert!(got == data, "{}", got.len());
    }
}

#[test]
fn guest_that_takes_nothing_does_not_keep_the_switch_from_stopping() {
    let lab = Lab::new(0);
    let mut guest = RawGuest::with_buffers(&lab.path("a.sock"), 1);
    let mut on_host = Listener::new(&lab.path("host"), 6000, 8);
    guest.open(1024, (2, 6000));
    let mut program = on_host.accept();
    program.write_all(b"fills the only buffer").unwrap();
    wait_until("it is full", || {
        lab.switch.snapshot().unwrap().flows.iter().any(|flow| flow.bytes_in == 21)
    });
    let begun = Instant::now();
    lab.switch.remove_guest(3).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "it was waited for");
    assert_eq!(program.read(&mut [0; 1]).unwrap(), 0);
    lab.switch.stop();
}

#[test]
fn groups_of_a_running_guest_change_and_its_connections_go_on() {
    let lab = Lab::new(3);
    let mut on_b = Listener::new(&lab.path("b"), 7000, 8);
    let _on_c = Listener::new(&lab.path("c"), 7000, 8);
    let ours = connect(&lab.path("a"), 4, 7000).unwrap();
    let theirs = on_b.accept();
    assert_eq!(connect(&lab.path("a"), 5, 7000).unwrap_err(), ECONNRESET);
    let a = lab.switch.snapshot().unwrap().guests.swap_remove(0).options;
    let moved = GuestOptions { groups: vec!["alone".to_owned()], ..a };
    lab.switch.change_guest(3, moved.clone()).unwrap();
    connect(&lab.path("a"), 5, 7000).unwrap();
    assert_eq!(connect(&lab.path("a"), 4, 7000).unwrap_err(), ECONNRESET);
    node_support::transfer(ours, theirs, node_support::pattern(100_000, 1));
    assert!(lab.switch.change_guest(77, GuestOptions { cid: 77, ..moved }).is_err());
}

#[test]
fn front_end_that_attaches_again_to_a_running_driver_gets_one_transport_reset() {
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut program = begin_connect(&lab, 5000);
    accept(&mut guest);
    assert_eq!(errno_of(&mut program), 0);
    let mut guest = guest.reattach(&lab.path("a.sock"), 3);
    assert_eq!(program.read(&mut [0; 1]).unwrap(), 0);
    wait_until("the event", || guest.handle_event());
    // It may be talked to again, and is told once.
    let mut again = begin_connect(&lab, 5000);
    accept(&mut guest);
    assert_eq!(errno_of(&mut again), 0);
    assert!(!guest.handle_event());
}

#[test]
fn driver_that_runs_when_a_new_switch_comes_gets_one_transport_reset() {
    let first = Lab::new(0);
    let mut guest = RawGuest::join(&first.path("a.sock"));
    let mut on_host = Listener::new(&first.path("host"), 6000, 8);
    guest.open(1024, (2, 6000));
    let _kept = on_host.accept();
    let second = Lab::new(0);
    let mut guest = guest.reattach(&second.path("a.sock"), 3);
    wait_until("the event", || guest.handle_event());
    let mut program = begin_connect(&second, 5000);
    accept(&mut guest);
    assert_eq!(errno_of(&mut program), 0);
    assert!(!guest.handle_event());
}

#[test]
fn front_end_without_event_queue_that_attaches_again_is_served_all_the_same() {
    let lab = Lab::new(0);
    let mut guest = RawGuest::without_event_queue(&lab.path("a.sock"));
    let mut on_host = Listener::new(&lab.path("host"), 6000, 8);
    guest.open(1024, (2, 6000));
    let _kept = on_host.accept();
    let mut guest = guest.reattach(&lab.path("a.sock"), 2);
    guest.open(1025, (2, 6000));
}

#[test]
fn driver_that_begins_and_one_that_was_paused_get_no_event() {
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut on_host = Listener::new(&lab.path("host"), 6000, 8);
    guest.open(1024, (2, 6000));
    let mut program = on_host.accept();
    guest.pause_and_resume();
    program.write_all(b"x").unwrap();
    assert_eq!(guest.expect(Op::Rw).payload, b"x");
    assert!(!guest.handle_event());
}

#[test]
fn attempt_during_which_the_guest_goes_and_comes_back_reaches_it() {
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut program = begin_connect(&lab, 5000);
    guest.expect(Op::Request);
    drop(guest);
    let state = || lab.switch.snapshot().unwrap().guests[0].state;
    wait_until("the guest is gone", || state() == GuestState::Waiting);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    accept(&mut guest);
    assert_eq!(errno_of(&mut program), 0);
}

#[test]
fn attempt_during_which_the_guest_goes_ends_as_one_to_a_waiting_guest_does() {
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut program = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    program.set_read_timeout(Some(DEADLINE)).unwrap();
    program.write_all(&request(2, 3, 5000, 300)).unwrap();
    guest.expect(Op::Request);
    drop(guest);
    assert_eq!(errno_of(&mut program), ETIMEDOUT);
    let mut waiting = begin_connect(&lab, 5000);
    lab.switch.remove_guest(3).unwrap();
    assert_eq!(errno_of(&mut waiting), ENODEV, "there is no such guest any more");
}

#[test]
fn what_a_guest_sent_before_it_left_reaches_the_host_and_other_guests() {
    for len in [1, 1000, 200_000] {
        let lab = Lab::new(0);
        let mut peer = RawGuest::join(&lab.path("b.sock"));
        let mut on_host = Listener::new(&lab.path("host"), 6000, 8);
        let directory = lab.directory.sub("a");
        let guest = Node::start(3, &directory).unwrap();
        guest.join(&lab.path("a.sock"), Some(3), DEADLINE).unwrap();
        let asking = {
            let directory = directory.clone();
            std::thread::spawn(move || connect(&directory, 4, 7000).unwrap())
        };
        let asked = peer.expect(Op::Request).header;
        let answer = peer.packet(Op::Response, 7000, (3, asked.src_port));
        peer.send(&answer, &[]);
        let mut to_peer = asking.join().unwrap();
        let mut to_host = connect(&directory, 2, 6000).unwrap();
        let data = node_support::pattern(len, 1);
        // The other guest is paused, so that the switch has to keep what comes for it.
        peer.set_running(false);
        for stream in [&mut to_peer, &mut to_host] {
            stream.write_all(&data).unwrap();
        }
        drop(to_peer);
        guest.stop();
        let mut got = Vec::new();
        on_host.accept().read_to_end(&mut got).unwrap();
        assert!(got == data, "{} of {len}", got.len());
        wait_until("it is gone", || {
            lab.switch.snapshot().unwrap().guests[0].state == GuestState::Waiting
        });
        peer.set_running(true);
        let mut got = Vec::new();
        let end = loop {
            let packet = peer.receive();
            if packet.op() != Op::Rw {
                break packet;
            }
            got.extend(packet.payload);
        };
        assert!(got == data, "{} of {len}", got.len());
        assert_eq!(end.op(), Op::Shutdown);
        assert_eq!(peer.receive().op(), Op::Rst);
    }
}
