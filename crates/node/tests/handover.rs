//! A switch is given away as plain data in the midst of traffic, and another in the same process goes on with it: its
//! programs and guests see nothing of that.

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod node_support;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

use node_support::raw::RawGuest;
use node_support::{
    DEADLINE, Lab, Listener, ask, connect, connect_datagrams, connect_messages, guest_counter,
    node_counter, pattern, request, transfer, wait_until,
};
use vsock_core::{Op, RawHeader};
use vsock_node::node::{Node, SaveError};
use vsock_node::saved::{SavedBacklog, SavedLink};
use vsock_node::snapshot::{FlowInfo, GuestState};

/// Bytes of a stream that is long.
const LEN: usize = 8_000_000;

/// Sends all of it from another thread, then the end.
fn send(mut from: UnixStream, data: Vec<u8>) -> JoinHandle<UnixStream> {
    std::thread::spawn(move || {
        from.write_all(&data).unwrap();
        from.shutdown(std::net::Shutdown::Write).unwrap();
        from
    })
}

/// Reads at least `least` bytes.
fn read_some(from: &mut UnixStream, got: &mut Vec<u8>, least: usize) {
    let mut piece = vec![0; 65536];
    let until = got.len() + least;
    while got.len() < until {
        let n = from.read(&mut piece).unwrap();
        assert!(n > 0, "the stream ended early");
        got.extend_from_slice(&piece[..n]);
    }
}

fn flow_of(lab: &Lab, source: u32, destination: (u32, u32)) -> FlowInfo {
    let flows = lab.switch.snapshot().unwrap().flows;
    let is_it = |it: &FlowInfo| {
        it.source.cid.0 == source && (it.destination.cid.0, it.destination.port.0) == destination
    };
    flows.into_iter().find(is_it).unwrap()
}

/// One stream of each kind, all of them long, with slow readers: most of each waits somewhere when the switch is given
/// away, and that several times.
#[test]
fn streams_of_every_kind_go_on_over_many_hand_overs() {
    let mut lab = Lab::new(2);
    let (host, a, b) = (lab.path("host"), lab.path("a"), lab.path("b"));
    let mut on_host = Listener::new(&host, 6000, 8);
    let mut on_a = Listener::new(&a, 6000, 8);
    let mut on_b = Listener::new(&b, 6000, 8);
    let hybrid = UnixListener::bind(lab.path("a.vsock_6100")).unwrap();
    let from_guest = connect(&a, 2, 6100).unwrap();
    let ends = [
        (connect(&host, 3, 6000).unwrap(), on_a.accept()),
        (connect(&a, 2, 6000).unwrap(), on_host.accept()),
        (connect(&a, 4, 6000).unwrap(), on_b.accept()),
        (connect(&host, 2, 6000).unwrap(), on_host.accept()),
        (from_guest, hybrid.accept().unwrap().0),
    ];
    let mut flows = Vec::new();
    for (seed, (one, other)) in (0u32..).step_by(2).zip(ends) {
        for (seed, from, to) in [(seed, &one, &other), (seed + 1, &other, &one)] {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            to.set_read_timeout(Some(DEADLINE)).unwrap();
            flows.push((send(from, pattern(LEN, seed)), to, Vec::new(), seed));
        }
    }
    for step in 0..8 {
        for (_, reader, got, seed) in &mut flows {
            // Some have not read anything by the first time.
            if step > 0 || *seed % 3 > 0 {
                read_some(reader, got, 500_000);
            }
        }
        lab.hand_over();
    }
    for (sender, mut reader, mut got, seed) in flows {
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), LEN);
        assert!(got == pattern(LEN, seed), "flow {seed}");
        drop(sender.join().unwrap());
    }
    let switch = &lab.switch;
    wait_until("all flows have ended", || switch.snapshot().unwrap().flows.is_empty());
    transfer(connect(&host, 3, 6000).unwrap(), on_a.accept(), pattern(100_000, 1));
}

/// What a slow reader's guest has sent waits in the node itself, not only in sockets.
#[test]
fn bytes_that_the_node_holds_are_handed_over() {
    let mut lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    guest.open(1024, (2, 6000));
    let mut program = listener.accept();
    let data = pattern(250_000, 1);
    for part in data.chunks(4096) {
        let header = guest.packet(Op::Rw, 1024, (2, 6000));
        guest.send_data(&header, part);
    }
    wait_until("all is taken", || flow_of(&lab, 3, (2, 6000)).bytes_out == 250_000);
    let before = flow_of(&lab, 3, (2, 6000));
    let (saved, fds) = lab.switch.save().unwrap();
    let SavedBacklog::Bytes(held) = &saved.fabric.flows.flows[0].stream.backlog else {
        panic!("a stream has bytes")
    };
    assert!(!held.is_empty() && data.ends_with(held), "the test is to have some held here");
    lab.switch = Node::restore(saved, fds).unwrap();
    let after = flow_of(&lab, 3, (2, 6000));
    assert_eq!((after.id, after.bytes_out, after.pid), (before.id, before.bytes_out, before.pid));
    assert!(after.age >= before.age);
    let end = guest.packet(Op::Shutdown, 1024, (2, 6000));
    guest.send(&RawHeader { flags: 3, ..end }, &[]);
    let mut got = Vec::new();
    program.read_to_end(&mut got).unwrap();
    assert!(got == data);
    guest.expect(Op::Rst);
}

#[test]
fn records_half_delivered_are_whole_with_the_successor() {
    let mut lab = Lab::new(1);
    let mut raw = RawGuest::join(&lab.path("b.sock"));
    let mut on_host = Listener::of_messages(&lab.path("host"), 6000, 8);
    let mut on_a = Listener::of_messages(&lab.path("a"), 6000, 8);
    // From a guest: a record of which the first packet has come.
    let packet = |raw: &RawGuest, op| RawHeader { kind: 2, ..raw.packet(op, 1024, (2, 6000)) };
    let ask = packet(&raw, Op::Request);
    raw.send(&ask, &[]);
    raw.expect(Op::Response);
    let mut program = on_host.accept();
    let part = packet(&raw, Op::Rw);
    raw.send_data(&part, b"first half, ");
    wait_until("it has come", || flow_of(&lab, 4, (2, 6000)).bytes_out == 12);
    // To a guest: messages that are more than its window.
    let mut sender = connect_messages(&lab.path("host"), 3, 6000);
    let mut reader = on_a.accept();
    let writer = std::thread::spawn(move || {
        (0..60u8).for_each(|n| assert_eq!(sender.write(&[n; 20_000]).unwrap(), 20_000));
    });
    let mut message = vec![0; 20_001];
    for n in 0..60u8 {
        if n % 10 == 3 {
            lab.hand_over();
        }
        assert_eq!(reader.read(&mut message).unwrap(), 20_000);
        assert!(message[..20_000].iter().all(|&byte| byte == n));
    }
    assert_eq!(reader.read(&mut message).unwrap(), 0);
    writer.join().unwrap();
    let rest = packet(&raw, Op::Rw);
    raw.send_data(&RawHeader { flags: 1, ..rest }, b"second half");
    assert_eq!(program.read(&mut message).unwrap(), 23);
    assert_eq!(&message[..23], b"first half, second half");
}

#[test]
fn counters_guests_and_settings_stay() {
    let mut lab = Lab::new(2);
    assert_eq!(connect(&lab.path("host"), 77, 1).unwrap_err(), 19);
    assert_eq!(connect(&lab.path("a"), 5, 1).unwrap_err(), 104);
    drop(RawGuest::join(&lab.path("c.sock")));
    wait_until("it has left", || node_counter(&lab.switch, "disconnected") == 1);
    lab.switch.set_polling(Duration::from_micros(5)).unwrap();
    let quiet = |lab: &Lab| {
        let mut snapshot = lab.switch.snapshot().unwrap();
        for guest in &mut snapshot.guests {
            // A successor signals once, whether it is needed or not.
            guest.counters.retain(|(name, _)| *name != "signals");
        }
        (snapshot.guests, snapshot.counters)
    };
    let before = quiet(&lab);
    lab.hand_over();
    assert_eq!(quiet(&lab), before);
    assert_eq!(lab.switch.snapshot().unwrap().guests[0].state, GuestState::Running);
    // Guests are known by their CIDs, can be changed and removed, and their names and groups are taken.
    lab.switch.set_guest_cid(3, 33).unwrap();
    assert!(lab.switch.explain(33, 4).unwrap().is_allowed);
    assert!(!lab.switch.explain(33, 5).unwrap().is_allowed);
    lab.switch.remove_guest(4).unwrap();
    assert!(!lab.path("b.sock").exists());
    // A front end that comes later is served as ever.
    let mut raw = RawGuest::join(&lab.path("c.sock"));
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    raw.open(1024, (2, 6000));
    let _ = listener.accept();
    assert_eq!(guest_counter(&lab.switch, 5, "accepted"), 1);
}

#[test]
fn packets_of_one_guest_that_wait_for_the_other_are_handed_over() {
    let mut lab = Lab::new(1);
    let mut slow = RawGuest::with_buffers(&lab.path("b.sock"), 4);
    let path = lab.path("a");
    let connecting = std::thread::spawn(move || connect(&path, 4, 5000).unwrap());
    let asked = slow.expect(Op::Request).header;
    let answer = slow.packet(Op::Response, 5000, (3, asked.src_port));
    slow.send(&answer, &[]);
    let program = connecting.join().unwrap();
    let data = pattern(200_000, 3);
    let sender = send(program, data.clone());
    wait_until("much waits", || guest_counter(&lab.switch, 4, "waiting_bytes") > 50_000);
    let mut got = Vec::new();
    while got.len() < data.len() {
        if got.len() % 7 == 0 {
            lab.hand_over();
        }
        let packet = slow.expect(Op::Rw);
        let consumed = u32::try_from(got.len() + packet.payload.len()).unwrap();
        got.extend(packet.payload);
        let news = slow.packet(Op::CreditUpdate, 5000, (3, asked.src_port));
        slow.send(&RawHeader { fwd_cnt: consumed, ..news }, &[]);
    }
    assert!(got == data);
    sender.join().unwrap();
}

#[test]
fn guest_that_has_not_heard_of_its_cid_hears_of_it_from_the_successor() {
    let mut lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    lab.switch.set_guest_cid(3, 33).unwrap();
    lab.hand_over();
    // What it still sends is late, and is not taken for its new self.
    let late = guest.packet(Op::Request, 1024, (2, 6000));
    guest.send(&late, &[]);
    wait_until("it is dropped", || guest_counter(&lab.switch, 33, "late") == 1);
    wait_until("the event", || guest.handle_event());
    assert_eq!(guest.cid(), 33);
    guest.open(1025, (2, 6000));
    assert_eq!(listener.accept_with_addresses().1, [2, 6000, 33, 1025]);
}

#[test]
fn datagram_of_which_a_part_has_come_is_whole_with_the_successor() {
    let mut lab = Lab::new(0);
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let mut ours = connect_datagrams(&lab.path("host"));
    assert_eq!(ask(&mut ours, &request(1, u32::MAX, 7000, 0)).0, 0);
    let packet = RawHeader { kind: 3, ..guest.packet(Op::Rw, 1024, (2, 7000)) };
    guest.send_data(&packet, b"one ");
    wait_until("it has come", || guest_counter(&lab.switch, 3, "packets_in") == 1);
    lab.hand_over();
    guest.send_data(&RawHeader { flags: 1, ..packet }, b"whole");
    let mut got = [0; 64];
    assert_eq!(ours.read(&mut got).unwrap(), 41);
    assert_eq!(&got[32..41], b"one whole");
}

#[test]
fn program_that_left_lingers_on_and_is_given_up_in_time() {
    let mut lab = Lab::new(0);
    lab.switch.set_linger_timeout(Duration::from_millis(300)).unwrap();
    let mut guest = RawGuest::join(&lab.path("a.sock"));
    let path = lab.path("host");
    let connecting = std::thread::spawn(move || connect(&path, 3, 5000).unwrap());
    let asked = guest.expect(Op::Request).header;
    let answer = guest.packet(Op::Response, 5000, (2, asked.src_port));
    guest.send(&answer, &[]);
    let mut program = connecting.join().unwrap();
    // More than its window, and then it leaves.
    program.write_all(&pattern(400_000, 1)).unwrap();
    drop(program);
    lab.hand_over();
    wait_until("it is given up", || {
        while guest.poll().is_some() {}
        node_counter(&lab.switch, "linger_timeouts") == 1
    });
    assert!(lab.switch.snapshot().unwrap().flows.is_empty());
}

#[test]
fn guest_that_loses_its_memory_meanwhile_loses_its_link_and_no_other_does() {
    let mut lab = Lab::new(2);
    let mut on_b = Listener::new(&lab.path("b"), 5000, 8);
    let mut on_a = Listener::new(&lab.path("a"), 5000, 8);
    let mut to_a = connect(&lab.path("host"), 3, 5000).unwrap();
    let to_b = connect(&lab.path("host"), 4, 5000).unwrap();
    let (_kept, from_b) = (on_a.accept(), on_b.accept());
    let (mut saved, fds) = lab.switch.save().unwrap();
    let guest = saved.guests.iter_mut().find(|it| it.cid == 3).unwrap();
    let front_end = guest.control.front_end.as_mut().unwrap();
    // As if the file had been made shorter since.
    front_end.device.memory.as_mut().unwrap()[0].len *= 2;
    lab.switch = Node::restore(saved, fds).unwrap();
    to_a.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(to_a.read(&mut [0; 1]).unwrap(), 0);
    wait_until("it is counted", || node_counter(&lab.switch, "bad_memory") == 1);
    transfer(to_b, from_b, pattern(1_000_000, 6));
}

#[test]
fn guest_whose_kick_cannot_be_listened_to_any_more_loses_its_link_and_no_other_does() {
    let mut lab = Lab::new(2);
    let mut on_b = Listener::new(&lab.path("b"), 5000, 8);
    let mut on_a = Listener::new(&lab.path("a"), 5000, 8);
    let mut to_a = connect(&lab.path("host"), 3, 5000).unwrap();
    let to_b = connect(&lab.path("host"), 4, 5000).unwrap();
    let (_kept, from_b) = (on_a.accept(), on_b.accept());
    let (saved, mut fds) = lab.switch.save().unwrap();
    let links = saved.fabric.links.entries.iter().filter_map(|(_, it)| it.as_ref());
    let link = links.into_iter().find(|it| it.options.cid == 3).unwrap();
    let SavedLink::Device(device) = &link.interface.as_ref().unwrap().link else { panic!() };
    let kick = device.queues[1].as_ref().unwrap().kick;
    // As if it were an epoll descriptor that has got too many others in it since.
    fds[kick.0 as usize] = std::fs::File::open("/dev/null").unwrap().into();
    lab.switch = Node::restore(saved, fds).unwrap();
    to_a.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(to_a.read(&mut [0; 1]).unwrap(), 0);
    wait_until("it is counted", || node_counter(&lab.switch, "socket_error") == 1);
    transfer(to_b, from_b, pattern(1_000_000, 6));
}

#[test]
fn node_that_has_joined_a_device_is_not_saved_and_goes_on() {
    let lab = Lab::new(1);
    let error = lab.guests[0].save().err().unwrap();
    assert!(matches!(error, SaveError::HasJoined));
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    let ours = connect(&lab.path("a"), 2, 6000).unwrap();
    transfer(ours, listener.accept(), pattern(100_000, 2));
}
