//! Programs that send descriptors along with their bytes. Each is tried twice: refused as since Linux 6.16, and taken in as before.
//!
//! What is done with descriptors whose close hangs is shown in `host/socket.rs` and `reaper.rs`.

#![allow(clippy::unwrap_used)] // tests panic

mod node_support;

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use node_support::attack::alone;
use node_support::raw::RawGuest;
use node_support::{
    DEADLINE, Lab, Listener, ask, connect, connect_messages, descriptors, request, wait_until,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketType, sendmsg, socket,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use vsock_core::Op;
use vsock_node::node::NodeOptions;
use vsock_virtio::sys::refuse_descriptors;

const HOST: u32 = 2;
const LOCAL_CID: u8 = 6;

/// A lab of each kind, and whether its sockets take descriptors.
fn labs(joined: usize) -> impl Iterator<Item = (Lab, bool)> {
    let (one, _other) = UnixStream::pair().unwrap();
    let can_refuse = refuse_descriptors(one.as_fd()).unwrap();
    [true, false].into_iter().map(move |refuse_descriptors| {
        let options = NodeOptions { refuse_descriptors, ..NodeOptions::default() };
        let lab = Lab::with(joined, options);
        (lab, !(refuse_descriptors && can_refuse))
    })
}

/// Sends bytes with some descriptors, or without if the socket takes none.
fn send(mut socket: &UnixStream, bytes: &[u8], takes: bool) {
    let file = File::open("/dev/null").unwrap();
    let fds = [file.as_fd(); 10];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    assert_eq!(sent, if takes { Ok(bytes.len()) } else { Err(Errno::PERM) });
    if !takes {
        socket.write_all(bytes).unwrap();
    }
}

/// A program that has connected to a socket of the switch.
fn open(lab: &Lab, name: &str) -> UnixStream {
    let kind = if name == "stream" { SocketType::STREAM } else { SocketType::SEQPACKET };
    let fd = socket(AddressFamily::UNIX, kind, None).unwrap();
    let address = SocketAddrUnix::new(lab.path("host").join(name)).unwrap();
    rustix::net::connect(&fd, &address).unwrap();
    let stream = UnixStream::from(fd);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[test]
fn requests_with_descriptors_are_answered_and_nothing_is_kept() {
    let _one = alone();
    for (lab, takes) in labs(0) {
        let before = descriptors();
        for (name, takes) in [("stream", takes), ("seqpacket", true), ("dgram", takes)] {
            let mut program = open(&lab, name);
            for _ in 0..100 {
                send(&program, &request(LOCAL_CID, 0, 0, 0), takes);
                program.read_exact(&mut [0; 32]).unwrap();
            }
            // Half a request, which stays unread.
            send(&program, &[1; 5], takes);
        }
        let hybrid = UnixStream::connect(lab.path("a.vsock")).unwrap();
        send(&hybrid, b"no CONNECT\n", takes);
        drop(hybrid);
        wait_until("all is closed", || descriptors() == before);
    }
}

#[test]
fn bytes_with_descriptors_arrive_on_connections_of_either_side() {
    let _one = alone();
    for (lab, takes) in labs(1) {
        let before = descriptors();
        let mut listener = Listener::new(&lab.path("a"), 5000, 8);
        let program = connect(&lab.path("host"), 3, 5000).unwrap();
        let mut hybrid = UnixStream::connect(lab.path("a.vsock")).unwrap();
        hybrid.write_all(b"CONNECT 5000\n").unwrap();
        let mut its_listener = Listener::new(&lab.path("host"), 6000, 8);
        let of_guest = connect(&lab.path("a"), HOST, 6000).unwrap();
        let path = UnixListener::bind(lab.path("a.vsock_7000")).unwrap();
        let of_guest_too = connect(&lab.path("a"), HOST, 7000).unwrap();
        let pairs = [
            (program, listener.accept()),
            (hybrid, listener.accept()),
            (its_listener.accept(), of_guest),
            (path.accept().unwrap().0, of_guest_too),
        ];
        for (program, mut other) in pairs {
            for _ in 0..100 {
                send(&program, b"bytes", takes);
                let mut got = [0; 5];
                other.read_exact(&mut got).unwrap();
                assert_eq!(&got, b"bytes");
            }
        }
        drop((path, listener, its_listener));
        wait_until("all is closed", || descriptors() == before);
    }
}

#[test]
fn records_are_marked_and_nothing_is_kept_of_their_marks() {
    let _one = alone();
    let few = Rlimit { current: Some(1024), maximum: Some(1024) };
    setrlimit(Resource::Nofile, few).unwrap();
    for (lab, _) in labs(0) {
        let before = descriptors();
        let mut guest = RawGuest::join(&lab.path("a.sock"));
        let path = lab.path("host");
        let program = std::thread::spawn(move || connect_messages(&path, 3, 7000));
        let asked = guest.expect(Op::Request).header;
        let answer = guest.packet(Op::Response, 7000, (HOST, asked.src_port));
        guest.send(&vsock_core::RawHeader { kind: 2, ..answer }, &[]);
        let mut program = program.join().unwrap();
        // Many more descriptors than may wait to be closed, in as many packets as a guest bears that takes none.
        let writer = std::thread::spawn(move || {
            for _ in 0..200 {
                send(&program, b"record", true);
                program.write_all(b"message").unwrap();
            }
        });
        for _ in 0..200 {
            assert_eq!(guest.expect(Op::Rw).header.flags, vsock_core::EOM | vsock_core::EOR);
            assert_eq!(guest.expect(Op::Rw).header.flags, vsock_core::EOM);
        }
        writer.join().unwrap();
        drop(guest);
        wait_until("all is closed", || descriptors() == before);
    }
}

#[test]
fn program_behind_one_that_sends_descriptors_is_served() {
    let _one = alone();
    let (lab, _) = labs(0).last().unwrap();
    let attacker = open(&lab, "stream");
    for _ in 0..100 {
        send(&attacker, &request(LOCAL_CID, 0, 0, 0), true);
    }
    assert_eq!(ask(&mut open(&lab, "stream"), &request(LOCAL_CID, 0, 0, 0)).0, 0);
}
