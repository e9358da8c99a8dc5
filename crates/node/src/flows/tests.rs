//! Flows on a pair of Unix sockets, without threads, and with a clock that is turned by hand.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{SendFlags, send};
use vsock_core::{Cid, Endpoint, FlowKey, Limits, Port, Shutdown, SocketType};

use super::*;
use crate::host::handshake::HYBRID;
use crate::host::program::Socket;
use crate::host::socket::{ProgramSocket, Sockets};
use crate::journal::Journal;
use crate::links::{Buffers, End, Sends};
use crate::options::NodeOptions;
use crate::reactor::{Claims, Sources};
use crate::saved::Restoring;
use vsock_guest_memory::sealed_memory;
use vsock_guest_memory::slice::{Slices, copy_in};
use vsock_sandbox::{Profile, Sandbox};
use vsock_virtio::link::loopback::LoopbackLink;
use vsock_virtio::saved::{Fds, SavedFds};
use vsock_virtio::starter::Starter;
use vsock_virtio::sys::PeerCredentials;

const NOW: Instant = Instant(1);
const TIMEOUT: Duration = Duration::from_secs(600);

fn key() -> FlowKey {
    let at = |cid, port| Address { cid, port: Port(port) };
    FlowKey { ours: at(Cid::HOST, 1024), theirs: at(Cid(3), 22) }
}

fn parts() -> (Parties, Holdings) {
    let peer = PeerCredentials { pid: 7, uid: 0, gid: 0 };
    let socket = Socket { uid: 0, cookie: 0 };
    let share = Budget::default().share(&Buffers::default());
    let holdings = Holdings { binding: None, socket, share };
    (Parties::outgoing(key(), SocketType::Stream, peer), holdings)
}

fn ids() -> (LinkId, ConnectionId) {
    let mut endpoint = Endpoint::new(Limits::default(), 1);
    let connection = endpoint.connect(NOW, key(), SocketType::Stream, None).unwrap();
    (LinkId::from_bits(0).unwrap(), connection)
}

fn adopt(fd: impl Into<OwnedFd>) -> ProgramSocket {
    Sockets::alone().adopt(fd.into())
}

/// A flow that is open, and its program.
fn open() -> (Flow, UnixStream) {
    let (ours, program) = UnixStream::pair().unwrap();
    let (parties, holdings) = parts();
    (Flow::open(ids(), parties, holdings, adopt(ours)), program)
}

/// Payload of one packet.
struct Packet(Slices);

impl Packet {
    fn new(bytes: &[u8]) -> Self {
        let (_, memory) = sealed_memory("packet", 0x1000, 0x10_0000).unwrap();
        let mut slices = Slices::new();
        memory.slice(0x1000, u32::try_from(bytes.len()).unwrap(), &mut slices).unwrap();
        copy_in(&slices, bytes);
        Self(slices)
    }

    fn payload(&self) -> Payload<'_> {
        Payload { pieces: &self.0, packets: 1, end: End::None }
    }
}

fn nothing_new() -> Readiness {
    Readiness {
        source: SourceId::from_bits(0).unwrap(),
        readable: false,
        writable: false,
        urgent: false,
        read_closed: false,
        hung_up: false,
    }
}

fn readable() -> Readiness {
    Readiness { readable: true, ..nothing_new() }
}

fn hung_up() -> Readiness {
    Readiness { writable: true, read_closed: true, hung_up: true, ..readable() }
}

/// More than a Unix socket holds.
fn much() -> Vec<u8> {
    vec![7; 900_000]
}

#[test]
fn shut_rd_while_the_socket_is_full_is_told_once_and_frees_what_waits() {
    let (mut flow, program) = open();
    let taken = flow.deliver(Packet::new(&much()).payload()).unwrap().bytes;
    program.shutdown(std::net::Shutdown::Read).unwrap();
    let update = flow.on_ready(nothing_new());
    assert!(update.stops_receiving && taken + update.bytes == 900_000);
    let update = flow.deliver(Packet::new(b"more").payload()).unwrap();
    assert_eq!((update.stops_receiving, update.bytes), (false, 4));
}

#[test]
fn program_that_closed_behind_data_has_not_only_stopped_receiving() {
    let (mut flow, mut program) = open();
    program.write_all(b"last words").unwrap();
    flow.on_ready(readable());
    drop(program);
    assert_eq!(flow.stalled(), Update::default());
    assert_eq!(flow.on_ready(hung_up()).sends, Sends::More);
}

#[test]
fn half_closed_program_ends_its_data_and_still_receives() {
    let (mut flow, mut program) = open();
    program.shutdown(std::net::Shutdown::Write).unwrap();
    let half_closed = Readiness { read_closed: true, ..readable() };
    assert_eq!(flow.on_ready(half_closed).sends, Sends::More);
    let room = Packet::new(&[0; 64]);
    assert_eq!(flow.fill(&room.0).unwrap().update.sends, Sends::Ended);
    assert!(!flow.is_over() && flow.is_sent());
    flow.deliver(Packet::new(b"answer").payload()).unwrap();
    program.read_exact(&mut [0; 6]).unwrap();
    drop(program);
    assert_eq!(flow.on_ready(hung_up()).sends, Sends::Closed);
    assert!(flow.is_over());
}

#[test]
fn program_that_wrote_and_closed_is_read_to_the_end_first() {
    let (mut flow, mut program) = open();
    program.write_all(b"last words").unwrap();
    drop(program);
    assert_eq!(flow.on_ready(hung_up()).sends, Sends::More);
    let room = Packet::new(&[0; 64]);
    let filled = flow.fill(&room.0).unwrap();
    assert_eq!((filled.bytes, filled.update.sends), (10, Sends::More));
    assert_eq!(flow.fill(&room.0).unwrap().update.sends, Sends::Closed);
}

#[test]
fn end_of_the_other_sides_data_is_told_behind_the_backlog() {
    let (mut flow, mut program) = open();
    flow.deliver(Packet::new(&much()).payload()).unwrap();
    flow.their_shutdown(Shutdown::SEND);
    let mut got = 0;
    let mut scratch = vec![0; 65536];
    loop {
        match program.read(&mut scratch).unwrap() {
            0 => break,
            n => got += n,
        }
        flow.on_ready(Readiness { writable: true, ..nothing_new() });
    }
    assert_eq!(got, 900_000);
}

#[test]
fn flow_whose_connection_is_over_lasts_until_its_program_has_the_rest() {
    let (mut flow, mut program) = open();
    flow.deliver(Packet::new(&much()).payload()).unwrap();
    flow.closed(CloseReason::Reset);
    assert!(matches!(flow.state, State::Draining(CloseReason::Reset)));
    let (mut got, mut scratch) = (0, vec![0; 65536]);
    while !flow.is_over() {
        got += program.read(&mut scratch).unwrap();
        flow.on_ready(Readiness { writable: true, ..nothing_new() });
    }
    drop(flow.finish());
    program.read_to_end(&mut scratch).unwrap();
    assert_eq!(got + scratch.len() - 65536, 900_000);
}

#[test]
fn connection_that_is_over_after_the_other_sides_end_has_ended_well() {
    let (mut flow, _program) = open();
    flow.their_shutdown(Shutdown::SEND);
    flow.closed(CloseReason::LinkGone);
    assert!(matches!(flow.state, State::Over(CloseReason::Done)));
}

#[test]
fn last_words_of_a_program_that_nobody_takes_are_taken_out_at_the_end() {
    let (ours, mut program) = UnixStream::pair().unwrap();
    let mut same = ours.try_clone().unwrap();
    let (parties, holdings) = parts();
    let mut flow = Flow::open(ids(), parties, holdings, adopt(ours));
    program.write_all(b"never read").unwrap();
    flow.their_shutdown(Shutdown::BOTH);
    // Both halves are shut, by ourselves.
    flow.on_ready(hung_up());
    flow.closed(CloseReason::Reset);
    drop(flow.finish());
    assert_eq!(same.read(&mut [0; 64]).unwrap(), 0);
}

#[test]
fn program_that_hangs_up_while_it_connects_is_given_up() {
    let (ours, program) = UnixStream::pair().unwrap();
    let (parties, holdings) = parts();
    let mut flow = Flow::connecting(ids(), parties, holdings, adopt(ours), Greeting::Reply);
    assert_eq!(flow.on_ready(nothing_new()), Update::default());
    drop(program);
    assert_eq!(flow.on_ready(hung_up()).sends, Sends::Failed);
    assert!(flow.is_over());
}

#[test]
fn hybrid_program_that_has_spoken_and_left_is_connected_all_the_same() {
    let (ours, mut program) = UnixStream::pair().unwrap();
    let (parties, holdings) = parts();
    let mut flow =
        Flow::connecting(ids(), parties, holdings, adopt(ours), Greeting::Handshake(&HYBRID));
    program.write_all(b"all of it").unwrap();
    drop(program);
    assert_eq!(flow.on_ready(hung_up()), Update::default());
    assert_eq!(flow.connected(1, 0).sends, Sends::More);
    assert_eq!(flow.fill(&Packet::new(&[0; 64]).0).unwrap().bytes, 9);
}

/// Flows of a node with nothing but a link to itself.
struct Lab {
    cx: Context,
    links: Links,
    flows: Flows,
}

impl Lab {
    fn new() -> Self {
        let starter = Starter::new(Sandbox::default(), Profile::Helper, "starter").unwrap();
        let sources = Sources::new().unwrap();
        let sockets = Sockets::new(sources.reaper(starter.clone()), NodeOptions::default());
        let cx = Context::new(sources, sockets, Journal::new().unwrap(), starter);
        let links = Links::new(Cid::HOST, LoopbackLink::new().unwrap(), 1);
        Self { cx, links, flows: Flows::new() }
    }

    /// A flow over the link, whose connection nobody answers, and its program.
    fn open(&mut self) -> (FlowId, UnixStream) {
        let (ours, program) = UnixStream::pair().unwrap();
        let ours = OwnedFd::from(ours);
        let id = self.cx.sources.add(&ours, Owner::Flow).unwrap();
        let link = self.links.routes.loopback();
        let endpoint = self.links.interface(link).unwrap().endpoint_mut();
        let connection = endpoint.connect(NOW, key(), SocketType::Stream, None).unwrap();
        let (parties, holdings) = parts();
        self.flows.begin(id, Flow::open((link, connection), parties, holdings, adopt(ours)));
        (id, program)
    }

    fn on_ready(&mut self, source: FlowId, ready: Readiness) {
        self.flows.on_ready(&mut self.cx, &mut self.links, Readiness { source, ..ready });
    }

    /// The timers that are to be set after a round.
    fn timers(&mut self) -> Vec<(FlowId, Instant)> {
        let mut timers = Vec::new();
        let now = self.cx.now;
        self.flows.watch_left(now, &self.links, |id, at| timers.push((id, at)));
        timers
    }
}

#[test]
fn program_that_left_something_behind_is_given_up_after_the_timeout_and_aloud() {
    let mut lab = Lab::new();
    let (id, program) = lab.open();
    send(&program, b"unsent", SendFlags::empty()).unwrap();
    drop(program);
    lab.cx.now = NOW;
    lab.on_ready(id, hung_up());
    assert_eq!(lab.timers(), [(id, NOW + TIMEOUT)]);
    lab.on_ready(id, hung_up());
    assert_eq!(lab.timers(), [], "watched once");
    lab.cx.now = NOW + TIMEOUT;
    assert_eq!(lab.flows.look_at_linger(&mut lab.cx, &mut lab.links, id), None);
    assert!(matches!(lab.flows.next_outcome(), Some(Outcome::Ended(ended, ..)) if ended == id));
    assert_eq!(lab.flows.counters()[1], ("linger_timeouts", 1));
    assert!(lab.cx.journal.take()[0].to_string().contains("is not taken"));
}

#[test]
fn attempt_that_comes_to_nothing_gives_its_program_back() {
    let mut lab = Lab::new();
    let (ours, _program) = UnixStream::pair().unwrap();
    let id = lab.cx.sources.add(&ours, Owner::Flow).unwrap();
    let link = lab.links.routes.loopback();
    let endpoint = lab.links.interface(link).unwrap().endpoint_mut();
    let connection = endpoint.connect(NOW, key(), SocketType::Stream, None).unwrap();
    let (parties, holdings) = parts();
    let at = (link, connection);
    let flow = Flow::connecting(at, parties, holdings, adopt(ours), Greeting::Reply);
    lab.flows.begin(id, flow);
    let mut interface = lab.links.take(link).unwrap();
    let event = Event::Closed { id: connection, reason: CloseReason::Refused };
    lab.flows.on_event(&mut lab.cx, link, &mut interface, event);
    let Some(Outcome::NotConnected(who, attempt)) = lab.flows.next_outcome() else { panic!() };
    assert_eq!((who, attempt.reason), (id, CloseReason::Refused));
    assert_eq!(lab.flows.iter().count(), 0);
}

impl Lab {
    /// Other flows go on where these were.
    fn hand_over(&mut self) {
        let mut list = SavedFds::new();
        let saved = self.flows.save(self.cx.now, &mut list);
        let fds = Fds::new(list.duplicate().unwrap());
        let sources = Claims::new(Sources::new().unwrap(), self.cx.sources.save()).unwrap();
        let sockets = self.cx.sockets.clone();
        let mut restoring = Restoring { fds, sources, now: self.cx.now, sockets };
        self.flows = Flows::restore(saved, &self.links, &mut restoring).unwrap();
        restoring.fds.finish().unwrap();
        self.cx.sources = restoring.sources.finish();
    }
}

#[test]
fn flow_that_drains_does_so_after_a_hand_over_and_its_program_sees_one_end() {
    let mut lab = Lab::new();
    let (id, mut program) = lab.open();
    let flow = lab.flows.get_mut(id).unwrap();
    flow.deliver(Packet::new(&much()).payload()).unwrap();
    flow.closed(CloseReason::Reset);
    let (mut got, mut scratch) = (0, vec![0; 65536]);
    let outcome = loop {
        lab.hand_over();
        got += program.read(&mut scratch).unwrap();
        lab.on_ready(id, Readiness { writable: true, ..nothing_new() });
        if let Some(outcome) = lab.flows.next_outcome() {
            break outcome;
        }
    };
    scratch.clear();
    got += program.read_to_end(&mut scratch).unwrap();
    assert_eq!(got, 900_000);
    let Outcome::Ended(ended, _, how) = outcome else { panic!() };
    assert_eq!((ended, how.reason), (id, CloseReason::Reset));
}

#[test]
fn program_that_reads_no_more_is_known_to_do_so_after_a_hand_over() {
    let mut lab = Lab::new();
    let (id, _program) = lab.open();
    assert!(lab.flows.get_mut(id).unwrap().stop_receiving().stops_receiving);
    lab.hand_over();
    let flow = lab.flows.get_mut(id).unwrap();
    let update = flow.deliver(Packet::new(b"unwanted").payload()).unwrap();
    assert_eq!((update.bytes, update.stops_receiving), (8, false), "told once");
}

#[test]
fn buffers_that_were_given_away_are_so_after_a_hand_over() {
    let mut lab = Lab::new();
    let (id, _program) = lab.open();
    let link = lab.links.routes.loopback();
    let endpoint = lab.links.interface(link).unwrap().endpoint_mut();
    lab.flows.set_buffer_of(id, endpoint, 1 << 20);
    let share = |lab: &mut Lab| lab.flows.get_mut(id).unwrap().holdings.share.bytes();
    let before = share(&mut lab);
    lab.hand_over();
    assert_eq!((share(&mut lab), before), (before, (1 << 20) - 262_144));
}
