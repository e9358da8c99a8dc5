//! Programs of one node: they reach each other over the node's link to itself.

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod node_support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use node_support::{Lab, Listener, ask, connect, pattern, request, transfer, wait_until};

const ECONNRESET: u16 = 104;
const EADDRNOTAVAIL: u16 = 99;

/// The CIDs under which the programs of a node reach each other: the loopback one and its own.
fn names_of_itself(lab: &Lab) -> [(PathBuf, u32); 4] {
    [(lab.path("host"), 1), (lab.path("host"), 2), (lab.path("a"), 1), (lab.path("a"), 3)]
}

#[test]
fn programs_of_one_node_talk_through_it_and_are_cid_1_to_each_other() {
    let lab = Lab::new(1);
    for (path, cid) in names_of_itself(&lab) {
        let mut listener = Listener::new(&path, 5000, 8);
        let ours = connect(&path, cid, 5000).unwrap();
        let (theirs, accepted) = listener.accept_with_addresses();
        assert_eq!(accepted[..2], [cid, 5000], "what was connected to");
        assert_eq!(accepted[2], 1, "who connected");
        transfer(ours.try_clone().unwrap(), theirs.try_clone().unwrap(), pattern(3_000_000, 3));
        transfer(theirs, ours, pattern(3_000_000, 4));
        assert_eq!(connect(&path, cid, 5001).unwrap_err(), ECONNRESET);
    }
}

#[test]
fn loopback_flow_is_listed_from_both_ends_and_forgotten_after() {
    let lab = Lab::new(0);
    let mut listener = Listener::new(&lab.path("host"), 5000, 8);
    let mut ours = connect(&lab.path("host"), 1, 5000).unwrap();
    let mut theirs = listener.accept();
    ours.write_all(b"12345").unwrap();
    theirs.read_exact(&mut [0; 5]).unwrap();
    let flows = lab.switch.snapshot().unwrap().flows;
    assert_eq!(flows.len(), 2);
    for flow in &flows {
        assert_eq!((flow.source.cid.0, flow.destination.cid.0), (1, 1));
        assert_eq!((flow.destination.port.0, flow.bytes_out, flow.bytes_in), (5000, 5, 0));
    }
    drop(ours);
    assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0);
    drop(theirs);
    wait_until("no flow is left", || lab.switch.snapshot().unwrap().flows.is_empty());
}

#[test]
fn loopback_reader_that_reads_nothing_stops_only_its_writer() {
    let lab = Lab::new(0);
    let path = lab.path("host");
    let mut listener = Listener::new(&path, 6000, 64);
    let mut stuck: Vec<_> = (0..40).map(|_| connect(&path, 1, 6000).unwrap()).collect();
    let unread: Vec<_> = stuck.iter().map(|_| listener.accept()).collect();
    let mut accepted = vec![0; stuck.len()];
    for (stream, accepted) in stuck.iter_mut().zip(&mut accepted) {
        stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        while let Ok(n) = stream.write(&[7; 65536]) {
            *accepted += n;
            assert!(*accepted < 16 << 20, "no back-pressure");
        }
    }
    let ours = connect(&path, 1, 6000).unwrap();
    transfer(ours, listener.accept(), pattern(5_000_000, 5));
    drop(stuck);
    for (mut stream, accepted) in unread.into_iter().zip(accepted) {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len(), accepted, "what was accepted must arrive");
    }
}

#[test]
fn loopback_binding_rules_are_those_of_a_machine_with_loopback() {
    let lab = Lab::new(1);
    let bind = |path: &PathBuf, cid| {
        let mut stream = UnixStream::connect(path.join("stream")).unwrap();
        ask(&mut stream, &request(1, cid, 5000, 0)).0
    };
    for (path, own) in [(lab.path("host"), 2), (lab.path("a"), 3)] {
        for (cid, errno) in
            [(u32::MAX, 0), (1, 0), (own, 0), (0, EADDRNOTAVAIL), (5 - own, EADDRNOTAVAIL)]
        {
            // A released port is free a moment later.
            wait_until("the answer", || bind(&path, cid) == errno);
        }
    }
}
