//! A switch and userspace guests in one process, over real vhost-user sockets and shared memory: programs on both
//! sides speak the client protocol, and everything between them is the product's own.

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod node_support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use node_support::{DEADLINE, Lab, Listener, connect, pattern, request, transfer, wait_until};
use vsock_node::node::Node;
use vsock_node::snapshot::GuestState;

const ECONNRESET: u16 = 104;
const ENODEV: u16 = 19;

#[test]
fn host_to_guest_and_back_every_byte_arrives_once_and_in_order() {
    let lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("a"), 5000, 8);
    for len in [0, 1, 43, 3732, 65536, 65537, 3_000_000] {
        let ours = connect(&lab.path("host"), 3, 5000).unwrap();
        let theirs = listener.accept();
        transfer(ours.try_clone().unwrap(), theirs.try_clone().unwrap(), pattern(len, 7));
        transfer(theirs, ours, pattern(len, 8));
    }
}

#[test]
fn guest_to_host_listener_gets_the_guests_address() {
    let lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    let ours = connect(&lab.path("a"), 2, 6000).unwrap();
    let theirs = listener.accept();
    transfer(ours.try_clone().unwrap(), theirs.try_clone().unwrap(), pattern(2_000_000, 1));
    transfer(theirs, ours, pattern(2_000_000, 2));
}

#[test]
fn guest_to_guest_of_one_group_talks_and_others_are_refused_at_once() {
    let lab = Lab::new(3);
    let mut listener = Listener::new(&lab.path("b"), 7000, 8);
    let _other = Listener::new(&lab.path("c"), 7000, 8);
    let ours = connect(&lab.path("a"), 4, 7000).unwrap();
    let theirs = listener.accept();
    transfer(ours.try_clone().unwrap(), theirs.try_clone().unwrap(), pattern(4_000_000, 3));
    transfer(theirs, ours, pattern(4_000_000, 4));
    let start = Instant::now();
    assert_eq!(connect(&lab.path("a"), 5, 7000).unwrap_err(), ECONNRESET);
    assert_eq!(connect(&lab.path("a"), 99, 7000).unwrap_err(), ECONNRESET);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "a refusal must not take the 2 s of a time-out"
    );
}

#[test]
fn port_without_listener_refuses_and_unknown_guest_is_no_device() {
    let lab = Lab::new(1);
    assert_eq!(connect(&lab.path("host"), 3, 1).unwrap_err(), ECONNRESET);
    assert_eq!(connect(&lab.path("a"), 2, 1).unwrap_err(), ECONNRESET);
    assert_eq!(connect(&lab.path("host"), 77, 1).unwrap_err(), ENODEV);
}

#[test]
fn many_connections_at_once_keep_their_bytes_apart() {
    let lab = Lab::new(2);
    let mut listener = Listener::new(&lab.path("b"), 7000, 300);
    let path = lab.path("a");
    let clients: Vec<_> = (0..200u32)
        .map(|number| {
            let mut stream = connect(&path, 4, 7000).unwrap();
            stream.write_all(&number.to_le_bytes()).unwrap();
            (number, stream)
        })
        .collect();
    for _ in 0..clients.len() {
        let mut stream = listener.accept();
        let mut number = [0; 4];
        stream.read_exact(&mut number).unwrap();
        let data = pattern(10_000, u32::from_le_bytes(number));
        std::thread::spawn(move || stream.write_all(&data));
    }
    for (number, mut stream) in clients {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == pattern(10_000, number), "flow {number}");
    }
}

#[test]
fn reader_that_reads_nothing_stops_its_writer_and_nobody_else() {
    let lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    let mut stuck = connect(&lab.path("a"), 2, 6000).unwrap();
    let unread = listener.accept();
    stuck.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut accepted = 0;
    while let Ok(n) = stuck.write(&[7; 65536]) {
        accepted += n;
        assert!(accepted < 16 << 20, "no back-pressure");
    }
    let ours = connect(&lab.path("a"), 2, 6000).unwrap();
    transfer(ours, listener.accept(), pattern(5_000_000, 5));
    drop(stuck);
    let mut rest = Vec::new();
    (&unread).read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), accepted, "what was accepted must arrive");
}

#[test]
fn hybrid_socket_connects_with_a_split_line_and_takes_the_guests_connections() {
    let lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("a"), 5000, 8);
    let mut program = UnixStream::connect(lab.path("a.vsock")).unwrap();
    program.set_read_timeout(Some(DEADLINE)).unwrap();
    program.write_all(b"CONN").unwrap();
    program.write_all(b"ECT 5000\nhello").unwrap();
    let mut theirs = listener.accept();
    let mut answer = [0; 3];
    program.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK ");
    let mut hello = [0; 5];
    theirs.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");

    let listener = std::os::unix::net::UnixListener::bind(lab.path("a.vsock_6100")).unwrap();
    let ours = connect(&lab.path("a"), 2, 6100).unwrap();
    let (program, _) = listener.accept().unwrap();
    transfer(ours, program, pattern(100_000, 9));
}

#[test]
fn removed_guest_ends_its_flows_and_leaves_the_others_alone() {
    let lab = Lab::new(2);
    let mut on_a = Listener::new(&lab.path("a"), 5000, 8);
    let mut on_b = Listener::new(&lab.path("b"), 5000, 8);
    let mut to_a = connect(&lab.path("host"), 3, 5000).unwrap();
    let to_b = connect(&lab.path("host"), 4, 5000).unwrap();
    let (_kept, from_b) = (on_a.accept(), on_b.accept());
    lab.switch.remove_guest(3).unwrap();
    assert_eq!(to_a.read(&mut [0; 1]).unwrap(), 0, "the end, not a hang");
    transfer(to_b, from_b, pattern(1_000_000, 6));
    assert_eq!(connect(&lab.path("host"), 3, 5000).unwrap_err(), ENODEV);
}

#[test]
fn guest_that_leaves_and_comes_back_is_served_again() {
    let mut lab = Lab::new(1);
    lab.guests.clear();
    let state = |lab: &Lab| lab.switch.snapshot().unwrap().guests[0].state;
    wait_until("the device is free", || state(&lab) == GuestState::Waiting);
    let again = Node::start(3, &lab.directory.sub("again")).unwrap();
    again.join(&lab.path("a.sock"), Some(3), DEADLINE).unwrap();
    let mut listener = Listener::new(&lab.path("again"), 5000, 8);
    let ours = connect(&lab.path("host"), 3, 5000).unwrap();
    transfer(ours, listener.accept(), pattern(300_000, 2));
}

#[test]
fn program_that_dies_at_any_step_leaves_nothing_behind() {
    let lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("a"), 5000, 64);
    drop(UnixStream::connect(lab.path("host").join("stream")).unwrap());
    for cut in [1, 31, 32] {
        let mut stream = UnixStream::connect(lab.path("host").join("stream")).unwrap();
        stream.write_all(&request(2, 3, 5000, 0)[..cut]).unwrap();
    }
    let stream = connect(&lab.path("host"), 3, 5000).unwrap();
    drop(stream);
    let mut last = connect(&lab.path("host"), 3, 5000).unwrap();
    last.write_all(b"last").unwrap();
    wait_until("only the last flow is left", || {
        let flows = lab.switch.snapshot().unwrap().flows;
        flows.len() == 1 && flows[0].bytes_out == 4
    });
    // What was accepted by the kernel of the guest is there to be accepted, however short its life was.
    let mut seen = 0;
    loop {
        let mut stream = listener.accept();
        seen += 1;
        let mut got = [0; 4];
        if stream.read(&mut got).unwrap() == 4 {
            break;
        }
    }
    assert!((2..=3).contains(&seen), "{seen}");
}

#[test]
fn bad_requests_are_answered_counted_and_closed() {
    let lab = Lab::new(0);
    let bad: [[u8; 32]; 4] =
        [[9; 32], request(99, 0, 0, 0), request(5, 0, 0, 0), request(6, 1, 0, 0)];
    for bytes in bad {
        let mut stream = UnixStream::connect(lab.path("host").join("stream")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!((got.len(), got[2]), (32, 71), "EPROTO, then the end");
    }
    let counters = lab.switch.snapshot().unwrap().counters;
    assert!(counters.contains(&("bad_requests", 4)), "{counters:?}");
}
