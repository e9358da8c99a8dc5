//! Saved state that somebody has tampered with: no node goes on with it, or one that does nothing worse than a hostile guest
//! could make it do. Nothing panics.

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod node_support;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use node_support::raw::RawGuest;
use node_support::{
    DEADLINE, Lab, Listener, ask, connect, connect_datagrams, connect_messages, guest_counter,
    pattern, request, wait_until,
};
use vsock_core::connection::SavedConnection;
use vsock_core::saved::Unfit;
use vsock_core::state::State;
use vsock_core::{CloseReason, Event, Key, Op, Port, RawHeader, Shutdown, SocketType};
use vsock_node::node::{Node, RestoreError};
use vsock_node::saved::{
    Owner, SavedBacklog, SavedEntry, SavedFlow, SavedGreeting, SavedHybrids, SavedInterface,
    SavedLink, SavedNode, SavedState,
};
use vsock_virtio::link::device::{SavedDevice, SavedReset};
use vsock_virtio::saved::SavedFd;
use vsock_virtio::vhost_user::SavedFrontEnd;

/// A switch with something of everything, saved; and all who have to do with it.
struct Saved {
    saved: SavedNode,
    fds: Vec<OwnedFd>,
    _raw: RawGuest,
    _programs: Vec<UnixStream>,
    _listeners: Vec<Listener>,
    _lab: Lab,
}

fn everything() -> Saved {
    let lab = Lab::new(1);
    let (host, a) = (lab.path("host"), lab.path("a"));
    let mut raw = RawGuest::with_buffers(&lab.path("b.sock"), 4);
    let mut programs = Vec::new();
    let mut listeners = vec![
        Listener::new(&host, 6000, 200),
        Listener::of_messages(&host, 6001, 8),
        Listener::new(&a, 6002, 8),
    ];
    // Connections that are kept for a listener, one to a guest, one of the switch to itself, and messages.
    programs.extend((0..70).map(|_| connect(&a, 2, 6000).unwrap()));
    programs.push(connect(&host, 3, 6002).unwrap());
    programs.push(connect(&host, 2, 6000).unwrap());
    programs.push(connect_messages(&a, 2, 6001));
    // Bytes, and a part of a message, that wait for a program.
    for (kind, port, to) in [(1, 1024, 6000), (2, 1025, 6001)] {
        let packet = |raw: &RawGuest, op| RawHeader { kind, ..raw.packet(op, port, (2, to)) };
        let ask = packet(&raw, Op::Request);
        raw.send(&ask, &[]);
        raw.expect(Op::Response);
        let data = packet(&raw, Op::Rw);
        for _ in 0..60 {
            raw.send_data(&data, &[7; 4096]);
        }
    }
    // Packets of one guest that wait for another.
    let connecting = std::thread::spawn(move || connect(&a, 4, 5000).unwrap());
    let asked = raw.expect(Op::Request).header;
    let answer = raw.packet(Op::Response, 5000, (3, asked.src_port));
    raw.send(&answer, &[]);
    let mut between = connecting.join().unwrap();
    between.write_all(&pattern(150_000, 1)).unwrap();
    wait_until("some wait", || guest_counter(&lab.switch, 4, "waiting_bytes") > 10_000);
    programs.push(between);
    // Programs that have asked in part, or wait for an answer; a port for datagrams.
    let mut half = UnixStream::connect(host.join("stream")).unwrap();
    assert_eq!(ask(&mut half, &request(1, u32::MAX, 0, 0)).0, 0);
    half.write_all(&[1; 20]).unwrap();
    let mut asking = UnixStream::connect(host.join("stream")).unwrap();
    asking.write_all(&request(2, 4, 5001, 0)).unwrap();
    let mut hybrid = UnixStream::connect(lab.path("a.vsock")).unwrap();
    hybrid.write_all(b"CONN").unwrap();
    let mut datagrams = connect_datagrams(&host);
    assert_eq!(ask(&mut datagrams, &request(1, u32::MAX, 7000, 0)).0, 0);
    // How a connection ended.
    drop(connect(&host, 3, 6002).unwrap());
    listeners.truncate(3);
    programs.extend([half, asking, hybrid, datagrams]);
    let infos = || lab.switch.snapshot().unwrap().flows;
    wait_until("the attempt is under way", || infos().iter().any(|it| it.state == "connecting"));
    let (saved, fds) = lab.switch.save().unwrap();
    Saved { saved, fds, _raw: raw, _programs: programs, _listeners: listeners, _lab: lab }
}

impl Saved {
    /// A node made of this after `spoil` has changed it; given away again at once, so that nobody hears of it.
    fn spoiled(&self, spoil: impl FnOnce(&mut SavedNode)) -> Result<(), RestoreError> {
        let mut saved = self.saved.clone();
        spoil(&mut saved);
        let fds = self.fds.iter().map(|fd| fd.try_clone().unwrap()).collect();
        let node = Node::restore(saved, fds)?;
        for _ in 0..3 {
            node.snapshot().expect("its worker runs");
        }
        node.save().expect("it can be given away again");
        for record in node.events() {
            let text = record.event.to_string();
            assert!(!text.contains("internal error"), "{text}");
        }
        Ok(())
    }

    fn refused(&self, spoil: impl FnOnce(&mut SavedNode)) -> Option<Unfit> {
        match self.spoiled(spoil) {
            Ok(()) => None,
            Err(RestoreError::Unfit(unfit)) => Some(unfit),
            Err(error) => panic!("{error}"),
        }
    }
}

/// The link of a guest.
fn entry(saved: &mut SavedNode, cid: u32) -> &mut SavedEntry {
    let entries = saved.fabric.links.entries.iter_mut().filter_map(|(_, entry)| entry.as_mut());
    entries.into_iter().find(|it| it.options.cid == cid).unwrap()
}

fn interface(saved: &mut SavedNode, cid: u32) -> &mut SavedInterface {
    entry(saved, cid).interface.as_mut().unwrap()
}

fn device(saved: &mut SavedNode, cid: u32) -> &mut SavedDevice {
    let SavedLink::Device(device) = &mut interface(saved, cid).link else { panic!() };
    device
}

fn front_end(saved: &mut SavedNode, cid: u32) -> &mut SavedFrontEnd {
    let guest = saved.guests.iter_mut().find(|it| it.cid == cid).unwrap();
    guest.control.front_end.as_mut().unwrap()
}

fn connection(saved: &mut SavedNode, cid: u32) -> &mut SavedConnection {
    let slots = &mut interface(saved, cid).endpoint.connections;
    slots.iter_mut().find_map(|(_, it)| it.as_mut()).unwrap()
}

/// A flow of messages that is open.
fn messages(saved: &mut SavedNode) -> &mut SavedFlow {
    let is_it = |it: &&mut SavedFlow| {
        it.parties.kind == SocketType::SeqPacket && it.parties.theirs.cid.0 == 4
    };
    saved.fabric.flows.flows.iter_mut().find(is_it).unwrap()
}

/// A flow of bytes of which some wait.
fn bytes(saved: &mut SavedNode) -> &mut SavedFlow {
    let has_some = |it: &&mut SavedFlow| match &it.stream.backlog {
        SavedBacklog::Bytes(bytes) => !bytes.is_empty(),
        SavedBacklog::Messages { .. } => false,
    };
    saved.fabric.flows.flows.iter_mut().find(has_some).unwrap()
}

/// A key that nothing has, and that a table must not grow for.
fn nowhere<T>() -> Key<T> {
    Key::from_bits(u64::from(u32::MAX)).unwrap()
}

#[test]
fn node_that_cannot_be_is_not_restored() {
    let it = everything();
    assert_eq!(it.refused(|_| {}), None);
    let state = Some(Unfit::State);
    assert_eq!(it.refused(|it| it.fabric.now.0 = u64::MAX), state);
    assert_eq!(it.refused(|it| it.fabric.sources.push((1, Some(Owner::Flow)))), None, "nobody's");
    assert_eq!(it.refused(|it| it.fabric.sources.clear()), state);
    assert_eq!(it.refused(|it| it.fabric.links.loopback = nowhere()), state);
    assert_eq!(it.refused(|it| entry(it, 3).sources = [None; 3]), state);
    assert_eq!(it.refused(|it| entry(it, 3).sources.swap(0, 1)), None, "both are rings");
    assert_eq!(it.refused(|it| it.fabric.links.detach_reasons.push(("x".into(), 1))), state);
    assert_eq!(it.refused(|it| front_end(it, 3).device.rings[0].running = false), state);
    assert_eq!(it.refused(|it| messages(it).link = nowhere()), state);
    assert_eq!(it.refused(|it| messages(it).connection = nowhere()), state);
    assert_eq!(it.refused(|it| messages(it).id = nowhere()), state);
    assert_eq!(it.refused(|it| messages(it).parties.kind = SocketType::Stream), state);
    assert_eq!(it.refused(|it| messages(it).stream.discarding = true), state);
    let twice = |it: &mut SavedNode| {
        let flow = messages(it).clone();
        it.fabric.flows.flows.push(flow);
    };
    assert_eq!(it.refused(twice), Some(Unfit::Descriptor));
    let programs = |spoil: &dyn Fn(&mut vsock_node::saved::SavedPrograms)| {
        it.refused(|it| spoil(&mut it.fabric.programs))
    };
    assert_eq!(programs(&|it| it.hybrids.sockets[0].link = nowhere()), state);
    assert_eq!(programs(&|it| it.hybrids.sockets[0].acceptor = nowhere()), state);
    let descriptor = Some(Unfit::Descriptor);
    assert_eq!(programs(&|it| it.hybrids.sockets[0].directory = SavedFd(9999)), descriptor);
    let no_directory = |it: &mut vsock_node::saved::SavedPrograms| {
        let SavedHybrids { sockets, clients, .. } = &mut it.hybrids;
        std::mem::swap(&mut sockets[0].directory, &mut clients[0].fd);
    };
    assert_eq!(programs(&no_directory), descriptor);
    assert_eq!(programs(&|it| it.hybrids.clients[0].link = nowhere()), state);
    assert_eq!(programs(&|it| it.hybrids.sockets.swap(0, 1)), None);
    assert_eq!(programs(&|it| it.hybrids.clients[0].handshake.clear()), state);
    assert_eq!(programs(&|it| it.datagrams.sockets[0].client = nowhere()), state);
    assert_eq!(programs(&|it| it.datagrams.sockets.clear()), state);
    let address = Some(Unfit::Address);
    assert_eq!(it.refused(|it| it.guests[0].cid = 9), address);
    assert_eq!(it.refused(|it| entry(it, 3).options.cid = 2), address);
    assert_eq!(it.refused(|it| it.fabric.links.local.0 = 7), address);
    assert_eq!(it.refused(|it| messages(it).parties.ours.port = Port(1)), address);
    assert_eq!(
        programs(&|it| it.listeners.listeners[0].1.client.bound.as_mut().unwrap().id = nowhere()),
        address
    );
    assert_eq!(programs(&|it| it.listeners.ports.bound.clear()), address);
    assert_eq!(programs(&|it| it.datagrams.ports.local.0 = 7), address);
    let holder = |it: &mut SavedNode| {
        let other = it.fabric.programs.listeners.listeners[0].1.client.bound;
        it.fabric.programs.listeners.listeners[1].1.client.bound = other;
    };
    assert_eq!(it.refused(holder), address);
    let fd = Some(Unfit::Descriptor);
    assert_eq!(it.refused(|it| it.guests.clear()), state);
    assert_eq!(it.refused(|it| messages(it).stream.fd = SavedFd(0)), fd);
    assert_eq!(it.refused(|it| front_end(it, 4).device.memory = None), state);
    assert_eq!(it.refused(|it| bytes(it).share = 1 << 40), Some(Unfit::TooMany));
    let more = |it: &mut SavedNode| {
        let SavedBacklog::Bytes(bytes) = &mut bytes(it).stream.backlog else { panic!() };
        bytes.resize(bytes.len() + 300_000, 0);
    };
    assert_eq!(it.refused(more), Some(Unfit::Credit));
    let queue = Some(Unfit::Queue);
    assert_eq!(it.refused(|it| interface(it, 4).store[0].packets[0].sent = 1 << 20), queue);
    assert_eq!(it.refused(|it| interface(it, 4).ready.push(nowhere())), queue);
    assert_eq!(it.refused(|it| interface(it, 4).datagram.bytes.push(1)), queue);
}

/// Changes of one number each, to whatever number.
const SPOILERS: &[fn(&mut SavedNode, u64)] = &[
    |it, n| it.fabric.now.0 = n,
    |it, n| it.polling = Duration::from_nanos(n),
    |it, n| it.fabric.refusals[0].1 = n,
    |it, n| it.fabric.links.detach_reasons = vec![("stopped".into(), n)],
    |it, n| entry(it, 3).faults = n,
    |it, n| entry(it, 3).driver_starts = n,
    |it, n| entry(it, 3).features = n,
    |it, n| entry(it, 3).receives_for = Duration::from_secs(n),
    |it, n| interface(it, 3).traffic.packets_in = n,
    |it, n| interface(it, 4).traffic.bytes_out = n,
    |it, n| interface(it, 3).drops.spoofed = n,
    |it, n| interface(it, 3).endpoint.stats.packets_in = n,
    |it, n| interface(it, 4).store[0].left = n.cast_signed(),
    |it, n| interface(it, 4).store[0].packets[0].header.len = low(n),
    |it, n| interface(it, 4).store[0].packets[0].header.dst_cid = n,
    |it, n| interface(it, 4).store[0].packets[0].sent = usize::try_from(n).unwrap(),
    |it, n| connection(it, 3).due = low(n).to_le_bytes()[0],
    |it, n| connection(it, 3).bytes[0] = n,
    |it, n| connection(it, 3).inbound.received = low(n),
    |it, n| connection(it, 3).inbound.consumed = low(n),
    |it, n| connection(it, 3).inbound.buf_alloc = low(n),
    |it, n| connection(it, 3).inbound.unread_packets = low(n),
    |it, n| connection(it, 3).inbound.packets_untold = low(n),
    |it, n| connection(it, 3).outbound.theirs = low(n),
    |it, n| connection(it, 3).outbound.flight.sent = low(n),
    |it, n| connection(it, 3).age = Duration::from_secs(n),
    |it, n| connection(it, 3).patience = Duration::from_secs(n),
    |it, n| connection(it, 3).deadline = Some(Duration::from_secs(n)),
    |it, n| connection(it, 3).timeout = Duration::from_secs(n),
    |it, _| connection(it, 3).state = State::Offered { theirs: Shutdown::NONE },
    |it, n| {
        connection(it, 4).state = State::Closing { theirs: Shutdown::SEND };
        connection(it, 4).deadline = Some(Duration::from_millis(n % 20));
    },
    |it, n| {
        let id = Key::from_bits(n & 0x7f).unwrap();
        let (reason, flags) = (CloseReason::Reset, Shutdown::BOTH);
        let events = &mut interface(it, 3).endpoint.events;
        events.extend([Event::Connected { id }, Event::TheirsShutDown { id, flags }]);
        events.extend([Event::Writable { id }, Event::Closed { id, reason }]);
    },
    |it, n| device(it, 3).bases[0] = low(n).to_le_bytes()[0].into(),
    |it, n| device(it, 3).reset = SavedReset::Sent(half(n)),
    |it, n| device(it, 3).stats.signals = n,
    |it, n| device(it, 4).queues[0].as_mut().unwrap().queue.config.base = half(n),
    |it, n| {
        let queue = &mut device(it, 4).queues[1].as_mut().unwrap().queue;
        (queue.config.base, queue.published) = (half(n), half(n));
    },
    |it, n| device(it, 4).queues[1].as_mut().unwrap().queue.config.desc = n,
    |it, n| front_end(it, 4).device.features = n,
    |it, n| front_end(it, 4).device.memory.as_mut().unwrap()[0].len = n,
    |it, n| front_end(it, 4).device.memory.as_mut().unwrap()[0].offset = n,
    |it, n| front_end(it, 4).device.memory.as_mut().unwrap()[0].guest = n,
    |it, n| front_end(it, 4).device.memory_due = Some(Duration::from_secs(n)),
    |it, n| front_end(it, 4).device.rings[1].parts = Some([n; 3]),
    |it, n| front_end(it, 4).bytes = n.to_le_bytes().to_vec(),
    |it, n| messages(it).stream.fd = SavedFd(low(n)),
    |it, n| messages(it).share = n,
    |it, n| messages(it).held = low(n),
    |it, n| messages(it).id = Key::from_bits(n >> 1).unwrap(),
    |it, n| messages(it).link = Key::from_bits(n >> 1).unwrap(),
    |it, n| messages(it).connection = Key::from_bits(n >> 1).unwrap(),
    |it, n| messages(it).state = SavedState::Connecting(SavedGreeting::Held(low(n) as usize)),
    |it, _| messages(it).state = SavedState::Draining(CloseReason::Reset),
    |it, n| {
        let SavedBacklog::Messages { partial, .. } = &mut messages(it).stream.backlog else {
            panic!()
        };
        partial.packets = low(n);
    },
    |it, n| it.fabric.flows.linger_timeout = Duration::from_secs(n),
    |it, n| it.fabric.flows.buffers_cut = n,
    |it, n| it.fabric.relay.stats.packets = n,
    |it, n| it.fabric.relay.ready.push(vsock_core::Cid(low(n))),
    |it, n| it.fabric.programs.requests.bad = n,
    |it, n| it.fabric.programs.datagrams.sockets[0].received = n,
    |it, n| it.fabric.programs.listeners.ports.next_ephemeral = low(n),
    |it, n| {
        it.fabric.programs.listeners.listeners[0].1.queue.untaken =
            vec![vsock_core::Cid(low(n)); usize::try_from(n % 100).unwrap()]
    },
    |it, n| it.fabric.programs.listeners.listeners[0].1.buffer = low(n),
    |it, n| it.fabric.programs.listeners.listeners[0].1.client.fd = SavedFd(low(n)),
];

fn low(n: u64) -> u32 {
    u32::try_from(n & u64::from(u32::MAX)).unwrap()
}

fn half(n: u64) -> u16 {
    u16::try_from(n & u64::from(u16::MAX)).unwrap()
}

#[test]
fn any_number_anywhere_is_refused_or_harmless() {
    let it = everything();
    let mut state = 0x0076_736f_636b_u64;
    for (place, spoil) in SPOILERS.iter().enumerate() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        for n in [0, 1, 3, 44, u64::from(u16::MAX), 1 << 31, u64::from(u32::MAX), u64::MAX, state] {
            let restored = it.spoiled(|it| spoil(it, n));
            assert!(matches!(restored, Ok(()) | Err(RestoreError::Unfit(_))), "{place}: {n}");
        }
    }
    assert_eq!(it.refused(|_| {}), None, "what was saved can still be used");
}

/// While a helper connects to the program that listens beside a hybrid socket, nothing but the connection tells of it.
#[test]
fn connection_that_waited_for_a_hybrid_socket_is_offered_again() {
    let mut lab = Lab::new(0);
    let mut raw = RawGuest::join(&lab.path("a.sock"));
    let mut listener = Listener::new(&lab.path("host"), 6000, 8);
    raw.open(1024, (2, 6000));
    let _program = listener.accept();
    let hybrid = UnixListener::bind(lab.path("a.vsock_6100")).unwrap();
    let (mut saved, fds) = lab.switch.save().unwrap();
    let mut asked = connection(&mut saved, 3).clone();
    (asked.key.ours.port, asked.key.theirs.port) = (Port(6100), Port(1025));
    asked.state = State::Offered { theirs: Shutdown::NONE };
    asked.deadline = Some(DEADLINE);
    interface(&mut saved, 3).endpoint.connections.push((1, Some(asked)));
    lab.switch = Node::restore(saved, fds).unwrap();
    let answer = raw.expect(Op::Response).header;
    assert_eq!((answer.src_port, answer.dst_port), (6100, 1025));
    let (mut program, _) = hybrid.accept().unwrap();
    program.write_all(b"hello").unwrap();
    assert_eq!(raw.expect(Op::Rw).payload, b"hello");
}
