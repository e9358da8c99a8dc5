//! What programs have asked for, and hold, when their switch is given away, they have of the one that goes on with it.

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod node_support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use node_support::raw::RawGuest;
use node_support::{
    DEADLINE, Lab, Listener, ask, connect, connect_datagrams, pattern, request, transfer,
    wait_until,
};
use vsock_client::wire::Request;
use vsock_core::Op;
use vsock_node::node::Node;
use vsock_node::saved::SavedRequest;

#[test]
fn listeners_and_those_who_wait_at_them_stay() {
    let mut lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("host"), 6000, 200);
    // More than lie in the program's socket: some are kept by the node.
    let clients: Vec<_> = (0..100u32)
        .map(|number| {
            let mut stream = connect(&lab.path("a"), 2, 6000).unwrap();
            stream.write_all(&number.to_le_bytes()).unwrap();
            stream
        })
        .collect();
    let before = lab.switch.snapshot().unwrap().listeners;
    lab.hand_over();
    assert_eq!(lab.switch.snapshot().unwrap().listeners, before);
    for number in 0..100u32 {
        let mut got = [0; 4];
        let mut stream = listener.accept();
        stream.read_exact(&mut got).unwrap();
        assert_eq!(u32::from_le_bytes(got), number);
    }
    drop(clients);
    let waiting = std::thread::spawn(move || {
        let stream = listener.accept();
        (listener, stream)
    });
    lab.hand_over();
    let ours = connect(&lab.path("a"), 2, 6000).unwrap();
    let (listener, theirs) = waiting.join().unwrap();
    transfer(ours, theirs, pattern(100_000, 2));
    // The port is held until its program goes.
    let mut other = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    assert_eq!(ask(&mut other, &request(1, u32::MAX, 6000, 0)).0, 98);
    drop(listener);
    wait_until("nobody listens", || lab.switch.snapshot().unwrap().listeners.is_empty());
    assert_eq!(ask(&mut other, &request(1, u32::MAX, 6000, 0)).0, 0);
}

#[test]
fn connect_without_an_answer_and_request_that_has_come_in_part_go_on() {
    let mut lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut program = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    program.set_read_timeout(Some(DEADLINE)).unwrap();
    program.write_all(&request(2, 3, 5000, 0)).unwrap();
    let asked = guest.expect(Op::Request).header;
    let mut half = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    half.write_all(&request(6, 0, 0, 0)[..20]).unwrap();
    lab.hand_over();
    let answer = guest.packet(Op::Response, 5000, (2, asked.src_port));
    guest.send(&answer, &[]);
    let mut reply = [0; 32];
    program.read_exact(&mut reply).unwrap();
    assert_eq!(reply[2..4], [0, 0]);
    half.write_all(&request(6, 0, 0, 0)[20..]).unwrap();
    half.read_exact(&mut reply).unwrap();
    assert_eq!((reply[1], reply[4]), (6, 2));
    program.write_all(b"hello").unwrap();
    assert_eq!(guest.expect(Op::Rw).payload, b"hello");
}

#[test]
fn hybrid_sockets_go_on_with_half_a_line() {
    let mut lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("a"), 5000, 8);
    let mut program = UnixStream::connect(lab.path("a.vsock")).unwrap();
    program.set_read_timeout(Some(DEADLINE)).unwrap();
    program.write_all(b"CONN").unwrap();
    lab.hand_over();
    program.write_all(b"ECT 5000\nhello").unwrap();
    let mut theirs = listener.accept();
    let mut answer = [0; 3];
    program.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK ");
    let mut hello = [0; 5];
    theirs.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    let again = UnixStream::connect(lab.path("a.vsock")).unwrap();
    drop(again);
}

#[test]
fn datagram_socket_keeps_its_port_and_its_counts() {
    let mut lab = Lab::new(1);
    let (mut ours, mut theirs) =
        (connect_datagrams(&lab.path("host")), connect_datagrams(&lab.path("a")));
    assert_eq!(ask(&mut ours, &request(1, u32::MAX, 7000, 0)).0, 0);
    let (errno, reply) = ask(&mut theirs, &request(1, u32::MAX, 7000, 0));
    assert_eq!(errno, 0);
    let number = u64::from_le_bytes(reply[24..32].try_into().unwrap());
    let mut asker = connect_datagrams(&lab.path("a"));
    let mut send = |text: &[u8; 5]| {
        let mut datagram = request(9, 2, 7000, 0).to_vec();
        datagram[16..24].copy_from_slice(&number.to_le_bytes());
        datagram[24..28].copy_from_slice(&5u32.to_le_bytes());
        datagram.extend_from_slice(text);
        assert_eq!(ask(&mut asker, &datagram).0, 0);
    };
    let mut got = [0; 64];
    send(b"first");
    assert_eq!(ours.read(&mut got).unwrap(), 37);
    let before = lab.switch.snapshot().unwrap().datagrams;
    lab.hand_over();
    assert_eq!(lab.switch.snapshot().unwrap().datagrams, before);
    send(b"after");
    assert_eq!(ours.read(&mut got).unwrap(), 37);
    assert_eq!(&got[32..37], b"after");
    assert_eq!(lab.switch.snapshot().unwrap().datagrams[0].received, 2);
}

#[test]
fn program_that_closes_while_nothing_runs_has_its_last_words_heard() {
    let mut lab = Lab::new(1);
    let mut listener = Listener::new(&lab.path("a"), 5000, 8);
    let mut ours = connect(&lab.path("host"), 3, 5000).unwrap();
    let mut theirs = listener.accept();
    let (saved, fds) = lab.switch.save().unwrap();
    ours.write_all(b"last words").unwrap();
    drop(ours);
    let mut later = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    later.write_all(&request(6, 0, 0, 0)).unwrap();
    lab.switch = Node::restore(saved, fds).unwrap();
    let mut got = Vec::new();
    theirs.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"last words");
    // And one that connected meanwhile is let in.
    let mut reply = [0; 32];
    later.read_exact(&mut reply).unwrap();
    assert_eq!(reply[4], 2);
}

#[test]
fn request_that_waited_for_a_helper_is_answered_by_the_successor() {
    let mut lab = Lab::new(0);
    let mut program = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    assert_eq!(ask(&mut program, &request(6, 0, 0, 0)).0, 0);
    let (mut saved, fds) = lab.switch.save().unwrap();
    let client = saved.fabric.programs.requests.clients[0].0;
    // As it is while the helper looks at the program. Whether it may have the port depends on who runs this.
    let asked = Request::Bind(vsock_client::Address { cid: u32::MAX, port: 80 });
    let waiting = SavedRequest { client, request: asked, extra: Vec::new() };
    saved.fabric.programs.requests.waiting.push(waiting);
    lab.switch = Node::restore(saved, fds).unwrap();
    let mut reply = [0; 32];
    program.read_exact(&mut reply).unwrap();
    let mut other = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    let wanted = ask(&mut other, &request(1, u32::MAX, 81, 0)).0;
    assert_eq!((reply[1], u16::from_le_bytes([reply[2], reply[3]])), (1, wanted));
}
