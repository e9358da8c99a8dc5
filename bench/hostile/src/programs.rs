//! A host program that may use the switch: connections, requests, listeners and connects without end.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use vsock_client::wire::{MESSAGE_LEN, Request};
use vsock_client::{ANY, Address};
use vsock_load::Result;
use vsock_load::programs::{Kind, accept, bind, connect_to, connecting, listen, open};

use crate::bounds::Bounds;
use crate::guest::Guest;
use crate::rings::random;
use crate::stage::{Attack, PORT, Service, Stage};

/// A port at which nobody listens, and which the root user may bind only.
const PRIVILEGED: u32 = 777;

pub(crate) const ATTACKS: &[Attack] = &[
    Attack { name: "connect-close", play: |s, b| connect_close(s, b, Kind::Stream) },
    Attack { name: "connect-close-messages", play: |s, b| connect_close(s, b, Kind::Messages) },
    Attack { name: "connect-close-datagrams", play: |s, b| connect_close(s, b, Kind::Datagrams) },
    Attack { name: "hybrid-connect-close", play: hybrid_connect_close },
    Attack { name: "hybrid-silent", play: hybrid_silent },
    Attack { name: "hybrid-refused", play: hybrid_refused },
    Attack { name: "hybrid-garbage", play: hybrid_garbage },
    Attack { name: "silent", play: silent },
    Attack { name: "half-requests", play: half_requests },
    Attack { name: "request-bytes", play: request_bytes },
    Attack { name: "garbage", play: garbage },
    Attack { name: "cid-questions", play: |s, b| ask_all(s, b, &Request::LocalCid) },
    Attack { name: "flow-questions", play: flow_questions },
    Attack { name: "replies-unread", play: replies_unread },
    Attack { name: "bind-close", play: bind_close },
    Attack { name: "bind-taken", play: |s, b| bind_refused(s, b, PORT) },
    Attack { name: "bind-privileged", play: |s, b| bind_refused(s, b, PRIVILEGED) },
    Attack { name: "listen-close", play: listen_close },
    Attack { name: "connect-refused", play: connect_refused },
    Attack { name: "connect-greeted", play: connect_greeted },
    Attack { name: "connect-given-up", play: connect_given_up },
    Attack { name: "half-open", play: half_open },
    Attack { name: "never-accepts", play: never_accepts },
    Attack { name: "loopback-connects", play: loopback_connects },
    Attack { name: "loopback-bulk", play: loopback_bulk },
    Attack { name: "echo-unread", play: echo_unread },
];

fn connect_close(stage: &Stage, bounds: &mut Bounds, kind: Kind) -> Result<()> {
    Bounds::ready();
    while bounds.another() {
        // The listener's queue may be full: then this is the pace.
        let _ = open(&stage.run, kind);
    }
    Ok(())
}

/// The hybrid socket of the accomplice.
fn hybrid(stage: &Stage) -> Result<UnixStream> {
    let directory = stage.guest(0)?.parent().ok_or("a socket without a directory")?;
    let path = directory.join(format!("g{}.vsock", stage.accomplice));
    connect(&path)
}

fn connect(path: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    let wait = Some(std::time::Duration::from_secs(5));
    stream.set_read_timeout(wait)?;
    stream.set_write_timeout(wait)?;
    Ok(stream)
}

fn hybrid_connect_close(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    Bounds::ready();
    while bounds.another() {
        drop(hybrid(stage)?);
    }
    Ok(())
}

/// Connections to a hybrid socket that say nothing.
fn hybrid_silent(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let kept: Result<Vec<_>> = (0..stage.number_or(400)).map(|_| hybrid(stage)).collect();
    let _kept = kept?;
    Bounds::ready();
    bounds.hold();
    Ok(())
}

/// CONNECT to a port that the guest refuses.
fn hybrid_refused(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    Bounds::ready();
    while bounds.another() {
        let mut stream = hybrid(stage)?;
        stream.write_all(b"CONNECT 7\n")?;
        // The end says that it was refused.
        let _ = stream.read(&mut [0; 64]);
    }
    Ok(())
}

/// Lines that are no CONNECT.
fn hybrid_garbage(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    Bounds::ready();
    while bounds.another() {
        let mut stream = hybrid(stage)?;
        let _ = stream.write_all(&[b'C'; 4096]);
        let _ = stream.read(&mut [0; 64]);
    }
    Ok(())
}

/// Connections that say nothing.
fn silent(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    hold_all(stage, bounds, &[])
}

/// Connections that have said half a request.
fn half_requests(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    hold_all(stage, bounds, &Request::LocalCid.encode()[..16])
}

fn hold_all(stage: &Stage, bounds: &mut Bounds, bytes: &[u8]) -> Result<()> {
    let mut kept = Vec::new();
    for _ in 0..stage.number_or(400) {
        // Refused for being too many is as well.
        let Ok(mut node) = open(&stage.run, Kind::Stream) else { break };
        if node.write_all(bytes).is_err() {
            break;
        }
        kept.push(node);
    }
    Bounds::ready();
    bounds.hold();
    Ok(())
}

/// Requests a byte at a time, on many connections by turns.
fn request_bytes(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut nodes = connections(stage, Kind::Stream, 64)?;
    let request = Request::LocalCid.encode();
    Bounds::ready();
    while bounds.another() {
        for byte in request {
            for node in &mut nodes {
                node.write_all(&[byte])?;
            }
        }
        for node in &mut nodes {
            node.read_exact(&mut [0; MESSAGE_LEN])?;
        }
    }
    Ok(())
}

fn connections(stage: &Stage, kind: Kind, usual: u32) -> Result<Vec<UnixStream>> {
    let count = stage.number_or(usual);
    Ok((0..count).map(|_| open(&stage.run, kind)).collect::<std::io::Result<_>>()?)
}

/// Requests at random, each on a connection of its own.
fn garbage(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut seed = 0x0123_4567_89ab_cdef;
    Bounds::ready();
    while bounds.another() {
        let mut request = [0; MESSAGE_LEN];
        for piece in request.chunks_exact_mut(8) {
            seed = random(seed);
            piece.copy_from_slice(&seed.to_le_bytes());
        }
        if seed % 2 == 0 {
            request[0] = 1;
            request[1] %= 12;
            request[24..].fill(0);
        }
        let mut node = open(&stage.run, Kind::Stream)?;
        node.write_all(&request)?;
    }
    Ok(())
}

/// One question on many connections, all answers read.
fn ask_all(stage: &Stage, bounds: &mut Bounds, request: &Request) -> Result<()> {
    let mut nodes = connections(stage, Kind::Stream, 256)?;
    Bounds::ready();
    while bounds.another() {
        ask_each(&mut nodes, request)?;
    }
    Ok(())
}

fn ask_each(nodes: &mut [UnixStream], request: &Request) -> Result<()> {
    for node in &mut *nodes {
        node.write_all(&request.encode())?;
    }
    for node in nodes {
        node.read_exact(&mut [0; MESSAGE_LEN])?;
    }
    Ok(())
}

/// FLOW of a socket that there is not.
fn flow_questions(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    ask_all(stage, bounds, &Request::Flow { cookie: u64::MAX, buffer: 0, receive_shut: false })
}

/// Questions whose answers nobody reads.
fn replies_unread(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let request = Request::LocalCid.encode();
    Bounds::ready();
    while bounds.another() {
        let mut node = open(&stage.run, Kind::Stream)?;
        node.set_nonblocking(true)?;
        for _ in 0..4096 {
            if node.write_all(&request).is_err() {
                break;
            }
        }
    }
    Ok(())
}

fn bind_close(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    Bounds::ready();
    while bounds.another() {
        drop(bind(&stage.run, Kind::Stream, ANY)?);
    }
    Ok(())
}

/// BIND of one port by many: one has it, the others ask again.
fn bind_refused(stage: &Stage, bounds: &mut Bounds, port: u32) -> Result<()> {
    let _owner = bind(&stage.run, Kind::Stream, port)?;
    ask_all(stage, bounds, &Request::Bind(Address { cid: ANY, port }))
}

fn listen_close(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    Bounds::ready();
    while bounds.another() {
        drop(listen(&stage.run, Kind::Stream, ANY, 4096)?);
    }
    Ok(())
}

/// Connects that the guest refuses, many at once.
fn connect_refused(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    connect_many(stage, bounds, 7)
}

/// Connections to a guest that sends a byte, many at once, closed unread.
fn connect_greeted(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    connect_many(stage, bounds, Service::Greet as u32)
}

fn connect_many(stage: &Stage, bounds: &mut Bounds, port: u32) -> Result<()> {
    let request = connecting(Address { cid: stage.accomplice, port }, 0);
    Bounds::ready();
    while bounds.another() {
        let mut nodes = connections(stage, Kind::Stream, 128)?;
        // A hang-up is an answer as well.
        let _ = ask_each(&mut nodes, &request);
    }
    Ok(())
}

/// Connects that are given up at once.
fn connect_given_up(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let to = Address { cid: stage.accomplice, port: Service::Greet as u32 };
    let request = connecting(to, 0).encode();
    Bounds::ready();
    while bounds.another() {
        let mut node = open(&stage.run, Kind::Stream)?;
        node.write_all(&request)?;
    }
    Ok(())
}

/// Connects to a guest that does not answer, with a patience of 49 days.
fn half_open(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let silent = Guest::join(stage.plain_guest()?)?;
    let request = connecting(Address { cid: silent.cid(), port: 9 }, u32::MAX).encode();
    let mut nodes = connections(stage, Kind::Stream, 512)?;
    for node in &mut nodes {
        node.write_all(&request)?;
    }
    Bounds::ready();
    bounds.hold();
    Ok(())
}

/// A listener with the longest queue, filled by another program.
fn never_accepts(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let _listener = listen(&stage.run, Kind::Stream, PORT, 4096)?;
    let to = Address { cid: 1, port: PORT };
    let mut kept = Vec::new();
    for _ in 0..stage.number_or(1000) {
        // Refused is as well.
        let Ok(stream) = connect_to(&stage.run, Kind::Stream, to) else { break };
        kept.push(stream);
    }
    Bounds::ready();
    bounds.hold();
    Ok(())
}

/// Connections from program to program, closed at once.
fn loopback_connects(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    stage.accept_and_close()?;
    let to = Address { cid: 1, port: PORT };
    Bounds::ready();
    while bounds.another() {
        drop(connect_to(&stage.run, Kind::Stream, to)?);
    }
    Ok(())
}

/// As many bytes from program to program as go.
fn loopback_bulk(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut listener = listen(&stage.run, Kind::Stream, PORT, 16)?;
    let mut ours = connect_to(&stage.run, Kind::Stream, Address { cid: 1, port: PORT })?;
    let mut theirs = accept(&mut listener)?;
    std::thread::spawn(move || std::io::copy(&mut theirs, &mut std::io::sink()));
    Bounds::ready();
    while bounds.another() {
        ours.write_all(&[1; 65536])?;
    }
    Ok(())
}

/// Connections to a guest's echo that send and never read.
fn echo_unread(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let to = Address { cid: stage.accomplice, port: Service::Echo as u32 };
    let mut streams = Vec::new();
    for _ in 0..stage.number_or(64) {
        let stream = connect_to(&stage.run, Kind::Stream, to)?;
        stream.set_nonblocking(true)?;
        streams.push(stream);
    }
    Bounds::ready();
    while bounds.another() {
        let mut sent = 0;
        for stream in &mut streams {
            // Full is what it is to be.
            sent += stream.write(&[1; 65536]).unwrap_or(0);
        }
        if sent == 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    Ok(())
}
