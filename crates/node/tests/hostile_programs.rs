//! Programs that leave in the middle of something, or say it in an odd way.
//!
//! One test at a time, as some count the descriptors of the process.

#![allow(clippy::unwrap_used)] // tests panic

mod node_support;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use node_support::attack::alone;
use node_support::raw::RawGuest;
use node_support::{
    DEADLINE, Lab, Listener, connect, connect_messages, descriptors, pattern, request, wait_until,
};
use vsock_core::{EOM, Op, RawHeader};
use vsock_node::node::GuestOptions;

const HOST: u32 = 2;

fn is_nothing_left(lab: &Lab) -> bool {
    lab.switch.snapshot().unwrap().flows.is_empty()
}

#[test]
fn half_close_right_behind_the_hybrid_line_reaches_the_guest() {
    let _one = alone();
    let lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("a"), 5000, 8);
    for _ in 0..100 {
        let mut program = UnixStream::connect(lab.path("a.vsock")).unwrap();
        program.write_all(b"CONN").unwrap();
        // The switch has heard of it when it answers this.
        lab.switch.snapshot().unwrap();
        program.write_all(b"ECT 5000\nhello").unwrap();
        program.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        listener.accept().read_to_end(&mut got).unwrap();
        assert_eq!(got, b"hello");
    }
}

#[test]
fn program_that_leaves_within_a_request_keeps_no_descriptor() {
    let _one = alone();
    let lab = Lab::new(0);
    let socket = lab.path("host").join("stream");
    let before = descriptors();
    for cut in [1, 31] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(&request(2, 3, 5000, 0)[..cut]).unwrap();
    }
    // A listener, too, and its port.
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    listener.0.write_all(&[1; 5]).unwrap();
    drop(listener);
    wait_until("all is closed", || descriptors() == before);
    Listener::new(&lab.path("host"), 6000, 8);
}

#[test]
fn requests_in_one_go_are_answered_in_order() {
    let _one = alone();
    let lab = Lab::new(0);
    let mut stream = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let count = 200;
    let mut writer = stream.try_clone().unwrap();
    let requests = request(6, 0, 0, 0).repeat(count);
    let sender = std::thread::spawn(move || writer.write_all(&requests).unwrap());
    for _ in 0..count {
        let mut reply = [0; 32];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!((reply[1], reply[4]), (6, 2));
    }
    sender.join().unwrap();
}

/// Whether a program may have a privileged port is looked up by another thread than the worker.
#[test]
fn request_behind_a_bind_of_a_privileged_port_waits_for_its_turn() {
    let _one = alone();
    let lab = Lab::new(0);
    for port in 1..=64 {
        let mut stream = UnixStream::connect(lab.path("host").join("stream")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let requests = [request(1, u32::MAX, port, 0), request(6, 0, 0, 0)].concat();
        stream.write_all(&requests).unwrap();
        let mut replies = [0; 64];
        stream.read_exact(&mut replies).unwrap();
        assert_eq!((replies[1], replies[33]), (1, 6), "port {port}");
    }
}

#[test]
fn program_that_leaves_while_its_bind_waits_keeps_no_descriptor() {
    let _one = alone();
    let lab = Lab::new(0);
    let before = descriptors();
    for port in 1..=64 {
        let mut stream = UnixStream::connect(lab.path("host").join("stream")).unwrap();
        stream.write_all(&request(1, u32::MAX, port, 0)).unwrap();
    }
    wait_until("all is closed", || descriptors() == before);
}

/// A guest that accepts a program's connection of messages.
fn connected_messages(lab: &Lab, guest: &mut RawGuest) -> (UnixStream, RawHeader) {
    let path = lab.path("host");
    let program = std::thread::spawn(move || connect_messages(&path, 3, 7000));
    let asked = guest.expect(Op::Request).header;
    let answer = RawHeader { kind: 2, ..guest.packet(Op::Response, 7000, (HOST, asked.src_port)) };
    guest.send(&answer, &[]);
    let program = program.join().unwrap();
    program.set_read_timeout(Some(DEADLINE)).unwrap();
    (program, answer)
}

/// The next message of the host.
fn message(guest: &mut RawGuest) -> Vec<u8> {
    let mut message = Vec::new();
    loop {
        let packet = guest.expect(Op::Rw);
        message.extend(packet.payload);
        if packet.header.flags & EOM != 0 {
            return message;
        }
    }
}

/// A guest that accepts a program's stream.
fn connected_stream(lab: &Lab, guest: &mut RawGuest) -> (UnixStream, RawHeader) {
    let path = lab.path("host");
    let program = std::thread::spawn(move || connect(&path, 3, 7000).unwrap());
    let asked = guest.expect(Op::Request).header;
    let answer = guest.packet(Op::Response, 7000, (HOST, asked.src_port));
    guest.send(&answer, &[]);
    let program = program.join().unwrap();
    program.set_read_timeout(Some(DEADLINE)).unwrap();
    (program, answer)
}

#[test]
fn program_that_reads_no_more_is_passed_on_before_anything_is_sent() {
    let _one = alone();
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    for is_reading in [false, true] {
        let (mut program, answer) = connected_stream(&lab, &mut guest);
        if is_reading {
            let data = RawHeader { op: Op::Rw.to_wire(), ..answer };
            guest.send_data(&data, b"read");
            program.read_exact(&mut [0; 4]).unwrap();
            guest.send_data(&data, b"never read");
        }
        program.shutdown(Shutdown::Read).unwrap();
        assert_eq!(guest.expect(Op::Shutdown).header.flags, 1);
        // The other direction goes on.
        program.write_all(b"still").unwrap();
        assert_eq!(guest.expect(Op::Rw).payload, b"still");
        drop(program);
        let end = guest.expect(Op::Shutdown).header;
        assert_eq!(end.flags | 1, 3);
        guest.send(&RawHeader { op: Op::Rst.to_wire(), ..answer }, &[]);
        wait_until("the flow is gone", || is_nothing_left(&lab));
    }
}

#[test]
fn program_whose_peer_has_ended_is_not_taken_to_read_no_more() {
    let _one = alone();
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let (mut program, answer) = connected_stream(&lab, &mut guest);
    let data = RawHeader { op: Op::Rw.to_wire(), ..answer };
    let sent = pattern(100_000, 4);
    sent.chunks(50_000).for_each(|piece| guest.send_data(&data, piece));
    guest.send(&RawHeader { op: Op::Shutdown.to_wire(), flags: 2, ..answer }, &[]);
    let mut got = vec![0; sent.len()];
    // Each read is an event without news.
    got.chunks_mut(1000).for_each(|piece| program.read_exact(piece).unwrap());
    assert!(got == sent);
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    program.write_all(b"answer").unwrap();
    loop {
        let packet = guest.receive();
        assert!(packet.op() != Op::Shutdown, "flags {}", packet.header.flags);
        if packet.op() == Op::Rw {
            assert_eq!(packet.payload, b"answer");
            break;
        }
    }
}

#[test]
fn message_of_a_program_that_left_at_once_arrives_whole() {
    let _one = alone();
    let lab = Lab::new(0);
    // Far less room than the message needs.
    let mut guest = RawGuest::with_buffers(&lab.path("a.sock"), 4);
    let (mut program, _) = connected_messages(&lab, &mut guest);
    let sent = pattern(150_000, 3);
    assert_eq!(program.write(&sent).unwrap(), sent.len());
    drop(program);
    assert!(message(&mut guest) == sent);
    let end = guest.expect(Op::Shutdown).header;
    assert_eq!(end.flags, 3);
}

#[test]
fn messages_behind_an_empty_one_arrive() {
    let _one = alone();
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let (program, _) = connected_messages(&lab, &mut guest);
    for round in 0..20u8 {
        for text in [&[][..], &[], &[round]] {
            rustix::net::send(&program, text, rustix::net::SendFlags::empty()).unwrap();
        }
        assert_eq!(message(&mut guest), [round]);
    }
}

#[test]
fn longest_message_that_the_buffer_allows_arrives() {
    let _one = alone();
    let lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let (mut program, answer) = connected_messages(&lab, &mut guest);
    let sent = pattern(262_144, 4);
    let data = RawHeader { op: Op::Rw.to_wire(), ..answer };
    for (index, part) in sent.chunks(65536).enumerate() {
        let flags = if index == 3 { EOM } else { 0 };
        guest.send_data(&RawHeader { flags, ..data }, part);
    }
    let mut got = vec![0; 300_000];
    let len = program.read(&mut got).unwrap();
    assert!(got[..len] == sent, "{len}");
}

#[test]
fn programs_of_a_guest_that_stops_read_the_end() {
    let _one = alone();
    let mut lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    let mut ours = connect(&lab.path("a"), 2, 6000).unwrap();
    let _unread = listener.accept();
    ours.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    while ours.write(&[7; 65536]).is_ok() {}
    lab.guests.clear();
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(ours.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(ours.write(&[1]).unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn flow_of_a_removed_guest_has_no_say_over_the_next_one() {
    let _one = alone();
    let lab = Lab::new(0);
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    let mut old = RawGuest::join(&lab.path("a.sock"));
    old.open(1, (HOST, 6000));
    let slow = listener.accept();
    let data = old.packet(Op::Rw, 1, (HOST, 6000));
    for _ in 0..4 {
        old.send_data(&data, &[1; 65536]);
    }
    wait_until("all is taken", || {
        lab.switch.snapshot().unwrap().flows.iter().any(|flow| flow.bytes_out == 262_144)
    });
    lab.switch.remove_guest(3).unwrap();

    let socket = lab.path("again.sock");
    lab.switch
        .add_guest(GuestOptions {
            name: "again".into(),
            cid: 3,
            socket: socket.clone(),
            ..GuestOptions::default()
        })
        .unwrap();
    let mut new = RawGuest::join(&socket);
    new.open(1, (HOST, 6000));
    let _program = listener.accept();
    drop(slow);
    wait_until("the old flow is gone", || lab.switch.snapshot().unwrap().flows.len() == 1);
    let question = new.packet(Op::CreditRequest, 1, (HOST, 6000));
    for _ in 0..2 {
        new.send(&question, &[]);
        assert_eq!(new.receive().op(), Op::CreditUpdate);
    }
}

#[test]
fn flow_whose_program_left_ends_when_the_guest_takes_nothing_and_lives_while_it_does() {
    let _one = alone();
    let lab = Lab::new(0);
    lab.switch.set_linger_timeout(Duration::from_secs(3)).unwrap();
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    let (mut a, mut b) = (
        RawGuest::with_buffers(&lab.path("a.sock"), 2),
        RawGuest::with_buffers(&lab.path("b.sock"), 2),
    );
    // a takes nothing at all; two programs leave, one of them with nothing to say.
    a.open(1, (HOST, 6000));
    let mut busy = listener.accept();
    a.open(2, (HOST, 6000));
    let quiet = listener.accept();
    busy.write_all(&[1; 32768]).unwrap();
    wait_until("the ring is full", || {
        lab.switch.snapshot().unwrap().flows.iter().any(|flow| flow.bytes_in == 8192)
    });
    drop((busy, quiet));
    // b takes a little all the time, for longer than one that takes nothing is waited for.
    b.open(1, (HOST, 6000));
    let mut slow = listener.accept();
    slow.write_all(&[2; 131_072]).unwrap();
    drop(slow);
    let start = Instant::now();
    let mut got = 0;
    while start.elapsed() < Duration::from_secs(5) {
        rustix::event::poll(&mut [], Some(&Duration::from_millis(800).try_into().unwrap()))
            .unwrap();
        got += b.expect(Op::Rw).payload.len();
    }
    wait_until("a's flows are gone", || {
        lab.switch.snapshot().unwrap().flows.iter().all(|flow| flow.source.cid.0 == 4)
    });
    while got < 131_072 {
        got += b.expect(Op::Rw).payload.len();
    }
    let end = b.expect(Op::Shutdown).header;
    let answer = RawHeader { op: Op::Rst.to_wire(), ..b.packet(Op::Rst, 1, (HOST, 6000)) };
    assert_eq!(end.flags, 3);
    b.send(&answer, &[]);
    wait_until("nothing is left", || is_nothing_left(&lab));
}
