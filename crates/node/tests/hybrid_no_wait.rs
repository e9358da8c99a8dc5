//! F1: programs on a hybrid socket that do not wait for OK. What they have written reaches the guest, then the end.

#![allow(clippy::unwrap_used)] // tests panic

mod node_support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use node_support::raw::RawGuest;
use node_support::{DEADLINE, Lab, Listener, pattern, wait_until};
use vsock_core::Op;

/// Plays of each way to leave: where the switch stands then is a race.
const PLAYS: usize = 50;

/// What a guest reads from a program that does `leave` on the hybrid socket, `PLAYS` times.
fn play(leave: impl Fn(UnixStream) -> Option<UnixStream>) {
    let lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("a"), 5000, 8);
    for play in 0..PLAYS {
        let kept = leave(UnixStream::connect(lab.path("a.vsock")).unwrap());
        let mut got = Vec::new();
        let mut theirs = listener.accept();
        if let Some(mut program) = kept {
            let mut x = [0; 1];
            theirs.read_exact(&mut x).unwrap();
            program.write_all(b"more").unwrap();
            drop(program);
            got.extend(x);
            theirs.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"xmore", "play {play}");
        } else {
            theirs.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"x", "play {play}");
        }
    }
    wait_until("nothing is left", || lab.switch.snapshot().unwrap().flows.is_empty());
}

#[test]
fn program_that_closes_right_behind_line_and_byte_has_sent_the_byte() {
    play(|mut program| {
        program.write_all(b"CONNECT 5000\nx").unwrap();
        None
    });
}

#[test]
fn program_that_closes_behind_line_and_byte_in_two_writes_has_sent_the_byte() {
    play(|mut program| {
        program.write_all(b"CONNECT 5000\n").unwrap();
        program.write_all(b"x").unwrap();
        None
    });
}

#[test]
fn program_that_half_closes_and_closes_has_sent_the_byte() {
    play(|mut program| {
        program.write_all(b"CONNECT 5000\nx").unwrap();
        program.shutdown(Shutdown::Write).unwrap();
        None
    });
}

#[test]
fn program_that_shuts_both_directions_and_stays_has_sent_the_byte() {
    let lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("a"), 5000, 8);
    for _ in 0..PLAYS {
        let mut program = UnixStream::connect(lab.path("a.vsock")).unwrap();
        program.write_all(b"CONNECT 5000\nx").unwrap();
        program.shutdown(Shutdown::Both).unwrap();
        let mut got = Vec::new();
        listener.accept().read_to_end(&mut got).unwrap();
        assert_eq!(got, b"x");
    }
}

#[test]
fn program_that_only_reads_no_more_goes_on_sending() {
    play(|mut program| {
        program.write_all(b"CONNECT 5000\nx").unwrap();
        program.shutdown(Shutdown::Read).unwrap();
        Some(program)
    });
}

#[test]
fn program_that_is_long_gone_when_the_guest_answers_has_sent_all() {
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let data = pattern(100_000, 1);
    let mut program = UnixStream::connect(lab.path("a.vsock")).unwrap();
    program.write_all(b"CONNECT 5000\n").unwrap();
    program.write_all(&data).unwrap();
    let asked = guest.expect(Op::Request).header;
    drop(program);
    // It has heard of the close when it answers this.
    lab.switch.snapshot().unwrap();
    guest.send(&guest.packet(Op::Response, 5000, (2, asked.src_port)), &[]);
    let mut got = Vec::new();
    let end = loop {
        let packet = guest.receive();
        if packet.op() != Op::Rw {
            break packet;
        }
        got.extend(packet.payload);
    };
    assert_eq!((end.op(), end.header.flags), (Op::Shutdown, 3));
    assert_eq!(got.len(), data.len());
    assert!(got == data);
}

#[test]
fn program_that_leaves_with_nothing_said_gives_its_attempt_up() {
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut program = UnixStream::connect(lab.path("a.vsock")).unwrap();
    program.set_read_timeout(Some(DEADLINE)).unwrap();
    program.write_all(b"CONNECT 5000\n").unwrap();
    let asked = guest.expect(Op::Request).header;
    drop(program);
    wait_until("the attempt is over", || lab.switch.snapshot().unwrap().flows.is_empty());
    guest.send(&guest.packet(Op::Response, 5000, (2, asked.src_port)), &[]);
    assert_eq!(guest.expect(Op::Rst).header.src_port, asked.src_port);
}
