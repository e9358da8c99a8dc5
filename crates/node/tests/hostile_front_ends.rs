//! Front ends that try to stop the switch: what they hand over must not make the worker wait.

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod node_support;

use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use node_support::vmm::{Vmm, exchange, exchange_from_guest, switch};
use node_support::{DEADLINE, Directory, Lab, node_counter, wait_until};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vsock_node::node::{GuestOptions, Node};
use vsock_node::snapshot::GuestState;
use vsock_virtio::link::driver::DriverOptions;

/// User-Mode Linux has sockets to be signalled on: they get what the worker signals, by way of the control thread.
#[test]
fn front_end_with_sockets_for_calls_is_signalled_on_them() {
    let directory = Directory::new();
    let mut ends = Vec::new();
    let (mut vmm, mut guest) = Vmm::boot_with(&DriverOptions::default(), || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ends.push(ours);
        theirs.into_raw_fd()
    });
    let _switch = switch(&directory);
    vmm.connect(&directory.0.join("a.sock"));
    exchange(&directory, &mut guest, 5000);
    exchange_from_guest(&directory, &mut guest, 6000);
    let mut signal = [0; 8];
    ends[0].set_read_timeout(Some(DEADLINE)).unwrap();
    ends[0].read_exact(&mut signal).unwrap();
    assert_eq!(u64::from_ne_bytes(signal), 1);
}

/// A full pipe has signals waiting, and nobody waits for room in it.
#[test]
fn front_end_that_reads_none_of_its_signals_is_served() {
    let directory = Directory::new();
    let mut readers = Vec::new();
    let (mut vmm, mut guest) = Vmm::boot_with(&DriverOptions::default(), || {
        let (reader, writer) = std::io::pipe().unwrap();
        (&writer).write_all(&[0; 65536]).unwrap();
        readers.push(reader);
        writer.into_raw_fd()
    });
    let _switch = switch(&directory);
    vmm.connect(&directory.0.join("a.sock"));
    exchange(&directory, &mut guest, 5000);
    exchange_from_guest(&directory, &mut guest, 6000);
}

/// A TCP socket whose close(2) waits for its peer to read, for as long as it says (SO_LINGER), and that peer.
fn lingering_socket() -> (TcpStream, TcpStream) {
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(door.local_addr().unwrap()).unwrap();
    let (peer, _) = door.accept().unwrap();
    set_socket_linger(&ours, Some(Duration::from_secs(3600))).unwrap();
    ours.set_nonblocking(true).unwrap();
    while (&ours).write(&[0; 65536]).is_ok() {}
    ours.set_nonblocking(false).unwrap();
    (ours, peer)
}

/// Sends a socket whose close(2) waits to a guest's device as the call of ring 0 (13), and gives up our own descriptor.
fn stop_control_thread(socket: &Path) -> (UnixStream, TcpStream) {
    let (lingers, peer) = lingering_socket();
    let front_end = UnixStream::connect(socket).unwrap();
    let [header, body] =
        [&[13_u32, 1, 8][..], &[0, 0]].map(|it| it.iter().map(|n| n.to_ne_bytes()));
    let header: Vec<u8> = header.flatten().collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [lingers.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let parts = [IoSlice::new(&header)];
    assert_eq!(sendmsg(&front_end, &parts, &mut control, SendFlags::empty()).unwrap(), 12);
    // The device has the descriptor now, or will have, but drops it only with the whole message.
    drop(lingers);
    (&front_end).write_all(&body.flatten().collect::<Vec<u8>>()).unwrap();
    (front_end, peer)
}

/// S7: removing a guest and stopping the switch wait for no front end.
#[test]
fn guests_whose_control_threads_hang_are_removed_and_counted() {
    let mut lab = Lab::new(0);
    let held: Vec<_> =
        ["a", "b"].map(|name| stop_control_thread(&lab.path(&format!("{name}.sock")))).into();
    wait_until("both front ends", || {
        let snapshot = lab.switch.snapshot().unwrap();
        snapshot.guests.iter().filter(|guest| guest.state == GuestState::Attached).count() == 2
    });
    let start = Instant::now();
    lab.switch.remove_guest(3).unwrap();
    assert_eq!(node_counter(&lab.switch, "threads_left"), 1);
    let said = lab.switch.events().iter().any(|it| it.to_string().contains("is left behind"));
    assert!(said);
    // The neighbour lives, and the name is free.
    let c = Node::start(5, &lab.directory.sub("c")).unwrap();
    c.join(&lab.path("c.sock"), Some(5), DEADLINE).unwrap();
    lab.guests.push(c);
    let socket = lab.path("again.sock");
    let again = GuestOptions { name: "a".to_owned(), cid: 3, socket, ..GuestOptions::default() };
    lab.switch.add_guest(again).unwrap();
    lab.switch.stop();
    assert!(start.elapsed() < DEADLINE);
    drop(held);
}
