//! A guest that writes anything it likes into its rings: it is counted, answered within bounds, and no trouble to the
//! others.
//!
//! After each attack the same questions are asked ([`Attack::ends_well`]): does a well-behaved neighbour still reach
//! the host, does the attacker itself, and is everything gone that it left. One test at a time, as descriptors are
//! counted.

#![allow(clippy::unwrap_used)] // tests panic

mod node_support;

use std::io::{Read, Write};

use node_support::attack::{A, Attack, B, HOST, PORT};
use node_support::raw::BUFFER;
use node_support::{Listener, connect_messages, pattern, wait_until};
use vsock_core::{EOM, Op, RawHeader};
use vsock_node::node::GuestOptions;

#[test]
fn malformed_headers_are_counted_and_answered_within_bounds() {
    let mut attack = Attack::new();
    let good = attack.packet(Op::Request, 1);
    let bad = [
        RawHeader { kind: 0, ..good },
        RawHeader { kind: 77, ..good },
        RawHeader { dst_cid: 1 << 32, ..good },
        RawHeader { dst_cid: u64::MAX, ..good },
        RawHeader { op: Op::Rw.to_wire(), len: 65537, ..good },
        RawHeader { op: Op::Rw.to_wire(), len: u32::MAX, ..good },
        RawHeader { op: Op::Rw.to_wire(), len: 5, ..good },
    ];
    for header in &bad {
        attack.raw.send(header, b"four");
        let answer = attack.raw.receive();
        assert_eq!(answer.op(), Op::Rst, "{header:?}");
        let to = (answer.header.src_port, answer.header.dst_port);
        assert_eq!(to, (PORT, 1), "{header:?}");
        attack.raw.send(&RawHeader { op: Op::Rst.to_wire(), ..*header }, b"four");
    }
    wait_until("all are counted", || attack.counted("malformed") >= bad.len() as u64);
    attack.ends_well();
}

#[test]
fn unknown_operations_and_packets_of_no_connection_are_reset() {
    let mut attack = Attack::new();
    let ops = [0, 2, 4, 5, 6, 7, 8, 99, u16::MAX];
    for op in ops {
        let header = RawHeader { op, ..attack.packet(Op::Request, 1) };
        attack.raw.send(&header, &[]);
        assert_eq!(attack.raw.receive().op(), Op::Rst, "{op}");
    }
    assert_eq!(attack.counted("unknown_flows"), ops.len() as u64);
    attack.ends_well();
}

#[test]
fn guest_counters_have_one_meaning_each() {
    let attack = Attack::new();
    let snapshot = attack.lab.switch.snapshot().unwrap();
    let counters = snapshot.guests.iter().map(|guest| &guest.counters);
    for counters in counters.chain([&snapshot.counters]) {
        let mut names: Vec<_> = counters.iter().map(|counter| counter.0).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "{names:?}");
    }
}

#[test]
fn data_beyond_credit_ends_that_connection_only() {
    let mut attack = Attack::new();
    attack.raw.open(1, (HOST, PORT));
    let kept = attack.listener.accept();
    attack.raw.open(2, (HOST, PORT));
    let mut unread = attack.listener.accept();
    let data = attack.packet(Op::Rw, 2);
    // What nobody reads fills the socket, then the announced buffer, and then it is too much.
    let mut sent = 0;
    while attack.counted("over_credit") == 0 {
        attack.raw.send_data(&data, &[3; 65536]);
        sent += 65536;
        assert!(sent < 8 << 20, "no end to it");
    }
    assert_eq!(attack.raw.expect(Op::Rst).header.dst_port, 2);
    let mut got = Vec::new();
    unread.read_to_end(&mut got).unwrap();
    assert!(!got.is_empty() && got.len() <= sent && got.iter().all(|&byte| byte == 3));
    drop(unread);
    let question = attack.packet(Op::CreditRequest, 1);
    attack.raw.send(&question, &[]);
    attack.raw.expect(Op::CreditUpdate);
    let reset = attack.packet(Op::Rst, 1);
    attack.raw.send(&reset, &[]);
    drop(kept);
    attack.ends_well();
}

#[test]
fn requests_without_end_hold_a_bounded_number_of_connections() {
    let mut attack = Attack::new();
    // Nobody listens there: refused each time.
    let (mut refused, mut sent) = (0, 0u32);
    for port in 0..5000 {
        let request = attack.raw.packet(Op::Request, port, (HOST, 1));
        attack.raw.send(&request, &[]);
        sent += 1;
        while let Some(packet) = attack.raw.poll() {
            assert_eq!(packet.op(), Op::Rst);
            refused += 1;
        }
    }
    while refused < sent {
        assert_eq!(attack.raw.receive().op(), Op::Rst);
        refused += 1;
    }
    // Somebody listens, who takes none: the backlog and one more.
    for port in 0..1000 {
        let request = attack.packet(Op::Request, port);
        attack.raw.send(&request, &[]);
    }
    let mut answers = [0, 0];
    for _ in 0..1000 {
        let packet = attack.raw.receive();
        answers[usize::from(packet.op() == Op::Rst)] += 1;
        let reset = attack.packet(Op::Rst, packet.header.dst_port);
        attack.raw.send(&reset, &[]);
    }
    assert_eq!(answers, [129, 871]);
    assert_eq!(attack.counted("refused"), 5871);
    for _ in 0..129 {
        assert_eq!(attack.listener.accept().read(&mut [0; 1]).unwrap(), 0);
    }
    attack.ends_well();
}

#[test]
fn request_between_live_addresses_replaces_the_connection() {
    let mut attack = Attack::new();
    attack.raw.open(1, (HOST, PORT));
    let mut old = attack.listener.accept();
    let data = attack.packet(Op::Rw, 1);
    attack.raw.send_data(&data, b"old");
    attack.raw.open(1, (HOST, PORT));
    let mut new = attack.listener.accept();
    attack.raw.send_data(&data, b"new");
    let mut got = Vec::new();
    old.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"old");
    let mut got = [0; 3];
    new.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"new");
    assert_eq!(attack.counted("forgotten"), 1);
    let reset = attack.packet(Op::Rst, 1);
    attack.raw.send(&reset, &[]);
    drop((old, new));
    attack.ends_well();
}

#[test]
fn connections_opened_and_reset_in_a_storm_leave_nothing() {
    let mut attack = Attack::new();
    for round in 0..2000 {
        let port = round % 50;
        for op in [Op::Request, Op::Rst, Op::Rst] {
            let packet = attack.packet(op, port);
            attack.raw.send(&packet, &[]);
        }
        while attack.raw.poll().is_some() {}
        // Those that got through are there to be accepted, and at their end.
        while attack.listener.has_waiting() {
            let mut program = attack.listener.accept();
            assert_eq!(program.read(&mut [0; 1]).unwrap(), 0);
        }
    }
    attack.is_heard_out();
    attack.ends_well();
}

#[test]
fn credit_that_runs_backwards_or_is_impossible_neither_stops_nor_loses_data() {
    let mut attack = Attack::new();
    attack.raw.open(1, (HOST, PORT));
    let mut program = attack.listener.accept();
    let sent = pattern(600_000, 5);
    let data = sent.clone();
    let writer = std::thread::spawn(move || {
        program.write_all(&data).unwrap();
        program
    });
    let (mut got, mut odd) = (Vec::new(), 0u32);
    while got.len() < sent.len() {
        if let Some(packet) = attack.raw.poll() {
            got.extend(packet.payload);
        }
        let taken = u32::try_from(got.len()).unwrap();
        odd += 1;
        let (buf_alloc, fwd_cnt) = match odd % 7 {
            0 => (BUFFER, taken),
            1 => (BUFFER, taken.wrapping_sub(10_000)),
            2 => (BUFFER, taken.wrapping_add(1 << 20)),
            3 => (0, taken),
            4 => (1, taken),
            5 => (u32::MAX, 0),
            _ => (u32::MAX, u32::MAX),
        };
        let news = RawHeader { buf_alloc, fwd_cnt, ..attack.packet(Op::CreditUpdate, 1) };
        attack.raw.send(&news, &[]);
    }
    assert!(got == sent);
    drop(writer.join().unwrap());
    assert!(attack.counted("impossible_credit") > 0);
    let reset = attack.packet(Op::Rst, 1);
    attack.raw.send(&reset, &[]);
    attack.ends_well();
}

#[test]
fn unknown_bits_of_shutdown_mean_nothing() {
    let mut attack = Attack::new();
    attack.raw.open(1, (HOST, PORT));
    let mut program = attack.listener.accept();
    let shutdown = attack.packet(Op::Shutdown, 1);
    attack.raw.send(&RawHeader { flags: !3, ..shutdown }, &[]);
    let data = attack.packet(Op::Rw, 1);
    attack.raw.send_data(&data, b"open");
    let mut got = [0; 4];
    program.read_exact(&mut got).unwrap();
    attack.raw.send(&RawHeader { flags: !1, ..shutdown }, &[]);
    assert_eq!(program.read(&mut got).unwrap(), 0);
    program.write_all(b"back").unwrap();
    assert_eq!(attack.raw.expect(Op::Rw).payload, b"back");
    attack.raw.send(&RawHeader { flags: u32::MAX, ..shutdown }, &[]);
    attack.raw.expect(Op::Rst);
    drop(program);
    attack.ends_well();
}

#[test]
fn message_without_an_end_is_bounded_by_credit() {
    let mut attack = Attack::new();
    let mut listener = Listener::of_messages(&attack.lab.path("host"), 6001, 8);
    let request = RawHeader { kind: 2, ..attack.raw.packet(Op::Request, 1, (HOST, 6001)) };
    for (len, counter) in [(65536usize, "over_credit"), (1, "over_credit")] {
        let before = attack.counted(counter);
        attack.raw.send(&request, &[]);
        attack.raw.expect(Op::Response);
        let mut program = listener.accept();
        let data = RawHeader { op: Op::Rw.to_wire(), ..request };
        let mut sent = 0;
        while attack.counted(counter) == before {
            attack.raw.send_data(&data, &vec![1; len]);
            sent += 1;
            assert!(sent < 10_000, "no end to it");
        }
        assert_eq!(program.read(&mut [0; 1]).unwrap(), 0, "no part of a message is shown");
        attack.raw.expect(Op::Rst);
    }
    // Empty pieces are no message, however many; the end of one is.
    attack.raw.send(&request, &[]);
    attack.raw.expect(Op::Response);
    let mut program = listener.accept();
    let data = RawHeader { op: Op::Rw.to_wire(), ..request };
    for _ in 0..5000 {
        attack.raw.send(&data, &[]);
    }
    attack.raw.send_data(&RawHeader { flags: EOM, ..data }, b"all");
    let mut got = [0; 8];
    assert_eq!(program.read(&mut got).unwrap(), 3);
    attack.raw.send(&RawHeader { op: Op::Rst.to_wire(), ..request }, &[]);
    assert_eq!(program.read(&mut got).unwrap(), 0);
    drop((program, listener));
    attack.ends_well();
}

/// Other options for a guest that runs.
fn change(attack: &Attack, cid: u32, change: impl FnOnce(&mut GuestOptions)) {
    let switch = &attack.lab.switch;
    let guests = switch.snapshot().unwrap().guests;
    let mut options = guests.into_iter().find(|it| it.options.cid == cid).unwrap().options;
    change(&mut options);
    switch.change_guest(cid, options).unwrap();
}

/// Opens a connection; the buffer that it is announced.
fn announced(attack: &mut Attack, port: u32) -> u32 {
    let request = attack.packet(Op::Request, port);
    attack.raw.send(&request, &[]);
    attack.raw.expect(Op::Response).header.buf_alloc
}

#[test]
fn guest_with_many_connections_is_announced_no_more_than_its_limit_together() {
    let mut attack = Attack::new();
    assert_eq!(announced(&mut attack, 1), BUFFER);
    let mut programs = vec![attack.listener.accept()];
    change(&attack, A, |options| options.buffer_limit_mib = 18);
    let mut buffers = Vec::new();
    for port in 2..100 {
        buffers.push(announced(&mut attack, port));
        programs.push(attack.listener.accept());
    }
    assert!(buffers.is_sorted_by(|before, after| before >= after), "{buffers:?}");
    let all: u32 = buffers.iter().sum();
    // The least is set aside for all others that it may have.
    assert!(all <= (18 << 20) - (4096 - 99) * 4096 - BUFFER, "{all}");
    // What it has sent on the first one waits for the program, more than a socket holds; that the connection is over frees
    // nothing.
    let data = attack.packet(Op::Rw, 1);
    let mut sent = 0;
    while sent < BUFFER {
        attack.raw.send_data(&data, &[1; 65_536]);
        sent += 65_536;
    }
    let news = attack.raw.expect(Op::CreditUpdate).header;
    while news.fwd_cnt + news.buf_alloc - sent >= 4096 {
        attack.raw.send_data(&data, &[1; 4096]);
        sent += 4096;
    }
    let reset = attack.packet(Op::Rst, 1);
    attack.raw.send(&reset, &[]);
    let before = announced(&mut attack, 200);
    programs.push(attack.listener.accept());
    assert!(before <= *buffers.last().unwrap());
    let flows = |attack: &Attack| attack.lab.switch.snapshot().unwrap().flows.len();
    let open = flows(&attack);
    let mut got = Vec::new();
    programs[0].read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), sent as usize);
    wait_until("its program has taken all", || flows(&attack) < open);
    assert!(announced(&mut attack, 201) > before + BUFFER / 100, "its part is free again");
    programs.push(attack.listener.accept());
    drop(programs);
    change(&attack, A, |options| options.buffer_limit_mib = 0);
    attack.ends_well();
}

#[test]
fn bytes_arrive_through_the_least_buffer_and_messages_are_as_long_as_before() {
    let mut attack = Attack::new();
    // Less than the least of all its connections: nothing is left above that.
    change(&attack, B, |options| options.buffer_limit_mib = 1);
    attack.neighbour_is_well();
    let mut listener = Listener::of_messages(&attack.lab.path("b"), 7000, 8);
    let mut ours = connect_messages(&attack.lab.path("host"), B, 7000);
    let mut theirs = listener.accept();
    let message = pattern(100_000, 3);
    ours.write_all(&message).unwrap();
    let mut got = vec![0; message.len() + 1];
    assert_eq!(theirs.read(&mut got).unwrap(), message.len());
    assert!(got[..message.len()] == message);
    drop((ours, theirs, listener));
    attack.ends_well();
}
