//! A host program that may use the switch, by datagrams.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vsock_client::wire::Request;
use vsock_client::{ANY, Address};
use vsock_load::Result;
use vsock_load::programs::{Kind, bind, open};

use crate::bounds::Bounds;
use crate::stage::{Attack, HOST, PORT, Stage};

/// As long as one message of the host's may be.
const LONGEST: usize = 65536;

pub(crate) const ATTACKS: &[Attack] = &[
    Attack { name: "datagrams-unowned", play: unowned },
    Attack { name: "datagrams-unread", play: |s, b| sends(s, b, (HOST, PORT), LONGEST) },
    Attack { name: "datagrams-short", play: |s, b| sends(s, b, (HOST, PORT), 1) },
    Attack { name: "datagrams-to-guest", play: |s, b| sends(s, b, (s.accomplice, 9), LONGEST) },
    Attack { name: "datagrams-nobody", play: |s, b| sends(s, b, (HOST, 1), 1) },
    Attack { name: "datagram-sockets", play: sockets },
];

/// Sends a request on each connection that takes it, and reads what answers there are.
fn turn(nodes: &mut [UnixStream], message: &[u8]) {
    let mut has_moved = false;
    for node in nodes {
        // A full socket, and one without an answer, are passed over.
        has_moved |= node.write(message).is_ok();
        while node.read(&mut [0; 64]).is_ok_and(|n| n > 0) {}
    }
    if !has_moved {
        std::thread::yield_now();
    }
}

fn senders(stage: &Stage, usual: u32) -> Result<Vec<UnixStream>> {
    let mut nodes = Vec::new();
    for _ in 0..stage.number_or(usual) {
        let node = open(&stage.run, Kind::Datagrams)?;
        node.set_nonblocking(true)?;
        nodes.push(node);
    }
    Ok(nodes)
}

/// SENDs of 32 bytes from no socket, on many connections.
fn unowned(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut nodes = senders(stage, 256)?;
    let to = Address { cid: HOST, port: PORT };
    let request = Request::Send { to, number: 0, len: 0 }.encode();
    Bounds::ready();
    while bounds.another() {
        turn(&mut nodes, &request);
    }
    Ok(())
}

/// Datagrams of a length to an address; a socket that nobody reads is bound at [`PORT`].
fn sends(stage: &Stage, bounds: &mut Bounds, to: (u32, u32), len: usize) -> Result<()> {
    let (_unread, _) = bind(&stage.run, Kind::Datagrams, PORT)?;
    let (_socket, reply) = bind(&stage.run, Kind::Datagrams, ANY)?;
    let mut nodes = senders(stage, 16)?;
    let to = Address { cid: to.0, port: to.1 };
    let request = Request::Send { to, number: reply.flow, len: u32::try_from(len)? };
    let message = [&request.encode()[..], &vec![3; len]].concat();
    Bounds::ready();
    while bounds.another() {
        turn(&mut nodes, &message);
    }
    Ok(())
}

/// Sockets that are bound and closed.
fn sockets(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    Bounds::ready();
    while bounds.another() {
        drop(bind(&stage.run, Kind::Datagrams, ANY)?);
    }
    Ok(())
}
