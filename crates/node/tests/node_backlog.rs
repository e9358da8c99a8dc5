//! A2: listeners whose queues are as long as they asked for.

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod node_support;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use node_support::raw::RawGuest;
use node_support::{
    DEADLINE, Lab, Listener, ask, connect, connect_messages, pattern, request, wait_until,
};
use vsock_core::Op;

const ECONNRESET: u16 = 104;

#[test]
fn burst_of_800_connects_of_a_guest_to_a_backlog_of_2048_is_let_in_whole() {
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut listener = Listener::new(&lab.path("host"), 6000, 2048);
    for port in 0..800 {
        let asks = guest.packet(Op::Request, 10_000 + port, (2, 6000));
        guest.queue(&asks, &[]);
    }
    guest.publish();
    let answers: HashSet<_> =
        (0..800).map(|_| guest.expect(Op::Response).header.dst_port).collect();
    assert_eq!(answers.len(), 800);
    // They come in order, and each is the connection that it says it is.
    let accepted: Vec<_> = (0..800).map(|_| listener.accept_with_addresses()).collect();
    for (at, (mut stream, addresses)) in (10_000..).zip(accepted) {
        assert_eq!(addresses, [2, 6000, 3, at]);
        stream.write_all(&at.to_le_bytes()).unwrap();
        let packet = guest.expect(Op::Rw);
        assert_eq!((packet.header.dst_port, packet.payload), (at, at.to_le_bytes().to_vec()));
    }
}

/// `backlog` + 1 connections wait, whichever way they come; the next is refused; and all can be accepted, with what they
/// have sent meanwhile.
fn fill(mut listener: Listener, backlog: usize, mut connect: impl FnMut() -> UnixStream) {
    let waiting: Vec<_> = (0..=backlog)
        .map(|number| {
            let mut stream = connect();
            stream.write_all(&number.to_le_bytes()).unwrap();
            stream
        })
        .collect();
    for number in 0..=backlog {
        let mut got = [0; size_of::<usize>()];
        listener.accept().read_exact(&mut got).unwrap();
        assert_eq!(usize::from_le_bytes(got), number);
    }
    drop(waiting);
}

#[test]
fn queue_is_as_long_as_asked_for_everywhere_a_program_can_listen() {
    let lab = Lab::new(2);
    let (host, a, b) = (lab.path("host"), lab.path("a"), lab.path("b"));
    for (backlog, from, to, cid) in [
        (300, &host, &host, 2),
        (300, &a, &host, 2),
        (300, &host, &a, 3),
        (300, &b, &a, 3),
        (1000, &a, &host, 2),
    ] {
        let listener = Listener::new(to, 6000, u32::try_from(backlog).unwrap());
        let mut left = backlog + 1;
        fill(listener, backlog, || {
            let stream = connect(from, cid, 6000).unwrap();
            left -= 1;
            if left == 0 {
                assert_eq!(connect(from, cid, 6000).unwrap_err(), ECONNRESET, "{cid}");
            }
            stream
        });
        wait_until("the port is free", || lab.switch.snapshot().unwrap().flows.is_empty());
    }
    let listener = Listener::of_messages(&a, 6000, 300);
    fill(listener, 300, || connect_messages(&host, 3, 6000));
}

#[test]
fn backlog_beyond_somaxconn_counts_as_that() {
    let lab = Lab::new(0);
    let mut listener = Listener::new(&lab.path("host"), 6000, u32::MAX);
    let backlog = || lab.switch.snapshot().unwrap().listeners[0].backlog;
    assert_eq!(backlog(), 4096);
    listener.0.write_all(&request(3, 0, 0, 5)).unwrap();
    wait_until("the new backlog", || backlog() == 5);
    listener.0.write_all(&request(3, 0, 0, 5000)).unwrap();
    wait_until("the new backlog", || backlog() == 4096);
}

#[test]
fn connections_that_wait_end_with_their_listener() {
    let lab = Lab::new(1);
    let listener = Listener::new(&lab.path("host"), 6000, 300);
    let mut clients: Vec<_> = (0..200).map(|_| connect(&lab.path("a"), 2, 6000).unwrap()).collect();
    drop(listener);
    for client in &mut clients {
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    }
    wait_until("nothing is left", || lab.switch.snapshot().unwrap().flows.is_empty());
}

#[test]
fn client_that_leaves_while_it_waits_is_accepted_with_what_it_sent() {
    let lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("host"), 6000, 300);
    let data = pattern(100_000, 1);
    for _ in 0..150 {
        connect(&lab.path("a"), 2, 6000).unwrap().write_all(&data).unwrap();
    }
    let mut other = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    assert_eq!(ask(&mut other, &request(6, 0, 0, 0)).0, 0);
    for _ in 0..150 {
        let mut got = Vec::new();
        listener.accept().read_to_end(&mut got).unwrap();
        assert!(got == data);
    }
}

#[test]
fn guest_that_fills_a_long_queue_leaves_places_to_others() {
    let lab = Lab::new(2);
    let mut listener = Listener::new(&lab.path("host"), 6000, 1023);
    drop((0..1024).map(|_| connect(&lab.path("a"), 2, 6000).unwrap()).collect::<Vec<_>>());
    assert_eq!(connect(&lab.path("b"), 2, 6000).unwrap_err(), ECONNRESET);
    drop((0..1024).map(|_| listener.accept()).collect::<Vec<_>>());
    // From a backlog of 1024 on, nobody gets more than are left.
    listener.0.write_all(&request(3, 0, 0, 1024)).unwrap();
    wait_until("the new backlog", || lab.switch.snapshot().unwrap().listeners[0].backlog == 1024);
    let mut fill = |from| {
        let open = std::iter::from_fn(|| connect(&lab.path(from), 2, 6000).ok());
        open.take(1025).collect::<Vec<_>>().len()
    };
    assert_eq!(["a", "b", "a", "b"].map(&mut fill), [513, 256, 0, 0]);
    // As the program takes some, both get places again.
    drop((0..600).map(|_| listener.accept()).collect::<Vec<_>>());
    assert!(["a", "b"].map(&mut fill).into_iter().all(|more| more > 100));
}
