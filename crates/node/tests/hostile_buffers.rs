//! Programs that ask for large receive buffers, and guests that fill them: what a node may hold is bounded.

#![allow(clippy::unwrap_used)] // tests panic

mod node_support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use node_support::raw::RawGuest;
use node_support::{DEADLINE, Lab, ask, node_counter, request, wait_until};
use rustix::net::sockopt::socket_cookie;
use vsock_core::{Op, RawHeader};
use vsock_node::node::GuestOptions;

const HOST: u32 = 2;
const DEFAULT: u32 = 262_144;
const LARGEST: u32 = 16 << 20;
/// How many of the largest fit what all may have above the default.
const FIT: usize = 16;
/// Operations of the client protocol.
const BIND: u8 = 1;
const CONNECT: u8 = 2;
const LISTEN: u8 = 3;
const FLOW: u8 = 8;
const ENOTCONN: u16 = 107;
const ESHUTDOWN: u16 = 108;

fn with_buffer(mut request: [u8; 32], buffer: u32) -> [u8; 32] {
    request[16..20].copy_from_slice(&buffer.to_le_bytes());
    request
}

/// A connection of a program that asks for the largest buffer: it, the cookie that it names, and what the guest was told.
fn open(lab: &Lab, guest: &mut RawGuest) -> (UnixStream, [u8; 8], u32) {
    let mut program = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    program.set_read_timeout(Some(DEADLINE)).unwrap();
    let cookie = socket_cookie(&program).unwrap().to_le_bytes();
    let mut connect = with_buffer(request(CONNECT, 3, 7000, 20_000), LARGEST);
    connect[24] = 8;
    program.write_all(&[&connect[..], &cookie].concat()).unwrap();
    let asked = guest.expect(Op::Request).header;
    let answer = guest.packet(Op::Response, 7000, (HOST, asked.src_port));
    guest.send(&answer, &[]);
    let mut reply = [0; 32];
    program.read_exact(&mut reply).unwrap();
    assert_eq!(reply[2..4], [0, 0]);
    (program, cookie, asked.buf_alloc)
}

fn is_closed(lab: &Lab, guest: &mut RawGuest, flows: usize) -> bool {
    while let Some(packet) = guest.poll() {
        if packet.op() == Op::Shutdown {
            let answer = RawHeader {
                op: Op::Rst.to_wire(),
                ..guest.packet(Op::Rst, 7000, (HOST, packet.header.src_port))
            };
            guest.send(&answer, &[]);
        }
    }
    lab.switch.snapshot().unwrap().flows.len() == flows
}

#[test]
fn buffers_above_the_default_come_out_of_one_budget_and_go_back_with_their_flow() {
    let lab = Lab::new(0);
    // One guest's own limit is lower.
    let options = lab.switch.snapshot().unwrap().guests.remove(0).options;
    let high = GuestOptions { buffer_limit_mib: 1024, ..options };
    lab.switch.change_guest(high.cid, high).unwrap();
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut programs: Vec<_> = (0..FIT).map(|_| open(&lab, &mut guest)).collect();
    assert!(programs.iter().all(|(_, _, told)| *told == LARGEST));

    // Nothing is left: by connecting, by asking later, by listening.
    let (late, number, told) = open(&lab, &mut guest);
    assert_eq!((told, node_counter(&lab.switch, "buffers_cut")), (DEFAULT, 1));
    let mut question = with_buffer(request(FLOW, 0, 0, 0), LARGEST);
    question[4..12].copy_from_slice(&number);
    let mut asking = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    assert_eq!(ask(&mut asking, &question).0, 0);
    assert_eq!(node_counter(&lab.switch, "buffers_cut"), 2);
    let mut listener = UnixStream::connect(lab.path("host").join("stream")).unwrap();
    assert_eq!(ask(&mut listener, &request(BIND, u32::MAX, 6000, 0)).0, 0);
    assert_eq!(ask(&mut listener, &with_buffer(request(LISTEN, 0, 0, 8), LARGEST)).0, 0);
    let request = guest.packet(Op::Request, 1, (HOST, 6000));
    guest.send(&request, &[]);
    assert_eq!(guest.expect(Op::Response).header.buf_alloc, DEFAULT);

    // A smaller buffer gives nothing back: the guest may send what it was promised. The end of a flow does.
    question[4..12].copy_from_slice(&programs[0].1);
    question[16..20].copy_from_slice(&1u32.to_le_bytes());
    assert_eq!(ask(&mut asking, &question).0, 0);
    assert_eq!(open(&lab, &mut guest).2, DEFAULT);
    drop((programs.remove(0), late));
    wait_until("two flows are over", || is_closed(&lab, &mut guest, FIT));
    let (_new, new_number, told) = open(&lab, &mut guest);
    assert_eq!((told, node_counter(&lab.switch, "buffers_cut")), (LARGEST, 4));

    // How a flow ended is told for a while.
    let unknown = u64::MAX.to_le_bytes();
    let table = [(number, ESHUTDOWN), (new_number, 0), (programs[0].1, 0), (unknown, ENOTCONN)];
    for (number, errno) in table {
        question[4..12].copy_from_slice(&number);
        assert_eq!(ask(&mut asking, &question).0, errno);
    }
}
