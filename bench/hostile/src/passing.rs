//! A host program that holds one connected stream, by what it sends beside the bytes: urgent bytes and descriptors.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use vsock_client::Address;
use vsock_load::Result;
use vsock_load::programs::{Kind, connect_to, connecting, open};

use crate::bounds::Bounds;
use crate::front_end::event;
use crate::guest::Guest;
use crate::stage::{Attack, Service, Stage};

pub(crate) const ATTACKS: &[Attack] = &[
    Attack { name: "urgent-bytes", play: urgent_bytes },
    Attack { name: "descriptors", play: descriptors },
    Attack { name: "descriptors-request", play: descriptors_request },
    Attack { name: "descriptors-memory", play: descriptors_memory },
    Attack { name: "descriptors-sockets", play: descriptors_sockets },
    Attack { name: "descriptors-linger", play: descriptors_linger },
];

/// A stream to a guest that discards.
fn stream(stage: &Stage) -> Result<UnixStream> {
    let to = Address { cid: stage.accomplice, port: Service::Discard as u32 };
    Ok(connect_to(&stage.run, Kind::Stream, to)?)
}

/// Bytes with descriptors; false if the switch lets none be sent.
fn pass(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    let mut space = vec![MaybeUninit::uninit(); 2048];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(fds))
        && sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).is_ok()
}

/// MSG_OOB between ordinary bytes.
fn urgent_bytes(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut stream = stream(stage)?;
    Bounds::ready();
    while bounds.another() {
        stream.write_all(&[1; 100])?;
        // A kernel without it refuses, and ordinary bytes are no attack.
        send(&stream, &[2], SendFlags::OOB | SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// 200 descriptors with every byte.
fn descriptors(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (stream, fd) = (stream(stage)?, event()?);
    Bounds::ready();
    while bounds.another() {
        if !pass(&stream, b"x", &[fd.as_fd(); 200]) {
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// The same with a request, on a connection of its own each time.
fn descriptors_request(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let fd = event()?;
    let to = Address { cid: stage.accomplice, port: Service::Discard as u32 };
    let request = connecting(to, 0).encode();
    Bounds::ready();
    while bounds.another() {
        let node = open(&stage.run, Kind::Stream)?;
        pass(&node, &request, &[fd.as_fd(); 200]);
    }
    Ok(())
}

/// Sends a descriptor behind a CONNECT that nobody answers, and closes both: what the socket still holds is for the
/// switch to close, and its close is the last.
fn leave_behind(stage: &Stage, silent: &Guest, fd: OwnedFd) -> Result<()> {
    let mut node = open(&stage.run, Kind::Stream)?;
    node.write_all(&connecting(Address { cid: silent.cid(), port: 9 }, 20_000).encode())?;
    pass(&node, b"x", &[fd.as_fd()]);
    drop(fd);
    Ok(())
}

/// 64 MiB of memory that only the message holds: whoever drops it frees the pages.
fn descriptors_memory(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let silent = Guest::join(stage.plain_guest()?)?;
    let part = vec![1; 1 << 20];
    Bounds::ready();
    while bounds.another() {
        let file = memfd_create("vsock-hostile", MemfdFlags::CLOEXEC)?;
        for _ in 0..64 {
            rustix::io::write(&file, &part)?;
        }
        leave_behind(stage, &silent, file)?;
    }
    Ok(())
}

/// Sockets, each with 200 descriptors waiting in it.
fn descriptors_sockets(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (stream, fd) = (stream(stage)?, event()?);
    Bounds::ready();
    while bounds.another() {
        let (ours, theirs) = UnixStream::pair()?;
        pass(&ours, b"x", &[fd.as_fd(); 200]);
        pass(&stream, b"x", &[theirs.as_fd()]);
    }
    Ok(())
}

/// A TCP connection to ourselves whose last close waits for `time`, and its other end.
pub(crate) fn lingering(time: Duration) -> Result<(OwnedFd, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut ours = TcpStream::connect(listener.local_addr()?)?;
    let (theirs, _) = listener.accept()?;
    ours.set_nonblocking(true)?;
    while ours.write(&[0; 65536]).is_ok() {}
    ours.set_nonblocking(false)?;
    set_socket_linger(&ours, Some(time))?;
    Ok((ours.into(), theirs))
}

/// Such connections, left for the switch to close.
fn descriptors_linger(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let silent = Guest::join(stage.plain_guest()?)?;
    let mut peers = Vec::new();
    Bounds::ready();
    while bounds.another() && peers.len() < 64 {
        let (lingering, peer) = lingering(Duration::from_secs(1))?;
        peers.push(peer);
        leave_behind(stage, &silent, lingering)?;
        std::thread::sleep(Duration::from_millis(200));
    }
    bounds.hold();
    Ok(())
}
