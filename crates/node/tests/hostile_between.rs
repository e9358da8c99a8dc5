//! What one guest may do to another, or to the node in between: nothing, beyond what it could do to itself.

#![allow(clippy::unwrap_used)] // tests panic

mod node_support;

use std::io::{Read, Write};

use node_support::attack::{A, Attack, B, HOST, PORT, alone};
use node_support::raw::RawGuest;
use node_support::{Lab, Listener, connect, descriptors, guest_counter, mappings, wait_until};
use vsock_core::{Op, RawHeader};
use vsock_node::events::Kind;

#[test]
fn wrong_source_is_counted_and_never_answered_or_passed_on() {
    let mut attack = Attack::new();
    let mut victim = Listener::new(&attack.lab.path("b"), 7000, 8);
    let good = attack.raw.packet(Op::Request, 1, (B, 7000));
    let others = [u64::from(B), 2, 0, u64::MAX, u64::from(A) | 1 << 32];
    for round in 0..1000 {
        for src_cid in others {
            attack.raw.queue(&RawHeader { src_cid, src_port: round, ..good }, &[]);
        }
    }
    attack.raw.publish();
    let count = others.len() as u64 * 1000;
    wait_until("all are counted", || attack.counted("spoofed") == count);
    assert!(attack.raw.poll().is_none());
    // A guest must not be able to fill the disk with what it is told about.
    let records = attack.lab.switch.events();
    let told = records.iter().filter(|record| record.event.kind() == Kind::Spoofed).count();
    assert!((1..=256).contains(&told), "{told} records");
    let _ours = connect(&attack.lab.path("host"), B, 7000).unwrap();
    let _theirs = victim.accept();
    drop((_ours, _theirs, victim));
    attack.ends_well();
}

#[test]
fn lie_about_the_length_between_guests_ends_the_flow_for_both() {
    let mut attack = Attack::new();
    let mut listener = Listener::new(&attack.lab.path("b"), 7000, 8);
    attack.raw.open(1, (B, 7000));
    let mut program = listener.accept();
    let data = attack.raw.packet(Op::Rw, 1, (B, 7000));
    attack.raw.send_data(&data, b"true");
    attack.raw.send(&RawHeader { len: 5, ..data }, b"four");
    let mut got = Vec::new();
    program.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"true");
    assert_eq!(attack.raw.receive().op(), Op::Rst);
    assert_eq!(attack.relay_counted("flows"), 0);
    drop((program, listener));
    attack.ends_well();
}

const D: u32 = 6;

/// Three guests of one group: a, and d with a connection to port 7000 of b, which has two buffers.
fn three_guests(lab: &Lab) -> [RawGuest; 3] {
    let mut b = RawGuest::with_buffers(&lab.path("b.sock"), 2);
    let a = RawGuest::join(&lab.path("a.sock"));
    lab.switch
        .add_guest(vsock_node::node::GuestOptions {
            name: "d".into(),
            cid: D,
            socket: lab.path("d.sock"),
            groups: vec!["g".into()],
            ..vsock_node::node::GuestOptions::default()
        })
        .unwrap();
    let mut d = RawGuest::join(&lab.path("d.sock"));
    let request = d.packet(Op::Request, 1, (B, 7000));
    d.send(&request, &[]);
    b.expect(Op::Request);
    let response = b.packet(Op::Response, 7000, (D, 1));
    b.send(&response, &[]);
    d.expect(Op::Response);
    [a, b, d]
}

/// The switch has taken all that a guest has sent so far.
fn is_heard_out(guest: &mut RawGuest) {
    let last = guest.packet(Op::Request, 0xfffe, (HOST, 1));
    guest.send(&last, &[]);
    while guest.receive().header.dst_port != 0xfffe {}
}

/// How many packets come before the data of d, once the guest that it is for reads again.
fn packets_before_data_of_d(b: &mut RawGuest, d: &mut RawGuest) -> usize {
    let data = d.packet(Op::Rw, 1, (B, 7000));
    d.send_data(&data, b"from d");
    is_heard_out(d);
    let before = std::iter::from_fn(|| Some(b.receive())).take_while(|it| it.payload != b"from d");
    before.count()
}

/// What is in the ring of b, and a turn of a.
const SOON: usize = 2 + 17;

#[test]
fn flood_of_credit_updates_neither_grows_nor_delays_the_packets_of_a_third_guest() {
    let _alone = alone();
    let lab = Lab::new(0);
    let [mut a, mut b, mut d] = three_guests(&lab);
    let request = a.packet(Op::Request, 1, (B, 7000));
    a.send(&request, &[]);
    let update = a.packet(Op::CreditUpdate, 1, (B, 7000));
    for _ in 0..50_000 {
        a.queue(&update, &[]);
    }
    is_heard_out(&mut a);
    let waiting = guest_counter(&lab.switch, B, "waiting_bytes");
    assert!(waiting < 1000, "{waiting}");
    let before = packets_before_data_of_d(&mut b, &mut d);
    assert!(before <= 3, "{before}");
}

#[test]
fn flood_of_requests_delays_the_packets_of_a_third_guest_by_a_turn() {
    let _alone = alone();
    let lab = Lab::new(0);
    let [mut a, mut b, mut d] = three_guests(&lab);
    for port in 0..10_000 {
        for op in [Op::Request, Op::Rst] {
            let packet = a.packet(op, port, (B, 7000));
            a.queue(&packet, &[]);
        }
    }
    is_heard_out(&mut a);
    let before = packets_before_data_of_d(&mut b, &mut d);
    assert!(before <= SOON, "{before}");
}

#[test]
fn flood_of_broken_connections_delays_the_packets_of_a_third_guest_by_a_turn() {
    let _alone = alone();
    let lab = Lab::new(0);
    let [mut a, mut b, mut d] = three_guests(&lab);
    for port in 0..2000 {
        let request = a.packet(Op::Request, port, (B, 7000));
        a.queue(&request, &[]);
        // Data before the answer ends the connection, for both.
        let data = RawHeader { len: 4, ..a.packet(Op::Rw, port, (B, 7000)) };
        a.queue(&data, b"four");
        while a.poll().is_some() {}
    }
    is_heard_out(&mut a);
    let before = packets_before_data_of_d(&mut b, &mut d);
    assert!(before <= SOON, "{before}");
}

#[test]
fn neighbour_that_does_not_read_fills_no_room_of_a_third_guest() {
    let _alone = alone();
    let lab = Lab::new(0);
    let [mut a, mut b, mut d] = three_guests(&lab);
    // Now b reads nothing, and a makes up flows to it until there is no more room for it.
    let mut port = 0;
    while guest_counter(&lab.switch, B, "overflows") == 0 {
        for _ in 0..1000 {
            port += 1;
            for op in [Op::Request, Op::Rst] {
                let packet = a.packet(op, port, (B, 7000));
                a.queue(&packet, &[]);
            }
            while a.poll().is_some() {}
        }
        assert!(port < 1_000_000, "no end to it");
    }
    let waiting = guest_counter(&lab.switch, B, "waiting_bytes");
    assert!(waiting <= 65 << 20, "{waiting}");
    let data = d.packet(Op::Rw, 1, (B, 7000));
    d.send_data(&data, b"from d");
    assert_eq!(b.expect(Op::Rw).payload, b"from d");
    assert!(d.poll().is_none_or(|packet| packet.op() != Op::Rst), "d did nothing wrong");
}

#[test]
fn guest_that_leaves_in_the_middle_of_everything_leaves_nothing() {
    let mut attack = Attack::with_buffers(4);
    let mut listener = Listener::new(&attack.lab.path("b"), 7000, 64);
    let before = (descriptors(), mappings());
    for round in 0..10 {
        let mut programs = Vec::new();
        for port in 0..8 {
            attack.raw.open(port, (HOST, PORT));
            programs.push(attack.listener.accept());
            attack.raw.open(port, (B, 7000));
            programs.push(listener.accept());
        }
        for (port, program) in programs.iter_mut().enumerate() {
            program.write_all(&[1; 20_000]).unwrap();
            let port = u32::try_from(port / 2).unwrap();
            let data = attack.packet(Op::Rw, port);
            attack.raw.send_data(&data, &[2; 30_000]);
            let data = attack.raw.packet(Op::Rw, port, (B, 7000));
            attack.raw.send_data(&data, &[2; 30_000]);
        }
        let stray = attack.raw.packet(Op::Rw, 999, (HOST, 1));
        for _ in 0..round * 40 {
            attack.raw.try_send(&stray, &[]);
        }
        attack.raw.publish();
        let socket = attack.lab.path("a.sock");
        drop(std::mem::replace(
            &mut attack.raw,
            RawGuest::with_buffers(&attack.lab.path("c.sock"), 4),
        ));
        for program in &mut programs {
            let mut rest = Vec::new();
            program.read_to_end(&mut rest).unwrap();
            assert!(rest.iter().all(|&byte| byte == 2));
        }
        drop(programs);
        let switch = &attack.lab.switch;
        wait_until("no flow is left", || switch.snapshot().unwrap().flows.is_empty());
        wait_until("the device is free", || {
            switch.snapshot().unwrap().guests[0].front_end_pid == 0
        });
        attack.raw = RawGuest::with_buffers(&socket, 4);
        attack.neighbour_is_well();
        let switch = &attack.lab.switch;
        wait_until("c has gone", || switch.snapshot().unwrap().guests[2].front_end_pid == 0);
        wait_until("no descriptor and no memory is left", || (descriptors(), mappings()) == before);
    }
    drop(listener);
    attack.ends_well();
}
