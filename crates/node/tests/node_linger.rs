//! F2: what a program sent before it closed is delivered, however late the other side takes it; and what is given up is
//! given up aloud.

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod node_support;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use node_support::raw::{BUFFER, RawGuest};
use node_support::{
    DEADLINE, Lab, Listener, connect, connect_messages, node_counter, pattern, wait_until,
};
use vsock_core::{Op, RawHeader};

/// More than the window (256 KiB), less than it and a Unix socket (208 KiB) hold.
const MUCH: usize = 400_000;

/// More than the window and the reader's Unix socket hold.
const MORE: usize = 600_000;

/// Sends `data` and closes; in a thread, as it may wait for the reader.
fn send_and_close(mut stream: UnixStream, data: Vec<u8>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || stream.write_all(&data).unwrap())
}

fn read_all(mut stream: UnixStream) -> Vec<u8> {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    got
}

/// A connection from a program of `from` to a guest made by hand, which answers nothing after RESPONSE.
fn connect_to(guest: &mut RawGuest, host: &Path, cid: u32) -> (UnixStream, RawHeader) {
    let host = host.to_owned();
    let program = std::thread::spawn(move || connect(&host, cid, 5000).unwrap());
    let asked = guest.expect(Op::Request).header;
    let answer = guest.packet(Op::Response, 5000, (2, asked.src_port));
    guest.send(&answer, &[]);
    (program.join().unwrap(), asked)
}

#[test]
fn flow_of_which_nothing_is_taken_for_the_whole_timeout_is_reset_counted_and_logged() {
    let lab = Lab::new(0);
    lab.switch.set_linger_timeout(Duration::from_millis(200)).unwrap();
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let (program, asked) = connect_to(&mut guest, &lab.path("host"), 3);
    send_and_close(program, pattern(MUCH, 1)).join().unwrap();
    let mut got = 0;
    let last = loop {
        let packet = guest.receive();
        if !matches!(packet.op(), Op::Rw | Op::CreditRequest) {
            break packet;
        }
        got += packet.payload.len();
    };
    assert_eq!((last.op(), last.header.src_port), (Op::Rst, asked.src_port), "no SHUTDOWN");
    assert_eq!(got, BUFFER as usize);
    assert_eq!(node_counter(&lab.switch, "linger_timeouts"), 1);
    assert!(lab.switch.events().iter().any(|event| event.to_string().contains("is not taken")));
}

#[test]
fn clock_stands_while_the_guest_is_paused() {
    let lab = Lab::new(0);
    lab.switch.set_linger_timeout(Duration::from_millis(200)).unwrap();
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut other = RawGuest::join(&lab.path("b.sock"));
    let (mut program, _) = connect_to(&mut guest, &lab.path("host"), 3);
    guest.set_running(false);
    program.write_all(b"x").unwrap();
    drop(program);
    // Twice the timeout, by a flow that closed after the first and whose guest takes nothing.
    for given_up in 1..=2 {
        let (program, _) = connect_to(&mut other, &lab.path("host"), 4);
        send_and_close(program, pattern(MUCH, 1)).join().unwrap();
        wait_until("another is given up", || {
            other.poll();
            node_counter(&lab.switch, "linger_timeouts") == given_up
        });
        while other.poll().is_some() {}
    }
    guest.set_running(true);
    assert_eq!(guest.expect(Op::Rw).payload, b"x");
    assert_eq!(guest.receive().op(), Op::Shutdown);
    assert_eq!(node_counter(&lab.switch, "linger_timeouts"), 2);
}

/// One of each kind of flow: what its sender sent and closed waits for a reader who is later than the 8 s that were
/// too few once.
#[test]
fn late_reader_of_every_kind_of_flow_reads_all_and_then_the_end() {
    let lab = Lab::new(2);
    let clock = Lab::new(0);
    clock.switch.set_linger_timeout(Duration::from_secs(9)).unwrap();
    let mut guest = RawGuest::join(&clock.path("a.sock"));
    let (host, a, b) = (lab.path("host"), lab.path("a"), lab.path("b"));
    let mut on_host = Listener::new(&host, 6000, 8);
    let mut on_a = Listener::new(&a, 6000, 8);
    let mut on_b = Listener::new(&b, 6000, 8);
    let hybrid = UnixListener::bind(lab.path("a.vsock_6100")).unwrap();
    let mut flows = Vec::new();
    for (from, cid, listener) in [(&host, 3, &mut on_a), (&a, 2, &mut on_host), (&a, 4, &mut on_b)]
    {
        flows.push((connect(from, cid, 6000).unwrap(), listener.accept()));
    }
    flows.push((connect(&host, 2, 6000).unwrap(), on_host.accept()));
    let from_guest = connect(&a, 2, 6100).unwrap();
    flows.push((from_guest, hybrid.accept().unwrap().0));
    let mut program = UnixStream::connect(lab.path("a.vsock")).unwrap();
    program.write_all(b"CONNECT 6000\n").unwrap();
    flows.push((program, on_a.accept()));
    let data: Vec<_> = (0..).map(|seed| pattern(MORE, seed)).take(flows.len()).collect();
    let (senders, readers): (Vec<_>, Vec<_>) = flows.into_iter().unzip();
    let senders: Vec<_> =
        senders.into_iter().zip(&data).map(|(it, data)| send_and_close(it, data.clone())).collect();
    // Messages: more than the window, so that the last ones wait in the sender's socket.
    let mut on_messages = Listener::of_messages(&a, 6200, 8);
    let messages = connect_messages(&host, 3, 6200);
    let mut late = on_messages.accept();
    let sender = std::thread::spawn(move || {
        let mut messages = messages;
        (0..40u8).for_each(|n| assert_eq!(messages.write(&[n; 10_000]).unwrap(), 10_000));
    });

    let (program, _) = connect_to(&mut guest, &clock.path("host"), 3);
    let clocked = send_and_close(program, pattern(MUCH, 1));
    wait_until("nine seconds are over", || {
        guest.poll();
        node_counter(&clock.switch, "linger_timeouts") == 1
    });
    clocked.join().unwrap();
    for (reader, data) in readers.into_iter().zip(data) {
        let got = read_all(reader);
        assert_eq!(got.len(), data.len());
        assert!(got == data);
    }
    late.set_read_timeout(Some(DEADLINE)).unwrap();
    for n in 0..40u8 {
        let mut message = vec![0; 10_001];
        assert_eq!(late.read(&mut message).unwrap(), 10_000);
        assert!(message[..10_000].iter().all(|&byte| byte == n));
    }
    assert_eq!(late.read(&mut [0; 1]).unwrap(), 0);
    sender.join().unwrap();
    senders.into_iter().for_each(|sender| sender.join().unwrap());
}
