//! A guest that makes flows end while they wait for its ring: nothing of another flow may go where they were.

#![allow(clippy::unwrap_used)] // tests panic

mod node_support;

use std::io::Write;

use node_support::raw::RawGuest;
use node_support::{Lab, Listener, connect, wait_until};
use vsock_core::Op;

const HOST: u32 = 2;

#[test]
fn flow_that_ended_in_the_queue_of_a_full_ring_hands_its_place_to_nobody() {
    let lab = Lab::new(0);
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    let mut a = RawGuest::with_buffers(&lab.path("a.sock"), 2);
    let mut b = RawGuest::with_buffers(&lab.path("b.sock"), 2);
    // The first connection fills the ring; the second waits behind it, and ends there.
    a.open(1, (HOST, 6000));
    let mut first = listener.accept();
    a.open(2, (HOST, 6000));
    let mut second = listener.accept();
    first.write_all(&[1; 32768]).unwrap();
    wait_until("the ring is full", || {
        lab.switch.snapshot().unwrap().flows.iter().any(|flow| flow.bytes_in == 8192)
    });
    second.write_all(&[2; 8]).unwrap();
    let reset = a.packet(Op::Rst, 2, (HOST, 6000));
    a.send(&reset, &[]);
    wait_until("the second is over", || lab.switch.snapshot().unwrap().flows.len() == 1);

    // A connection to another guest gets the entry that is free now; it has no credit yet.
    let path = lab.path("host");
    let program = std::thread::spawn(move || {
        let mut stream = connect(&path, 4, 7000).unwrap();
        stream.write_all(b"not for a").unwrap();
        stream
    });
    let asked = b.expect(Op::Request).header;
    let answer = b.packet(Op::Response, 7000, (HOST, asked.src_port));
    let full = vsock_core::RawHeader { buf_alloc: 0, ..answer };
    b.send(&full, &[]);
    let _program = program.join().unwrap();

    // Room for a: whatever comes is of its own connections.
    let mut got = Vec::new();
    while got.len() < 32768 {
        let packet = a.expect(Op::Rw);
        assert_eq!(packet.header.dst_port, 1);
        got.extend(packet.payload);
    }
    assert!(got.iter().all(|&byte| byte == 1));
    let question = a.packet(Op::CreditRequest, 1, (HOST, 6000));
    a.send(&question, &[]);
    let packet = a.receive();
    assert_eq!(packet.op(), Op::CreditUpdate, "{packet:?}");
    let more = b.packet(Op::CreditUpdate, 7000, (HOST, asked.src_port));
    b.send(&more, &[]);
    assert_eq!(b.expect(Op::Rw).payload, b"not for a");
}
