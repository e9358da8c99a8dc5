//! Programs and guests that take as many connections as they can get: others get theirs, and the control plane goes on.

#![allow(clippy::unwrap_used)] // tests panic

mod node_support;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use node_support::attack::alone;
use node_support::raw::RawGuest;
use node_support::{DEADLINE, Lab, Listener, ask, connect, node_counter, request, wait_until};
use rustix::io::Errno;
use vsock_core::Op;
use vsock_node::node::NodeOptions;

const HOST: u32 = 2;
const LOCAL_CID: u8 = 6;

/// A switch that shares out so few descriptors, and has one userspace guest.
fn lab_of(descriptors: usize) -> Lab {
    Lab::with(1, NodeOptions { descriptors, ..NodeOptions::default() })
}

fn open(lab: &Lab) -> UnixStream {
    let stream = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Whether a program that asks is answered; if not, its connection has ended.
fn is_answered(program: &mut UnixStream) -> bool {
    let asked = program.write_all(&request(LOCAL_CID, 0, 0, 0));
    match asked.and_then(|()| program.read_exact(&mut [0; 32])) {
        Ok(()) => true,
        Err(error) => {
            let ends =
                [ErrorKind::UnexpectedEof, ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
            assert!(ends.contains(&error.kind()), "{error}");
            false
        }
    }
}

#[test]
fn user_with_many_connections_gets_no_more_and_guests_get_theirs() {
    let _one = alone();
    let lab = lab_of(64);
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    let mut programs = Vec::new();
    loop {
        let mut program = open(&lab);
        if !is_answered(&mut program) {
            break;
        }
        programs.push(program);
    }
    // Of 64 descriptors 16 are left for the node, and of the others a quarter for other users; one is the listener's.
    assert_eq!(programs.len(), 64 - 16 - 12 - 1);
    assert_eq!(node_counter(&lab.switch, "refused_user_over_limits"), 1);
    let guest = connect(&lab.path("a"), HOST, 6000).unwrap();
    drop((listener.accept(), guest));
    programs.pop();
    wait_until("one more is let in", || is_answered(&mut open(&lab)));
}

#[test]
fn guest_with_many_connections_gets_no_more_and_programs_get_theirs() {
    let _one = alone();
    let lab = lab_of(64);
    let mut listener = Listener::new(&lab.path("host"), 6000, 64);
    let mut pairs = Vec::new();
    let refused = loop {
        match connect(&lab.path("a"), HOST, 6000) {
            Ok(guest) => pairs.push((guest, listener.accept())),
            Err(errno) => break errno,
        }
    };
    assert_eq!((pairs.len(), i32::from(refused)), (48 / 4, Errno::CONNRESET.raw_os_error()));
    assert_eq!(node_counter(&lab.switch, "refused_over_limits"), 1);
    assert!(is_answered(&mut open(&lab)));
    pairs.pop();
    wait_until("one more is let in", || connect(&lab.path("a"), HOST, 6000).is_ok());
}

#[test]
fn programs_beyond_what_is_left_for_them_wait_until_others_leave() {
    let _one = alone();
    let lab = lab_of(64);
    // All that guests and one user may have: 48.
    let mut listener = Listener::new(&lab.path("host"), 6000, 64);
    let accept = |_| (connect(&lab.path("a"), HOST, 6000).unwrap(), listener.accept());
    let pairs: Vec<_> = (0..12).map(accept).collect();
    let programs: Vec<_> = (1..36)
        .map(|_| {
            let mut program = open(&lab);
            assert!(is_answered(&mut program));
            program
        })
        .collect();
    let mut waiting = open(&lab);
    waiting.write_all(&request(LOCAL_CID, 0, 0, 0)).unwrap();
    assert_eq!(lab.switch.snapshot().unwrap().flows.len(), 12);
    drop((pairs, programs));
    waiting.read_exact(&mut [0; 32]).unwrap();
}

#[test]
fn oldest_program_that_says_nothing_makes_room_for_the_next() {
    let _one = alone();
    let lab = lab_of(usize::MAX);
    let mut silent: Vec<_> = (0..513).map(|_| open(&lab)).collect();
    // One that has said half a request says nothing either.
    silent[1].write_all(&[1; 5]).unwrap();
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0);
    let mut next = open(&lab);
    assert!(is_answered(&mut next));
    assert!(silent[1].read(&mut [0]).is_err() || !is_answered(&mut silent[1]));
    assert!(is_answered(&mut silent[2]) && is_answered(&mut next));
}

#[test]
fn user_that_waits_for_many_answers_of_a_guest_asks_for_no_more() {
    let _one = alone();
    let lab = Lab::with(0, NodeOptions::default());
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let waiting: Vec<_> = (0..512)
        .map(|_| {
            let mut program = open(&lab);
            program.write_all(&request(2, 3, 7000, u32::MAX)).unwrap();
            program
        })
        .collect();
    (0..512).for_each(|_| drop(guest.expect(Op::Request)));
    let refused = ask(&mut open(&lab), &request(2, 3, 7000, u32::MAX)).0;
    assert_eq!(i32::from(refused), Errno::NOBUFS.raw_os_error());
    assert_eq!(node_counter(&lab.switch, "refused_user_over_limits"), 1);
    // Another guest is asked all the same.
    let mut other = RawGuest::join(&lab.path("b.sock"));
    let mut program = open(&lab);
    program.write_all(&request(2, 4, 7000, 0)).unwrap();
    other.expect(Op::Request);
    drop(waiting);
}
