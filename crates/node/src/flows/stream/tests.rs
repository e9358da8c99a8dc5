//! One stream against a program that is played by hand.

use super::*;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketFlags, SocketType as NetType, socketpair};

use crate::flows::record;
use crate::host::socket::Sockets;
use crate::links::End;
use crate::reactor::{Owner, SourceId};
use vsock_guest_memory::sealed_memory;
use vsock_guest_memory::slice::{self, Slices};

fn stream() -> (Stream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Stream::new(Sockets::alone().adopt(ours.into()), SocketType::Stream), theirs)
}

#[test]
fn finished_stream_with_unread_data_reads_as_end_not_as_reset() {
    let (stream, mut program) = stream();
    program.write_all(b"never read").unwrap();
    stream.finish();
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    let error = program.write(b"x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn closed_stream_is_told_from_a_half_closed_one_before_any_event() {
    let (mut stream, program) = stream();
    program.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(!stream.is_closed());
    drop(program);
    assert!(stream.is_closed());
}

#[test]
fn full_socket_told_of_data_and_shut_rd_by_one_event_finds_both() {
    let (mut stream, mut program) = stream();
    let mut reactor = crate::reactor::Sources::new().unwrap();
    reactor.add(stream.fd(), Owner::Flow).unwrap();
    while send(&stream.fd, &[0; 4096], SendFlags::DONTWAIT).is_ok() {}
    let (mut events, mut happened) = (crate::reactor::Events::new(), Vec::new());
    let no_time = Some(std::time::Duration::ZERO);
    reactor.wait(no_time, &mut events, &mut happened).unwrap();
    (stream.readable, stream.writable) = (false, false);
    happened.clear();
    program.write_all(b"enough").unwrap();
    program.shutdown(std::net::Shutdown::Read).unwrap();
    reactor.wait(no_time, &mut events, &mut happened).unwrap();
    assert_eq!(happened.len(), 1);
    assert!(stream.note(happened[0]));
    assert!(stream.take_suspicion() && stream.stops_receiving().is_some());
}

#[test]
fn read_after_half_close_gives_the_rest_then_the_end() {
    let (mut stream, mut program) = stream();
    program.write_all(b"last words").unwrap();
    program.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(stream.note(Readiness {
        source: SourceId::from_bits(0).unwrap(),
        readable: true,
        writable: true,
        urgent: false,
        read_closed: true,
        hung_up: false,
    }));
    let mut scratch = [0; 64];
    assert_eq!(stream.read_message(&mut scratch).unwrap(), (Read::Bytes(10), End::Message));
    assert!(stream.readable);
    assert_eq!(stream.read_message(&mut scratch).unwrap(), (Read::End, End::None));
}

#[test]
fn bytes_behind_descriptors_of_the_program_are_read_without_another_event() {
    let (mut stream, mut program) = stream();
    record::send_record(&program, b"with a descriptor").unwrap();
    program.write_all(b"and more").unwrap();
    let (_file, memory) = sealed_memory("room", 0x1000, 0x1000).unwrap();
    let mut room = Slices::new();
    memory.slice(0x1000, 0x1000, &mut room).unwrap();
    assert_eq!(stream.read(&room).unwrap(), Read::Bytes(17));
    assert!(stream.readable);
    assert_eq!(stream.read(&room).unwrap(), Read::Bytes(8));
    assert!(!stream.readable);
}

#[test]
fn bytes_behind_an_urgent_byte_are_read_without_another_event() {
    let (mut stream, mut program) = stream();
    let mut reactor = crate::reactor::Sources::new().unwrap();
    reactor.add(stream.fd(), Owner::Flow).unwrap();
    program.write_all(b"before").unwrap();
    match send(&program, b"!", SendFlags::OOB) {
        Ok(_) => {}
        // A kernel without CONFIG_AF_UNIX_OOB has no urgent bytes.
        Err(rustix::io::Errno::OPNOTSUPP) => return,
        Err(error) => panic!("{error}"),
    }
    program.write_all(b"behind").unwrap();
    let (mut events, mut happened) = (crate::reactor::Events::new(), Vec::new());
    let no_time = Some(std::time::Duration::ZERO);
    reactor.wait(no_time, &mut events, &mut happened).unwrap();
    assert!(stream.note(happened[0]));
    let (_file, memory) = sealed_memory("room", 0x1000, 0x1000).unwrap();
    let mut room = Slices::new();
    memory.slice(0x1000, 0x1000, &mut room).unwrap();
    for expected in [Read::Bytes(6), Read::Bytes(6), Read::Empty] {
        assert!(stream.readable);
        assert_eq!(stream.read(&room).unwrap(), expected);
    }
    assert!(!stream.readable);
    program.write_all(b"ordinary").unwrap();
    happened.clear();
    reactor.wait(no_time, &mut events, &mut happened).unwrap();
    assert!(stream.note(happened[0]));
    assert_eq!(stream.read(&room).unwrap(), Read::Bytes(8));
    assert!(!stream.readable, "one read suffices again");
}

/// A stream of messages, its program, and the reactor that listens to it.
fn messages() -> (Stream, OwnedFd, crate::reactor::Sources) {
    let (ours, program) =
        socketpair(AddressFamily::UNIX, NetType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let mut reactor = crate::reactor::Sources::new().unwrap();
    reactor.add(ours.as_fd(), Owner::Flow).unwrap();
    (Stream::new(Sockets::alone().adopt(ours), SocketType::SeqPacket), program, reactor)
}

/// Sends one-byte records, which are told from another by their bytes.
fn send_records(stream: &mut Stream, bytes: std::ops::Range<u8>) -> Vec<Taken> {
    let (_file, memory) = sealed_memory("records", 0x1000, 0x1000).unwrap();
    let mut piece = Slices::new();
    memory.slice(0x1000, 1, &mut piece).unwrap();
    let send = |byte| {
        slice::copy_in(&piece, &[byte]);
        stream.deliver(&piece, 1, End::Record).unwrap()
    };
    bytes.map(send).collect()
}

/// What epoll has to say, as the worker hears it.
fn listen(stream: &mut Stream, reactor: &mut crate::reactor::Sources) -> Taken {
    let (mut events, mut happened) = (crate::reactor::Events::new(), Vec::new());
    reactor.wait(Some(std::time::Duration::ZERO), &mut events, &mut happened).unwrap();
    for ready in happened {
        stream.note(ready);
    }
    stream.flush().unwrap()
}

#[test]
fn records_wait_until_the_mark_before_them_is_read_and_come_in_order() {
    let (mut stream, program, mut reactor) = messages();
    let taken = send_records(&mut stream, 0..100);
    assert_eq!(taken.iter().map(|it| it.packets).sum::<u32>(), 1);
    assert_eq!(listen(&mut stream, &mut reactor), Taken::default());
    let program = Sockets::alone().adopt(program);
    let mut scratch = [0; 8];
    for byte in 0..100 {
        assert_eq!(record::receive(&program, &mut scratch).unwrap(), (1, true));
        assert_eq!(scratch[0], byte);
        let more = record::receive(&program, &mut scratch).unwrap_err();
        assert_eq!(more.kind(), io::ErrorKind::WouldBlock, "one mark at a time");
        assert_eq!(listen(&mut stream, &mut reactor).packets, u32::from(byte < 99));
    }
}

#[test]
fn program_that_shuts_its_reading_down_with_a_mark_unread_is_known_to_read_no_more() {
    let (mut stream, program, mut reactor) = messages();
    send_records(&mut stream, 0..10);
    listen(&mut stream, &mut reactor);
    assert_eq!(stream.look_at_reader(), Taken::default());
    rustix::net::shutdown(&program, Shutdown::Read).unwrap();
    listen(&mut stream, &mut reactor);
    let taken = stream.look_at_reader();
    assert_eq!(taken, Taken { bytes: 9, packets: 9, stops_receiving: true });
    assert!(!stream.awaits_reader);
}

#[test]
fn messages_are_handed_over_some_at_a_time() {
    let (mut stream, program, mut reactor) = messages();
    stream.writable = false;
    let (_file, memory) = sealed_memory("messages", 0x1000, 0x1000).unwrap();
    let mut piece = Slices::new();
    memory.slice(0x1000, 1, &mut piece).unwrap();
    for _ in 0..100 {
        assert_eq!(stream.deliver(&piece, 1, End::Message).unwrap(), Taken::default());
    }
    let mut taken = vec![listen(&mut stream, &mut reactor).packets];
    while stream.has_more() {
        taken.push(stream.flush().unwrap().packets);
    }
    assert_eq!((taken.iter().sum(), taken.len()), (100, 4));
    drop(program);
}

#[test]
fn record_that_waits_for_its_reader_makes_no_work() {
    let (mut stream, program, mut reactor) = messages();
    send_records(&mut stream, 0..10);
    let (mut events, mut happened) = (crate::reactor::Events::new(), Vec::new());
    let no_time = Some(std::time::Duration::ZERO);
    for _ in 0..2 {
        listen(&mut stream, &mut reactor);
        reactor.wait(no_time, &mut events, &mut happened).unwrap();
        assert!(stream.awaits_reader && happened.is_empty(), "{happened:?}");
        // This makes the socket writable; what is done about that does not.
        assert_eq!(stream.look_at_reader(), Taken::default());
    }
    drop(program);
}
