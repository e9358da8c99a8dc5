//! Guests that offer no buffers, or not when they are wanted: the worker waits for them, it does not poll.
//!
//! A file of its own with one test at a time, as what is measured is the processor time of the process.

#![allow(clippy::unwrap_used)] // tests panic

mod node_support;

use std::io::{Read, Write};
use std::sync::Mutex;
use std::time::Duration;

use node_support::raw::RawGuest;
use node_support::{Lab, Listener, connect, transfer, wait_until};
use rustix::time::{ClockId, clock_gettime};
use vsock_core::Op;

const HOST: u32 = 2;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn processor_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap()
}

/// Nothing happens for a while, and nothing is done in it.
fn assert_idle(what: &str) {
    let quiet = Duration::from_millis(300);
    // What is under way may end first.
    let mut spent = quiet;
    for _ in 0..3 {
        let before = processor_time();
        rustix::event::poll(&mut [], Some(&quiet.try_into().unwrap())).unwrap();
        spent = processor_time().saturating_sub(before);
        if spent < quiet / 10 {
            return;
        }
    }
    panic!("{what}: {spent:?} of processor time in {quiet:?}");
}

/// A guest that answers nothing has room for `buffers` packets only.
fn guest(lab: &Lab, name: &str, buffers: u16) -> RawGuest {
    RawGuest::with_buffers(&lab.path(&format!("{name}.sock")), buffers)
}

fn switch_counter(lab: &Lab, cid: u32, name: &str) -> u64 {
    let snapshot = lab.switch.snapshot().unwrap();
    let guest = snapshot.guests.iter().find(|guest| guest.cid == cid).unwrap();
    guest.counters.iter().find(|counter| counter.0 == name).unwrap().1
}

#[test]
fn guest_whose_answers_find_no_room_is_not_polled() {
    let _one = ONE_AT_A_TIME.lock();
    let lab = Lab::new(0);
    let mut a = guest(&lab, "a", 2);
    let stray = a.packet(Op::Rw, 1, (HOST, 1));
    // 256 answers may wait; the rest stays in the ring.
    for _ in 0..300 {
        a.send(&stray, &[]);
    }
    assert_idle("answers wait");
    let mut answers = 0;
    while answers < 300 {
        assert_eq!(a.receive().op(), Op::Rst);
        answers += 1;
    }
    assert_idle("all answered");
}

#[test]
fn buffers_reserved_and_not_used_are_no_reason_to_stay_awake() {
    let _one = ONE_AT_A_TIME.lock();
    let lab = Lab::new(0);
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    // Fewer than one read of the worker could fill.
    let mut a = guest(&lab, "a", 8);
    a.open(1, (HOST, 6000));
    let mut program = listener.accept();
    program.write_all(b"short").unwrap();
    assert_eq!(a.expect(Op::Rw).payload, b"short");
    assert_idle("the guest has offered the buffer again");
}

#[test]
fn sender_with_few_buffers_of_its_own_sleeps_too() {
    let _one = ONE_AT_A_TIME.lock();
    let lab = Lab::new(2);
    let mut listener = Listener::new(&lab.path("b"), 7000, 8);
    let ours = connect(&lab.path("a"), 4, 7000).unwrap();
    let theirs = listener.accept();
    transfer(ours, theirs, vec![1; 20_000_000]);
    assert_idle("all sent");
}

#[test]
fn buffers_for_a_flow_that_ended_meanwhile_are_no_reason_to_stay_awake() {
    let _one = ONE_AT_A_TIME.lock();
    let lab = Lab::new(0);
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    let mut a = guest(&lab, "a", 2);
    a.open(1, (HOST, 6000));
    let mut program = listener.accept();
    program.write_all(&[1; 32768]).unwrap();
    wait_until("the ring is full", || {
        lab.switch.snapshot().unwrap().flows.iter().any(|flow| flow.bytes_in == 8192)
    });
    let reset = a.packet(Op::Rst, 1, (HOST, 6000));
    a.send(&reset, &[]);
    assert_eq!(program.read(&mut [0; 1]).unwrap(), 0);
    assert_idle("the ring is full");
    while a.poll().is_some() {}
    assert_idle("there is room again");
}

#[test]
fn guest_that_never_reads_is_not_polled_for_what_its_neighbour_sends() {
    let _one = ONE_AT_A_TIME.lock();
    let lab = Lab::new(0);
    let (mut a, mut b) = (guest(&lab, "a", 16), guest(&lab, "b", 2));
    let request = a.packet(Op::Request, 1, (4, 7000));
    a.send(&request, &[]);
    b.expect(Op::Request);
    let response = b.packet(Op::Response, 7000, (3, 1));
    b.send(&response, &[]);
    a.expect(Op::Response);
    let data = a.packet(Op::Rw, 1, (4, 7000));
    for _ in 0..16 {
        a.send_data(&data, &[5; 16384]);
    }
    wait_until("the rest waits", || switch_counter(&lab, 4, "waiting_bytes") > 200_000);
    assert_idle("packets wait for the neighbour");
    let mut got = 0;
    while got < 16 * 16384 {
        got += b.expect(Op::Rw).payload.len();
    }
    assert_eq!(switch_counter(&lab, 4, "waiting_bytes"), 0);
    assert_idle("all taken");
}
